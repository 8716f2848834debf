"""Loads a student whose weights processes share, as a fit does, and writes how much memory of its own each took.

`memory_processes.py STUDENT OUTPUT PROCESSES [PART]`, a part that is drawn anew; test_sharding.py reads it.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.model.sharding import ShardedStrategy, gather_state
from lightning_modules.student.start import StudentStart, change_start
from lightning_modules.student.student import DistillationModule


def read_own() -> int:
    """Returns the bytes that this process shares with none: its files' pages are the node's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


class Module(L.LightningModule):
    """Loads the student where Lightning lets a fit load it."""

    def __init__(self, student: str, start: StudentStart):
        super().__init__()
        self.student, self.peak = DistillationModule(student, start=start), 0
        self.held: list[tuple[float, int]] = []

    def configure_model(self) -> None:
        """Watches while it loads."""
        self.student._trainer, self.student._is_sharded = self.trainer, True
        before, done = read_own(), threading.Event()

        def watch() -> None:
            while not done.is_set():
                self.held.append((time.time(), read_own() - before))
                self.peak = max(self.peak, self.held[-1][1])
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.student.configure_model()
        done.set()
        watcher.join()
        self.left = read_own() - before

    def predict_step(self, batch: object, batch_idx: int) -> None:
        """Does nothing."""


def is_changed_alike(module: DistillationModule) -> bool:
    """Says whether the weights that the processes share are those of one process; all of them ask."""
    shared = gather_state(module.model, False)
    if not shared:
        return True
    alone = load_causal_lm(module.student)
    change_start(alone, module.start, module.student)
    weights = alone.state_dict()
    return weights.keys() == shared.keys() and all(shared[name].equal(weight) for name, weight in weights.items())


def main(student: str, output: Path, devices: int, part: Any = None) -> None:
    """Loads it in so many processes."""
    trainer = L.Trainer(
        accelerator="cpu", strategy=ShardedStrategy(), devices=devices, logger=False, enable_progress_bar=False
    )
    module = Module(student, StudentStart(reset=part, permuted_units=part is not None, seed=3 if part else 0))
    trainer.predict(module, DataLoader([0]), return_predictions=False)
    dtypes = sorted({str(parameter.dtype) for parameter in module.student.model.parameters()})
    result = {"peak": module.peak, "left": module.left, "dtypes": dtypes, "held": module.held}
    if part is not None:
        result["alike"] = is_changed_alike(module.student)
    (output / f"{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])

"""Loads a student whose weights processes share, as a fit does, and writes how much memory of its own each took.

`memory_processes.py STUDENT OUTPUT PROCESSES`; test_sharding.py reads it.
"""

import json
import sys
import threading
import time
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from lightning_modules.model.sharding import ShardedStrategy
from lightning_modules.student.student import DistillationModule


def read_own() -> int:
    """Returns the bytes that this process shares with none: its files' pages are the node's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


class Module(L.LightningModule):
    """Loads the student where Lightning lets a fit load it."""

    def __init__(self, student: str):
        super().__init__()
        self.student, self.peak = DistillationModule(student), 0

    def configure_model(self) -> None:
        """Watches while it loads."""
        self.student._trainer, self.student._is_sharded = self.trainer, True
        before, done = read_own(), threading.Event()

        def watch() -> None:
            while not done.is_set():
                self.peak = max(self.peak, read_own() - before)
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.student.configure_model()
        done.set()
        watcher.join()
        self.left = read_own() - before

    def predict_step(self, batch: object, batch_idx: int) -> None:
        """Does nothing."""


def main(student: str, output: Path, devices: int) -> None:
    """Loads it in so many processes."""
    trainer = L.Trainer(
        accelerator="cpu", strategy=ShardedStrategy(), devices=devices, logger=False, enable_progress_bar=False
    )
    module = Module(student)
    trainer.predict(module, DataLoader([0]), return_predictions=False)
    dtypes = sorted({str(parameter.dtype) for parameter in module.student.model.parameters()})
    result = {"peak": module.peak, "left": module.left, "dtypes": dtypes}
    (output / f"{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

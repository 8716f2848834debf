"""What a cluster asks of a fit: cheap checkpoints, and a quick end when the scheduler says so.

    checkpoint_overhead   seconds of one save (median), against those of one optimizer step
    preempt_latency_s     seconds from USR1 until the process has left with everything saved (median), against those of
                          one step and one save, which it must at least take

    scaling_efficiency_2  tokens/s of two processes of one thread each, against twice those of one (weak scaling: as
                          many tokens for each process)

All train the student that `--model` names on the microworld's labels, and take turns. They wait for the disk and for
one another, so that the processor's time would not tell: only the wall's is measured.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L

from datamodules.batches.packing import TrainingBatches
from datamodules.distillation import DistillationDataModule
from datamodules.examples.source import ExampleEncoding
from lightning_modules.run.checkpoints import LAST, RngState, RotatingCheckpointIO
from lightning_modules.run.stop_signal import EXIT_STOPPED
from lightning_modules.student.student import DistillationModule
from scripts.benchmarks.data import QUIET
from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Measurement, run_apart
from studies.inputs.cache_runs import MICROWORLD

ROOT = Path(__file__).parents[2]
DATA: dict[str, Any] = {"questions": "microworld:train:64:0", "supervision": "label", "prompt": "plain"}


# A fit's first steps fill caches.
FIT_WARM_UP = 5


class SaveClock(L.Callback):
    """Times optimizer steps, and a save after each.

    Args:
        checkpoint: Where to.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.steps: list[float] = []
        self.saves: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Starts."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes both times."""
        stepped = time.perf_counter()
        trainer.save_checkpoint(self.checkpoint)
        self.steps.append(stepped - self.start)
        self.saves.append(time.perf_counter() - stepped)


def time_saves(model: str, folder: Path, tokens_per_batch: int, steps: int) -> tuple[float, float]:
    """Returns the median seconds of a step and of a save, after the first, in which buffers are made."""
    data = DistillationDataModule(
        model,
        **DATA,
        encoding=ExampleEncoding(512, cache_dir=str(folder / "tokenized")),
        batches=TrainingBatches(tokens_per_batch, tokens_per_batch),
    )
    clock = SaveClock(folder / LAST)
    trainer = L.Trainer(
        **QUIET, max_epochs=-1, max_steps=steps + 1, callbacks=[RngState(), clock], plugins=[RotatingCheckpointIO()]
    )
    trainer.fit(DistillationModule(model), data)
    return statistics.median(clock.steps[1:]), statistics.median(clock.saves[1:])


def time_preemption(model: str, folder: Path, tokens_per_batch: int) -> float:
    """Returns the seconds from USR1, some steps after a fit began, until its process has left."""
    command = [
        *(sys.executable, "-m", "scripts.fit", f"--model.student={model}", "--data.encoding.max_length=512"),
        *(f"--data.{name}={value}" for name, value in DATA.items()),
        *(f"--data.batches.tokens_per_step={tokens_per_batch}", f"--data.encoding.cache_dir={folder / 'tokenized'}"),
        f"--data.batches.tokens_per_batch={tokens_per_batch}",
        *("--trainer.max_epochs=100000", "--trainer.enable_progress_bar=false"),
        *(f"--run.root={folder}", "--run.group=preempted", f"--run.id={time.time_ns()}"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    process = subprocess.Popen(command, env=environment, stdout=sys.__stderr__)
    metrics = folder / "preempted" / command[-1].removeprefix("--run.id=") / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        if process.poll() is not None:
            raise ValueError(f"the fit to be preempted ended with exit code {process.returncode}")
        time.sleep(0.01)
    start = time.perf_counter()
    process.send_signal(signal.SIGUSR1)
    code = process.wait()
    if code != EXIT_STOPPED:
        raise ValueError(f"the preempted fit ended with exit code {code}, not {EXIT_STOPPED}")
    return time.perf_counter() - start


def measure_fit(model: str, processes: int, tokens_per_batch: int, steps: int) -> float:
    """Returns the median tokens/s of all processes of a fit, each with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "scripts.fit", f"--model.student={model}", "--data.encoding.max_length=512"),
            *("--data.questions=microworld:train:512:0", "--data.supervision=label", "--data.prompt=plain"),
            *(
                f"--data.batches.tokens_per_step={processes * tokens_per_batch}",
                f"--data.encoding.cache_dir={folder}/tokenized",
            ),
            f"--data.batches.tokens_per_batch={tokens_per_batch}",
            *("--trainer.accelerator=cpu", f"--trainer.devices={processes}"),
            *(f"--trainer.strategy={'auto' if processes == 1 else 'ddp'}", "--trainer.enable_progress_bar=false"),
            *("--trainer.max_epochs=-1", f"--trainer.max_steps={FIT_WARM_UP + steps}"),
            *(f"--run.root={folder}", "--run.id=fit"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, stdout=sys.__stderr__, check=True)
        lines = (Path(folder) / "default" / "fit" / "metrics.jsonl").read_text().split("\n")[:-1]
    speeds: list[float | None] = [json.loads(line).get("speed/tokens_per_second") for line in lines]
    return statistics.median([speed for speed in speeds if speed is not None][FIT_WARM_UP:])


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the measurements."""
    parser = make_parser("scaling", __doc__)
    parser.add_argument(
        "--model", default=str(MICROWORLD / "a-student"), help="the student: a name, folder or GGUF file"
    )
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="preemptions, and fits by each number of processes")
    given = parser.parse_args(args)
    if given.smoke:
        given.tokens_per_batch, given.steps, given.rounds = 512, 2, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step, save = run_apart(time_saves, given.model, folder, given.tokens_per_batch, given.steps)
        yield Measurement.against("checkpoint_overhead", save, step, "s")
        latencies = [time_preemption(given.model, folder, given.tokens_per_batch) for _ in range(given.rounds)]
        yield Measurement.against("preempt_latency_s", statistics.median(latencies), step + save, "s")
    sizes = (given.tokens_per_batch, given.steps)
    rounds = [[measure_fit(given.model, processes, *sizes) for processes in (1, 2)] for _ in range(given.rounds)]
    one, two = map(statistics.median, zip(*rounds, strict=True))
    yield Measurement.against("scaling_efficiency_2", two, 2 * one, "tokens/s")

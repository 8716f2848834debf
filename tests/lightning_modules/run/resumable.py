"""A student with dropout, trained and resumed, in one process or in two: `resumable.py JOB`."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules.distillation import DistillationDataModule
from lightning_modules.run.checkpoints import RngState, RotatingCheckpointIO
from lightning_modules.run.preemption import Preemption
from lightning_modules.run.stop_signal import StopListener
from lightning_modules.student.student import DistillationModule
from tests.tiny import TRAINER, build

EPOCHS = 3


class Recorder(L.Callback):
    """Writes down the examples of each step, and leaves once so many are done."""

    def __init__(self, stop: int | None):
        self.stop = stop
        self.seen: list[list[str]] = []
        self.validations: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: list, *args: Any) -> None:
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt
        self.seen.append([name for part in batch if part["counts"] for name in part["example_ids"]])

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.validations.append(float(trainer.callback_metrics["val/loss"]))


class Signal(L.Callback):
    """A scheduler's signal, after some batch of some validation."""

    def __init__(self, listener: StopListener, validation: int, batch: int):
        self.listener, self.validation, self.batch = listener, validation, batch
        self.begun = -1

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.begun += 1

    def on_validation_batch_end(self, *args: Any) -> None:
        batch_idx = args[4]
        if (self.begun, batch_idx) == (self.validation, self.batch):
            self.listener.received = "SIGUSR1"


class Forgetful(DistillationModule):
    """A student whose masks are drawn from the global generator."""

    def configure_model(self) -> None:
        """Puts dropout before the head."""
        super().configure_model()
        if not isinstance(self.model.lm_head, nn.Sequential):
            self.model.lm_head = nn.Sequential(nn.Dropout(0.3), self.model.lm_head)


def train(
    job: dict,
    folder: Path,
    stop: int | None = None,
    resume: Path | None = None,
    every: int | None = None,
    preempt: tuple[int, int] | None = None,
) -> dict:
    """Trains until `stop`, or to the end.

    Args:
        job: `student`, `questions`, `rationales`, and options of the data module, of the student and of the trainer.
        folder: For checkpoints, one of each optimizer step in which `every` divides and one of each epoch's end.
        stop: Ends the run, as a kill does, before the optimizer step after this one.
        resume: A checkpoint.
        every: In optimizer steps.
        preempt: A scheduler's signal comes after this batch of this validation, each counted from 0; the run saves
            `preempted.ckpt` and leaves.

    Returns:
        The example ids of each step, the validation losses, and the weights.
    """
    L.seed_everything(7, verbose=False)
    data = build(
        DistillationDataModule,
        job["student"],
        job["questions"],
        rationales=[job["rationales"]],
        prompt="plain",
        **job.get("data", {}),
    )
    own = {"learning_rate": 1e-2, "schedule": "cosine", "warmup_ratio": 0.2, **job.get("model", {})}
    module = Forgetful(job["student"], fused_head=False, **own)
    recorder = Recorder(stop)
    callbacks = [recorder, RngState()]
    if every is not None:
        place: dict[str, Any] = {"dirpath": folder, "save_top_k": -1, "enable_version_counter": False}
        callbacks += [
            ModelCheckpoint(**place, filename="step{step}", auto_insert_metric_name=False, every_n_train_steps=every),
            ModelCheckpoint(**place, filename="end{step}", auto_insert_metric_name=False, save_on_train_epoch_end=True),
        ]
    if preempt is not None:
        listener = StopListener()
        callbacks += [Signal(listener, *preempt), Preemption(listener, folder / "preempted.ckpt")]
    options = {**TRAINER, "enable_checkpointing": every is not None, "num_sanity_val_steps": 0, "max_epochs": EPOCHS}
    trainer = L.Trainer(
        **{**options, **job.get("trainer", {})},
        callbacks=callbacks,
        plugins=[RotatingCheckpointIO()],
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        # Lightning turns an interrupt into an exit.
        assert stop is not None or preempt is not None
    return {
        "seen": recorder.seen,
        "validations": recorder.validations,
        "weights": module.model.state_dict(),
        "per_epoch": trainer.num_training_batches,
        "rank": trainer.global_rank,
    }


def main(job: dict) -> None:
    """Trains without a break, then resumes from each checkpoint, and writes what each process saw."""
    output = Path(job["output"])
    whole = train(job, output / "whole", every=1)
    torch.save(whole, output / f"whole-{whole['rank']}.pt")
    for name in job["checkpoints"]:
        part = train(job, output / name, resume=output / "whole" / f"{name}.ckpt")
        torch.save(part, output / f"{name}-{part['rank']}.pt")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

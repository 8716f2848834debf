"""A run's metrics as lines of `metrics.jsonl`.

A line is the kernel's as soon as its step is over, so that no kill of the process loses one. To the disk all are forced
before a checkpoint is saved, and at the end: what a machine's failure loses is behind the checkpoint that is continued
from, and learnt again.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files.atomic import name_unwritten, sync_path


class JsonlLogger(Logger):
    """Appends metrics to `metrics.jsonl`, the record that outlives a killed process.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._last = ""

    @property
    def name(self) -> str:
        """The logger's name."""
        return "jsonl"

    @property
    def version(self) -> str:
        """The run's folder name."""
        return self.path.parent.name

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `config.yaml` has them."""

    @rank_zero_only  # type: ignore[untyped-decorator]  # Lightning's types are not followed
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one line, unless it was written ahead of a checkpoint."""
        line = json.dumps({"step": step, **metrics}) + "\n"
        if line == self._last:
            return
        self._last = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with name_unwritten(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    @rank_zero_only  # type: ignore[untyped-decorator]  # Lightning's types are not followed
    def sync(self) -> None:
        """Forces all lines to the disk."""
        if self.path.exists():
            sync_path(self.path)

    def finalize(self, status: str) -> None:
        """Forces all lines to the disk at the end, whatever it is."""
        self.sync()


class MetricsFirst(L.Callback):
    """Forces a run's metrics to the disk before any checkpoint that counts their steps."""

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Does so."""
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.sync()


def write_ahead(trainer: L.Trainer) -> None:
    """Writes a step's metrics before a checkpoint counts the step, so that a kill between the two leaves no gap.

    Lightning logs a step only after the hooks of its end, in which checkpoints are saved.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    if not connector.should_update_logs:
        return
    metrics = {**convert_tensors_to_scalars(connector.metrics["log"]), "epoch": trainer.current_epoch}
    for logger in trainer.loggers:
        if isinstance(logger, JsonlLogger):
            logger.log_metrics(metrics, step=loop._batches_that_stepped)

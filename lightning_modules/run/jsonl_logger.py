"""A run's metrics as lines of `metrics.jsonl`."""

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files.atomic import name_unwritten


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

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one line and forces it to the disk, unless it was written ahead of a checkpoint."""
        line = json.dumps({"step": step, **metrics}) + "\n"
        if line == self._last:
            return
        self._last = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with name_unwritten(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


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

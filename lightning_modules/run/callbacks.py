"""Callbacks that do not go with a training: they wait for what is never logged, or change what its config says."""

from collections.abc import Collection

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder


def check_callbacks(trainer: L.Trainer, metrics: Collection[str]) -> None:
    """Refuses callbacks that Lightning would fail with, some of them after an epoch only.

    Args:
        trainer: With all its callbacks; one that is neither Lightning's nor Kindred's may log metrics of its own.
        metrics: What the student logs.

    Raises:
        ValueError: One waits for a metric that is never logged, or looks for settings that the config has.
    """
    packages = {type(callback).__module__.partition(".")[0] for callback in trainer.callbacks}
    for callback in trainer.callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None) or ""
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise ValueError(f"trainer.callbacks: {name} would change what the run's config says; leave it out")
        if monitor in ("", *metrics) or monitor.startswith("speed/") or packages - {"lightning", "lightning_modules"}:
            continue
        raise ValueError(
            f"trainer.callbacks: {name} monitors {monitor!r}, which this run does not log; it logs {', '.join(metrics)}"
        )

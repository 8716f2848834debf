"""A run that goes on from another's end, on other data: weights, optimizer, its schedule and the step counter."""

from pathlib import Path
from typing import Any

from datamodules.files.atomic import hash_path, read_meta
from datamodules.files.seals import DONE, read_sealed
from lightning_modules.run.checkpoints import RotatingCheckpointIO, find_checkpoint

# What the checkpoint's weights and optimizer are of: other values would be ignored, or would go wrong with them.
_CONTINUED = (
    *("student", "revision", "keep_layers", "start", "adapter"),
    *("learning_rate", "weight_decay", "schedule", "warmup_ratio", "schedule_steps"),
)


def identify_end(run: str) -> dict[str, str]:
    """Returns what a finished run ended with: the hash of its configuration, and that of its result.

    Raises:
        ValueError: It is no finished run.
    """
    folder = Path(run)
    meta = read_meta(folder)
    if meta is None or not (folder / DONE).is_file():
        raise ValueError(f"run.continues: {run} is no finished run")
    return {"config_hash": meta["config_hash"], "done": hash_path(folder / DONE)}


def check_continuation(run: str, model: dict[str, Any], max_epochs: int | None, max_steps: int) -> None:
    """Refuses settings of a run that do not go on from another's end.

    Args:
        run: The folder of the run that is continued.
        model: The settings of the one that continues it, as `meta.json` has them.
        max_epochs: Its trainer's.
        max_steps: Likewise.

    Raises:
        ValueError: Weights, optimizer or schedule are another's, the schedule ended with the run, or there is no step
            left.
    """
    meta = read_meta(Path(run))
    assert meta is not None
    for name in _CONTINUED:
        before, now = meta["config"]["model"].get(name), model.get(name)
        if before != now:
            raise ValueError(f"run.continues: {run} has model.{name} {before!r}, with which it goes on, not {now!r}")
    if model.get("schedule_steps") is None:
        raise ValueError(
            f"run.continues: the schedule of {run} ended with it; train both with model.schedule_steps, the steps of "
            "both together"
        )
    done = read_sealed(Path(run) / DONE)["global_step"]
    if max_epochs not in (None, -1) or max_steps <= done:
        raise ValueError(
            f"run.continues: {run} ended after {done} steps, which count; set trainer.max_epochs=-1 and "
            f"trainer.max_steps, which is {max_steps}, to more than these"
        )


def find_end(run: str, rank: int = 0) -> Path:
    """Returns the checkpoint that a run ended with.

    Args:
        run: The folder of the run that is continued.
        rank: This process's.

    Raises:
        ValueError: It has kept none, or one of processes that share a model.
    """
    last = find_checkpoint(Path(run) / "checkpoints", rank)
    if last is None:
        raise ValueError(f"run.continues: {run} has kept no checkpoint; train it with --run.keep_checkpoints=true")
    if last.is_dir():
        raise ValueError(f"run.continues: {last} is of processes that share a model, which is not continued")
    return last


class ContinuingCheckpointIO(RotatingCheckpointIO):
    """Reads the checkpoint of a run that is continued where it lies, as one of a run that has not read any data yet.

    Args:
        folder: Of the run's own checkpoints; one that lies elsewhere is another run's.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `RotatingCheckpointIO`."""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        if Path(path).resolve().parent != self._folder.resolve():
            begin_anew(checkpoint)
        return checkpoint


def begin_anew(checkpoint: dict[str, Any]) -> None:
    """Makes a checkpoint one of a run that has not read any data yet."""
    # Where the data stood, and where the other run kept its checkpoints.
    checkpoint.pop("DistillationDataModule", None)
    checkpoint["callbacks"] = {name: own for name, own in checkpoint["callbacks"].items() if "Checkpoint{" not in name}
    checkpoint["epoch"] = 0
    loop = checkpoint["loops"]["fit_loop"]
    loop["state_dict"] = {}
    for name in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        for counts in ("total", "current"):
            loop[name][counts] = dict.fromkeys(loop[name][counts], 0)
    # A batch that is ready and not begun: where there is none at all, Lightning takes a validation to be over, and
    # passes over the first batch. It counts one more step where it begins with such a batch.
    loop["epoch_loop.batch_progress"]["total"]["ready"] = 1
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

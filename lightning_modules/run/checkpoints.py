"""Checkpoints of a run: written whole or not at all, the last two kept, checked before one is continued from."""

import os
import random
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from datamodules.files.atomic import atomic_path, sync_path
from lightning_modules.run.jsonl_logger import write_ahead
from lightning_modules.run.stop_signal import EXIT_STOPPED

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def find_checkpoint(folder: Path, rank: int = 0) -> Path | None:
    """Returns the newest whole checkpoint of a run, None if there is none; a damaged newer one is removed.

    Each process looks at what it is to read itself, see `is_whole`; that all found the same is seen when they load it.

    Args:
        folder: Of the checkpoints.
        rank: This process's.

    Raises:
        ValueError: There are checkpoints, and all are damaged.
    """
    damaged: list[Path] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        if is_whole(path, rank):
            for newer in damaged:
                warnings.warn(f"{newer} is damaged; going on from {path.name}, the one before", stacklevel=2)
                # The next save would keep it in place of this one.
                remove(newer)
            return path
        damaged.append(path)
    if damaged:
        raise ValueError(f"{' and '.join(map(str, damaged))}: damaged; delete the run's folder to begin anew")
    return None


def list_files(checkpoint: Path) -> list[Path]:
    """Returns a checkpoint's files: itself, or in a folder one for each process, `RANK-of-WORLD_SIZE.pt`."""
    if checkpoint.is_file():
        return [checkpoint]
    some = next(checkpoint.glob("*-of-*.pt"))
    size = int(some.stem.rpartition("-")[2])
    return [checkpoint / f"{rank}-of-{size}.pt" for rank in range(size)]


def is_whole(checkpoint: Path, rank: int = 0) -> bool:
    """Says whether every record of a process's part agrees with the CRC-32 that torch stored beside it.

    Of a folder that is the process's own file, beside which the others must be there; of a file, which all processes
    read, it is the first process's to look.
    """
    try:
        files = list_files(checkpoint)
        if not all(path.is_file() for path in files):
            return False
        if rank < len(files):
            with zipfile.ZipFile(files[rank]) as archive:
                if archive.testzip() is not None:
                    return False
        return read_global_step(checkpoint) >= 0
    except Exception:  # a byte of a header can make a reader fail in any way
        return False


def agree_on_checkpoint(checkpoint: Path) -> None:
    """Leaves with `EXIT_STOPPED` where the processes would go on from different checkpoints.

    One that finds its part of the newest damaged has removed it, so that the next attempt agrees.
    """
    if not torch.distributed.is_initialized():
        return
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, checkpoint.name if checkpoint.exists() else None)
    if set(found) != {checkpoint.name}:
        if torch.distributed.get_rank() == 0:
            print(
                "stopped before the first step, since a part of the newest checkpoint is damaged; the same command "
                "continues from the one before",
                flush=True,
            )
        raise SystemExit(EXIT_STOPPED)


def read_global_step(checkpoint: Path) -> int:
    """Returns the number of optimizer steps that a checkpoint counts."""
    step: int = torch.load(list_files(checkpoint)[0], map_location="meta", weights_only=True)["global_step"]
    return step


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, which another process may be removing."""
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint, ignore_errors=True)
    else:
        checkpoint.unlink(missing_ok=True)


def keep_previous(target: Path) -> None:
    """Makes place for a new checkpoint: the one that is there becomes `previous.ckpt`."""
    if target.exists():
        previous = target.with_name(PREVIOUS)
        if previous.is_dir() or target.is_dir():
            remove(previous)
        os.replace(target, previous)


def sync_folder(folder: Path) -> None:
    """Forces a folder's files and entries to the disk."""
    for path in (*folder.iterdir(), folder):
        sync_path(path)


class RngState(L.Callback):
    """Keeps each process's random generators in the checkpoint, so that a resumed run draws the same dropout masks.

    Where another number of processes resumes, they take the states in turn; they all began with the same.
    """

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gathers the states of all processes; plain numbers and tensors, which load without pickles."""
        kind, keys, *rest = np.random.get_state()
        state = {
            "python": random.getstate(),
            "numpy": (kind, np.asarray(keys).tolist(), *rest),
            "torch": torch.get_rng_state(),
        }
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        states = [state]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        checkpoint["rng_states"] = states

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes this process's state."""
        states = checkpoint["rng_states"]
        self._resumed = states[trainer.global_rank % len(states)]

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Restores the state just before it is used: what comes between loading and training may draw numbers."""
        if self._resumed is None:
            return
        random.setstate(self._resumed["python"])
        np.random.set_state(self._resumed["numpy"])
        torch.set_rng_state(self._resumed["torch"])
        if "cuda" in self._resumed and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(self._resumed["cuda"], trainer.strategy.root_device)
        self._resumed = None


class StepCheckpoint(ModelCheckpoint):
    """Saves inside epochs; after an epoch's last step comes the epoch's own checkpoint, with its validation done."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves every so many steps."""
        if not trainer.is_last_batch:
            write_ahead(trainer)
            super().on_train_batch_end(trainer, *args, **kwargs)


class RotatingCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it; keeps the one before as `previous.ckpt`.

    A killed save leaves the earlier ones whole. Lightning's own writes to the system's temporary folder first, and
    moves that across file systems by copying.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves atomically.

        Raises:
            ValueError: The disk is full.
        """
        target = Path(path)
        with atomic_path(target) as temporary:
            with temporary.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:
                    # torch hides what went wrong behind its complaint that the file is not finished.
                    raise error.__context__ if isinstance(error.__context__, OSError) else error from None
                file.flush()
                os.fsync(file.fileno())
            keep_previous(target)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint, once all processes agree on it.

        Raises:
            ValueError: It is one of processes that share a model.
        """
        agree_on_checkpoint(Path(path))
        if Path(path).is_dir():
            number = len(list_files(Path(path)))
            raise ValueError(
                f"{path}: saved by {number} processes that share a model; continue with trainer.strategy=fsdp2 and as "
                "many, or delete the run's folder"
            )
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        return checkpoint

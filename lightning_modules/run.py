"""A run's folder: `runs/<group>/<id>/{config.yaml, meta.json, metrics.jsonl, checkpoints/, student/, DONE}`."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import atomic_path, hash_json, write_json, write_jsonl, write_text
from datamodules.provenance import describe_creation


@dataclass(frozen=True)
class RunSettings:
    """Where a run is kept and how it is shown.

    Attributes:
        root: Folder of all runs.
        group: Runs that belong together.
        id: Names the run; null derives it from the resolved config.
        wandb: Log to Weights & Biases too, offline unless WANDB_MODE says otherwise.
        project: The W&B project.
        student_family: The student's family, as the teachers' are called; null takes what `configs/models` says.
        checkpoint_steps: Save a checkpoint after every so many optimizer steps, too, not at each epoch's end only.
    """

    root: str = "runs"
    group: str = "default"
    id: str | None = None
    wandb: bool = True
    project: str = "kindred"
    student_family: str | None = None
    checkpoint_steps: PositiveInt | None = None


class RunFolder:
    """The files of one run.

    Args:
        settings: Where it is.
        config: The resolved configuration of everything that the result depends on.
    """

    def __init__(self, settings: RunSettings, config: dict):
        self.config = config
        self.id = settings.id or hash_json(config)[:10]
        self.path = Path(settings.root) / settings.group / self.id

    @property
    def is_done(self) -> bool:
        """Whether the run ended and its student is exported."""
        return (self.path / "DONE").is_file()

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def student(self) -> Path:
        """The exported student."""
        return self.path / "student"

    def check(self) -> None:
        """Refuses a folder that another configuration has begun.

        Raises:
            ValueError: The folder's config hash is another.
        """
        meta = self.path / "meta.json"
        if meta.is_file():
            begun = json.loads(meta.read_text())["config_hash"]
            if begun != hash_json(self.config):
                raise ValueError(
                    f"{self.path}: this run exists with another config (see its config.yaml); "
                    "choose another run.id or run.group, or delete the folder"
                )

    def begin(self, config_yaml: str, data: dict[str, str], seeds: dict[str, int]) -> None:
        """Writes `config.yaml` and `meta.json`, or, after an earlier attempt, makes its metrics end at its checkpoint.

        Args:
            config_yaml: The full config, which runs again as it is.
            data: Hashes of what is learned from, by name.
            seeds: By name.
        """
        if (self.path / "meta.json").is_file():
            self._trim_metrics()
            return
        write_text(self.path / "config.yaml", config_yaml)
        write_json(self.path / "meta.json", {**describe_creation(self.config), "seeds": seeds, "data": data})

    def _trim_metrics(self) -> None:
        """Drops the lines that the resumed run will write again, and one that a kill tore."""
        metrics = self.path / "metrics.jsonl"
        if not metrics.is_file():
            return
        # Step n's training metrics are logged as n while the checkpoint after it counts n + 1 steps.
        step = read_global_step(self.checkpoint)
        lines = metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        records = [json.loads(line) for line in lines]
        kept = [
            record
            for record in records
            if record["step"] < step or (record["step"] == step > 0 and "train/loss" not in record)
        ]
        write_jsonl(metrics, kept)

    def finish(self, facts: dict) -> None:
        """Marks the run as done, with what is known of it then; whatever depends on it looks for this file."""
        write_json(self.path / "DONE", facts)


def read_global_step(checkpoint: Path) -> int:
    """Returns the step of a checkpoint, 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return torch.load(checkpoint, map_location="meta", weights_only=True)["global_step"]


class JsonlLogger(Logger):
    """Appends metrics to `metrics.jsonl`, the record that outlives a killed process.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

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
        """Appends one line and forces it to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())


class RngState(L.Callback):
    """Keeps each process's random generators in the checkpoint, so that a resumed run draws the same dropout masks.

    A run that is resumed with another number of processes, at an epoch's end, begins with fresh ones.
    """

    def __init__(self) -> None:
        self._resumed: dict | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
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

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
        """Takes this process's state, if as many processes saved theirs."""
        states = checkpoint["rng_states"]
        self._resumed = states[trainer.global_rank] if len(states) == trainer.world_size else None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Restores the state just before it is used: what comes between loading and training may draw numbers."""
        if self._resumed is None:
            return
        random.setstate(self._resumed["python"])
        np.random.set_state(self._resumed["numpy"])
        torch.set_rng_state(self._resumed["torch"])
        if "cuda" in self._resumed:
            torch.cuda.set_rng_state(self._resumed["cuda"], trainer.strategy.root_device)
        self._resumed = None


class StepCheckpoint(ModelCheckpoint):
    """Saves inside epochs; after an epoch's last batch comes the epoch's own checkpoint, with its validation done."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves every so many steps."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it, so that a killed save leaves the previous one whole.

    Lightning's own writes to the system's temporary folder first, and moves that across file systems by copying.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves atomically."""
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

"""Runs under two processes that share one student's weights: `sharded_processes.py JOB`; test_sharding.py reads it."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from datamodules.files.atomic import write_json
from lightning_modules.model.adapters import Adapter
from lightning_modules.model.sharding import ShardedStrategy
from lightning_modules.run.checkpoints import RngState
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.run.two_processes import make_student
from tests.tiny import fit

STEPS = 3
LORA: dict[str, Any] = {"adapter": Adapter(dropout=0.0), "activation_checkpointing": True}
HELD_OUT = {"fraction": 0.4, "seed": 3}
# Eight examples a step: four a process at a time, or one.
SPLITS: dict[str, dict] = {"whole": {}, "accumulated": {"tokens_per_batch": 1}}


class Metrics(L.Callback):
    """Keeps what each step logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if len(self.steps) < trainer.global_step:
            self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(
    world: dict,
    dtype: str,
    data: dict,
    ckpt_path: str | None = None,
    learning_rate: float = 1e-2,
    student: dict | None = None,
    **options: Any,
) -> tuple[DistillationModule, L.Trainer, list[dict[str, float]]]:
    """Trains with clipped gradients, and returns the module, its trainer, and each step's metrics."""
    L.seed_everything(7, verbose=False)
    module, make_data = make_student(world, **(student or {}))
    module.learning_rate = learning_rate
    module.student_dtype = module._weights_dtype = dtype  # type: ignore[assignment]  # float64 is not offered to users
    metrics = Metrics()
    options["callbacks"] = [metrics, *options.get("callbacks", ())]
    options = {"max_epochs": STEPS, "gradient_clip_val": 0.5, **options}
    return module, fit(module, make_data(**data), ckpt_path, **options), metrics.steps


def main(job: dict) -> None:
    """Runs every scenario in one process group."""
    world, output = job["world"], Path(job["output"])
    for name, data in SPLITS.items():
        for student in ("student", "tied"):
            strategy = ShardedStrategy()
            module, _, _ = train({**world, "student": world[student]}, "float64", data, strategy=strategy, devices=2)
            assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
            module.export(output / f"{student}-{name}")
        for kind, strategy in (("ddp", "ddp"), ("fsdp", ShardedStrategy())):
            _, trainer, metrics = train(world, "float32", data, strategy=strategy, devices=2)
            write_json(output / f"{kind}-{name}-{trainer.global_rank}.json", metrics)

    for kind, strategy in (("ddp", "ddp"), ("fsdp", ShardedStrategy())):
        module, _, _ = train(world, "float32", {}, strategy=strategy, devices=2, student=LORA)
        module.export(output / f"lora-{kind}")

    # Three held-out questions in steps of one: one process has nothing of its own to do.
    options = {"strategy": ShardedStrategy(), "devices": 2, "num_sanity_val_steps": 2, "learning_rate": 0.0}
    _, trainer, _ = train(world, "float32", {"tokens_per_step": 1, **HELD_OUT}, **options)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    write_json(output / f"val-{trainer.global_rank}.json", metrics)

    # Dropout is on.
    world = {**world, "student": world["forgetful"]}
    place = output / "checkpoints"
    keep = ModelCheckpoint(dirpath=place, filename="{step}", auto_insert_metric_name=False, save_top_k=-1)
    for name, ckpt_path, saves in (("uninterrupted", None, [keep]), ("resumed", place / "1.ckpt", [])):
        module, _, _ = train(
            world,
            "float32",
            {},
            ckpt_path and str(ckpt_path),
            strategy=ShardedStrategy(),
            devices=2,
            enable_checkpointing=True,
            callbacks=[RngState(), *saves],
            default_root_dir=output,
        )
        module.export(output / name)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

"""The command line of fit."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files.atomic import check_place, read_meta
from lightning_modules.run.checkpoints import LAST, RngState, StepCheckpoint
from lightning_modules.run.continuation import ContinuingCheckpointIO, check_continuation, identify_end
from lightning_modules.run.folder import METRICS, RunFolder, RunSettings
from lightning_modules.run.jsonl_logger import JsonlLogger, MetricsFirst
from lightning_modules.run.throughput import Throughput
from lightning_modules.tracking.wandb_logging import RunRecord, build_wandb_loggers
from scripts.common.stage_cli import StageCLI, as_list


def has_bfloat16_gpu() -> bool:
    """Says whether training takes a GPU, if it may, that multiplies in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def take_tf32(trainer: L.Trainer) -> None:
    """Lets a GPU that was asked for float32 multiply in TF32, and says so; where it has none, nothing changes."""
    if trainer.strategy.root_device.type == "cuda" and trainer.precision == "32-true":
        torch.set_float32_matmul_precision("high")
        rank_zero_only(print)("trains in float32, with products in TF32; NVIDIA_TF32_OVERRIDE=0 leaves them in float32")


class FitCLI(StageCLI):
    """Adds the run's folder, its loggers and its checkpoints to the trainer."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--run.*` and `--throughput.*`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--run", type=RunSettings, default=RunSettings())
        parser.add_lightning_class_args(Throughput, "throughput")

    def result_config(self) -> dict[str, Any]:
        """Adds what the run goes on from."""
        config = super().result_config()
        if (continued := self.config.run.continues) is not None:
            config["continues"] = identify_end(continued)
        return config

    def before_instantiate_classes(self) -> None:
        """Finds the run's folder, and refuses one of another config before anything is built."""
        super().before_instantiate_classes()
        if self.config.trainer.logger not in (None, False) or self.config.trainer.default_root_dir is not None:
            raise ValueError("trainer.logger and trainer.default_root_dir are the run folder's; use run.* instead")
        self.run = RunFolder(RunSettings(**self.config.run.as_dict()), self.result_config())
        check_place(self.run.path)
        self.run.check()
        trainer, continued = self.config.trainer, self.config.run.continues
        if continued is not None and not self.run.is_done:
            check_continuation(continued, self.run.config["model"], trainer.max_epochs, trainer.max_steps)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer around the run's folder."""
        settings = RunSettings(**self.config.run.as_dict())
        loggers = [JsonlLogger(self.run.path / METRICS), *build_wandb_loggers(settings, self.run)]
        self.checkpoint = self.run.checkpoints / LAST
        place = {"dirpath": self.run.checkpoints, "filename": Path(LAST).stem, "enable_version_counter": False}
        own = [*as_list(self.config_init.trainer.callbacks), RngState(), MetricsFirst()]
        own.append(RunRecord(self.run, settings.student_family, self.config.seed_everything))
        own.append(ModelCheckpoint(**place, save_on_train_epoch_end=True))
        if settings.checkpoint_steps is not None:
            own.append(StepCheckpoint(**place, every_n_train_steps=settings.checkpoint_steps))
        plugins = [*as_list(self.config_init.trainer.plugins), ContinuingCheckpointIO(self.run.checkpoints)]
        if self.config.trainer.precision is None:
            kwargs["precision"] = self.choose_precision()
        trainer = super().instantiate_trainer(
            **kwargs, logger=loggers, callbacks=own, plugins=plugins, default_root_dir=str(self.run.path)
        )
        take_tf32(trainer)
        return trainer

    def choose_precision(self) -> str | None:
        """Returns what a run trains in that was not told: what it began in, or bf16-mixed on a GPU that has it.

        It is no part of the run's identity, so that a run has one name on the login node and on the GPU's.
        """
        if (meta := read_meta(self.run.path)) is not None:
            return meta.get("precision")
        model, accelerator = self.config.model, self.config.trainer.accelerator
        # Mixed precision trains float32 weights, beside which a frozen base may be of any dtype.
        is_mixed = accelerator in ("auto", "gpu", "cuda") and (model.adapter or model.dtype in (None, "float32"))
        return "bf16-mixed" if is_mixed and has_bfloat16_gpu() else None

"""The command line of fit."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.files.atomic import check_place
from lightning_modules.run.checkpoints import LAST, RngState, RotatingCheckpointIO, StepCheckpoint
from lightning_modules.run.continuation import identify_end
from lightning_modules.run.folder import METRICS, RunFolder, RunSettings
from lightning_modules.run.jsonl_logger import JsonlLogger, MetricsFirst
from lightning_modules.run.throughput import Throughput
from lightning_modules.tracking.wandb_logging import RunRecord, build_wandb_loggers
from scripts.common.stage_cli import StageCLI, as_list


class FitCLI(StageCLI):
    """Adds the run's folder, its loggers and its checkpoints to the trainer."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--run.*` and `--throughput.*`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--run", type=RunSettings, default=RunSettings())
        parser.add_lightning_class_args(Throughput, "throughput")

    def result_config(self) -> dict:
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
        plugins = [*as_list(self.config_init.trainer.plugins), RotatingCheckpointIO()]
        return super().instantiate_trainer(
            **kwargs, logger=loggers, callbacks=own, plugins=plugins, default_root_dir=str(self.run.path)
        )

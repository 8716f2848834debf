"""What the stages' scripts share: a checked command line."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import StrategyRegistry

from datamodules.batches.loading import check_processes
from datamodules.tasks.benchmarks import identify_source
from datamodules.tasks.wording import identify_languages
from datamodules.text.plain_text import describe_error
from lightning_modules.model.pretrained import identify_local
from lightning_modules.model.sharding import ShardedStrategy
from lightning_modules.run.folder import flatten
from lightning_modules.run.peers import bounded_wait
from lightning_modules.run.preemption import Preemption
from lightning_modules.run.progress import ProgressLines, is_watched
from lightning_modules.run.stop_signal import find_listener
from scripts.common.entry import quiet_libraries
from scripts.common.experiment_file import check_args, select_sections
from scripts.common.identity import NEUTRAL, SOURCES, drop_neutral
from scripts.common.slurm_tasks import read_slurm_tasks


def as_list(value: Any) -> list[Any]:
    """Returns what the trainer takes as one or as several, as several."""
    return [*value] if isinstance(value, list | tuple) else [] if value is None else [value]


class StageCLI(LightningCLI):
    """A LightningCLI for one stage: `--config FILE`, `--model.*`, `--data.*`, `--trainer.*`, all checked first.

    Args:
        stage: The section of an experiment's file that is read.
        model_class: The stage's LightningModule.
        datamodule_class: The stage's LightningDataModule.
        pretrained: The model's argument that names a pre-trained model, whose tokenizer the data uses.
        trainer_defaults: Of the stage.
        args: The command line; None takes the process's.
    """

    def __init__(
        self,
        stage: str,
        model_class: type,
        datamodule_class: type,
        pretrained: str,
        trainer_defaults: dict[str, Any],
        args: list[str] | None,
    ):
        self.pretrained = pretrained
        self.checkpoint: Path | None = None
        defaults = {"use_distributed_sampler": False, "enable_model_summary": False, "logger": False, "devices": 1}
        args = sys.argv[1:] if args is None else args
        check_args(args, stage)
        quiet_libraries()
        StrategyRegistry.register("fsdp2", ShardedStrategy, "Weights spread over all processes", override=True)
        super().__init__(
            model_class,
            datamodule_class,
            args=select_sections(args, stage),
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            trainer_defaults={**defaults, **trainer_defaults},
        )

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Refuses a seed that the generators do not take."""
        super().parse_arguments(parser, args)
        seed = self.config.seed_everything
        if type(seed) is int and not 0 <= seed < 2**32:
            raise ValueError(f"seed_everything={seed}: must be at least 0 and below 2**32")

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Gives the data the model's tokenizer."""
        parser.link_arguments(f"model.{self.pretrained}", "data.tokenizer")
        parser.link_arguments("model.revision", "data.encoding.revision")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer: with SLURM's tasks as its processes, and stopping in order when SLURM asks for it."""
        trainer = self.config_init.trainer
        for name in ("callbacks", "plugins"):
            kwargs[name] = as_list(kwargs.get(name, trainer[name]))
        if str(trainer.strategy).endswith(("_spawn", "_fork", "_notebook")):
            raise ValueError(f"trainer.strategy={trainer.strategy}: processes begin with the command; use ddp or fsdp2")
        if tasks := read_slurm_tasks(os.environ):
            kwargs |= tasks.fit_trainer(trainer.devices, trainer.num_nodes)
            # Its own requeueing saves inside a signal handler, and ends with exit code 0.
            kwargs["plugins"].append(SLURMEnvironment(auto_requeue=False))
        if listener := find_listener():
            kwargs["callbacks"].append(Preemption(listener, self.checkpoint))
        if not is_watched() and trainer.enable_progress_bar in (None, True):
            kwargs["callbacks"].append(ProgressLines())
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # nothing but Lightning's own checks of its settings, which fail in many ways
            raise ValueError(f"trainer: {describe_error(error)}; correct the setting of trainer.*") from error

    def launch(self, what: Literal["fit", "predict"], *args: Any, **kwargs: Any) -> None:
        """Lets the trainer do what it is built for; on several nodes it waits for the others a bounded time.

        Raises:
            ValueError: It would start more processes on processors than there are.
        """
        if isinstance(self.trainer.accelerator, CPUAccelerator):
            check_processes("trainer.devices", self.trainer.num_devices)
        with bounded_wait(self.trainer):
            getattr(self.trainer, what)(*args, **kwargs)

    def dump_config(self) -> str:
        """Returns the resolved config as YAML that the same script reads."""
        dumped: str = self.parser.dump(self.config, skip_none=False)
        return dumped

    def result_config(self) -> dict[str, Any]:
        """Returns what the result depends on.

        The resolved config but for what is `NEUTRAL`, the files' hashes, and those of what `configs/tasks` and
        `configs/languages` say of the questions and their languages.
        """
        config = drop_neutral("", json.loads(self.parser.dump(self.config, format="json", skip_none=False)))
        config = {name: drop_neutral(name, part) if name in NEUTRAL else part for name, part in config.items()}
        named = [data.get(name) or [] for data in (config["data"], config["data"].get("own", {})) for name in SOURCES]
        sources = [source for names in named for source in ([names] if isinstance(names, str) else names)]
        files = {source: identify_source(source) for source in sources}
        for model in (config["model"][self.pretrained], config.get("bert_model")):
            if model is not None:
                files[model] = identify_local(model)
        data = config["data"]
        questions = [data["questions"]] if isinstance(data["questions"], str) else data["questions"]
        languages = identify_languages(questions, data["prompt"], data["encoding"]["prompt_language"])
        # Runs in English alone have none.
        more = {"languages": languages} if languages else {}
        return {**config, **more, "files": {name: value for name, value in files.items() if value is not None}}

    def before_instantiate_classes(self) -> None:
        """Refuses an empty list where none is another thing: it would be taken for all."""
        settings, defaults = flatten(self.config.as_dict()), flatten(self.parser.get_defaults().as_dict())
        for name, value in settings.items():
            if value == [] != defaults.get(name) and not name.startswith("trainer."):
                raise ValueError(f"{name} is empty; name at least one, or leave it out")

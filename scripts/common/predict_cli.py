"""The command line of the stages that predict into an output, and what is there already."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from glob import escape
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files.atomic import check_place, remove_torn
from datamodules.files.locks import hold
from datamodules.files.record_log import find_parts
from datamodules.provenance import is_complete
from scripts.common.stage_cli import StageCLI

# By how much processes with an engine each may end apart.
LONGEST_WAIT = timedelta(days=7)


class PredictCLI(StageCLI):
    """A stage that predicts into `--output`.

    Attributes:
        output_ending: What the name of its output ends in; None where that is a folder.
    """

    output_ending: str | None = ".parquet"

    @property
    def asks_for_all(self) -> bool:
        """Whether no setting of the trainer's stops it after some batches."""
        trainer = self.config.trainer
        return not trainer.fast_dev_run and trainer.limit_predict_batches in (None, 1.0)

    @contextmanager
    def claim_output(self, config: dict[str, Any]) -> Iterator[bool]:
        """Keeps the output for this process and those that it has begun; yields whether it is still to be made.

        Args:
            config: Everything that the output depends on.

        Raises:
            ValueError: Another process writes it, or another configuration wrote it.
        """
        output = Path(self.config.output)
        lock = output.with_name(f".{output.name}.lock")
        if rank_zero_only.rank > 0 or self.config.get("dry_run"):
            is_made = is_complete(output, config)
        elif is_complete(output, config) and not any(output.parent.glob(f".{escape(output.name)}.*")):
            is_made = True
        else:
            with hold(lock, f"{output}: another process writes this output"):
                for name in (output.name, f"{output.name}.metrics.json"):
                    remove_torn(output.parent, escape(name))
                # Another process may have written it just now, or have been killed before it removed its part.
                is_made = is_complete(output, config)
                if not is_made:
                    yield True
                    return
                for part in find_parts(output):
                    part.unlink()
        if is_made:
            print(f"{output}: complete already")
        yield not is_made

    def __init__(self, stage: str, model_class: type, datamodule_class: type, pretrained: str, args: list[str] | None):
        super().__init__(stage, model_class, datamodule_class, pretrained, {"enable_checkpointing": False}, args)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer, on processors where an engine takes the GPUs itself.

        Raises:
            ValueError: The trainer was told to take them.
        """
        if getattr(self.model, "engine", None) is not None:
            if (given := self.config.trainer.accelerator) not in ("auto", "cpu"):
                raise ValueError(f"trainer.accelerator={given}: vLLM takes the GPUs itself; leave it out")
            kwargs["accelerator"] = "cpu"
        built = super().instantiate_trainer(**kwargs)
        if kwargs.get("accelerator") == "cpu" and isinstance(built.strategy, DDPStrategy):
            # Engines end at different times, and the first waits for the last; one that is gone is noticed at once.
            built.strategy._timeout = LONGEST_WAIT
        return built

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--output`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--output", type=str, required=True, help="What this stage writes.")

    def before_instantiate_classes(self) -> None:
        """Refuses an output that cannot be written, before anything is built."""
        super().before_instantiate_classes()
        check_place(Path(self.config.output), self.output_ending)
        if self.config.trainer.limit_predict_batches == 0:
            raise ValueError("trainer.limit_predict_batches=0 leaves nothing to ask; raise it, or leave it out")

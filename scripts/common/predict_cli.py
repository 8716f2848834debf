"""The command line of the stages that predict into an output, and what is there already."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from datamodules.files.atomic import check_place, hash_json
from datamodules.files.locks import hold
from datamodules.files.tables import read_metadata
from scripts.common.stage_cli import StageCLI


def is_complete(output: Path, config: dict) -> bool:
    """Says whether `output` is there already; raises a ValueError if another configuration wrote it."""
    if not output.exists():
        return False
    if read_metadata(output).get("creation", {}).get("config_hash") != hash_json(config):
        raise ValueError(
            f"{output}: exists, and was made with another configuration, or from other files; choose another --output"
        )
    print(f"{output}: complete already")
    return True


class PredictCLI(StageCLI):
    """A stage that predicts into `--output`."""

    @property
    def asks_for_all(self) -> bool:
        """Whether no setting of the trainer's stops it after some batches."""
        trainer = self.config.trainer
        return not trainer.fast_dev_run and trainer.limit_predict_batches in (None, 1.0)

    def lock_output(self) -> AbstractContextManager[None]:
        """Keeps the output for this process and those that it has begun; a ValueError if another process has it."""
        output = Path(self.config.output)
        if rank_zero_only.rank > 0:
            return nullcontext()
        return hold(output.with_name(f".{output.name}.lock"), f"{output}: another process writes this output")

    def __init__(self, stage: str, model_class: type, datamodule_class: type, pretrained: str, args: list[str] | None):
        super().__init__(stage, model_class, datamodule_class, pretrained, {"enable_checkpointing": False}, args)

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--output`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--output", type=str, required=True, help="What this stage writes.")

    def before_instantiate_classes(self) -> None:
        """Refuses an output that cannot be written, before anything is built."""
        super().before_instantiate_classes()
        check_place(Path(self.config.output))
        if self.config.trainer.limit_predict_batches == 0:
            raise ValueError("trainer.limit_predict_batches=0 leaves nothing to ask; raise it, or leave it out")

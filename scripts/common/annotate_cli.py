"""The command line of annotate."""

from pathlib import Path
from typing import Any

from datamodules.files.atomic import hash_path, require_file
from scripts.common.identity import NEUTRAL_BACKEND
from scripts.common.predict_cli import PredictCLI


class AnnotateCLI(PredictCLI):
    """The stage's command line."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--dry-run`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--dry-run", action="store_true", help="Print the prompts and their number; ask nothing.")

    def result_config(self) -> dict[str, Any]:
        """Leaves out what only says where and how fast the backend runs."""
        config = super().result_config()
        if (backend := config["model"]["backend"]) is not None:
            settings = backend.get("init_args", {})
            counted = {name: value for name, value in settings.items() if name not in NEUTRAL_BACKEND}
            config["model"]["backend"] = {"class_path": backend["class_path"], "init_args": counted}
        if (rewrites := config["data"]["rewrites"]) is not None:
            # What is rewritten may have been written anew.
            config["data"]["rewrites"] = hash_path(require_file(Path(rewrites), "data.rewrites"))
        return config

"""What made an artefact: versions, the code's commit, the configuration."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datamodules.answers.extractors import EXTRACTORS, MORE_EXTRACTORS
from datamodules.files.atomic import hash_json, read_meta, refuse_foreign, write_json
from datamodules.files.tables import read_metadata
from datamodules.tasks.benchmarks import find_commit

PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "safetensors")


def find_git_commit() -> str:
    """Returns the commit that this code was checked out at, `+dirty` if it was edited, or `unknown`."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        # Killed within it, git would leave its lock of the index, and refuse the user's next commit.
        changes = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+dirty" if changes.strip() else commit


def describe_creation(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the record that every artefact carries.

    Args:
        config: The resolved configuration, JSON-serialisable.
    """
    questions = config.get("data", {}).get("questions") or []
    sources = [questions] if isinstance(questions, str) else questions
    more = config.get("model", {}).get("more_extractors") or []
    return {
        "config_hash": hash_json(config),
        "git_commit": find_git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "extractors": [
            *(extractor.id for extractor in EXTRACTORS.values()),
            *(MORE_EXTRACTORS[name].id for name in more),
        ],
        "questions_commits": {source: find_commit(source) for source in sources if source.startswith("task:")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_complete(output: Path, config: dict[str, Any]) -> bool:
    """Says whether a table is there already; raises a ValueError if another configuration wrote it."""
    if not output.exists():
        return False
    if read_metadata(output).get("creation", {}).get("config_hash") != hash_json(config):
        raise ValueError(
            f"{output}: exists, and was made with another configuration, or from other files; choose another --output"
        )
    return True


def claim_folder(folder: Path) -> None:
    """Makes a folder of runs Kindred's own, by a `meta.json`.

    Raises:
        ValueError: It holds what is not Kindred's.
    """
    refuse_foreign(folder)
    if read_meta(folder) is None:
        config = {"group": folder.name}
        write_json(folder / "meta.json", {**describe_creation(config), "config": config})

"""What made an artefact: versions, the code's commit, the configuration."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from datamodules.answers import EXTRACTORS
from datamodules.files import hash_json
from datamodules.tasks import find_commit

PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "safetensors")


def find_git_commit() -> str:
    """Returns the commit that this code was checked out at, `+dirty` if it was edited, or `unknown`."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+dirty" if changes.strip() else commit


def describe_creation(config: dict) -> dict:
    """Returns the record that every artefact carries.

    Args:
        config: The resolved configuration, JSON-serialisable.
    """
    sources = config.get("data", {}).get("questions") or []
    sources = [sources] if isinstance(sources, str) else sources
    commits = [find_commit(source) for source in sources if source.startswith("task:")]
    return {
        "config_hash": hash_json(config),
        "git_commit": find_git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "extractors": [extractor.id for extractor in EXTRACTORS.values()],
        "questions_commit": " | ".join(filter(None, commits)) or None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }

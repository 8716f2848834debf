"""Uploads a run's student to the Hugging Face hub, with its model card and its results where they are known.

    python -m scripts.push runs/GROUP/ID --repo OWNER/NAME --dry-run     # what would be uploaded
    python -m scripts.push runs/GROUP/ID --repo OWNER/NAME --private

The token is the environment's (HF_TOKEN) or that of `hf auth login`. A run that is not done, a student that is not what
was exported, and files that hold a secret are refused.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from datamodules.files.atomic import require_file
from datamodules.files.command_line import CommandLine
from datamodules.files.seals import DONE, MANIFEST, check_folder, read_sealed
from datamodules.text.plain_text import clean_line, describe_error
from lightning_modules.student.model_card import NAME, format_results
from scripts.common.entry import run_main
from scripts.common.run_results import read_results

_SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
_SECRETS = re.compile(rb"\bhf_\w{30,}|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----")


def collect(run: Path) -> dict[str, bytes | Path]:
    """Returns what is uploaded of a run, by name: the student's own files, and its card with the results.

    Raises:
        ValueError: The run is not done, or its student is not what was exported.
    """
    student = require_file(run, "run") / "student"
    if not (run / DONE).is_file():
        raise ValueError(f"{run}: is no run that is done (it has no {DONE}); finish it with the command that began it")
    if not (student / MANIFEST).is_file():
        raise ValueError(f"{student}: has no {MANIFEST}; train the run again, since only what is sealed is uploaded")
    check_folder(student)
    files: dict[str, bytes | Path] = {name: student / name for name in read_sealed(student / MANIFEST)["files"]}
    files[MANIFEST] = student / MANIFEST
    results, section = read_results(run), ""
    try:
        section = format_results(results) if results else ""
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(f"{run}: the metrics beside its predictions are not as evaluate writes them") from None
    card = require_file(student / NAME, "model card").read_text(encoding="utf-8")
    return {**files, NAME: (card + section).encode()}


def refuse_secrets(files: dict[str, bytes | Path]) -> None:
    """Refuses to publish a secret: what looks like one, or a value of the environment's that is named as one.

    Raises:
        ValueError: A file holds one; the message does not.
    """
    own = {
        name: value.encode()
        for name, value in os.environ.items()
        if _SECRET_NAMES.search(name.upper()) and len(value) >= 12
    }
    for name, content in files.items():
        text = content if isinstance(content, bytes) else content.read_bytes()
        if found := [variable for variable, value in own.items() if value in text]:
            raise ValueError(f"{name}: holds the value of the environment's {found[0]}; it is not uploaded")
        if not name.endswith(".safetensors") and _SECRETS.search(text):
            raise ValueError(f"{name}: holds what looks like a key or token; remove it, seal the run, and try again")


def upload(files: dict[str, bytes | Path], repo: str, private: bool, message: str) -> str:
    """Uploads files in one commit to a repository, which is made if it is not there, and returns where they are.

    Raises:
        ValueError: The hub refuses, or cannot be reached.
    """
    api = HfApi()
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except LocalTokenNotFoundError:
        raise ValueError("there is no token of the hub: set HF_TOKEN, or run `hf auth login`") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ValueError(f"{repo}: the hub did not take it: {clean_line(describe_error(error))}") from None


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the hub's repository")
    parser.add_argument("--private", action="store_true", help="if the repository is made, for its owner alone")
    parser.add_argument("--dry-run", action="store_true", help="print what would be uploaded; upload nothing")
    return parser.parse_args(sys.argv[1:] if args is None else args)


def main(args: list[str] | None = None) -> None:
    """Uploads, or says what would be uploaded."""
    given = parse(args)
    try:
        validate_repo_id(given.repo)
    except HFValidationError as error:
        raise ValueError(f"--repo: {describe_error(error)}") from None
    if given.repo.count("/") != 1:
        raise ValueError(f"--repo={given.repo}: write OWNER/NAME")
    files = collect(given.run)
    refuse_secrets(files)
    if given.dry_run:
        for name, content in files.items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"{size:>14,}  {given.repo}/{clean_line(name)}")
        card = files[NAME]
        assert isinstance(card, bytes)
        print(f"nothing was uploaded; the card:\n\n{card.decode()}")
        return
    print(upload(files, given.repo, given.private, f"Student of the run {given.run.name}"))


if __name__ == "__main__":
    run_main(main, __file__)

"""Fetches every model, tokenizer and task of an experiment or study into the hub's cache, where there is a network.

    python -m scripts.prefetch --config configs/experiments/obqa_smollm2.yaml
    python -m scripts.prefetch --config configs/experiments/pair.yaml --teacher=MODEL --student=MODEL --dry-run

Each at the commit that the stages will ask for, so that compute nodes need no network (HF_HUB_OFFLINE=1). HF_HOME says
where the cache is. Of a model the files in its folder that a stage reads: weights as safetensors, configs, tokenizer.
What is there already is not fetched again; `--dry-run` says what is missing and fetches nothing.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from datamodules.files.command_line import CommandLine
from scripts.common.entry import run_main
from scripts.common.experiment_file import ROLES, STAGES, read_experiment
from scripts.common.hub_check import fill_languages, find_on_hub, find_sources

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def _get(content: Any, *keys: str) -> Any:
    """Returns what lies below some keys, None if nothing does.

    Raises:
        ValueError: What they lead through is no mapping.
    """
    for number, key in enumerate(keys):
        if content is None:
            return None
        if not isinstance(content, dict):
            raise ValueError(f"{'.'.join(keys[:number])}: expected a mapping, found {type(content).__name__}")
        content = content.get(key)
    return content


def _get_text(content: Any, *keys: str) -> str | None:
    """Likewise, where only a text makes sense."""
    value = _get(content, *keys)
    if not isinstance(value, str | None):
        raise ValueError(f"{'.'.join(keys)}: expected a text, found {type(value).__name__}")
    return value


def _find_named(content: dict[str, Any]) -> Iterator[tuple[str | None, str | None]]:
    for group in ("students", "teachers"):
        for name in _get(content, "study", group) or ():
            yield _get_text(content, "study", group, name, "model"), None
    for stage in [stage for stage in content if stage != "study"]:
        if not str(_get(content, stage, "model", "backend")).count("OpenAI"):
            for role in ROLES:
                yield _get_text(content, stage, "model", role), _get_text(content, stage, "model", "revision")
        yield _get_text(content, stage, "data", "tokenizer"), _get_text(content, stage, "data", "encoding", "revision")


def find_models(content: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yields (hub id, commit or None) of the models of the hub that a config names.

    Raises:
        ValueError: It has something else where a model's name would be.
    """
    for model, revision in _find_named(content):
        if model is not None and (found := find_on_hub(model, revision)):
            yield found


def fetch_model(hub: str, revision: str | None) -> None:
    """Fetches a model, unless it is there.

    Raises:
        ValueError: It is missing, and was not fetched.
    """
    from huggingface_hub import snapshot_download

    from datamodules.files.hub import describe_missing, is_reachable
    from datamodules.text.plain_text import clean_line, describe_error

    is_local = not is_reachable()
    try:
        snapshot_download(
            hub, revision=revision, allow_patterns=_FILES, ignore_patterns=["*/*"], local_files_only=is_local
        )
    except Exception as error:  # the hub's library raises its HTTP client's errors, its own, and OSError
        if is_local:
            raise ValueError(describe_missing(hub, "model", "its folder", revision)) from None
        raise ValueError(f"{hub}: {clean_line(describe_error(error))}") from None


def fetch_all(content: dict[str, Any]) -> tuple[int, list[str]]:
    """Fetches all that a config names and says so, line by line.

    Returns:
        How much it is, and why what is missing is.
    """
    from datamodules.tasks.questions import load_questions

    models = list(dict.fromkeys(find_models(content)))
    sources = list(dict.fromkeys(fill_languages(content.get("study"), find_sources(content))))
    missing = []
    jobs: Iterable[tuple[str, Any]] = [
        *((f"{hub}@{commit or 'main'}", lambda h=hub, c=commit: fetch_model(h, c)) for hub, commit in models),
        *((source, lambda s=source: load_questions(s)) for source in sources),
    ]
    for name, fetch in jobs:
        try:
            fetch()
        except ValueError as error:
            missing.append(str(error))
            print(f"missing  {name}: {error}")
        else:
            print(f"there    {name}", flush=True)
    return len(models) + len(sources), missing


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="an experiment's or a study's file")
    for role in ROLES:
        parser.add_argument(f"--{role}", help=f"the {role} of a generic file")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing; fetch nothing")
    return parser.parse_args(sys.argv[1:] if args is None else args)


def main(args: list[str] | None = None) -> None:
    """Fetches, or says what is missing."""
    given = parse(args)
    models = {role: model for role in ROLES if (model := getattr(given, role)) is not None}
    content = read_experiment(given.config, models)
    if not set(content) & set(STAGES):
        content = {"file": content}  # of one stage
    if given.dry_run:
        # The hub's library reads it when it is imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        number, missing = fetch_all(content)
    except ValueError as error:
        raise ValueError(f"{given.config}: {error}") from None
    if missing:
        raise ValueError(f"{given.config}: {len(missing)} of {number} are missing")
    print(f"{given.config}: all {number} are there" if number else f"{given.config}: names nothing of the hub")


if __name__ == "__main__":
    run_main(main, __file__)

"""Data sets of the hub, or local copies of them, as records that Kindred reads as questions and rationales."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.files.hub import could_not_ask, describe_missing, is_reachable, reading_cache_only
from datamodules.tasks.benchmarks import find_cause
from datamodules.tasks.records import CONVERSATION, GOLD, QUESTION, RATIONALES, TEACHER, THINKING
from datamodules.text.plain_text import describe_error, shorten

# What a mapping may give a value to.
NAMES = {"id", "gold", "choices", "expression", *QUESTION, *GOLD, *TEACHER, *THINKING, *RATIONALES, *CONVERSATION}


def parse_mapping(pairs: list[str]) -> dict[str, str]:
    """Returns what `OURS=THEIRS` pairs say.

    Raises:
        ValueError: One is no such pair, or names something that no record has.
    """
    mapping = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if ours not in NAMES or not theirs:
            raise ValueError(f"--fields {pair}: write OURS=THEIRS, where OURS is one of {', '.join(sorted(NAMES))}")
        if ours in mapping:
            raise ValueError(f"--fields {pair}: {ours} is given twice")
        mapping[ours] = theirs
    return mapping


def read_data_set(source: str, split: str, config: str | None, mapping: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data set, with the mapping's fields, or else with their own.

    Args:
        source: Hub id, or local folder.
        split: Its split, as it calls it.
        config: Its configuration, if it has several.
        mapping: By our name of a field, theirs; a dot goes into a nested field.

    Raises:
        ValueError: It cannot be loaded, or a row lacks a field.
    """
    # Heavy.
    from datasets import load_dataset

    is_local = Path(source).is_dir()
    if not source.strip("/") or (not is_local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)):
        raise ValueError(f"{source!r}: no such folder, and no hub id (owner/name)")
    with _loading(source):
        if is_local:
            table = load_dataset(source, config, split=split)
        else:
            with reading_cache_only():
                table = load_dataset(source, config, split=split)
    rows = iter(table)
    for number in range(len(table)):
        with _loading(f"{source}:row {number}"):  # a picture or a sound may need another library
            row = next(rows)
        yield {ours: _look_up(row, theirs, f"{source}:row {number}") for ours, theirs in mapping.items()} or dict(row)


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turns what `datasets` raises over files that others made into a ValueError; surrounds nothing but its calls."""
    try:
        yield
    except Exception as error:  # it fails in any way on what a file or a folder's description may say
        if not Path(what.partition(":row ")[0]).is_dir() and (could_not_ask(error) or not is_reachable()):
            raise ValueError(describe_missing(what, "dataset", "its folder")) from None
        raise ValueError(f"{what}: cannot be loaded: {shorten(describe_error(find_cause(error)), 300)}") from None


def _look_up(row: Any, path: str, where: str) -> Any:
    for name in path.split("."):
        if not isinstance(row, dict) or name not in row:
            known = f"it has {', '.join(sorted(row))}" if isinstance(row, dict) else "it is no object"
            raise ValueError(f"{where}: no field {path!r}; {known}")
        row = row[name]
    return row

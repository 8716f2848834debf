"""Records of predictions by the task that they are of."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any


def group_by_task(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of each task by its name.

    Of each split, as TASK/SPLIT, where a task has several. Of each language, as TASK/LANGUAGE, or TASK/SPLIT/LANGUAGE,
    but of English alone: whatever other languages there are, a language's name is the same. Where there are several,
    all of them together come last, as TASK/de+en; translations of a question then are a group.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        splits[record["task"]].add(record["split"])
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    wholes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        task, split, language = record["task"], record["split"], record.get("language") or "en"
        whole = f"{task}/{split}" if len(splits[task]) > 1 else task
        groups[whole if language == "en" else f"{whole}/{language}"].append(record)
        wholes[whole].append(record)
    for whole, own in wholes.items():
        languages = sorted({record.get("language") or "en" for record in own})
        if len(languages) > 1:
            groups[f"{whole}/{'+'.join(languages)}"] = own
    return dict(groups)


def find_languages(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns the names of `group_by_task` that are several languages together, and the languages' own names by tag."""
    known, found = set(names), {}
    for name in sorted(known):
        whole, _, last = name.rpartition("/")
        own = {tag: whole if tag == "en" else f"{whole}/{tag}" for tag in last.split("+")}
        if len(own) > 1 and whole and set(own.values()) <= known:
            found[name] = own
    return found

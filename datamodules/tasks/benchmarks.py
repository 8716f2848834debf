"""Benchmark tasks: one file of `configs/tasks` each says where its questions lie and what their fields mean.

A source `task:NAME:SPLIT` reads the hub's files at the task's revision; `task:NAME:SPLIT@FOLDER` reads the same files
from a local folder: a clone of the hub repository, or what one configuration of it holds. NAME is a file's name in
`configs/tasks`, or a path that ends in `.yaml`. A split is one that has answers; where a benchmark keeps its test
answers to itself, its file says so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from datamodules.files.hub import describe_missing, is_reachable, reading_cache_only
from datamodules.files.parsing import read_yaml
from datamodules.tasks.records import strip_letters
from datamodules.text.expressions import find_boxed
from datamodules.text.plain_text import align_columns, describe_error

FOLDER = Path(__file__).parents[2] / "configs" / "tasks"
FIELDS = ("id", "question", "choices", "labels", "gold", "group")


@dataclass(frozen=True)
class Task:
    """A benchmark's files and what their fields mean.

    Attributes:
        name: As lm-evaluation-harness calls it, where it has it.
        hub: Data set on the hub.
        revision: Its commit; `main` where none is pinned.
        configs: Its configurations, read one after the other.
        splits: By our name (train, validation, test), the hub's name of each split that has answers.
        sizes: By our name, how many questions a split has.
        answer: What an answer is: an option, true or false, a number, or a LaTeX expression.
        fields: Which field of a row is what; a dot goes into a nested field.
            `question`: a template, `{field}`. `gold`: a field. `id`: a field; without it, the row's number names it.
            `choices`: a field that holds all texts, or a list of fields with one each; true and false need none.
            `group`: a field that questions share which are asked together, as those of one passage.
            `labels`: how `gold` names the options: a field that lists labels, or a list of them; letters by default.
        num_options: The smallest and the largest number of options; null without options.
        licence: Of the data.
        citation: The paper.
        comment: What else a user should know.
    """

    name: str
    hub: str
    revision: str
    configs: list[str]
    splits: dict[str, str]
    sizes: dict[str, int]
    answer: Literal["choice", "boolean", "number", "expression"]
    fields: dict[str, Any]
    num_options: list[int] | None
    licence: str
    citation: str
    comment: str = ""


def load_task(name: str) -> Task:
    """Reads a task's file.

    Args:
        name: Of a file in `configs/tasks`, or a path that ends in `.yaml`.

    Raises:
        ValueError: There is no such task, or its file is malformed.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise ValueError(f"task {name!r} is unknown; there are: {', '.join(names)}")
    content = read_yaml(path)
    keys = {field.name for field in fields(Task)} - {"name"}
    if not isinstance(content, dict) or not keys - {"comment"} <= set(content) <= keys:
        raise ValueError(f"{path}: a task needs exactly the keys {', '.join(sorted(keys))} (comment may be left out)")
    if not set(content["fields"]) <= set(FIELDS) or not {"question", "gold"} <= set(content["fields"]):
        raise ValueError(f"{path}: fields must be question, gold, and of {', '.join(FIELDS)} what else there is")
    return Task(name=path.stem, **content)


def list_tasks() -> list[Task]:
    """Returns the tasks of `configs/tasks`, by name."""
    return [load_task(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]


def _parse_source(source: str) -> tuple[Task, str, Path | None]:
    """Returns the task, our name of the split, and the local folder or None."""
    place, _, folder = source.removeprefix("task:").partition("@")
    name, _, split = place.rpartition(":")
    if not name:
        raise ValueError(f"{source}: write task:NAME:SPLIT or task:NAME:SPLIT@FOLDER, like task:openbookqa:train")
    try:
        task = load_task(name)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if split not in task.splits:
        raise ValueError(f"{source}: {name} has no split {split!r} with answers; there are {', '.join(task.splits)}")
    if folder and not Path(folder).is_dir():
        raise ValueError(f"{source}: no such folder: {folder}")
    return task, split, Path(folder) if folder else None


def find_task(source: str) -> Task | None:
    """Returns the task of a source `task:NAME:SPLIT`, None of another source; nothing is read but its file."""
    return _parse_source(source.partition("@")[0])[0] if source.startswith("task:") else None


def count_questions(source: str) -> int:
    """Returns how many questions the task's file says that a source `task:NAME:SPLIT` has; nothing is read."""
    task, split, _ = _parse_source(source)
    return task.sizes[split]


def _load_tables(source: str) -> list[Any]:
    """Returns a `datasets.Dataset` for each of the task's configurations."""
    # Heavy, and only a task needs it.
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    task, split, folder = _parse_source(source)
    options = {"split": task.splits[split]}
    try:
        if folder is None:
            with reading_cache_only():
                return [load_dataset(task.hub, config, revision=task.revision, **options) for config in task.configs]
        if set(task.configs) <= set(get_dataset_config_names(str(folder))):
            return [load_dataset(str(folder), config, **options) for config in task.configs]
        # A folder of files alone, without the card that names the configurations; each may have a folder.
        parts = [folder / config for config in task.configs if (folder / config).is_dir()]
        return [load_dataset(str(part), **options) for part in parts or [folder]]
    except (OSError, ValueError, DatasetsError) as error:
        if folder is None and not is_reachable():
            missing = describe_missing(task.hub, "dataset", f"{source}@FOLDER", task.revision)
            raise ValueError(f"{source}: {missing}") from None
        raise ValueError(f"{source}: cannot be loaded: {describe_error(error)}") from None


def find_commit(source: str) -> str | None:
    """Returns the commit of the hub's files that a `task:` source was read from; None for a local folder."""
    task, _, folder = _parse_source(source)
    if folder is not None:
        return None
    if re.fullmatch("[0-9a-f]{40}", task.revision):
        return task.revision
    urls = " ".join(url for table in _load_tables(source) for url in table.info.download_checksums or {})
    commit = re.search("@([0-9a-f]{40})/", urls)
    return commit.group(1) if commit else None


def _look_up(row: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(row, dict) or name not in row:
            raise ValueError(f"row without field {path!r}; it has {sorted(row) if isinstance(row, dict) else row!r}")
        row = row[name]
    return row


def _fill(template: str, row: dict[str, Any]) -> str:
    text = re.sub(r"\{([\w.]+)\}", lambda match: str(_look_up(row, match.group(1))).strip(), template)
    # Where the template ends a sentence that has its own full stop (SVAMP's bodies mostly have none).
    return re.sub(r"([.?!])\.(?= )(?<!\.\.\.)", r"\1", text)


def _read_choices(task: Task, row: dict[str, Any]) -> list[str] | None:
    if task.answer == "boolean":
        return ["True", "False"]
    if task.answer != "choice":
        return None
    named = task.fields["choices"]
    values = _look_up(row, named) if isinstance(named, str) else [_look_up(row, name) for name in named]
    choices = [str(value).strip() for value in values]
    # AQuA prints the letters into the options.
    choices = strip_letters(choices)
    smallest, largest = task.num_options or (1, len(choices))
    if not smallest <= len(choices) <= largest:
        raise ValueError(f"{len(choices)} options, where {task.name} has {smallest} to {largest}")
    return choices


def _read_gold(task: Task, row: dict[str, Any], choices: list[str] | None) -> Any:
    gold = _look_up(row, task.fields["gold"])
    if gold is None or gold == "":
        return None
    if task.answer == "expression":
        boxed = find_boxed(gold)
        if boxed is None:
            raise ValueError(r"the solution has no \boxed{} answer")
        return boxed
    if choices is None:
        # GSM8K's answer is the solution and, after a mark, the number.
        return str(gold).rpartition("####")[2].strip()
    named = task.fields.get("labels", [chr(ord("A") + number) for number in range(len(choices))])
    labels = [str(label) for label in (_look_up(row, named) if isinstance(named, str) else named)]
    if str(gold) not in labels or labels.index(str(gold)) >= len(choices):
        raise ValueError(f"gold answer {gold!r} is no option (labels {labels})")
    return chr(ord("A") + labels.index(str(gold)))


def read_task(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`source:row`, record of design.md's shape) for each question of a `task:` source.

    Raises:
        ValueError: The source is malformed, its files cannot be read, or a row is not as the task's file says.
    """
    task, split, _ = _parse_source(source)
    number = -1
    for table in _load_tables(source):
        for row in table:
            number += 1
            where = f"{source}:row {number}"
            try:
                choices = _read_choices(task, row)
                own_id = str(_look_up(row, task.fields["id"])) if "id" in task.fields else ""
                yield (
                    where,
                    {
                        "id": own_id or f"{task.name}-{split}-{number}",
                        "task": task.name,
                        "split": split,
                        "question": _fill(task.fields["question"], row),
                        "choices": choices,
                        "gold": _read_gold(task, row, choices),
                        "expression": task.answer == "expression",
                        "group": str(_look_up(row, task.fields["group"])) if "group" in task.fields else None,
                    },
                )
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def format_tasks() -> str:
    """Returns a table of the tasks: answers, options, sizes of the splits, licence, data set and revision."""
    rows = [("task", "answer", "options", "questions", "licence", "data set")]
    for task in list_tasks():
        options = "-".join(map(str, sorted(set(task.num_options)))) if task.num_options else "–"
        sizes = ", ".join(f"{split} {size}" for split, size in task.sizes.items())
        rows.append((task.name, task.answer, options, sizes, task.licence, f"{task.hub}@{task.revision[:7]}"))
    return align_columns(rows)

"""Benchmark tasks: one file of `configs/tasks` each says where its questions lie and what their fields mean.

A source `task:NAME:SPLIT` reads the hub's files at the task's revision; `task:NAME:SPLIT@FOLDER` reads the same files
from a local folder: a clone of the hub repository, or what one configuration of it holds. NAME is a file's name in
`configs/tasks`, or a path that ends in `.yaml`. A split is one that has answers; where a benchmark keeps its test
answers to itself, its file says so. A benchmark in several languages is asked in one: `task:NAME:SPLIT:LANGUAGE`.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from datamodules.files.atomic import hash_json, hash_path, hash_source
from datamodules.files.hub import (
    could_not_ask,
    describe_missing,
    is_data_set_cached,
    is_reachable,
    reading_cache_only,
)
from datamodules.files.parsing import read_yaml
from datamodules.tasks.records import strip_letters
from datamodules.text.expressions import find_boxed
from datamodules.text.plain_text import align_columns, describe_error

FOLDER = Path(__file__).parents[2] / "configs" / "tasks"
FIELDS = ("id", "question", "choices", "labels", "gold", "group", "parallel", "original", "asks")
SPLITS = ("train", "validation", "test")
_OPTIONAL = {"comment", "connectives", "replaced_in_rev2"}
# What a task's file says that makes no question another.
_REMARKS = {"name", "sizes", "licence", "citation", "comment"}


@dataclass(frozen=True)
class Task:
    """A benchmark's files and what their fields mean.

    Attributes:
        name: As lm-evaluation-harness calls it, where it has it.
        hub: Data set on the hub.
        revision: Its commit; `main` where none is pinned.
        configs: Its configurations, read one after the other; in several languages, by BCP 47 tag.
        splits: By our name (train, validation, test), the hub's name of each split that has answers.
        sizes: By our name, how many questions a split has.
        answer: What an answer is: an option, true or false, a number, or a LaTeX expression.
        fields: Which field of a row is what; a dot goes into a nested field.
            `question`: a template, `{field}`. `gold`: a field. `id`: a field; without it, the row's number names it.
            `choices`: a field that holds all texts, or a list of fields with one each; true and false need none.
            `group`: a field that questions share which are asked together, as those of one passage.
            `labels`: how `gold` names the options: a field that lists labels, or a list of them; letters by default.
            `parallel`: a template of what the same question has in all languages; `{row}` is the row's number.
            `original`: a template of the id of the question that it translates, as this task's source would call it.
            `asks`: a field with a key of `connectives`, the one that the question goes on with.
        num_options: The smallest and the largest number of options; null without options.
        licence: Of the data.
        citation: The paper.
        comment: What else a user should know.
        connectives: By language, the words that lead from a premise to its cause and to its effect.
        replaced_in_rev2: By language, numbers of the rows whose question a later revision corrects.
    """

    name: str
    hub: str
    revision: str
    configs: list[str] | dict[str, list[str]]
    splits: dict[str, str]
    sizes: dict[str, int]
    answer: Literal["choice", "boolean", "number", "expression"]
    fields: dict[str, Any]
    num_options: list[int] | None
    licence: str
    citation: str
    comment: str = ""
    connectives: dict[str, dict[str, str]] = field(default_factory=dict)
    replaced_in_rev2: dict[str, list[int]] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        """The tags of the languages that it has to choose from; none where it is in English alone."""
        return list(self.configs) if isinstance(self.configs, dict) else []


@dataclass(frozen=True)
class Source:
    """A source `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`.

    Attributes:
        task: Its task.
        split: Our name of the split.
        language: A tag of the task's languages; None where the task has none to choose from.
        folder: Where its files are; None for the hub.
    """

    task: Task
    split: str
    language: str | None
    folder: Path | None

    @property
    def name(self) -> str:
        """What it is, wherever its files are."""
        return ":".join(filter(None, ("task", self.task.name, self.split, self.language)))

    @property
    def configs(self) -> list[str]:
        """The hub's configurations, read one after the other."""
        configs = self.task.configs
        return configs[str(self.language)] if isinstance(configs, dict) else configs


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
    keys = {own.name for own in fields(Task)} - {"name"}
    if not isinstance(content, dict) or not keys - _OPTIONAL <= set(content) <= keys:
        optional = ", ".join(sorted(_OPTIONAL))
        raise ValueError(
            f"{path}: a task needs exactly the keys {', '.join(sorted(keys))} ({optional} may be left out)"
        )
    if not set(content["fields"]) <= set(FIELDS) or not {"question", "gold"} <= set(content["fields"]):
        raise ValueError(f"{path}: fields must be question, gold, and of {', '.join(FIELDS)} what else there is")
    return Task(name=path.stem, **content)


def list_tasks() -> list[Task]:
    """Returns the tasks of `configs/tasks`, by name."""
    return [load_task(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]


def parse_source(source: str) -> Source:
    """Reads a source `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`; no data are read.

    Raises:
        ValueError: It is malformed, or there is no such task, split, language or folder.
    """
    place, _, folder = source.removeprefix("task:").partition("@")
    # A name may be a path, so the split is found from the end: a language's tag is none.
    name, _, split = place.rpartition(":")
    language = None
    if split not in SPLITS and name.rpartition(":")[2] in SPLITS:
        language = split
        name, _, split = name.rpartition(":")
    if not name:
        raise ValueError(
            f"{source}: write task:NAME:SPLIT, task:NAME:SPLIT:LANGUAGE, or either with @FOLDER, like "
            "task:openbookqa:train"
        )
    try:
        task = load_task(name)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if split not in task.splits:
        raise ValueError(f"{source}: {name} has no split {split!r} with answers; there are {', '.join(task.splits)}")
    if language is None and task.languages:
        raise ValueError(
            f"{source}: {name} has several languages; add one, like {source.partition('@')[0]}:{task.languages[0]}; "
            f"there are {', '.join(task.languages)}"
        )
    if language is not None and language not in task.languages:
        known = f"there are {', '.join(task.languages)}" if task.languages else "it is in one, which is not named"
        raise ValueError(f"{source}: {name} has no language {language!r}; {known}")
    if folder and not Path(folder).is_dir():
        raise ValueError(f"{source}: no such folder: {folder}")
    return Source(task, split, language, Path(folder) if folder else None)


def find_source(source: str) -> Source | None:
    """Returns what a source `task:NAME:SPLIT` is, None of another source; nothing is read but the task's file."""
    return parse_source(source.partition("@")[0]) if source.startswith("task:") else None


def identify_source(source: str) -> str | None:
    """Returns the hash of what a source depends on beside its name; None where that is all.

    Of a `task:` source what the task's file says of its questions, the hub's commit included, and the files of a local
    folder; of another source the file's.

    Raises:
        ValueError: It is a malformed `task:` source.
    """
    if not source.startswith("task:"):
        return hash_source(source)
    own = parse_source(source)
    read = {name: value for name, value in asdict(own.task).items() if name not in _REMARKS}
    return hash_json([read, own.folder and hash_path(own.folder)])


def count_task(source: str) -> int:
    """Returns how many questions the task's file says that a source `task:NAME:SPLIT` has; nothing is read."""
    own = parse_source(source)
    return own.task.sizes[own.split]


@cache
def _read_connectives() -> dict[str, dict[str, str]]:
    return load_task("xcopa").connectives


def ask_why(premise: str, asks: str, language: str) -> str:
    """Returns a premise that its cause or its effect continues, as lm-evaluation-harness writes XCOPA's.

    Args:
        premise: A sentence.
        asks: `cause` or `effect`.
        language: The premise's.

    Raises:
        ValueError: `asks` is neither, or there are no words of this language.
    """
    known = _read_connectives()
    if language not in known or asks not in known[language]:
        kinds = " or ".join(known.get(language, ("cause", "effect")))
        raise ValueError(f"`asks` {asks!r} in language {language!r}: write {kinds}; there is {', '.join(known)}")
    return f"{re.sub(r'[.。]$', '', premise.strip())} {known[language][asks]}"


def _load_tables(source: str) -> list[Any]:
    """Returns a `datasets.Dataset` for each of the task's configurations."""
    # Heavy, and only a task needs it.
    from datasets import get_dataset_config_names, load_dataset

    own = parse_source(source)
    task, configs, folder = own.task, own.configs, own.folder
    options = {"split": task.splits[own.split]}
    try:
        if folder is None:
            with reading_cache_only():
                return [load_dataset(task.hub, config, revision=task.revision, **options) for config in configs]
        if set(configs) <= set(get_dataset_config_names(str(folder))):
            return [load_dataset(str(folder), config, **options) for config in configs]
        # A folder of files alone, without the card that names the configurations; each may have a folder.
        parts = [folder / config for config in configs if (folder / config).is_dir()]
        return [load_dataset(str(part), **options) for part in parts or [folder]]
    except Exception as error:  # `datasets` fails in any way on what a file or a folder's card may say
        if folder is None and (could_not_ask(error) or not is_reachable()):
            raise ValueError(_describe_missing(source, task)) from None
        raise ValueError(f"{source}: cannot be loaded: {describe_error(find_cause(error))}") from None


def _describe_missing(source: str, task: Task) -> str:
    return f"{source}: {describe_missing(task.hub, 'dataset', f'{source}@FOLDER', task.revision)}"


def require_source(source: str) -> None:
    """Raises a ValueError that says how to get a task's files if they are in no cache, and the hub does not answer."""
    own = parse_source(source)
    if own.folder is None and not is_data_set_cached(own.task.hub) and not is_reachable():
        raise ValueError(_describe_missing(source, own.task))


def find_cause(error: Exception) -> Exception:
    """Returns what an error of `datasets` came from; its own says no more than that something failed."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def find_commit(source: str) -> str | None:
    """Returns the commit of the hub's files that a `task:` source was read from; None for a local folder."""
    own = parse_source(source)
    if own.folder is not None:
        return None
    if re.fullmatch("[0-9a-f]{40}", own.task.revision):
        return own.task.revision
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
    # Where each option is a field, a question with fewer options has nothing in the last ones.
    while isinstance(named, list) and values and values[-1] in (None, ""):
        values = values[:-1]
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
    own = parse_source(source)
    task, language = own.task, own.language
    number = -1
    for table in _load_tables(source):
        for row in table:
            number += 1
            where = f"{source}:row {number}"
            try:
                choices = _read_choices(task, row)
                named = {
                    name: str(_look_up(row, task.fields[name]))
                    for name in ("id", "group", "asks")
                    if name in task.fields
                }
                joined = {
                    name: _fill(task.fields[name], {**row, "row": number})
                    for name in ("parallel", "original")
                    if name in task.fields
                }
                identifier = named.get("id") or f"{task.name}-{own.split}-{number}"
                yield (
                    where,
                    {
                        "id": f"{identifier}-{language}" if language else identifier,
                        "task": task.name,
                        "split": own.split,
                        "question": _fill(task.fields["question"], row),
                        "choices": choices,
                        "gold": _read_gold(task, row, choices),
                        "expression": task.answer == "expression",
                        "group": named.get("group"),
                        "language": language or "en",
                        "parallel": f"{task.name}-{own.split}-{joined['parallel']}" if "parallel" in joined else None,
                        "original": joined.get("original"),
                        "asks": named.get("asks"),
                        "replaced_in_rev2": number in task.replaced_in_rev2.get(language or "en", ()),
                    },
                )
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def format_tasks() -> str:
    """Returns a table of the tasks: answers, options, languages, sizes of the splits, licence, data set, revision."""
    rows = [("task", "answer", "options", "languages", "questions", "licence", "data set")]
    for task in list_tasks():
        options = "-".join(map(str, sorted(set(task.num_options)))) if task.num_options else "–"
        sizes = ", ".join(f"{split} {size}" for split, size in task.sizes.items())
        own = task.languages or ["en"]
        languages = " ".join(own) if len(own) < 17 else f"{len(own)} languages"
        hub = f"{task.hub}@{task.revision[:7]}"
        rows.append((task.name, task.answer, options, languages, sizes, task.licence, hub))
    return align_columns(rows)

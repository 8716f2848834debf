"""Whether the hub's models and tasks that a stage names can be had, before what takes seconds is imported.

The stage itself has the last word: what is told here is only what it could not do without.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.experiment_file import ROLES, list_configs, read_models, read_section, split_config

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class _Given:
    """What a command line and its files give for single settings."""

    def __init__(self, stage: str, args: Sequence[str]):
        named, others = split_config(args)
        models = read_models(named)
        self._sections = [read_section(path, stage, models)[0] for path in list_configs(named)]
        ends = [*others, ""][1:] if others else []
        pairs = [arg[2:].partition("=") for arg in others]
        self.options = {
            name: value if equals else end
            for arg, end, (name, equals, value) in zip(others, ends, pairs, strict=True)
            if arg.startswith("--")
        }

    def find(self, section: str, name: str) -> Any:
        """Returns a setting's value; None where there is none, or where it may be within another option's."""
        if section in self.options:
            return None
        if (option := self.options.get(f"{section}.{name}")) is not None:
            return option
        for content in reversed(self._sections):
            if isinstance(below := content.get(section), Mapping) and name in below:
                return below[name]
        return None

    def find_all(self, name: str) -> Any:
        """Returns a whole section of the files; None where an option changes it."""
        if any(option.partition(".")[0] == name for option in self.options):
            return None
        return next((content[name] for content in reversed(self._sections) if name in content), None)

    def is_begun(self, stage: str) -> bool:
        """Says whether there is a result already, which may need nothing more."""
        if stage == "fit":
            path = Path(str(self.find("run", "root") or "runs"), str(self.find("run", "group") or "default"))
            return path.exists()
        if stage == "study":
            root, name = (self.options.get(key) or self.find_all(key) for key in ("root", "name"))
            return Path(str(root or "runs"), str(name)).exists()
        output = self.options.get("output") or self.find_all("output")
        return output is not None and Path(str(output)).exists()

    def list_models(self, stage: str) -> Iterator[tuple[Any, Any]]:
        """Yields (model, revision) of what the stage cannot do without."""
        if stage == "study":
            students = self.find_all("students")
            for student in students.values() if isinstance(students, Mapping) else ():
                yield student.get("model") if isinstance(student, Mapping) else None, None
        # What a backend asks may be called anything.
        elif self.find("model", "backend") is None and not any("backend" in name for name in self.options):
            for role in ROLES:
                yield self.find("model", role), self.find("model", "revision")

    def list_sources(self, stage: str) -> Iterator[str]:
        """Yields the tasks' questions."""
        if stage != "study":
            yield from find_sources(self.find("data", "questions"))
        else:
            study = {name: self.find_all(name) for name in ("tasks", "languages")}
            yield from fill_languages(study, find_sources(study["tasks"]))


def find_sources(value: Any) -> Iterator[str]:
    """Yields the tasks of the hub, `task:NAME:SPLIT`, that stand anywhere in a config."""
    if isinstance(value, dict | list):
        for own in value.values() if isinstance(value, dict) else value:
            yield from find_sources(own)
    elif isinstance(value, str) and value.startswith("task:") and "@" not in value:
        yield value


def fill_languages(study: Any, sources: Iterable[str]) -> Iterator[str]:
    """Yields sources, those with `{language}` in each of a study's languages; for pivots, training's in English, too.

    Args:
        study: Its section; where it has something strange, its own parser says so.
        sources: What it names.
    """
    own = study.get("languages") if isinstance(study, Mapping) else None
    languages = own if isinstance(own, Mapping) else {}
    tags, kinds = ([str(item) for item in languages.get(name) or ()] for name in ("questions", "rationales"))
    tasks = study.get("tasks") if isinstance(study, Mapping) else None
    trained = [task.get("train") for task in (tasks or {}).values() if isinstance(task, Mapping)]
    for source in sources:
        needs_english = source in trained and {"pivot", "mixed"} & {*kinds}
        for tag in [*tags, *(["en"] if needs_english else [])] if "{language}" in source else [""]:
            yield source.replace("{language}", tag)


def find_on_hub(model: str, revision: str | None) -> tuple[str, str | None] | None:
    """Returns a model's hub id and commit; None of a folder or file, and of what another stage is yet to write."""
    from datamodules.model_sources import resolve_model

    if model.endswith((".ckpt", ".gguf")):
        return None
    hub, commit = resolve_model(model, revision)
    is_id = _HUB_ID.fullmatch(hub) and not hub.startswith(".")
    return (hub, commit) if is_id and not Path(hub).exists() else None


def check_hub(stage: str, args: Sequence[str]) -> None:
    """Asks for a stage's models and tasks of the hub, unless they are cached.

    Raises:
        ValueError: One is in no cache, and the hub does not answer.
    """
    # The hub's library reads the environment when it is imported, which a script may still change.
    from datamodules.model_sources import is_out_of_reach
    from datamodules.tasks.benchmarks import require_source

    given = _Given(stage, args)
    if given.is_begun(stage) or {"print_config", "dry-run", "dry_run"} & given.options.keys():
        return
    for model, revision in given.list_models(stage):
        if isinstance(model, str) and isinstance(revision, str | None) and (found := find_on_hub(model, revision)):
            is_out_of_reach(*found)
    for source in given.list_sources(stage):
        require_source(source)

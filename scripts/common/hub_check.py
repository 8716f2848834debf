"""Whether the hub's models and tasks that a stage names can be had, before what takes seconds is imported.

The stage itself has the last word: what is told here is only what it could not do without.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.files.atomic import read_meta
from scripts.common.experiment_file import ROLES, list_configs, read_experiment, read_models, read_section, split_config

# Where a run's `meta.json` names whom it trains.
_STUDENT = ("config", "model", "student")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class _Given:
    """What a command line and its files give for single settings."""

    def __init__(self, stage: str, args: Sequence[str]):
        self._named, others = split_config(args)
        models = read_models(self._named)
        self._sections = [read_section(path, stage, models)[0] for path in list_configs(self._named)]
        ends = [*others, ""][1:] if others else []
        pairs = [arg[2:].partition("=") for arg in others]
        self.options = {
            name: value if equals else end
            for arg, end, (name, equals, value) in zip(others, ends, pairs, strict=True)
            if arg.startswith("--")
        }

    @cached_property
    def _files(self) -> list[dict[str, Any]]:
        """The files whole, which only rounds and studies ask for."""
        models = read_models(self._named)
        return [read_experiment(path, models) for path in list_configs(self._named)]

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

    def find_own(self, name: str) -> Any:
        """Returns a setting that stands in no section, or None."""
        return self.options.get(name) or self.find_all(name)

    def find_elsewhere(self, stage: str, *keys: str) -> Any:
        """Returns what a file says of another stage, or None."""
        return _dig(next((own[stage] for own in reversed(self._files) if stage in own), None), *keys)

    def is_begun(self, stage: str) -> bool:
        """Says whether there is a result already, which may need nothing more."""
        if stage == "fit":
            group = Path(str(self.find("run", "root") or "runs"), str(self.find("run", "group") or "default"))
            if (name := self.find("run", "id")) is not None:
                return Path(group, str(name)).exists()
            # Without an id a run is named by a hash of all that it is, which only the stage knows.
            student = self.find("model", "student")
            return any(_dig(read_meta(meta.parent), *_STUDENT) == student for meta in group.glob("*/meta.json"))
        if stage in ("study", "on_policy"):
            return Path(str(self.find_own("root") or "runs"), str(self.find_own("name"))).exists()
        output = self.find_own("output")
        return output is not None and Path(str(output)).exists()

    def list_models(self, stage: str) -> Iterator[tuple[Any, Any]]:
        """Yields (model, revision) of what the stage cannot do without."""
        if stage == "study":
            yield from ((model, None) for model in self._list_of_study())
        elif stage == "on_policy":
            yield from self._list_of_rounds()
        # What a backend asks may be called anything.
        elif self.find("model", "backend") is None and not any("backend" in name for name in self.options):
            for role in ROLES:
                yield self.find("model", role), self.find("model", "revision")

    def _list_of_study(self) -> Iterator[Any]:
        """Yields the models of a study's students, and of the teachers that no backend stands for."""
        is_asked = self.find_elsewhere("annotate", "model", "backend") is not None
        for role in ("students", "teachers"):
            named = self.find_all(role)
            for own in named.values() if isinstance(named, Mapping) else ():
                is_served = role == "teachers" and (is_asked or "backend" in str(own))
                if isinstance(own, Mapping) and not is_served:
                    yield own.get("model")

    def _list_of_rounds(self) -> Iterator[tuple[Any, Any]]:
        """Yields (model, revision) of who writes, who reads, and who makes the text that is mixed in."""
        mix, teachers = self.find_own("mix"), self.find_all("teachers")
        is_mixed, is_read = str(mix) not in ("0", "0.0"), str(mix) not in ("1", "1.0")
        stages = [] if self.find_own("start") else [("fit", "student")]
        if is_mixed and self._is_missing("annotate", "rationales"):
            stages.append(("annotate", "teacher"))
        # Who an option names is left to the stage.
        others = teachers or self.find_own("teacher") or any(name.startswith("teachers") for name in self.options)
        if (is_read and not others) or (is_mixed and self._is_missing("cache_logits", "logits")):
            stages.append(("cache_logits", "teacher"))
        for stage, role in stages:
            if self.find_elsewhere(stage, "model", "backend") is None:
                yield tuple(self.find_elsewhere(stage, "model", name) for name in (role, "revision"))
        if is_read and isinstance(teachers, Mapping):
            yield from ((model, None) for model in teachers)

    def _is_missing(self, stage: str, name: str) -> bool:
        """Says whether a stage is yet to make what rounds mix in."""
        output = self.find_elsewhere(stage, "output")
        named = self.find_elsewhere("fit", "data", name)
        return isinstance(named, list) and output in named and not Path(str(output)).exists()

    def list_sources(self, stage: str) -> Iterator[str]:
        """Yields the tasks' questions."""
        if stage == "on_policy":
            for own in ("fit", "evaluate"):
                yield from find_sources(self.find_elsewhere(own, "data", "questions"))
        elif stage != "study":
            yield from find_sources(self.find("data", "questions"))
        else:
            study = {name: self.find_all(name) for name in ("tasks", "languages")}
            yield from fill_languages(study, find_sources(study["tasks"]))


def _dig(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


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


@contextmanager
def _naming_prefetch(args: Sequence[str]) -> Iterator[None]:
    """Adds to what is said of one missing thing how all that a config names is fetched."""
    try:
        yield
    except ValueError as error:
        if not (named := split_config(args)[0]):
            raise
        command = shlex.join(["python", "-m", "scripts.prefetch", *named])
        raise ValueError(f"{error}, or all that the config names: {command}") from None


def check_hub(stage: str, args: Sequence[str]) -> None:
    """Asks for a stage's models and tasks of the hub, unless they are cached.

    Raises:
        ValueError: One is in no cache, and the hub does not answer.
    """
    # The hub's library reads the environment when it is imported, which a script may still change.
    from datamodules.model_sources import is_out_of_reach
    from datamodules.tasks.benchmarks import parse_source, require_source

    given = _Given(stage, args)
    if given.is_begun(stage) or {"print_config", "dry-run", "dry_run"} & given.options.keys():
        return
    for model, revision in given.list_models(stage):
        if isinstance(model, str) and isinstance(revision, str | None) and (found := find_on_hub(model, revision)):
            with _naming_prefetch(args):
                is_out_of_reach(*found)
    for source in given.list_sources(stage):
        parse_source(source)
        with _naming_prefetch(args):
            require_source(source)

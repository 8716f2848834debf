"""An experiment's file: one YAML with a section for each stage, of which every script reads its own.

A generic one serves any pair of models: its texts may hold `$teacher`, `$student` and `$pair`, a name of the two, which
`--teacher=MODEL --student=MODEL` beside `--config=FILE` fill in. A file of just `base: FILE`, `teacher` and `student`
is a generic file with its pair, which the command line may still change.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from datamodules.files.parsing import check_depth, read_yaml
from scripts.common.help import answer
from scripts.common.settings import check_keys, check_options, check_required, locate_key

STAGES = ("annotate", "cache_logits", "fit", "evaluate", "study", "on_policy")
ROLES = ("teacher", "student")
_PLACEHOLDER = re.compile(r"\$(teacher|student|pair)\b")
_OPTION = re.compile(r"--(config|teacher|student)(=.*)?", re.DOTALL)


_LOAD = get_loader("yaml")


def load_setting(text: str) -> Any:
    """Returns what a setting says: a value, or what a file of settings holds.

    Raises:
        ValueError: It is nested too deep.
    """
    check_depth(text)
    return _LOAD(text)


def split_config(args: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns what names an experiment (`--config`, `--teacher`, `--student`), each as one argument, and the others."""
    named, others, rest = list[str](), list[str](), iter(args)
    for arg in rest:
        if match := _OPTION.fullmatch(arg):
            named.append(arg if match[2] else f"{arg}={next(rest, '')}")
        else:
            others.append(arg)
    return named, others


def name_pair(models: dict[str, str]) -> str:
    """Returns what files of a pair are called: TEACHER-to-STUDENT, of the last parts of their names."""
    names = [Path(models[role].removeprefix("model:")).name for role in ROLES]
    return "-to-".join(re.sub(r"[^\w.+=@-]+", "-", name).strip("-") for name in names)


def _list_strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for own in value.values() for text in _list_strings(own)]
    if isinstance(value, list):
        return [text for own in value for text in _list_strings(own)]
    return [value] if isinstance(value, str) else []


def _fill_in(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill_in(own, names) for key, own in value.items()}
    if isinstance(value, list):
        return [_fill_in(own, names) for own in value]
    return _PLACEHOLDER.sub(lambda match: names[match[1]], value) if isinstance(value, str) else value


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config: no such file: {path}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping")
    return content


def read_experiment(path: str, given: dict[str, str]) -> dict[str, Any]:
    """Returns a file's content with its models filled in.

    Args:
        path: The file.
        given: Models of the command line, by role.

    Raises:
        ValueError: The file is missing; it, or a section, is no YAML mapping; or the file is generic and lacks a model,
            or is not and is given one.
    """
    file, models = Path(path), given
    content = _read_mapping(file)
    if "base" in content:
        if strange := sorted(set(content) - {"base", *ROLES}):
            raise ValueError(f"{path}: has base, and so may have teacher and student beside it, but not {strange[0]}")
        if not all(isinstance(value, str) for value in content.values()):
            raise ValueError(f"{path}: base, teacher and student must each be a text")
        file = file.parent / content.pop("base")
        models = {**content, **given}
        content = _read_mapping(file)
    used = {name for text in _list_strings(content) for name in _PLACEHOLDER.findall(text)}
    needed = {*ROLES} if "pair" in used else used
    if unused := sorted(set(models) - needed):
        raise ValueError(f"--{unused[0]}: {file} has no ${unused[0]}, so that it would be ignored; leave it out")
    if missing := [role for role in ROLES if role in needed and not models.get(role, "").strip()]:
        options = " ".join(f"--{role}=MODEL" for role in missing)
        raise ValueError(
            f"{path}: is for any {' and '.join(missing)}: add {options}, each a folder, a hub id (owner/name) or a "
            "model:NAME of configs/models"
        )
    names = {**models, "pair": name_pair(models)} if needed == {*ROLES} else models
    filled: dict[str, Any] = _fill_in(content, names)
    for name in STAGES:
        if name in filled and not isinstance(filled[name], dict):
            raise ValueError(f"{path}: section {name}: expected a mapping")
    return filled


def read_models(named: Sequence[str]) -> dict[str, str]:
    """Returns the models of what `split_config` found, by role."""
    pairs = [arg.removeprefix("--").split("=", 1) for arg in named]
    return {name: value for name, value in pairs if name in ROLES}


def read_section(path: str, stage: str, given: dict[str, str]) -> tuple[dict[str, Any], bool]:
    """Returns what a file says of a stage, and whether that is the stage's section of it; else it is the whole file.

    Raises:
        ValueError: As `read_experiment`; or the section is missing, or the file has a section that is no stage.
    """
    content = read_experiment(path, given)
    if not set(content) & set(STAGES):
        return content, False
    if unknown := sorted(set(content) - set(STAGES)):
        place = locate_key(Path(path), unknown[0])
        raise ValueError(f"{place}: unknown section {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if stage not in content:
        raise ValueError(f"{path}: has no section {stage}")
    return content[stage], True


def check_args(args: Iterable[str], stage: str) -> None:
    """Prints help and ends the process where a command line asks for it; else checks all names of settings in it.

    Raises:
        ValueError: A file or an option names no setting of the stage, or a required one is missing.
    """
    args = [*args]
    answer(stage, args)
    given, files = check_options(args, stage), dict[str, bool]()
    named, _ = split_config(args)
    for path in list_configs(named):
        section, files[path] = read_section(path, stage, read_models(named))
        given |= check_keys(Path(path), stage, section, files[path])
    # What a parser does instead of a stage's work needs nothing.
    if not any(name == "print_config" or name.startswith("help") or name.endswith(".help") for name in given):
        check_required(given, stage, files)


def list_configs(named: Iterable[str]) -> list[str]:
    """Returns the files of what `split_config` found."""
    return [arg.removeprefix("--config=") for arg in named if arg.startswith("--config=")]


def select_section(path: str, stage: str, given: dict[str, str]) -> str:
    """Returns what `--config` takes for this stage: the file itself, or its section for the stage as JSON."""
    section, is_section = read_section(path, stage, given)
    return json.dumps(section) if is_section else path


def select_sections(args: Iterable[str], stage: str) -> list[str]:
    """Replaces each `--config FILE` by the stage's section of the file, and puts it first: all others override it.

    The parser refuses what is nested too deep from then on.
    """
    set_loader("yaml", load_setting, exceptions=(yaml.YAMLError,))
    named, others = split_config(args)
    selected = [f"--config={select_section(path, stage, read_models(named))}" for path in list_configs(named)]
    return [*(selected or named), *others]


def find_section(named: Sequence[str], stage: str) -> dict[str, Any] | None:
    """Returns a stage's section of the experiment that `split_config` found; None if there is none."""
    configs = list_configs(named)
    section = read_experiment(configs[-1], read_models(named)).get(stage) if configs else None
    return section if isinstance(section, dict) else None


def split_args(args: list[str]) -> tuple[list[str], list[str]]:
    """Returns what names a study's experiment, as `split_config`, and the other arguments.

    Raises:
        ValueError: Not exactly one file is named.
    """
    named, others = split_config(args)
    if sum(arg.startswith("--config=") for arg in named) != 1 and not {"-h", "--help"} & set(args):
        raise ValueError("name exactly one study's file with --config, e.g. configs/experiments/microworld.yaml")
    return named, others

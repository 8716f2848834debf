"""An experiment's file: one YAML with a section for each stage, of which every script reads its own."""

import json
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from datamodules.files.parsing import check_depth, read_yaml
from scripts.common.help import answer
from scripts.common.settings import check_keys, check_options, check_required, locate_key

STAGES = ("annotate", "cache_logits", "fit", "evaluate", "study")


_LOAD = get_loader("yaml")


def load_setting(text: str) -> Any:
    """Returns what a setting says: a value, or what a file of settings holds.

    Raises:
        ValueError: It is nested too deep.
    """
    check_depth(text)
    return _LOAD(text)


def read_section(path: str, stage: str) -> tuple[dict[str, Any], bool]:
    """Returns what a file says of a stage, and whether that is the stage's section of it; else it is the whole file.

    Raises:
        ValueError: The file or its section is missing or no YAML mapping, or it has a section that is no stage.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"--config: no such file: {path}")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping")
    if not set(content) & set(STAGES):
        return content, False
    if unknown := sorted(set(content) - set(STAGES)):
        place = locate_key(file, unknown[0])
        raise ValueError(f"{place}: unknown section {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if stage not in content:
        raise ValueError(f"{path}: has no section {stage}")
    if not isinstance(content[stage], dict):
        raise ValueError(f"{path}: section {stage}: expected a mapping")
    return content[stage], True


def select_section(path: str, stage: str) -> str:
    """Returns what `--config` takes for this stage: the file itself, or its section for the stage as JSON."""
    section, is_section = read_section(path, stage)
    return json.dumps(section) if is_section else path


def select_sections(args: list[str], stage: str) -> list[str]:
    """Replaces each `--config FILE` by the stage's section of the file, for a parser that refuses what is too deep.

    Prints help, and ends the process, where the command line asks for it.

    Raises:
        ValueError: A file or an option names no setting of the stage, or a required one is missing.
    """
    set_loader("yaml", load_setting, exceptions=(yaml.YAMLError,))
    answer(stage, args)
    selected, files, given = list[str](), dict[str, bool](), check_options(args, stage)
    follows = False
    for arg in args:
        if follows or arg.startswith("--config="):
            path = arg.removeprefix("--config=")
            section, files[path] = read_section(path, stage)
            given |= check_keys(Path(path), stage, section, files[path])
            selected.append(f"--config={json.dumps(section) if files[path] else path}")
        elif arg != "--config":
            selected.append("--help" if arg == "--help=all" else arg)
        follows = arg == "--config"
    # What a parser does instead of a stage's work needs nothing.
    if not any(name == "print_config" or name.startswith("help") or name.endswith(".help") for name in given):
        check_required(given, stage, files)
    return selected


def split_args(args: list[str]) -> tuple[str, list[str]]:
    """Returns the file that `--config` names, and the other arguments."""
    configs, overrides, rest = list[str](), list[str](), iter(args)
    for arg in rest:
        if arg == "--config":
            configs.append(next(rest, ""))
        elif arg.startswith("--config="):
            configs.append(arg.removeprefix("--config="))
        else:
            overrides.append(arg)
    if len(configs) != 1 and not {"-h", "--help"} & set(args):
        raise ValueError("name exactly one study's file with --config, e.g. configs/experiments/microworld.yaml")
    return "".join(configs[:1]), overrides

"""What comes after a stage: the next stage's command, to copy."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from lightning_modules.run.folder import flatten
from scripts.common.experiment_file import find_section, split_config


def find_given(args: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """Returns the settings of a command line that begin with one of these, each as one argument."""
    given, rest = [], iter(args)
    for arg in rest:
        if arg.startswith(tuple(f"--{prefix}" for prefix in prefixes)):
            given.append(arg if "=" in arg else f"{arg}={next(rest, '')}")
    return given


def _is_open(value: Any) -> bool:
    return isinstance(value, str) and value.isupper()


def suggest(stage: str, args: Sequence[str], carried: Sequence[str], settings: dict[str, Any]) -> str:
    """Returns a stage's command, quoted for a shell.

    Args:
        stage: The next one.
        args: This stage's command line, whose experiment file has the next one's section, or not.
        carried: Settings, by how they begin, that the next stage needs as they were given here.
        settings: What the next stage is to be told, by dotted name; left out where its section says so already. One
            that is in capitals the user fills in; a section has it.
    """
    named, _ = split_config(args)
    try:
        section = find_section(named, stage)
    except ValueError:
        # The file was changed while the stage ran, whose work is done all the same.
        section = None
    known = flatten(section or {})
    command = ["python", "-m", f"scripts.{stage}", *(named if section is not None else [])]
    given = []
    for arg in find_given(args, carried):
        name = arg.split("=")[0].removeprefix("--")
        known[name] = None
        if name not in settings or _is_open(settings[name]):
            given.append(arg)
    for name, value in settings.items():
        if known.get(name) == value or (_is_open(value) and name in known):
            continue
        given.append(f"--{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return shlex.join([*command, *given])

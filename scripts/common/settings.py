"""The stages' settings as `settings.json` lists them: help and mistakes need not wait seconds for the real parsers.

`python -m scripts.common.settings_file` writes that file from the parsers, which have the last word on what it lets
pass.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.files.parsing import read_json_object, read_key_lines

FILE = Path(__file__).with_name("settings.json")
# Options of every stage that are no settings; the last fill in an experiment's file.
COMMANDS = ("help", "print_config", "config", "teacher", "student")


@dataclass(frozen=True)
class Setting:
    """One setting of a stage.

    Attributes:
        type: What it may be.
        default: As YAML has it; empty where there is none.
        help: What it is.
        required: Whether it must be given.
        open: Whether what is below its name depends on its value, as a class's own settings do.
    """

    type: str
    default: str
    help: str
    required: bool = False
    open: bool = False


@cache
def read_settings(stage: str) -> dict[str, Setting]:
    """Returns a stage's settings by dotted name, in the parser's order."""
    return {name: Setting(**values) for name, values in read_json_object(FILE)["settings"][stage].items()}


def read_texts() -> dict[str, str]:
    """Returns the help of scripts and commands whose parsers are argparse's, by what they are called."""
    texts: dict[str, str] = read_json_object(FILE)["texts"]
    return texts


def list_ancestors(name: str) -> list[str]:
    """Returns what a dotted name is below: of `model.loss.beta` `model` and `model.loss`."""
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def list_sections(names: Iterable[str]) -> list[str]:
    """Returns the sections that some settings are in, once each."""
    return [*dict.fromkeys(section for name in names for section in list_ancestors(name))]


def suggest(name: str, known: Collection[str]) -> str:
    """Returns the settings that a name may stand for, as the end of a message; nothing where none is like it."""
    last = name.rpartition(".")[2]
    found = [other for other in known if other.rpartition(".")[2] == last] or get_close_matches(name, known, 1)
    if not found:
        ends = {other.rpartition(".")[2]: other for other in known}
        found = [ends[end] for end in get_close_matches(last, ends, 1)]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _is_known(name: str, known: Mapping[str, Setting]) -> bool:
    # A key of a file has an underscore where an option may have a hyphen.
    name = name.replace("-", "_")
    names = {other.replace("-", "_"): setting for other, setting in known.items()}
    if name in (*COMMANDS, *names, *list_sections(names)):
        return True
    return any(ancestor in names and names[ancestor].open for ancestor in list_ancestors(name))


def check_options(args: Iterable[str], stage: str) -> set[str]:
    """Returns the names of the settings that a command line gives.

    Raises:
        ValueError: There is no such setting.
    """
    known, given = read_settings(stage), set[str]()
    for arg in args:
        if not arg.startswith("--") or arg == "--":
            continue
        name = arg[2:].partition("=")[0].removesuffix("+")
        if not _is_known(name.removesuffix(".help"), known):
            like = suggest(f"--{name}", [f"--{other}" for other in (*known, *list_sections(known))])
            raise ValueError(f"--{name}: there is no such option{like}")
        given.add(name)
    return given


def check_keys(path: Path, stage: str, content: dict[str, Any], is_section: bool) -> set[str]:
    """Returns the names of the settings that a file gives.

    Args:
        path: The file.
        stage: Whose settings they are.
        content: What the file, or its section of the stage's name, says.
        is_section: Whether it is that section.

    Raises:
        ValueError: There is no such setting, or it is null and must not be; it names file and line.
    """
    known, given = read_settings(stage), set[str]()
    sections = list_sections(known)
    prefix = f"{stage}." if is_section else ""

    def walk(values: dict[str, Any], above: str) -> None:
        for key, value in values.items():
            name = f"{above}{key}"
            if not _is_known(name, known):
                place = locate_key(path, f"{prefix}{name}")
                raise ValueError(f"{place}: {name}: there is no such setting{suggest(name, [*known, *sections])}")
            # The parsers let null pass wherever a file says it.
            setting = known.get(name)
            if value is None and setting and "null" not in setting.type.split(" | "):
                place = locate_key(path, f"{prefix}{name}")
                raise ValueError(f"{place}: {name}: must be {setting.type}, not null; leave it out for its default")
            if name in sections and name not in known and isinstance(value, dict):
                walk(value, f"{name}.")
            else:
                given.add(name)

    walk(content, "")
    return given


def locate_key(path: Path, name: str) -> str:
    """Returns file and line of a dotted key, or of what it is in; the file alone where that has neither."""
    lines = read_key_lines(path)
    found = next((key for key in [name, *reversed(list_ancestors(name))] if key in lines), None)
    return f"{path}:{lines[found]}" if found else str(path)


def check_required(given: set[str], stage: str, files: Mapping[str, bool]) -> None:
    """Raises a ValueError that names a required setting if nothing gives it.

    Args:
        given: The settings that are given, or what they are in.
        stage: Whose settings they are.
        files: The files that were read, and whether each has a section for the stage.
    """
    for name, setting in read_settings(stage).items():
        if setting.required and not given & {name, name.replace("-", "_"), *list_ancestors(name)}:
            # The place where the rest of its section is, or that section's stage.
            places = [
                locate_key(Path(path), f"{stage}.{name}" if is_section else name) for path, is_section in files.items()
            ]
            missing = f"--{name} is required and missing" + (f", in {' and '.join(places)}, too" if places else "")
            raise ValueError(f"{missing}: {setting.help.rstrip('.')}; --help shows what matters")

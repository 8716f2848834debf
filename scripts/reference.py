"""Writes docs/reference/: the settings of each stage from its parser, and every module's docstring.

    python -m scripts.reference

mkdocs loads this file as a hook, too: in the site, a link to a source file leads to the file's entry in the reference.
"""

import argparse
import ast
import html
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.files.atomic import write_text
from datamodules.files.command_line import CommandLine
from scripts.common.entry import run_main

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
ROOMS = ("datamodules", "losses", "lightning_modules", "studies", "scripts")
WRITTEN = "<!-- Written by `python -m scripts.reference` from the code; edit that. -->\n"
HIDDEN = ("trainer", "help", "print_config", "config", "version")


def escape(text: str) -> str:
    """Returns a docstring's text as Markdown in which nothing but its code spans is markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_|])", r"\\\1", html.escape(p, quote=False)) for p in parts)


def name_type(annotation: Any) -> str:
    """Returns a type as a user says it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Literal, typing.Union, types.UnionType):
        return " or ".join(json.dumps(arg) if origin is typing.Literal else name_type(arg) for arg in args)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(name_type(arg) for arg in args if arg is not ...)}]"
    return "null" if annotation is types.NoneType else getattr(annotation, "__name__", str(annotation))


def find_classes(annotation: Any) -> Iterator[type]:
    """Yields Kindred's own classes that a setting takes, with those that stand for an abstract one."""
    for arg in typing.get_args(annotation):
        yield from find_classes(arg)
    if isinstance(annotation, type) and annotation.__module__.startswith(ROOMS):
        if not inspect.isabstract(annotation):
            yield annotation
        subclasses: list[type] = annotation.__subclasses__()
        for subclass in sorted(subclasses, key=lambda known: known.__name__):
            yield from find_classes(subclass)


def render_settings(parser: argparse.ArgumentParser, classes: dict[type, str]) -> str:
    """Returns a table of a parser's settings; notes the classes that they take, and the setting that takes each."""
    lines = ["| setting | type | default | |", "| --- | --- | --- | --- |"]
    for action in parser._actions:
        options = [option for option in action.option_strings if option.startswith("--") and not option.endswith("+")]
        if not options or action.dest.startswith(HIDDEN) or action.default == "==SUPPRESS==":
            continue
        annotation = getattr(action, "_typehint", None) or action.type or str
        for known in find_classes(annotation):
            classes.setdefault(known, action.dest)
        kind = "switch" if action.nargs == 0 else name_type(annotation)
        default = "*required*" if action.required else f"`{json.dumps(action.default, default=str)}`"
        text = escape(" ".join((action.help or "").split()))
        lines.append(f"| `{options[0][2:]}` | {escape(kind)} | {default} | {text} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "It has none of its own.\n"


def render_stage(name: str, doc: str, parser: argparse.ArgumentParser) -> str:
    """Returns the page of a stage: what it does, its settings, and those of the classes that they take."""
    from jsonargparse import ArgumentParser

    classes: dict[type, str] = {}
    page = f"{WRITTEN}# {name}\n\n{doc.strip()}\n\n## Settings\n\n{render_settings(parser, classes)}"
    if any(action.dest.startswith("trainer.") for action in parser._actions):
        page += "\n`trainer.*` are the settings of Lightning's `Trainer`.\n"
    for known, setting in classes.items():
        own = ArgumentParser()
        own.add_class_arguments(known)
        summary = escape((known.__doc__ or "").split("\n\n")[0])
        page += f"\n## {known.__name__}, for `{setting}`\n\n{summary}\n\n{render_settings(own, {})}"
    return page


def render_module(path: Path) -> str:
    """Returns the entry of a module: its docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = "\n".join(line if line.startswith("    ") else escape(line) for line in doc.splitlines())
    return f"\n## {escape(path.relative_to(ROOT).as_posix())}\n\n{text}\n"


def render() -> dict[str, str]:
    """Returns the reference's pages by name."""
    from jsonargparse import ArgumentParser

    from scripts import on_policy, study, sweep
    from scripts.common.stages import STAGES
    from studies.design.grid import Study
    from studies.design.rounds import OnPolicy
    from studies.jobs.sweep import Sweep

    example = f"--config={ROOT / 'configs/experiments/microworld.yaml'}"
    parsers: dict[str, Any] = {name: stage.parse([example]).parser for name, stage in STAGES.items()}
    docs = {name: stage.__doc__ or "" for name, stage in STAGES.items()}
    others = (("study", study, Study), ("sweep", sweep, Sweep), ("on_policy", on_policy, OnPolicy))
    for name, script, declared in others:
        parsers[name], docs[name] = ArgumentParser(), script.__doc__ or ""
        parsers[name].add_class_arguments(declared)
    pages = {f"{name}.md": render_stage(name, docs[name], parser) for name, parser in parsers.items()}
    for room in ROOMS:
        files = sorted(path for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")
        pages[f"modules/{room}.md"] = f"{WRITTEN}# {room}\n" + "".join(map(render_module, files))
    return pages


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links to source files to their entries; of a link to another file outside docs/, the text is left."""
    source = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        target = (ROOT / "docs" / source).parent.joinpath(match[2]).resolve()
        if not target.exists() or target.is_relative_to(ROOT / "docs"):
            return match[0]
        path = target.relative_to(ROOT).as_posix()
        room = path.split("/")[0]
        if target.suffix != ".py" or room not in ROOMS:
            return match[1]
        anchor = re.sub(r"[^\w-]", "", path).lower()
        return f"[{match[1]}]({'../' * source.count('/')}reference/modules/{room}.md#{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)#:\s]+)\)", lead, markdown)


def main(args: list[str] | None = None) -> None:
    """Writes the pages anew."""
    CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    for name, page in render().items():
        write_text(REFERENCE / name, page)
    print(f"written: {REFERENCE.relative_to(ROOT)}/")


if __name__ == "__main__":
    run_main(main, __file__)

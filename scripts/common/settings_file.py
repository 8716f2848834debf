"""Writes `settings.json`, the stages' settings, from their parsers; a test says when it is stale.

python -m scripts.common.settings_file
"""

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin
from unittest import mock

import yaml
from jsonargparse import ArgumentParser

from datamodules.files.atomic import write_text
from scripts import annotate, benchmark, cache_logits, evaluate, fit, study
from scripts.common.settings import FILE
from scripts.microworld.__main__ import run_command
from studies.design.grid import Study
from studies.design.rounds import OnPolicy

# What a parser does that is no setting.
_NO_SETTINGS = ("_ActionHelpClassPath", "_ActionConfigLoad", "_HelpAction", "_ActionPrintConfig", "ActionFail")


def build_parsers() -> dict[str, Any]:
    """Returns each stage's parser; a stage builds it with the rest of what its command line asks for."""
    data = ["--data.questions=q"]
    # Not checked against the file that is to be written.
    with mock.patch("scripts.common.stage_cli.check_args"):
        return {
            "annotate": annotate.parse(["--model.teacher=a/b", "--output=o.parquet", *data]).parser,
            "cache_logits": cache_logits.parse(["--model.teacher=a/b", "--output=o", *data]).parser,
            "fit": fit.parse(["--model.student=a/b", *data]).parser,
            "evaluate": evaluate.parse(["--model.student=a/b", "--output=o.parquet", *data]).parser,
            "study": declare(Study),
            "on_policy": declare(OnPolicy),
        }


def declare(settings: type) -> ArgumentParser:
    """Returns a parser of a class's settings."""
    parser = ArgumentParser()
    parser.add_class_arguments(settings)
    return parser


def name_type(kind: Any) -> str:
    """Returns how a type is shown: its values, its alternatives, or its name."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join(map(name_type, inner))
    if origin is Literal:
        return " | ".join(map(str, inner))
    if kind is NoneType:
        return "null"
    if inner:
        return f"{name_type(origin)}[{', '.join(map(name_type, inner))}]"
    return getattr(kind, "__name__", str(kind))


def is_open(kind: Any) -> bool:
    """Whether there may be settings below one of this type: a class's own, or the keys of a mapping."""
    if get_origin(kind) is Literal:
        return False
    if inner := get_args(kind):
        return get_origin(kind) is dict or any(map(is_open, inner))
    return isinstance(kind, type) and not issubclass(kind, bool | int | float | str | list | tuple | Path | NoneType)


def show_default(value: Any) -> str:
    """Returns a default as a file would have it; nothing for one that is no plain value."""
    if isinstance(value, str | int | float | list | dict | None):
        return (
            value if isinstance(value, str) and value else yaml.safe_dump(value, width=1000).split("\n...")[0].strip()
        )
    return ""


def describe_settings(parser: Any) -> dict[str, dict[str, Any]]:
    """Returns a parser's settings: see `Setting`, whose defaults are left out."""
    described: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        if type(action).__name__ in _NO_SETTINGS or action.dest == "config":
            continue
        options = [option for option in action.option_strings if option.startswith("--")]
        name = options[0][2:] if options else action.dest
        kind = getattr(action, "_typehint", None) or action.type
        shown = name_type(kind) if kind is not None else "bool"
        default = action.default
        record: dict[str, Any] = {"type": shown, "default": "" if default == "==SUPPRESS==" else show_default(default)}
        record["help"] = " ".join((action.help or "").split())
        if action.required and options:
            record |= {"required": True, "default": ""}
        if is_open(kind):
            record["open"] = True
        described[name] = record
    return described


def capture_help(script: str, command: list[str], main: Callable[[list[str]], object]) -> str:
    """Returns what a script prints where its help is asked for."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
        mock.patch.dict(os.environ, COLUMNS="110"),
        mock.patch.object(sys, "argv", [f"python -m scripts.{script}"]),
    ):
        main([*command, "--help"])
    return said.getvalue()


def list_commands() -> list[tuple[str, list[str], Callable[[list[str]], object]]]:
    """Returns the scripts and commands whose help takes seconds, with what prints it."""
    own: list[tuple[str, list[str], Callable[[list[str]], object]]] = [
        ("annotate", ["summary"], annotate.main),
        ("cache_logits", ["inspect"], cache_logits.main),
        ("study", ["power"], study.main),
        ("study", ["diagnose"], study.main),
    ]
    world = [("microworld", command, run_command) for command in ([], ["questions"], ["pretrain"])]
    return [*own, *world, *(("benchmark", [name], run_benchmark(name)) for name in benchmark.NAMES)]


def run_benchmark(name: str) -> Callable[[list[str]], object]:
    """Returns what runs a benchmark's own command line."""
    module = importlib.import_module(f"scripts.benchmarks.{name}")
    return lambda args: list(module.run(args[1:]))


def render() -> str:
    """Returns the file's text: a line for each setting, and for each command."""
    texts = {
        " ".join([script, *command]): capture_help(script, command, main) for script, command, main in list_commands()
    }
    content = {stage: describe_settings(parser) for stage, parser in build_parsers().items()}
    stages = ",\n".join(f"{json.dumps(stage)}: {_render_lines(settings)}" for stage, settings in content.items())
    return f'{{\n"settings": {{\n{stages}\n}},\n"texts": {_render_lines(texts)}\n}}\n'


def _render_lines(values: Mapping[str, object]) -> str:
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    write_text(FILE, render())
    print(f"{FILE}: written")

"""A stage's help: one screen of what matters, a part, or everything."""

import ast
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from scripts.common.settings import Setting, list_sections, read_settings, read_texts, suggest

SCRIPTS = Path(__file__).parents[1]
WIDTH = 118
# What a first command of each stage is likely to set, most important first.
MATTERING = {
    "annotate": (
        *("model.teacher", "data.questions", "output", "model.family", "data.prompt", "model.max_new_tokens"),
        *("model.temperature", "model.num_samples", "model.backend", "dry-run"),
    ),
    "cache_logits": (
        *("model.teacher", "data.questions", "data.rationales", "output", "data.prompt", "model.kind", "model.top_k"),
        *("model.temperatures", "data.filters.correct_only", "data.encoding.max_length"),
    ),
    "fit": (
        *("model.student", "data.questions", "data.rationales", "data.supervision", "data.logits"),
        *(
            "model.loss.kl_weight",
            "model.learning_rate",
            "trainer.max_epochs",
            "data.batches.tokens_per_step",
            "run.id",
        ),
    ),
    "evaluate": (
        *("model.student", "data.questions", "output", "data.prompt", "model.max_new_tokens", "model.arm"),
        *("model.seed", "model.score_options", "data.references", "wandb.enabled"),
    ),
    "study": (
        *("name", "tasks", "students", "teachers", "supervisions", "seeds", "controls", "alignment", "workers"),
        "root",
    ),
    "on_policy": (
        *("name", "rounds", "questions", "samples", "temperature", "max_new_tokens", "mix", "keep_rounds", "start"),
        "evaluate_every",
    ),
}


def read_docstring(script: Path) -> str:
    """Returns what a script says of itself, without running it."""
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""


def format_setting(name: str, setting: Setting, width: int) -> str:
    """Returns a setting on one line: its name, its default, and the beginning of what it is."""
    default = "required" if setting.required else setting.default
    text = textwrap.shorten(f"({default}) {setting.help}", WIDTH - width - 6, placeholder=" ...")
    return f"  --{name:{width}}  {text}"


def format_help(stage: str) -> str:
    """Returns a stage's help of one screen."""
    settings = read_settings(stage)
    width = max(map(len, MATTERING[stage]))
    mattering = "\n".join(format_setting(name, settings[name], width) for name in MATTERING[stage])
    sections = list_sections(settings)[:4]
    parts = f"; --help={sections[0]} one part (or {', '.join(sections[1:])}, ...)" if sections else ""
    return f"""{read_docstring(SCRIPTS / f"{stage}.py")}

The settings that matter most, with their defaults; --config FILE reads them from YAML:
{mattering}

--help=all lists all {len(settings)} settings{parts}.
--print_config prints what a command settles, as YAML.
Exit codes: 0 done, 2 wrong input, 75 stopped (the same command continues), 1 a mistake of Kindred's own."""


def format_part(stage: str, part: str) -> str:
    """Returns the help of a setting, of all that is below a section, or of `all`.

    Raises:
        ValueError: There is neither.
    """
    settings: Mapping[str, Setting] = read_settings(stage)
    part = part.removeprefix("--")
    found = {name: own for name, own in settings.items() if part in ("all", name) or name.startswith(f"{part}.")}
    if not found:
        like = suggest(part, [*list_sections(settings), *settings])
        raise ValueError(
            f"--help={part}: there is no such setting{like}; a class's own are shown by --SETTING.help=CLASS"
        )
    lines = []
    for name, setting in found.items():
        default = "required" if setting.required else f"default: {setting.default}" if setting.default else ""
        lines.append(f"--{name}  ({'; '.join(filter(None, (setting.type, default)))})")
        lines += textwrap.wrap(setting.help, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def answer(stage: str, args: list[str]) -> None:
    """Prints a stage's help and ends the process where a command line asks for it."""
    for arg in args:
        if arg in ("-h", "--help"):
            print(format_help(stage))
        elif arg.startswith("--help="):
            print(format_part(stage, arg.removeprefix("--help=")))
        else:
            continue
        sys.exit(0)


def answer_command(script: str, args: list[str]) -> None:
    """Likewise for a script, or a command of it, whose own parser would come after imports that take seconds."""
    words = [arg for arg in args[:1] if not arg.startswith("-")]
    text = read_texts().get(" ".join([script, *words]))
    if text and {"-h", "--help"} & set(args):
        print(text, end="")
        sys.exit(0)

"""Help and mistakes that need not wait for the parsers, and what the parsers themselves say."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.common import settings_file
from scripts.common.experiment_file import check_args, find_section
from scripts.common.front import check_command
from scripts.common.help import MATTERING, format_help, format_part, format_setting
from scripts.common.settings import (
    FILE,
    check_keys,
    check_options,
    check_required,
    read_settings,
    read_texts,
)
from tests.scripts.conftest import COMMANDS
from tests.scripts.pipeline import MAINS, ROOT


def test_the_file_is_what_the_parsers_say() -> None:
    # Where this fails: python -m scripts.common.settings_file
    assert FILE.read_text(encoding="utf-8") == settings_file.render()


@pytest.mark.parametrize("stage", MATTERING)
def test_help_is_one_screen_with_the_parsers_own_defaults(stage: str) -> None:
    text, settings = format_help(stage), read_settings(stage)
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 120
    assert f"    python -m scripts.{stage} " in text and len(set(MATTERING[stage])) == min(10, len(settings))
    assert {name for name, setting in settings.items() if setting.required} <= set(MATTERING[stage])
    for name in MATTERING[stage]:
        wanted = "required" if settings[name].required else settings[name].default
        assert f"--{name} " in text and f"({wanted}) " in format_setting(name, settings[name], 30)


def test_a_part_is_what_lies_below_its_name() -> None:
    text = format_part("fit", "model.loss")
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("--")]
    assert shown == [f"--{name}" for name in read_settings("fit") if name.startswith("model.loss.")] and len(shown) > 8
    assert "--model.loss.kl_weight  (float | Schedule; default: 0.0)\n    lambda, the divergence's share" in text
    assert format_part("fit", "--run.id").startswith("--run.id  (str | null; default: null)\n")
    with pytest.raises(ValueError, match=r"no such setting; did you mean model\.loss\?"):
        format_part("fit", "model.los")


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--model.lerning_rate=3", "--model.learning_rate"),
        ("--learning_rate", "--model.learning_rate"),
        ("--modle.schedule=linear", "--model.schedule"),
        ("--data.promt", "--data.prompt"),
        ("--data.questions.x=1", None),
        ("--zzzzzz=1", None),
    ],
)
def test_an_unknown_option_is_told_what_it_may_mean(option: str, meant: str | None) -> None:
    with pytest.raises(ValueError, match="there is no such option") as refused:
        check_options([option], "fit")
    message = str(refused.value)
    assert message.startswith(option.partition("=")[0]) and (f"did you mean {meant}?" in message) == bool(meant)


@pytest.mark.parametrize(
    "args",
    [
        ["--model.adapter.r=8", "--model.loss.kl_weight.shape=linear", "--data.batches.teacher_weights.a=1"],
        ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=x", "--trainer.callbacks.help=Timer"],
        ["--data.rationales+", "x", "-c=y", "-1"],
        ["--model=x.yaml", "--model.loss=x.yaml", "--print_config=comments", "--help", "--print_config"],
    ],
)
def test_what_the_parser_takes_is_left_to_it(args: list[str]) -> None:
    check_options(args, "fit")


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_files_of_a_finished_stage_have_known_keys(stage: str, pipeline: Path) -> None:
    check_options(COMMANDS[stage], stage)
    config = pipeline / "runs" / "g" / "r" / "config.yaml"
    if stage == "fit":
        check_keys(config, "fit", yaml.safe_load(config.read_text()), False)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_experiments_have_known_keys(path: Path) -> None:
    pair = ["--teacher=a/b", "--student=c/d"] if path.stem.startswith("pair") else []
    named = [f"--config={path}", *pair]
    sections = [stage for stage in MATTERING if find_section(named, stage) is not None]
    assert "fit" in sections
    for stage in sections:
        check_args([*named, "--print_config"], stage)


FILE_TEXT = """\
fit:
  model:
    student: x
    loss: {kl_weigth: 0.5}
  data:
    questions: q
"""


def test_an_unknown_key_is_named_with_file_line_and_what_it_may_mean(bench) -> None:
    (bench.folder / "x.yaml").write_text(FILE_TEXT)
    line = bench.refuse("fit", "--config=x.yaml")
    assert line == (
        "error: x.yaml:4: model.loss.kl_weigth: there is no such setting; did you mean model.loss.kl_weight?"
    )
    (bench.folder / "x.yaml").write_text("model:\n  student: x\ndta: {}\n")
    assert bench.refuse("fit", "--config", "x.yaml") == (
        "error: x.yaml:3: dta: there is no such setting; did you mean data?"
    )
    (bench.folder / "x.yaml").write_text("annotate: {}\nfti: {}\n")
    assert bench.refuse("fit", "--config=x.yaml").startswith("error: x.yaml:2: unknown section fti")


def test_a_missing_setting_is_named_with_the_place_where_its_section_is(bench) -> None:
    (bench.folder / "x.yaml").write_text("annotate: {}\nfit:\n  data:\n    questions: q\n  model: {revision: null}\n")
    line = bench.refuse_main(MAINS["fit"], ["--config=x.yaml"])
    assert line.startswith("error: --model.student is required and missing, in x.yaml:5, too: Hub id, local folder")
    (bench.folder / "x.yaml").write_text("fit: {}\n")
    assert "--model.student is required and missing, in x.yaml:1, too" in bench.refuse_main(
        MAINS["fit"], ["--config=x.yaml"]
    )
    assert bench.refuse_main(MAINS["annotate"], ["--model.teacher=x"]).startswith(
        "error: --data.questions is required and missing: A file"
    )


@pytest.mark.parametrize("given", [{"model.student", "data.questions"}, {"model", "data"}, {"model.student", "data"}])
def test_nothing_is_missing_where_a_setting_or_its_section_is_given(given: set[str]) -> None:
    check_required(given, "fit", {})


def test_the_whole_help_has_every_setting(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        MAINS["fit"](["--help=all"])
    said = capsys.readouterr().out
    assert not stopped.value.code
    assert all(f"--{name}  (" in said for name in read_settings("fit"))


def test_a_studys_dry_run_has_options_of_its_own() -> None:
    check_command("study", "study.py", ["run", "--config=x.yaml", "--dry-run", "--nonsense"])
    with pytest.raises(ValueError, match="--nonsense: there is no such option"):
        check_command("study", "study.py", ["run", "--nonsense"])


LIGHT = [
    ["fit", "--help"],
    ["fit", "--help=all"],
    ["pivot", "--help"],
    ["fit", "--nonsense=1"],
    ["annotate", "summary", "--help"],
    ["study", "destroy"],
    ["sweep", "--help"],
    ["benchmark", "losses", "--help"],
    ["report", "--help"],
    ["import_rationales", "--help"],
    ["inspect_data", "--help"],
    ["reference", "--help"],
    ["status"],
]
MORE = [
    *([stage, "--help"] for stage in ("annotate", "cache_logits", "evaluate", "study")),
    *([stage, "--help=model"] for stage in COMMANDS),
    *([stage, "--nonsense=1"] for stage in ("annotate", "cache_logits", "evaluate")),
    *([*name.split(), "--help"] for name in read_texts()),
    ["fit"],
    ["study"],
    ["study", "run", "--help"],
    ["evaluate", "metrics", "--help"],
    ["sweep", "x", "--dry-rn"],
    ["benchmark", "--help"],
    ["job", "--help"],
    ["report", "html", "--nonsense"],
    ["seal", "--help"],
    ["inspect_data", "x.jsonl", "--promt=plain"],
    ["reference", "--nonsense"],
    *([script, "--help"] for script in ("chat", "export_rationales", "import_data", "import_logits", "push")),
]
# Runs a script as `python -m` does, and says at its end what it has imported.
PROGRAM = """
import atexit, runpy, sys
heavy = ("torch", "lightning", "transformers", "scipy", "matplotlib")
atexit.register(lambda: print("imported:", *(name for name in heavy if name in sys.modules), file=sys.stderr))
script = sys.argv.pop(1)
runpy.run_module(f"scripts.{script}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "command", [*LIGHT, *(pytest.param(command, marks=pytest.mark.slow) for command in MORE)], ids=" ".join
)
def test_what_needs_no_model_imports_none(tmp_path: Path, command: list[str]) -> None:
    program = PROGRAM.replace("scripts.{script}", "scripts.microworld.__main__") if "microworld" in command else PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    is_asked = any(arg.startswith("--help") for arg in command) or command in (["study"], ["status"])
    assert done.returncode == (0 if is_asked else 2), done.stderr
    *errors, imported = done.stderr.splitlines()
    assert imported.strip() == "imported:" and len(errors) == (not is_asked)

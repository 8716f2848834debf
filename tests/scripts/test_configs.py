"""Every shipped experiment: each section is read by its stage, names what is there, and runs one batch."""

import importlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from datamodules.model_cards import find_card
from scripts import study as study_script
from scripts.common.experiment_file import STAGES, read_experiment
from scripts.common.study_plan import check_sections
from studies.design.grid import expand
from tests.scripts.conftest import MAINS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("experiments/*.yaml")) + sorted((ROOT / "configs").glob("studies/*.yaml"))
# A generic file is read with each of the pairs that are shipped.
GENERIC = {"pair.yaml"}
EXPERIMENTS = [
    file for file in FILES if file.name not in GENERIC and {"study", "base"} & set(yaml.safe_load(file.read_text()))
]
# The rounds of a study's arms are read with it: where they start is another arm.
SECTIONS = [
    (file, stage)
    for file in EXPERIMENTS
    for content in [read_experiment(str(file), {})]
    for stage in content
    if not (stage == "on_policy" and "study" in content)
]
IDS = [f"{file.stem}-{stage}" for file, stage in SECTIONS]


def find_values(content: Any, *names: str) -> list[str]:
    """Returns the texts under these keys, wherever they are."""
    if isinstance(content, list):
        return [found for item in content for found in find_values(item, *names)]
    if not isinstance(content, dict):
        return []
    here = [value for key, value in content.items() if key in names and isinstance(value, str)]
    return here + [found for value in content.values() for found in find_values(value, *names)]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has the repository's configs and nothing else."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def test_there_is_the_embedded_default_and_a_real_experiment():
    assert {"microworld", "obqa_smollm2"} <= {file.stem for file in EXPERIMENTS}


@pytest.mark.parametrize(("file", "stage"), SECTIONS, ids=IDS)
def test_section_is_a_stage_that_reads_it(checkout, file, stage):
    assert stage in STAGES
    if stage == "study":
        plan = study_script.parse(["--config", str(file)])
        check_sections(plan.study, plan.jobs())
    else:
        importlib.import_module(f"scripts.{stage}").parse(["--config", str(file)])
    assert [path.name for path in checkout.iterdir()] == ["configs"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_class_and_local_model_is_there(file):
    content = read_experiment(str(file), {})
    for name in find_values(content, "class_path"):
        module, _, attribute = name.rpartition(".")
        assert attribute in vars(importlib.import_module(module))
    models = find_values(content, "teacher", "student", "model")
    assert models
    for model in models:
        # A hub id has one slash.
        assert find_card(model) or model.count("/") == 1 or (ROOT / model / "model.safetensors").is_file(), model


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_no_shipped_file_names_what_is_not_shipped(file):
    assert "shared/" not in file.read_text()


@pytest.mark.parametrize(
    "file", [file for file in EXPERIMENTS if file.stem.startswith("pair_")], ids=lambda file: file.stem
)
def test_a_shipped_pair_is_of_one_family(file):
    cards = [find_card(model) for model in find_values(yaml.safe_load(file.read_text()), "teacher", "student")]
    assert len({card.family for card in cards}) == 1 and all(card.revision for card in cards)
    plan = study_script.parse(["--config", str(file), "--student=model:smollm2-135m-instruct"])
    # Of two families none learns from logits.
    assert not [job for job in plan.jobs() if job.stage == "cache_logits"]
    assert all("--student=model:smollm2-135m-instruct" in job.args for job in plan.jobs())


def run_sections(file: Path, overrides: dict[str, list[str]], *common: str) -> None:
    """Runs every section with fast_dev_run, and whole where a later one reads its output."""

    def run(stage: str, *more: str) -> None:
        quiet = "--trainer.enable_progress_bar=false"
        MAINS[stage](["--config", str(file), *common, *overrides[stage], quiet, *more])

    fast = "--trainer.fast_dev_run=1"
    run("annotate", fast, "--output=fast/r.parquet", "--data.batches.tokens_per_batch=500")
    batch = pq.read_table("fast/r.parquet").num_rows
    run("annotate")
    run("cache_logits", fast, "--output=fast/logits")
    run("cache_logits")
    run("fit", fast)
    run("evaluate", fast)
    assert 0 < batch < pq.read_table(yaml.safe_load(file.read_text())["annotate"]["output"]).num_rows
    assert Path("fast/logits/manifest.json").is_file()
    [done] = Path("runs").glob("*/*/DONE")
    assert yaml.safe_load(done.read_text())["global_step"] == 1
    assert (done.parent / "student" / "model.safetensors").is_file()
    assert pq.read_table(yaml.safe_load(file.read_text())["evaluate"]["output"]).num_rows > 0


def test_microworld_runs_as_it_is(checkout):
    overrides = {stage: [] for stage in MAINS}
    run_sections(ROOT / "configs/experiments/microworld.yaml", overrides, "--data.limit=8")


def test_obqa_runs_on_tiny_models(bench, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    teacher = "--model.teacher=models/teacher"
    # So tiny a model gives no right answer and ends nowhere.
    all_rationales = ["--data.filters.correct_only=false", "--data.filters.keep_truncated=true"]
    overrides = {
        "annotate": [teacher, "--model.max_new_tokens=8"],
        "cache_logits": [teacher, *all_rationales],
        "fit": ["--model.student=models/student", *all_rationales],
        "evaluate": ["--model.student=models/student", "--model.max_new_tokens=8"],
    }
    file = ROOT / "configs/experiments/obqa_smollm2.yaml"
    run_sections(file, overrides, "--data.questions=colours_train.jsonl")


@pytest.mark.parametrize(
    ("name", "student", "teachers", "expected"),
    [
        ("families_parts", "llama-3.2-1b", ["llama-3.2-3b", "qwen3-4b"], "rationale+logits-qwen3-4b-own_logits-seed0"),
        ("pythia_seeds", "seed1", ["seed1", "seed2"], "rationale+logits-seed2-logits-seed0"),
    ],
)
def test_a_study_for_a_cluster_is_estimated(checkout, capsys, name, student, teachers, expected):
    study = read_experiment(f"configs/studies/{name}.yaml", {})["study"]
    few = {"students": {student: study["students"][student]}}
    few |= {"teachers": {teacher: study["teachers"][teacher] for teacher in teachers}}
    args = [f"--{kind}={json.dumps(specs)}" for kind, specs in few.items()]
    study_script.main(["run", "--config", f"configs/studies/{name}.yaml", "--dry-run", "--seeds=1", *args])
    lines = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert f"{student}-{expected}" in lines and ("tune-seed2-owl" in lines) == (name == "pythia_seeds")
    # What tells the parts apart is known of every model, and so is its commit.
    cards = [find_card(spec["model"]) for kind in ("students", "teachers") for spec in study[kind].values()]
    assert all(card.revision and None not in vars(card.parts).values() for card in cards)


@pytest.mark.slow
def test_the_study_of_rounds_is_estimated_and_holds_each_against_as_many_steps(checkout, capsys):
    file = "configs/studies/microworld_on_policy.yaml"
    study = read_experiment(file, {})["study"]
    few = {"students": {"a": study["students"]["a"]}}
    few["tasks"] = {"microworld": {"train": "microworld:train:128:0", "test": ["microworld:test:4:0"]}}
    args = ["--config", file, "--seeds=1", *(f"--{kind}={json.dumps(specs)}" for kind, specs in few.items())]
    study_script.main(["run", "--dry-run", *args])
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    arms = {row[1]: row for row in rows}
    found = {name: arms[f"a-{name}-seed0"] for name in ("on-policy-b", "rationale-b-more_text")}
    found["logits"] = arms["a-rationale+logits-b-more_logits-seed0"]
    assert {row[4] for row in (*found.values(), arms["a-rationale-b-seed0"])} == {"72"}
    plan = study_script.parse(args)
    starts = {plan.start(arm).name for arm in expand(plan.study) if arm.teacher == "b" and plan.start(arm)}
    assert starts == {"fit-a-rationale-b-seed0"}

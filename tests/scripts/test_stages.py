"""The stages, one after the other, on the embedded default: what they write, say again, and continue."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datamodules.files import write_jsonl
from datamodules.logit_cache import LogitCache
from datamodules.microworld import generate_questions
from datamodules.rationales import SCHEMA, read_metadata
from lightning_modules.evaluation import PREDICTION_SCHEMA
from lightning_modules.run import read_global_step
from tests.scripts.conftest import MAINS, list_files

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs" / "models" / "microworld"
COMMON = ["--data.prompt=plain", "--trainer.enable_progress_bar=false"]
TRAIN = [*COMMON, "--data.questions=microworld:train:8:0"]
COMMANDS = {
    "annotate": [
        *TRAIN,
        f"--model.teacher={MODELS}/a-teacher",
        "--model.family=a",
        "--model.max_new_tokens=96",
        "--data.max_length=320",
        "--output=teacher/rationales.parquet",
    ],
    "cache_logits": [
        *TRAIN,
        f"--model.teacher={MODELS}/a-teacher",
        "--model.top_k=8",
        "--data.max_length=512",
        '--data.rationales=["teacher/rationales.parquet"]',
        "--output=teacher/logits",
    ],
    "fit": [
        *TRAIN,
        f"--model.student={MODELS}/a-student",
        "--model.loss.kl_weight=0.5",
        "--data.max_length=512",
        "--data.tokens_per_batch=600",
        "--data.validation_fraction=0.25",
        '--data.rationales=["teacher/rationales.parquet"]',
        "--data.supervision=rationale+logits",
        '--data.logits=["teacher/logits"]',
        "--trainer.max_epochs=2",
        "--run.group=g",
        "--run.id=r",
    ],
    "evaluate": [
        *COMMON,
        "--data.questions=microworld:test:6:0",
        "--model.student=runs/g/r/student",
        "--model.max_new_tokens=96",
        "--model.arm=rationale+logits-a",
        "--data.max_length=320",
        "--output=predictions.parquet",
    ],
}


def run_stage(stage: str, *more: str) -> str:
    said = StringIO()
    with redirect_stdout(said):
        MAINS[stage]([*COMMANDS[stage], *more])
    return said.getvalue()


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all four stages ran."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for stage in COMMANDS:
            run_stage(stage)
    return folder


@pytest.fixture
def inside(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline's folder, as working directory."""
    monkeypatch.chdir(pipeline)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return pipeline


def test_rationales_have_the_documented_columns_and_metadata(pipeline):
    path = pipeline / "teacher" / "rationales.parquet"
    table = pq.read_table(path)
    assert table.schema.remove_metadata().equals(SCHEMA)
    records = table.to_pylist()
    questions = list(generate_questions(8, "train", 0))
    assert [record["question_id"] for record in records] == [question["id"] for question in questions]
    for record, question in zip(records, questions, strict=True):
        assert record["teacher"] == "a-teacher" and record["family"] == "a" and record["sample"] == 0
        assert record["task"] == "microworld" and record["split"] == "train"
        assert record["finish_reason"] in ("stop", "length") and record["prompt_id"].startswith("plain-")
        assert record["num_prompt_tokens"] > 10 and 1 < record["num_completion_tokens"] <= 96
        assert record["text"].strip() and record["correct"] == (record["answer"] == question["gold"])
    metadata = read_metadata(path)
    assert metadata["teacher"] == "a-teacher" and len(metadata["revision"]) == 16
    expected = {"max_new_tokens": 96, "temperature": 0.0, "stop": [], "num_samples": 1, "seed": 0}
    assert metadata["decoding"] == expected and metadata["backend"] == "TransformersBackend"
    assert metadata["prompt"]["name"] == "plain" and "{question}" in metadata["prompt"]["texts"]["choice"]
    assert {"config_hash", "git_commit", "versions", "created"} <= set(metadata["creation"])


def test_cache_has_a_row_for_each_completion_token(pipeline):
    made = LogitCache(pipeline / "teacher" / "logits")
    records = pq.read_table(pipeline / "teacher" / "rationales.parquet").to_pylist()
    right = {f"{record['question_id']}/a-teacher/0" for record in records if record["correct"]}
    assert set(made) == right
    manifest = json.loads((pipeline / "teacher" / "logits" / "manifest.json").read_text())
    metadata = read_metadata(pipeline / "teacher" / "rationales.parquet")
    assert manifest["teacher"] == "a-teacher" and manifest["revision"] == metadata["revision"]
    assert manifest["tokenizer_fingerprint"] == metadata["tokenizer_fingerprint"]
    assert manifest["sparsity"]["top_k"] == 8 and manifest["temperatures"] == [1.0, 2.0]
    assert "config_hash" in manifest["creation"]


def test_run_has_the_documented_files(pipeline):
    run = pipeline / "runs" / "g" / "r"
    assert {path.name for path in run.iterdir()} == {
        "axes.json", "config.yaml", "meta.json", "metrics.jsonl", "checkpoints", "student", "DONE",
    }  # fmt: skip
    meta = json.loads((run / "meta.json").read_text())
    assert {
        "config_hash",
        "git_commit",
        "versions",
        "created",
        "extractors",
        "questions_commit",
        "seeds",
        "data",
    } == set(meta)
    assert set(meta["seeds"]) == {"seed_everything", "split", "order"}
    assert {"torch", "lightning", "transformers", "python"} <= set(meta["versions"])
    assert {path.name for path in (run / "student").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    done = json.loads((run / "DONE").read_text())
    metrics = read_jsonl(run / "metrics.jsonl")
    trained = [record for record in metrics if "train/loss" in record]
    assert [record["step"] for record in trained] == list(range(done["global_step"]))
    assert {"train/ce_rationale", "train/ce_answer", "train/divergence_answer", "train/learning_rate"} <= set(
        trained[0]
    )
    assert sum("val/loss" in record for record in metrics) == 2


def test_meta_hashes_the_data_not_where_it_lies(inside, tmp_path):
    meta = json.loads(Path("runs/g/r/meta.json").read_text())
    run_stage("annotate", f"--output={tmp_path}/moved.parquet")
    moved = tmp_path / "moved.parquet"
    options = [f'--data.rationales=["{moved}"]', "--run.id=moved", "--data.supervision=rationale", "--data.logits=null"]
    run_stage("fit", *options, "--model.loss.kl_weight=0", f"--run.root={tmp_path}")
    again = json.loads((tmp_path / "g" / "moved" / "meta.json").read_text())
    assert again["data"]["examples"] == meta["data"]["examples"]
    run_stage("fit", *options, "--model.loss.kl_weight=0", f"--run.root={tmp_path}", "--run.id=less", "--data.limit=4")
    less = json.loads((tmp_path / "g" / "less" / "meta.json").read_text())
    assert less["data"]["examples"] != meta["data"]["examples"]


def test_config_of_a_run_runs_again(inside):
    before = list_files(inside)
    said = StringIO()
    with redirect_stdout(said):
        MAINS["fit"](["--config=runs/g/r/config.yaml"])
    assert "done already" in said.getvalue()
    assert list_files(inside) == before


def test_predictions_have_the_documented_columns_and_metadata(pipeline):
    path = pipeline / "predictions.parquet"
    table = pq.read_table(path)
    assert table.schema.remove_metadata().equals(PREDICTION_SCHEMA)
    questions = list(generate_questions(6, "test", 0))
    records = table.to_pylist()
    assert [record["question_id"] for record in records] == [question["id"] for question in questions]
    for record, question in zip(records, questions, strict=True):
        assert record["arm"] == "rationale+logits-a" and record["seed"] == 0
        assert record["gold"] == question["gold"]
        for name in ("neutral", "paper", "likelihood"):
            assert record[f"correct_{name}"] == (record[f"answer_{name}"] == question["gold"])
        scores = record["option_log_likelihoods"]
        assert len(scores) == len(question["choices"]) and max(scores) < 0
        assert record["answer_likelihood"] == "ABCDEFGH"[scores.index(max(scores))]
        assert record["num_prompt_tokens"] > 0 and record["num_completion_tokens"] > 0
    metadata = read_metadata(path)
    assert metadata["student"] == "runs/g/r/student" and len(metadata["weights"]) == 16
    assert {"prompt", "creation"} <= set(metadata)


def test_evaluate_prints_what_the_predictions_hold(inside):
    said = run_stage("evaluate", "--output=again.parquet")
    records = pq.read_table("again.parquet").to_pylist()
    Path("again.parquet").unlink()
    right = sum(record["correct_neutral"] for record in records)
    found = sum(record["answer_neutral"] is not None for record in records)
    Path("again.parquet.metrics.json").unlink()
    assert said.count("(n=6)") > 10
    for name, number in {"accuracy_neutral": right, "extraction_rate_neutral": found}.items():
        [line] = [line for line in said.splitlines() if line.startswith(name)]
        assert f"{number / 6:.1%} [" in line


@pytest.mark.parametrize("stage", list(COMMANDS))
def test_complete_stage_says_so_and_changes_nothing(inside, stage):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in inside.rglob("*")}
    assert ("done already" if stage == "fit" else "complete already") in run_stage(stage)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in inside.rglob("*")} == before


def test_how_fast_and_where_it_is_kept_makes_no_other_run(inside, tmp_path):
    options = ["--data.num_workers=1", f"--data.cache_dir={tmp_path}", "--run.checkpoint_steps=1"]
    assert "done already" in run_stage("fit", *options)


def test_done_run_outlives_its_checkpoints(inside, tmp_path):
    options = ["--data.supervision=label", "--model.loss.kl_weight=0", "--data.rationales=null", "--data.logits=null"]
    options += [f"--run.root={tmp_path}", "--trainer.max_epochs=1"]
    run_stage("fit", *options)
    metrics = (tmp_path / "g/r/metrics.jsonl").read_text()
    (tmp_path / "g/r/checkpoints/last.ckpt").unlink()
    assert "done already" in run_stage("fit", *options)
    assert (tmp_path / "g/r/metrics.jsonl").read_text() == metrics


def test_questions_from_a_file_are_annotated_alike(inside, tmp_path):
    write_jsonl(tmp_path / "microworld_train.jsonl", list(generate_questions(8, "train", 0)))
    source = f"--data.questions={tmp_path}/microworld_train.jsonl"
    said = run_stage("annotate", source, f"--output={tmp_path}/r.parquet")
    assert "8 rationales" in said
    assert pq.read_table(tmp_path / "r.parquet").to_pylist() == pq.read_table("teacher/rationales.parquet").to_pylist()


def test_retrained_student_under_the_same_name_is_not_evaluated_already(inside, tmp_path):
    student = shutil.copytree("runs/g/r/student", tmp_path / "student")
    options = [f"--model.student={student}", f"--output={tmp_path}/p.parquet", "--data.limit=2"]
    run_stage("evaluate", *options)
    shutil.copy(MODELS / "a-student" / "model.safetensors", student)
    with pytest.raises(ValueError, match="another configuration"):
        run_stage("evaluate", *options)


def test_new_rationales_are_added_to_a_complete_cache(inside, tmp_path):
    cache = [f"--output={tmp_path}/logits", "--data.correct_only=false"]
    run_stage("cache_logits", *cache, "--data.limit=3")
    assert len(LogitCache(tmp_path / "logits")) == 3
    assert "5 examples" in run_stage("cache_logits", *cache)
    assert len(LogitCache(tmp_path / "logits")) == 8


# Interruptions, in processes of their own.


def spawn(stage: str, args: list[str], folder: Path, **environment: str) -> subprocess.Popen:
    """Starts a stage's script as a user does."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / f"{stage}.py"), *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    """Waits until the files are as wanted; fails if the process ends before."""
    until = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_annotate_keeps_what_it_had(inside, tmp_path):
    output, part = tmp_path / "r.parquet", tmp_path / ".r.parquet.part-0.jsonl"
    options = [f"--output={output}", "--data.tokens_per_batch=1", "--data.questions=microworld:train:60:0"]
    process = spawn("annotate", [*COMMANDS["annotate"], *options], inside)
    wait_until(process, lambda: count_lines(part) >= 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    # A mark in what was kept shows that it is not made again; a torn line is what a kill may leave.
    lines = part.read_text().splitlines()
    kept = json.loads(lines[1])
    part.write_text("\n".join([lines[0], json.dumps({**kept, "family": "kept"}), *lines[2:], '{"question_id": "mi']))
    run_stage("annotate", *options)
    assert list(tmp_path.iterdir()) == [output]
    records = pq.read_table(output).to_pylist()
    assert [record["question_id"] for record in records if record["family"] == "kept"] == [kept["question_id"]]
    whole = tmp_path / "whole.parquet"
    run_stage("annotate", *options, f"--output={whole}")
    assert [{**record, "family": "a"} for record in records] == pq.read_table(whole).to_pylist()


ENDURE = ["--trainer.max_epochs=50", "--data.supervision=rationale", "--data.logits=null", "--model.loss.kl_weight=0"]


def check_resumed(folder: Path, whole: Path) -> None:
    """Checks that a resumed run's metrics have no gap and no repeat, and are those of a run without a break."""
    resumed, unbroken = (read_jsonl(run / "metrics.jsonl") for run in (folder, whole))
    assert [(record["step"], "val/loss" in record) for record in resumed] == [
        (record["step"], "val/loss" in record) for record in unbroken
    ]
    for name in ("train/loss", "val/loss", "train/learning_rate"):
        losses = [record[name] for record in resumed if name in record]
        assert losses == pytest.approx([record[name] for record in unbroken if name in record], rel=1e-3)


@pytest.fixture(scope="module")
def unbroken(pipeline: Path) -> Path:
    """The run that the interrupted ones are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pipeline)
        patch.setenv("WANDB_MODE", "disabled")
        run_stage("fit", *ENDURE, "--run.id=unbroken")
    return pipeline / "runs" / "g" / "unbroken"


def test_killed_fit_continues_at_its_last_checkpoint(inside, unbroken, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside)
    wait_until(process, (run / "checkpoints" / "last.ckpt").is_file)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "DONE").exists()
    begun = json.loads((run / "meta.json").read_text())
    first = read_jsonl(run / "metrics.jsonl")[0]
    run_stage("fit", *options)
    assert (run / "DONE").is_file()
    assert json.loads((run / "meta.json").read_text()) == begun
    assert read_jsonl(run / "metrics.jsonl")[0] == first
    check_resumed(run, unbroken)


def test_killed_fit_continues_inside_an_epoch(inside, unbroken, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}", "--run.checkpoint_steps=1", "--data.num_workers=1"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside)
    wait_until(process, lambda: read_global_step(run / "checkpoints" / "last.ckpt") >= 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "DONE").exists()
    run_stage("fit", *options)
    assert json.loads((run / "DONE").read_text()) == json.loads((unbroken / "DONE").read_text())
    resumed, whole = (
        {r["step"]: r for r in read_jsonl(f / "metrics.jsonl") if "train/loss" in r} for f in (run, unbroken)
    )
    # A kill between a step's checkpoint and its line of metrics loses the line.
    assert len(set(whole) - set(resumed)) <= 1 and set(resumed) <= set(whole)
    for step, record in resumed.items():
        assert record["train/loss"] == pytest.approx(whole[step]["train/loss"], rel=1e-3)
        assert record["train/learning_rate"] == pytest.approx(whole[step]["train/learning_rate"])


def test_ctrl_c_ends_fit_in_order_and_the_same_command_continues(inside, unbroken, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside, WANDB_MODE="offline")
    wait_until(process, (run / "checkpoints" / "last.ckpt").is_file)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted" in said.splitlines()[-1]
    assert not (run / "DONE").exists() and not (run / "student").exists()
    run_stage("fit", *options)
    assert (run / "DONE").is_file()
    check_resumed(run, unbroken)


def test_script_ends_with_one_line_and_exit_code_2(tmp_path):
    process = spawn("fit", [*COMMANDS["fit"], "--data.supervison=label"], tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ""
    [line] = err.splitlines()
    assert line.startswith("error: ") and "supervison" in line
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_fed_beside_the_metrics_unless_disabled(inside, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_stage("fit", "--trainer.max_epochs=1", f"--run.root={tmp_path}")
    [offline] = (tmp_path / "g" / "r" / "wandb").glob("offline-run-*-r")
    assert any(path.suffix == ".wandb" and path.stat().st_size > 0 for path in offline.iterdir())
    assert not (inside / "wandb").exists()
    assert read_jsonl(tmp_path / "g" / "r" / "metrics.jsonl")
    for option, environment in (("--run.wandb=false", "offline"), ("--run.wandb=true", "disabled")):
        monkeypatch.setenv("WANDB_MODE", environment)
        run_stage("fit", "--trainer.max_epochs=1", f"--run.root={tmp_path / environment}", option)
        assert not (tmp_path / environment / "g" / "r" / "wandb").exists()

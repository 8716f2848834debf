"""The stages, one after the other, on the embedded default: what they write, say again, and continue."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datamodules.files.atomic import write_jsonl
from datamodules.files.seals import read_sealed
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import SCHEMA, read_metadata
from datamodules.tasks.microworld import generate_questions
from lightning_modules.evaluation.records import PREDICTION_SCHEMA, list_columns
from tests.scripts.conftest import list_files
from tests.scripts.pipeline import COMMANDS, MAINS, MODELS, read_jsonl, run_stage


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
    expected = {"max_new_tokens": 96, "temperature": 0.0, "top_p": 1.0, "stop": [], "num_samples": 1, "seed": 0}
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
        "config",
        "config_hash",
        "git_commit",
        "versions",
        "created",
        "extractors",
        "questions_commits",
        "seeds",
        "data",
        "precision",
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


def test_a_student_of_another_family_learns_from_the_cache(inside, tmp_path):
    options = [f"--model.student={MODELS}/b-student", f"--run.root={tmp_path}", "--run.id=across"]
    with pytest.raises(
        ValueError, match=r"do not share a tokenizer; a training can use its logits with data\.alignment"
    ):
        run_stage("fit", *options)
    said = run_stage("fit", *options, "--data.alignment.kind=strict")
    done = json.loads((tmp_path / "g" / "across" / "DONE").read_text())
    assert sum(done["alignment"].values()) == pytest.approx(1) and done["alignment"]["strict"] > 0.8
    assert (
        f"tokens by alignment: {done['alignment']['none']:.1%} none, {done['alignment']['strict']:.1%} strict" in said
    )
    logged = [record for record in read_jsonl(tmp_path / "g" / "across" / "metrics.jsonl") if "train/loss" in record]
    shares = {f"align/{name}": pytest.approx(share) for name, share in done["alignment"].items()}
    assert all({name: record[name] for name in shares} == shares for record in logged)
    with pytest.raises(ValueError, match="begun with another config: "):
        run_stage("fit", *options, "--data.alignment.kind=bytes")
    assert "done already" in run_stage("fit", *options, "--data.alignment.kind=strict")


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
    summary = run_stage("evaluate", "--output=again.parquet")
    records = pq.read_table("again.parquet").to_pylist()
    printed = StringIO()
    with redirect_stdout(printed):
        MAINS["evaluate"](["metrics", "again.parquet"])
    said = printed.getvalue()
    Path("again.parquet").unlink()
    right = sum(record["correct_neutral"] for record in records)
    found = sum(record["answer_neutral"] is not None for record in records)
    Path("again.parquet.metrics.json").unlink()
    assert said.count("(n=6)") > 10
    for name, number in {"accuracy_neutral": right, "extraction_rate_neutral": found}.items():
        [line] = [line for line in said.splitlines() if line.startswith(name)]
        assert f"{number / 6:.1%} [" in line
        [line] = [line for line in summary.splitlines() if line.startswith(name.split("_neutral")[0].replace("_", " "))]
        assert f"{number / 6:.1%} [" in line
    assert len(summary.splitlines()) == 8
    assert summary.splitlines()[-1] == "all metrics: python -m scripts.evaluate metrics again.parquet"


def test_another_extractor_has_columns_of_its_own(inside, tmp_path):
    path = tmp_path / "p.parquet"
    run_stage("evaluate", "--model.more_extractors=[english]", f"--output={path}")
    table = pq.read_table(path)
    assert table.schema.remove_metadata().equals(list_columns(["neutral", "paper", "english"]))
    assert table["answer_english"].equals(table["answer_neutral"])
    assert read_metadata(path)["creation"]["extractors"] == ["neutral-6", "paper-2", "english-2"]
    metrics = read_sealed(path.with_name("p.parquet.metrics.json"))["microworld"]
    assert metrics["accuracy_english"] == metrics["accuracy_neutral"]


def test_a_checkpoint_answers_as_the_student_exported_from_it(inside, tmp_path):
    run_stage("evaluate", "--model.student=runs/g/r/checkpoints/last.ckpt", f"--output={tmp_path}/p.parquet")
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == pq.read_table("predictions.parquet").to_pylist()


def test_metrics_of_finished_predictions_are_those_that_were_written(inside):
    said = StringIO()
    with redirect_stdout(said):
        MAINS["evaluate"](["metrics", "predictions.parquet"])
    written = read_sealed(Path("predictions.parquet.metrics.json"))
    assert set(written) == {"microworld"} and len(said.getvalue().splitlines()) == 2 + len(written["microworld"])
    accuracy = written["microworld"]["accuracy_neutral"]
    assert accuracy["n"] == 6 and f"{accuracy['value']:.1%} [{accuracy['low']:.1%}" in said.getvalue()


@pytest.mark.parametrize("stage", list(COMMANDS))
def test_complete_stage_says_so_and_changes_nothing(inside, stage):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in inside.rglob("*")}
    assert ("done already" if stage == "fit" else "complete already") in run_stage(stage)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in inside.rglob("*")} == before


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("annotate", ["teacher/.rationales.parquet.lock", "teacher/.rationales.parquet.part-0.jsonl"]),
        ("cache_logits", ["teacher/logits/.lock-0000", "teacher/logits/.manifest.json.tmp-1"]),
        ("annotate", ["teacher/.rationales.parquet.tmp-0123abcd"]),
        ("fit", ["runs/g/r/.lock"]),
        ("fit", ["runs/g/r/.DONE.tmp-0123abcd"]),
        ("evaluate", [".predictions.parquet.metrics.json.tmp-0123abcd"]),
        ("evaluate", [".predictions.parquet.lock", ".predictions.parquet.part-1.jsonl"]),
    ],
)
def test_complete_stage_removes_what_a_kill_after_its_last_write_left(inside, stage, left):
    before = list_files(inside)
    for path in left:
        Path(path).write_text("")
    assert "already" in run_stage(stage)
    assert list_files(inside) == before


def test_how_fast_and_where_it_is_kept_makes_no_other_run(inside, tmp_path):
    options = ["--data.batches.num_workers=1", f"--data.encoding.cache_dir={tmp_path}", "--run.checkpoint_steps=1"]
    assert "done already" in run_stage("fit", *options)


def test_a_done_run_keeps_its_student_alone(inside, tmp_path):
    options = ["--run.keep_checkpoints=false", f"--run.root={tmp_path}"]
    run_stage("fit", *options)
    run = tmp_path / "g" / "r"
    assert not (run / "checkpoints").exists()
    assert (run / "student" / "model.safetensors").read_bytes() == Path(
        "runs/g/r/student/model.safetensors"
    ).read_bytes()
    with pytest.raises(ValueError, match=rf"last\.ckpt; its run is done .*: name {run}/student, or train with --run\."):
        run_stage("evaluate", f"--model.student={run}/checkpoints/last.ckpt", f"--output={tmp_path}/p.parquet")
    # As a kill between DONE and the removal leaves it.
    (run / "checkpoints").mkdir()
    assert "done already" in run_stage("fit", *options, "--run.keep_checkpoints=true")
    assert (run / "checkpoints").exists()
    assert "done already" in run_stage("fit", *options)
    assert not (run / "checkpoints").exists()


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
    cache = [f"--output={tmp_path}/logits", "--data.filters.correct_only=false"]
    run_stage("cache_logits", *cache, "--data.limit=3")
    assert len(LogitCache(tmp_path / "logits")) == 3
    assert "5 examples" in run_stage("cache_logits", *cache)
    assert len(LogitCache(tmp_path / "logits")) == 8


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

"""Files, caches and outputs that are wrong: one clear line on stderr, exit code 2, and nothing written."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scripts.conftest import COMMANDS, MAINS
from tests.tiny import save_model

STAGES = ("annotate", "cache_logits", "fit", "evaluate")


@pytest.mark.parametrize("stage", STAGES)
def test_bench_is_good_input(bench, monkeypatch, stage):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    bench.run(stage)
    wrote = {"annotate": "out/r.parquet", "cache_logits": "out/logits/manifest.json", "evaluate": "out/p.parquet"}
    assert (bench.folder / wrote.get(stage, "runs/bench/run/DONE")).is_file()


# Missing and malformed files.


@pytest.mark.parametrize("stage", STAGES)
def test_file_of_questions_is_missing(bench, stage):
    assert "nowhere.jsonl" in bench.refuse(stage, "--data.questions=nowhere.jsonl")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", ["models/nowhere/at/all", "./nowhere", "nowhere.gguf", "nowhere"])
def test_model_is_missing(bench, stage, model):
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    line = bench.refuse(stage, f"--model.{role}={model}")
    assert model in line and "no such" in line


@pytest.mark.parametrize("stage", STAGES)
def test_folder_is_no_model(bench, stage):
    (bench.folder / "empty").mkdir()
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    assert "empty" in bench.refuse(stage, f"--model.{role}=empty")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_lacks_a_file_of_the_model(bench, stage, missing):
    shutil.copytree("models/student", "part")
    (bench.folder / "part" / missing).unlink()
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    options = ["--data.supervision=rationale", "--model.loss.kl_weight=0"] if stage == "fit" else []
    assert "part" in bench.refuse(stage, f"--model.{role}=part", *options)


@pytest.mark.parametrize("stage", STAGES)
def test_tokenizer_writes_a_token_beyond_the_embedding(bench, stage):
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    save_model(bench.folder / "short", padding=-3, context=2048)
    # Of the tokens that a prompt surely has, the highest ids are merges, beyond the shortened embedding.
    options = ["--data.supervision=rationale", "--model.loss.kl_weight=0"] if stage == "fit" else []
    line = bench.refuse(stage, f"--model.{role}=short", *options)
    assert "short: its tokenizer writes token" in line and "rows" in line


def test_weights_are_a_pickle(bench):
    shutil.move("models/student/model.safetensors", "models/student/pytorch_model.bin")
    assert "models/student" in bench.refuse("evaluate")


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_file_of_rationales_is_missing(bench, stage):
    assert "nowhere.parquet" in bench.refuse(stage, '--data.rationales=["nowhere.parquet"]')


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_no_file_of_rationales_is_named(bench, stage):
    assert "data.rationales" in bench.refuse(stage, "--data.rationales=null")


@pytest.mark.parametrize("stage", STAGES)
def test_config_is_missing(bench, stage):
    assert "nowhere.yaml" in bench.refuse(stage, "--config=nowhere.yaml")
    assert "nowhere.yaml" in bench.refuse(stage, "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fit: {data: [", "malformed YAML"),
        ("- fit", "mapping"),
        ("", "mapping"),
        ("fit: {}\nfitt: {}", "fitt"),
        ("evaluate: {}\nmodels: {}", "models"),
        ("annotate: {}", "no section fit"),
        ("fit: 3", "fit"),
    ],
)
def test_config_is_malformed(bench, text, named):
    (bench.folder / "x.yaml").write_text(text)
    line = bench.refuse("fit", "--config=x.yaml")
    assert "x.yaml" in line and named in line


@pytest.mark.parametrize("stage", STAGES)
def test_required_setting_is_missing(bench, stage):
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    for option in (f"--model.{role}", "--data.questions"):
        left = [arg for arg in COMMANDS[stage] if not arg.startswith(option)]
        assert option.removeprefix("--") in bench.refuse_main(MAINS[stage], left)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("line", ["{'id': 1}", '{"id": "q1", ', "[1, 2]", "\x00\x01"])
def test_line_of_questions_is_malformed(bench, stage, line):
    lines = (bench.folder / "colours_train.jsonl").read_text().splitlines()
    (bench.folder / "bad.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert "bad.jsonl:3" in bench.refuse(stage, "--data.questions=bad.jsonl")


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_line_of_rationales_is_malformed(bench, stage):
    lines = (bench.folder / "r.jsonl").read_text().splitlines()
    (bench.folder / "bad.jsonl").write_text("\n".join([*lines[:4], lines[4][:-9]]))
    assert "bad.jsonl:5" in bench.refuse(stage, '--data.rationales=["bad.jsonl"]')


@pytest.mark.parametrize("name", ["bad.parquet", "bad.jsonl.gz", "bad.csv"])
def test_file_of_questions_cannot_be_read(bench, name):
    (bench.folder / name).write_bytes(b"\x1f\x8bnothing of the kind")
    assert name in bench.refuse("annotate", f"--data.questions={name}")


@pytest.mark.parametrize(
    "source",
    [
        "microworld:train:8",
        "microworld:practice:8:0",
        "microworld:train:many:0",
        "microworld:train:0:0",
        "task:openbookqa",
        "task:openbook:train",
        "task:openbookqa:dev",
        "task:openbookqa:train@nowhere",
    ],
)
def test_source_of_questions_is_malformed(bench, source):
    assert source in bench.refuse("evaluate", f"--data.questions={source}")


# Logits.


def test_logits_are_asked_for_but_none_are_named(bench):
    assert "data.logits" in bench.refuse("fit", "--data.logits=null")


def test_cache_is_missing(bench):
    line = bench.refuse("fit", '--data.logits=["nowhere"]')
    assert "nowhere" in line and "cache_logits" in line


def test_cache_is_unfinished(bench):
    (bench.folder / "logits" / "manifest.json").unlink()
    line = bench.refuse("fit")
    assert "logits" in line and "manifest.json" in line


def test_cache_is_damaged(bench):
    [shard] = (bench.folder / "logits").glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in bench.refuse("fit")


def test_cache_lacks_examples(bench):
    bench.run("cache_logits", "--data.limit=5")
    listed = "out/logits/.missing-examples.txt"
    line = bench.refuse("fit", '--data.logits=["out/logits"]', writes=listed)
    assert "out/logits" in line and "3 of 8" in line and "'q5/teacher/0'" in line and listed in line
    assert (bench.folder / listed).read_text().split() == ["q5/teacher/0", "q6/teacher/0", "q7/teacher/0"]


def test_cache_is_of_another_teacher(bench):
    bench.run("cache_logits", "--model.teacher=models/student")
    line = bench.refuse("fit", '--data.logits=["out/logits"]')
    assert "out/logits" in line and "'student'" in line and "'teacher'" in line and "logits_teacher" in line


def test_cache_is_of_another_revision_of_the_teacher(bench, tmp_path):
    renewed = save_model(tmp_path / "renewed" / "teacher", seed=9)
    bench.run("cache_logits", f"--model.teacher={renewed}")
    line = bench.refuse("fit", '--data.logits=["out/logits"]')
    assert "r.parquet" in line and "revision" in line


def test_cache_is_of_another_tokenizer(bench):
    line = bench.refuse("fit", "--model.student=models/other")
    assert "'teacher'" in line and "models/other" in line and "tokenizer" in line


def test_cache_is_of_another_rationale_text(bench):
    bench.edit("r.jsonl", lambda records: [{**records[0], "text": f"Oh. {records[0]['text']}"}, *records[1:]])
    line = bench.refuse("fit", '--data.rationales=["r.jsonl"]')
    assert "logits" in line and "'q0/teacher/0'" in line and "text" in line


def test_cache_is_of_another_prompt(bench):
    line = bench.refuse("fit", "--data.prompt=instruction")
    assert "plain-" in line and "instruction-" in line


def test_logits_without_a_weight(bench):
    line = bench.refuse("fit", "--model.loss.kl_weight=0")
    assert "kl_weight is 0" in line and "rationale+logits" in line


@pytest.mark.parametrize("supervision", ["label", "rationale"])
def test_a_weight_without_logits(bench, supervision):
    line = bench.refuse("fit", f"--data.supervision={supervision}")
    assert "kl_weight is 0.5" in line and supervision in line


def test_temperature_is_not_cached(bench):
    line = bench.refuse("fit", "--model.loss.temperature=3")
    assert "temperature 3.0" in line and "[1.0, 2.0]" in line and "logits" in line


# What is there already.


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "evaluate"])
def test_output_is_of_another_configuration(bench, stage):
    bench.run(stage)
    option = "--model.top_k=4" if stage == "cache_logits" else "--model.max_new_tokens=3"
    line = bench.refuse(stage, option)
    assert "out/" in line and "output" in line


@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
def test_unfinished_output_is_of_another_configuration(bench, stage):
    name = "r" if stage == "annotate" else "p"
    (bench.folder / "out").mkdir()
    (bench.folder / f"out/.{name}.parquet.part-0.jsonl").write_text('{"signature": "0123456789abcdef"}\n')
    assert f".{name}.parquet.part-0.jsonl" in bench.refuse(stage)


@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
def test_output_was_not_written_by_kindred(bench, stage):
    name = "out/r.parquet" if stage == "annotate" else "out/p.parquet"
    (bench.folder / "out").mkdir()
    pq.write_table(pa.table({"x": [1]}), name)
    assert name in bench.refuse(stage)
    (bench.folder / name).write_text("something else")
    assert name in bench.refuse(stage)
    (bench.folder / name).unlink()
    (bench.folder / name).mkdir()
    assert name in bench.refuse(stage)


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "evaluate"])
def test_output_is_below_a_file(bench, stage):
    (bench.folder / "out").write_text("a file")
    assert "out" in bench.refuse(stage)


def test_folder_is_no_cache(bench):
    line = bench.refuse("cache_logits", "--output=models/teacher")
    assert "models/teacher" in line and "no logit cache" in line
    assert "r.parquet" in bench.refuse("cache_logits", "--output=r.parquet")


def test_run_is_of_another_config(bench, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    bench.run("fit")
    line = bench.refuse("fit", "--model.learning_rate=5e-4")
    assert "runs/bench/run" in line and "run.id" in line


def test_run_is_below_a_file(bench):
    (bench.folder / "runs").write_text("a file")
    assert "runs" in bench.refuse("fit")

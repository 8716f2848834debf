"""What a user can get wrong: one clear line on stderr, exit code 2, and nothing written."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts import demo
from tests.scripts.conftest import COMMANDS, MAINS
from tests.tiny import save_model

STAGES = ("annotate", "cache_logits", "fit", "evaluate")


@pytest.mark.parametrize("stage", STAGES)
def test_bench_is_good_input(bench, monkeypatch, stage):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    bench.run(stage)
    wrote = {"annotate": "out/r.parquet", "cache_logits": "out/logits/manifest.json", "evaluate": "out/p.parquet"}
    assert (bench.folder / wrote.get(stage, "runs/bench/run/DONE")).is_file()


# Unknown keys, wrong types, wrong numbers.


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--data.promt=plain", "promt"),
        ("--modle.dtype=float32", "modle"),
        ("--trainer.max_epoch=3", "max_epoch"),
        ("--data.limit=many", "limit"),
        ("--data.limit=0", "limit"),
        ("--data.max_length=-5", "max_length"),
        ("--model.dtype=float8", "dtype"),
        ("--data.prompt=socratic", "'socratic'"),
        ("--seed_everything=later", "seed_everything"),
    ],
)
def test_option_is_wrong(bench, stage, option, named):
    assert named in bench.refuse(stage, option)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"data": {"promt": "plain"}}, "promt"),
        ({"modle": {"dtype": "float32"}}, "modle"),
        ({"model": {"keep_layers": "all"}}, "keep_layers"),
        ({"data": {"skip_too_long": "perhaps"}}, "skip_too_long"),
        ({"trainer": {"max_epochs": "three"}}, "max_epochs"),
    ],
)
@pytest.mark.parametrize("in_section", [True, False])
def test_key_of_a_file_is_wrong(bench, stage, section, named, in_section):
    (bench.folder / "x.yaml").write_text(json.dumps({stage: section} if in_section else section))
    assert named in bench.refuse(stage, "--config=x.yaml")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        *((f"--model.loss.kl_weight={value}", "kl_weight") for value in ("1.5", "-0.1", "nan", ".nan", "inf", "half")),
        *(
            (f"--model.loss.{segment}_weight={value}", f"{segment}_weight")
            for segment in ("rationale", "answer")
            for value in ("-1", ".nan", "nan", ".inf", "inf")
        ),
        *((f"--model.loss.temperature={value}", "temperature") for value in ("0", "-1", ".nan", ".inf")),
        *((f"--model.learning_rate={value}", "learning_rate") for value in ("0", "-1e-3", ".nan", ".inf")),
        *((f"--model.weight_decay={value}", "weight_decay") for value in ("-1", ".nan", ".inf")),
        ("--model.warmup_ratio=1.1", "warmup_ratio"),
        ("--model.schedule=step", "schedule"),
        ("--data.validation_fraction=-0.5", "validation_fraction"),
        ("--data.validation_fraction=.nan", "validation_fraction"),
        ("--data.supervision=answers", "supervision"),
        ("--data.num_workers=-1", "num_workers"),
        ("--trainer.logger=true", "trainer.logger"),
        ("--model.keep_layers=[1,0]", "keep_layers"),
        ("--model.keep_layers=[0,2]", "keep_layers"),
        ("--model.revision=abc", "revision"),
    ],
)
def test_setting_of_fit_is_wrong(bench, option, named):
    assert named in bench.refuse("fit", option)


@pytest.mark.parametrize("value", ["1.5", "-0.1", ".nan"])
def test_lambda_in_a_file_is_outside_0_1(bench, value):
    (bench.folder / "x.yaml").write_text(f"fit: {{model: {{loss: {{kl_weight: {value}}}}}}}")
    assert "kl_weight" in bench.refuse("fit", "--config=x.yaml")


def test_several_samples_need_a_temperature(bench):
    line = bench.refuse("annotate", "--model.num_samples=3")
    assert "num_samples=3" in line and "temperature" in line


@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "hot"])
def test_sampling_temperature_is_wrong(bench, value):
    assert "temperature" in bench.refuse("annotate", "--model.num_samples=3", f"--model.temperature={value}")


@pytest.mark.parametrize("value", ["[0]", "[-1.0]", "[.nan]", "[.inf]", "[1.0,warm]"])
def test_cached_temperature_is_wrong(bench, value):
    assert "temperatures" in bench.refuse("cache_logits", f"--model.temperatures={value}")


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
        "hub:openbookqa",
    ],
)
def test_source_of_questions_is_malformed(bench, source):
    assert source in bench.refuse("evaluate", f"--data.questions={source}")


# Questions and rationales that do not fit together.


@pytest.mark.parametrize("stage", STAGES)
def test_question_is_there_twice(bench, stage):
    bench.edit("colours_train.jsonl", lambda records: [*records, records[2]])
    line = bench.refuse(stage)
    assert "colours_train.jsonl:9" in line and "'q2'" in line and "twice" in line


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gold", ["E", "purple", 3])
def test_gold_is_no_option(bench, stage, gold):
    bench.edit("colours_train.jsonl", lambda records: [{**records[0], "gold": gold}, *records[1:]])
    line = bench.refuse(stage)
    assert "colours_train.jsonl:1" in line and repr(gold) in line and "no option" in line


@pytest.mark.parametrize("field", ["id", "question"])
def test_question_lacks_a_field(bench, field):
    bench.edit("colours_train.jsonl", lambda records: [{k: v for k, v in records[0].items() if k != field}])
    line = bench.refuse("annotate")
    assert "colours_train.jsonl:1" in line and field in line


def test_label_needs_gold(bench):
    bench.edit("colours_train.jsonl", lambda records: [{**record, "gold": None} for record in records])
    line = bench.refuse("fit", "--data.supervision=label", "--model.loss.kl_weight=0")
    assert "'q0'" in line and "gold" in line


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_rationale_is_for_an_unknown_question(bench, stage):
    bench.edit("r.jsonl", lambda records: [*records[:3], {**records[3], "question_id": "q99"}])
    line = bench.refuse(stage, '--data.rationales=["r.jsonl"]')
    assert "r.jsonl:4" in line and "'q99'" in line


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_rationale_is_there_twice(bench, stage):
    line = bench.refuse(stage, '--data.rationales=["r.parquet","r.jsonl"]')
    assert "r.jsonl:1" in line and "'q0/teacher/0'" in line


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
@pytest.mark.parametrize("text", ["", "  \n "])
def test_completion_is_empty(bench, stage, text):
    bench.edit("r.jsonl", lambda records: [*records[:6], {**records[6], "text": text}])
    assert "'q6/teacher/0'" in bench.refuse(stage, '--data.rationales=["r.jsonl"]')


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_rationale_lacks_a_field(bench, stage):
    bench.edit("r.jsonl", lambda records: [{k: v for k, v in records[0].items() if k != "answer"}])
    line = bench.refuse(stage, '--data.rationales=["r.jsonl"]')
    assert "r.jsonl:1" in line and "answer" in line


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_teacher_wrote_nothing(bench, stage):
    line = bench.refuse(stage, '--data.teachers=["gpt-4o"]')
    assert "gpt-4o" in line and "teacher" in line


@pytest.mark.parametrize("stage", ["cache_logits", "fit"])
def test_no_rationale_is_left_after_filtering(bench, stage):
    bench.edit("r.jsonl", lambda records: [{**record, "correct": False} for record in records])
    line = bench.refuse(stage, '--data.rationales=["r.jsonl"]')
    assert "r.jsonl" in line and "8 rationales" in line and "correct_only" in line


def test_no_segment_is_supervised(bench):
    line = bench.refuse("fit", "--model.loss.rationale_weight=0", "--model.loss.answer_weight=0")
    assert "rationale_weight" in line and "answer_weight" in line
    label = ["--data.supervision=label", "--model.loss.kl_weight=0"]
    assert "answer_weight" in bench.refuse("fit", *label, "--model.loss.answer_weight=0")


def test_no_question_is_left_to_learn_from(bench):
    assert "validation_fraction" in bench.refuse("fit", "--data.validation_fraction=1")


# Lengths.


@pytest.mark.parametrize("stage", STAGES)
def test_question_is_longer_than_max_length(bench, stage):
    lengthen = [{"question": "Which? " * 500}, {"question": "What? " * 500}]
    bench.edit(
        "colours_train.jsonl",
        lambda rs: [rs[0], *({**r, **more} for r, more in zip(rs[1:3], lengthen, strict=True)), *rs[3:]],
    )
    line = bench.refuse(stage)
    assert "2 of 8" in line and "'q1" in line and "skip_too_long" in line


@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
def test_long_question_is_skipped_if_the_user_says_so(bench, stage):
    bench.edit("colours_train.jsonl", lambda records: [{**records[0], "question": "Which? " * 500}, *records[1:]])
    with pytest.warns(UserWarning, match="1 of 8 questions"):
        bench.run(stage, "--data.skip_too_long=true")
    [output] = (bench.folder / "out").iterdir()
    assert pq.read_table(output)["question_id"].to_pylist() == [f"q{number}" for number in range(1, 8)]


def test_long_example_is_skipped_if_the_user_says_so(bench, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    bench.edit("r.jsonl", lambda records: [{**records[0], "text": "So. " * 500}, *records[1:]])
    options = ['--data.rationales=["r.jsonl"]', "--data.supervision=rationale", "--model.loss.kl_weight=0"]
    line = bench.refuse("fit", *options)
    assert "1 of 8" in line and "'q0/teacher/0'" in line and "skip_too_long" in line
    with pytest.warns(UserWarning, match="1 of 8 examples"):
        bench.run("fit", *options, "--data.skip_too_long=true")
    assert json.loads((bench.folder / "runs/bench/run/DONE").read_text())["train_examples"] == 7


@pytest.mark.parametrize("stage", STAGES)
def test_everything_is_too_long(bench, stage):
    assert "max_length=5" in bench.refuse(stage, "--data.max_length=5", "--data.skip_too_long=true")


@pytest.mark.parametrize("stage", STAGES)
def test_max_length_is_more_than_the_context(bench, stage):
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    options = ["--data.supervision=rationale", "--model.loss.kl_weight=0"] if stage == "fit" else []
    line = bench.refuse(stage, f"--model.{role}=models/small", "--data.max_length=500", *options)
    assert "context of 64" in line and "max_length" in line and "models/small" in line


# Logits.


def test_logits_are_asked_for_but_none_are_named(bench):
    assert "data.logits" in bench.refuse("fit", "--data.logits=null")


def test_cache_is_missing(bench):
    line = bench.refuse("fit", '--data.logits=["nowhere"]')
    assert "nowhere" in line and "cache_logits.py" in line


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
    line = bench.refuse("fit", '--data.logits=["out/logits"]')
    assert "out/logits" in line and "3 of 8" in line and "'q5/teacher/0'" in line


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


# Studies.

STUDY = {
    "name": "tiny",
    "train_questions": "colours_train.jsonl",
    "test_questions": "colours_train.jsonl",
    "students": {"s": {"model": "models/student", "family": "tiny"}},
    "teachers": {"t": {"model": "models/teacher", "family": "tiny"}},
    "supervisions": ["label"],
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"supervision": ["label"]}, "supervision"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": "two"}, "seeds"),
        ({"workers": -1}, "workers"),
        ({"supervisions": ["labels"]}, "'labels'"),
        ({"students": {}}, "student"),
        ({"students": {"s": {"model": "models/student"}}}, "family"),
        ({"students": {"s": {"modle": "models/student", "family": "tiny"}}}, "modle"),
        ({"teachers": {"t": {"family": "tiny"}}}, "model"),
        ({"teachers": {"t": {"family": "tiny", "model": "m", "rationales": "r.jsonl", "name": "x"}}}, "rationales"),
        ({"teachers": {"t": {"family": "tiny", "rationales": "r.jsonl"}}}, "name"),
    ],
)
def test_study_is_wrong(bench, change, named):
    (bench.folder / "x.yaml").write_text(json.dumps({"study": {**STUDY, **change}}))
    assert named in bench.refuse_main(demo.main, ["--config=x.yaml"])


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"fit": {"model": {"learning_rte": 1}}, "evaluate": {}}, "learning_rte"),
        ({"fit": {"model": {"loss": {"answer_weight": -1}}}, "evaluate": {}}, "answer_weight"),
        ({"fit": {}, "evaluate": {"data": {"limit": "all"}}}, "limit"),
        ({"fit": {}}, "no section evaluate"),
        ({"fit": {}, "evaluate": {}, "training": {}}, "training"),
    ],
)
def test_section_is_refused_before_any_stage_runs(bench, sections, named):
    (bench.folder / "x.yaml").write_text(json.dumps({"study": STUDY, "annotate": {}, **sections}))
    assert named in bench.refuse_main(demo.main, ["--config=x.yaml"])


def test_study_needs_one_config(bench):
    (bench.folder / "x.yaml").write_text(json.dumps({"study": STUDY}))
    assert "--config" in bench.refuse_main(demo.main, [])
    assert "--config" in bench.refuse_main(demo.main, ["--config=x.yaml", "--config=x.yaml"])
    assert "nowhere.yaml" in bench.refuse_main(demo.main, ["--config=nowhere.yaml"])

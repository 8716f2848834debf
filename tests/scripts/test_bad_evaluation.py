"""What an evaluation refuses: each in one line that names the file, the field or the question."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.evaluate import main
from tests.tiny import make_questions, make_rationale, write_store

REFERENCES = '--data.references=["r.parquet"]'


def test_a_task_is_unknown(bench):
    line = bench.refuse("evaluate", '--data.questions=["colours_train.jsonl","task:nonsense:test"]')
    assert "task 'nonsense' is unknown; there are: aqua_rat" in line


def test_two_sources_share_questions(bench):
    shutil.copy("colours_train.jsonl", "again_test.jsonl")
    line = bench.refuse("evaluate", '--data.questions=["colours_train.jsonl","again_test.jsonl"]')
    assert "again_test.jsonl:1: question id 'q0' is there twice" in line


def test_references_are_of_other_questions(bench):
    write_store(bench.folder / "other.parquet", [make_rationale(make_questions(12)[11], "kin")], "models/teacher")
    line = bench.refuse("evaluate", '--data.references=["other.parquet"]')
    assert "other.parquet:row 0: a rationale for the unknown question 'q11'" in line


def test_a_cache_is_of_another_tokenizer(bench):
    line = bench.refuse("evaluate", REFERENCES, '--data.logits=["logits"]', "--model.student=models/other")
    assert "logits: teacher 'teacher'" in line and "do not share a tokenizer" in line


def test_a_cache_holds_none_of_the_references(bench):
    write_store(bench.folder / "kin.parquet", [make_rationale(make_questions(1)[0], "kin")], "models/teacher")
    line = bench.refuse("evaluate", '--data.references=["kin.parquet"]', '--data.logits=["logits"]')
    assert "logits: holds none of the 1 references' logits" in line


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ('--data.logits=["logits"]', "data.logits is given without data.references"),
        ("--data.alignment.kind=strict", "data.alignment is given without data.logits"),
        ('--data.teachers=["kin"]', "data.teachers is given without data.references"),
        ("--bert_model=models/student", "--bert_model is given without data.references"),
        ("--bert_model=nowhere", "--bert_model: no such folder: nowhere"),
        ("--model.num_samples=3", "num_samples=3 needs a temperature above 0"),
        ("--data.option_text=nonsense", "option_text"),
        ("--model.student=nowhere.ckpt", "no such file: nowhere.ckpt"),
        ("--model.student=models/a.ckpt", "models/a.ckpt: lies in no run's folder"),
    ],
)
def test_a_setting_makes_no_sense(bench, option, named):
    Path("models/a.ckpt").write_bytes(b"")
    assert named in bench.refuse("evaluate", option)


def test_options_that_no_one_scores_are_put_somehow(bench):
    line = bench.refuse("evaluate", "--data.option_text=letter", "--model.score_options=false")
    assert "data.option_text=letter is ignored where model.score_options is false" in line


@pytest.mark.parametrize(
    ("own", "options", "named"),
    [
        ({}, ["--model.keep_layers=[0]"], "keep_layers is given, but the run's own config says"),
        ({"adapter": {"r": 8}}, [], "holds an adapter alone; use the student that its run exports"),
    ],
)
def test_a_checkpoint_is_what_its_run_says(bench, own, options, named):
    start = {"student": "models/student", "revision": None, "keep_layers": [0], **own}
    (bench.folder / "run" / "checkpoints").mkdir(parents=True)
    (bench.folder / "run" / "config.yaml").write_text(json.dumps({"model": start}))
    (bench.folder / "run" / "checkpoints" / "last.ckpt").write_bytes(b"")
    line = bench.refuse("evaluate", "--model.student=run/checkpoints/last.ckpt", *options)
    assert f"run/checkpoints/last.ckpt: {named}" in line


def test_metrics_of_what_are_no_predictions(bench):
    assert "name at least one file" in bench.refuse_main(main, ["metrics"])
    assert "nowhere.parquet" in bench.refuse_main(main, ["metrics", "nowhere.parquet"])
    assert "r.parquet: no predictions, or an earlier version's: without column arm" in bench.refuse_main(
        main, ["metrics", "r.parquet"]
    )


def test_predictions_are_there_twice(bench):
    bench.run("evaluate", "--data.limit=2")
    table = pq.read_table("out/p.parquet")
    pq.write_table(pa.concat_tables([table, table]), "twice.parquet")
    assert "twice.parquet: question 'q0' of colours is predicted twice" in bench.refuse_main(
        main, ["metrics", "twice.parquet"]
    )


def test_references_logits_and_a_table_in_one_call(bench):
    bench.run("evaluate", REFERENCES, '--data.logits=["logits"]', "--model.student=models/student")
    metrics = json.loads(Path("out/p.parquet.metrics.json").read_text())["colours"]
    names = {"rouge1", "rouge2", "rougeL", "bleu", "chrf", "perplexity", "kl", "agreement"}
    assert {f"{name}/teacher" for name in names} <= set(metrics)
    with redirect_stdout(StringIO()) as said:
        main(["metrics", "out/p.parquet"])
    assert "acc_norm  " in said.getvalue()


def test_tasks_in_one_call_are_kept_apart(bench):
    bench.edit("colours_train.jsonl", lambda records: records[:3])
    moved = [{**vars(question), "id": f"z{question.id}", "task": "shades"} for question in make_questions(2)]
    Path("shades_test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in moved))
    bench.run("evaluate", '--data.questions=["shades_test.jsonl","colours_train.jsonl"]')
    assert pq.read_table("out/p.parquet")["question_id"].to_pylist() == ["zq0", "zq1", "q0", "q1", "q2"]
    metrics = json.loads(Path("out/p.parquet.metrics.json").read_text())
    assert {task: own["acc"]["n"] for task, own in metrics.items() if task != "seal"} == {"shades": 2, "colours": 3}

"""Questions, rationales and lengths that are wrong: one clear line on stderr, exit code 2, and nothing written."""

import json

import pyarrow.parquet as pq
import pytest

STAGES = ("annotate", "cache_logits", "fit", "evaluate")


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


def test_question_lacks_its_text(bench):
    bench.edit("colours_train.jsonl", lambda records: [{k: v for k, v in records[0].items() if k != "question"}])
    line = bench.refuse("annotate")
    assert "colours_train.jsonl:1" in line and "question" in line


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
    line = bench.refuse(stage, '--data.filters.teachers=["gpt-4o"]')
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
    assert "fraction" in bench.refuse("fit", "--data.validation.fraction=1")


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
        bench.run(stage, "--data.encoding.skip_too_long=true")
    [output] = (bench.folder / "out").glob("*.parquet")
    assert pq.read_table(output)["question_id"].to_pylist() == [f"q{number}" for number in range(1, 8)]


def test_long_example_is_skipped_if_the_user_says_so(bench, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    bench.edit("r.jsonl", lambda records: [{**records[0], "text": "So. " * 500}, *records[1:]])
    options = ['--data.rationales=["r.jsonl"]', "--data.supervision=rationale", "--model.loss.kl_weight=0"]
    line = bench.refuse("fit", *options)
    assert "1 of 8" in line and "'q0/teacher/0'" in line and "skip_too_long" in line
    with pytest.warns(UserWarning, match="1 of 8 examples"):
        bench.run("fit", *options, "--data.encoding.skip_too_long=true")
    assert json.loads((bench.folder / "runs/bench/run/DONE").read_text())["train_examples"] == 7


@pytest.mark.parametrize("stage", STAGES)
def test_everything_is_too_long(bench, stage):
    assert "max_length=5" in bench.refuse(stage, "--data.encoding.max_length=5", "--data.encoding.skip_too_long=true")


@pytest.mark.parametrize("stage", STAGES)
def test_max_length_is_more_than_the_context(bench, stage):
    role = "teacher" if stage in ("annotate", "cache_logits") else "student"
    options = ["--data.supervision=rationale", "--model.loss.kl_weight=0"] if stage == "fit" else []
    line = bench.refuse(stage, f"--model.{role}=models/small", "--data.encoding.max_length=500", *options)
    assert "context of 64" in line and "max_length" in line and "models/small" in line


# One's own file, as questions and as rationales at once.

OWN = {"question": "Which is red?", "choices": ["blue", "red"], "answer": "red", "rationale": "The answer is B."}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"answer": None},
            "no question has a gold answer: add `gold` or `answer`, or set data.filters.correct_only=false",
        ),
        ({"rationale": "As I said."}, "none of them states an answer that could be read"),
    ],
)
def test_own_data_of_which_nothing_is_right_says_why(bench, change, said):
    (bench.folder / "own.jsonl").write_text("".join(json.dumps({**OWN, **change, "id": n}) + "\n" for n in (1, 2)))
    options = ["--data.questions=own.jsonl", '--data.rationales=["own.jsonl"]', "--data.supervision=rationale"]
    with pytest.warns(UserWarning, match=r"0 of 2 questions|2 of 2 rationales"):
        line = bench.refuse("fit", *options, "--data.logits=null", "--model.loss.kl_weight=0")
    assert "own.jsonl: none of 2 rationales" in line and said in line

"""A teacher rewrites another's rationales: what it is shown, whose name they bear, which answer they keep."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datamodules.annotation import QuestionDataModule
from datamodules.rationales.store import Rationale, read_flat_rationales, read_metadata, write_rationales
from datamodules.tasks.questions import load_questions
from lightning_modules.teacher.annotator import Annotator
from lightning_modules.teacher.backends import Backend, Completion
from tests.tiny import build, make_questions, make_rationale

REWRITE = ["--data.prompt=paraphrase", "--data.rewrites=r.parquet", "--model.family=other"]
TINY = "--model.teacher=models/other"


def read(path: str) -> dict[str, Rationale]:
    return {rationale.question_id: rationale for rationale in read_flat_rationales(path)}


def test_a_rewritten_rationale_keeps_its_answer_under_both_names(bench):
    bench.run("annotate", *REWRITE, TINY)
    before, after = read("r.parquet"), read("out/r.parquet")
    assert after.keys() == before.keys()
    for identifier, rationale in after.items():
        assert (rationale.teacher, rationale.family) == ("teacher-by-other", "other")
        assert rationale.prompt_id.startswith("paraphrase-") and rationale.text != before[identifier].text
        # So tiny a model states no answer.
        assert (rationale.answer, rationale.correct) == (before[identifier].answer, before[identifier].correct)
    metadata = read_metadata(Path("out/r.parquet"))
    assert metadata["teacher"] == "teacher-by-other" and metadata["gold_conditioned"] == {"teacher-by-other": False}
    # So tiny a model ends nowhere.
    more = [
        "--data.filters.keep_truncated=true",
        '--data.rationales=["out/r.parquet"]',
        "--data.supervision=rationale",
        "--data.logits=null",
    ]
    bench.run("fit", *more, "--model.loss.kl_weight=0")
    assert json.loads(Path("runs/bench/run/DONE").read_text())["train_examples"] == 8


def test_rationales_that_were_written_anew_are_rewritten_anew(bench):
    bench.run("annotate", *REWRITE, TINY)
    assert "complete already" in bench.run("annotate", *REWRITE, TINY)
    rationales = [replace(rationale, text=f"Well. {rationale.text}") for rationale in read("r.parquet").values()]
    write_rationales(Path("r.parquet"), rationales, read_metadata(Path("r.parquet")))
    assert "another configuration" in bench.refuse("annotate", *REWRITE, TINY)


def test_the_teacher_reads_the_question_and_the_rationale(bench):
    shown = bench.run("annotate", *REWRITE, TINY, "--dry-run")
    for question, rationale in zip(make_questions(8), read("r.parquet").values(), strict=True):
        assert f"Question: {question.question}\n" in shown and f"\nExplanation: {rationale.text}\n" in shown
    assert not Path("out").exists()


class Scripted(Backend):
    """Writes what it is told to."""

    takes_text = True

    def __init__(self, texts: list[str]):
        self.texts = texts

    def check(self, source, longest):
        """It always can."""

    def load(self, source, tokenizer):
        """It is ready."""

    def generate(self, requests, decoding):
        for request, text in zip(requests, self.texts, strict=True):
            yield request, Completion(text, None, "stop", None, None, "1")


def test_a_rewrite_that_states_another_answer_has_that_answer(bench):
    # q0 to q3 have three or four options of five colours, and A, B, C, A right.
    texts = ["It is so. The answer is A.", "It may be C, but who knows.", "The answer is A.", ""]
    data = build(QuestionDataModule, None, "colours_train.jsonl", prompt="paraphrase", limit=4, rewrites="r.parquet")
    data.setup("predict")
    teacher = Annotator("scripted", backend=Scripted(texts))
    records = list(teacher.annotate(data, data.find_missing()))
    assert [record["answer"] for record in records] == ["A", "B", "A", None]
    assert [record["correct"] for record in records] == [True, True, False, False]
    assert {record["teacher"] for record in records} == {"teacher-by-scripted"}


def test_a_translation_that_states_another_answer_is_none(bench):
    # B is right, and the rationale says so.
    german = {"id": "g", "question": "Woraus?", "choices": ["Glas", "Holz"], "answer": "B", "language": "de"}
    texts = ["Holz. Die Antwort ist B) Holz.", "Die Leiter ist aus Holz.", "Die Antwort ist A) Holz.", ""]
    questions = [{**german, "id": f"g{number}"} for number in range(4)]
    Path("g_train.jsonl").write_text("\n".join(map(json.dumps, questions)))
    data = build(QuestionDataModule, None, "g_train.jsonl", prompt="translate", rewrites="g.parquet")
    english = [
        replace(make_rationale(question, "ann"), text="Of wood.") for question in load_questions("g_train.jsonl")
    ]
    write_rationales(Path("g.parquet"), english, {})
    data.setup("predict")
    first = data.posed["g0"].text
    assert first.startswith("Übersetze die Erklärung ins Deutsche.") and first.endswith("Erklärung: Of wood.")
    records = list(Annotator("scripted", backend=Scripted(texts)).annotate(data, data.find_missing()))
    assert [(record["answer"], record["correct"]) for record in records] == [
        *[("B", True)] * 2, *[(None, False)] * 2,
    ]  # fmt: skip
    assert {record["teacher"] for record in records} == {"ann-by-scripted"}


def test_questions_without_a_rationale_and_further_samples_are_left_out(bench):
    questions = make_questions(8)
    rationales = [make_rationale(question, "ann", sample) for question in questions[:3] for sample in range(2)]
    rationales += [replace(make_rationale(questions[3], "ann"), text=" "), make_rationale(questions[4], "eve")]
    write_rationales(Path("mixed.parquet"), rationales, {})
    bench.run("annotate", *REWRITE, TINY, "--data.rewrites=mixed.parquet", "--data.rewrites_of=ann")
    found = pq.read_table("out/r.parquet").to_pylist()
    assert [(record["question_id"], record["teacher"]) for record in found] == [
        (question.id, "ann-by-other") for question in questions[:3]
    ]


@pytest.mark.parametrize(
    ("stage", "options", "named"),
    [
        ("annotate", ["--data.prompt=paraphrase"], "data.rewrites"),
        ("annotate", ["--data.rewrites=r.parquet"], "'plain'; there are: paraphrase, translate"),
        ("annotate", [*REWRITE, "--data.rewrites=none.parquet"], "none.parquet"),
        ("annotate", [*REWRITE, "--data.rewrites_of=eve"], "no rationale of 'eve'; there are ['teacher']"),
        ("fit", ["--data.prompt=paraphrase"], "'paraphrase'"),
        ("cache_logits", ["--data.prompt=paraphrase"], "'paraphrase'"),
    ],
)
def test_a_rewrite_that_cannot_be_is_refused(bench, stage, options, named):
    assert named in bench.refuse(stage, *options)

"""English pivots by their script: rationales of questions as their translations' own, under a name of their own."""

import json
from pathlib import Path

import pytest

from datamodules.rationales.store import Rationale, load_rationales, write_rationales
from datamodules.tasks.questions import load_questions
from scripts import pivot

ENGLISH = [
    {"id": "en-0", "question": "Which is even?", "choices": ["3", "4"], "gold": "B", "parallel": "0"},
    {"id": "en-1", "question": "Which is odd?", "choices": ["3", "4"], "gold": "A", "parallel": "1"},
]
GERMAN = [
    {"id": "de-0", "question": "Was ist gerade?", "choices": ["3", "4"], "gold": "B", "parallel": "0"},
    {"id": "de-1", "question": "Was ist ungerade?", "choices": ["3", "4"], "gold": "A", "parallel": "1"},
]
RUN = ["r.parquet", "--questions=en.jsonl", "--translations=de.jsonl", "--output=out/p.parquet"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two questions in two languages, and two teachers' rationales in English."""
    monkeypatch.chdir(tmp_path)
    write("en.jsonl", ENGLISH, "en")
    write("de.jsonl", GERMAN, "de")
    rationales = [
        Rationale(
            own["id"], "en", "train", teacher, "f", 0, f"The answer is {own['gold']}.", own["gold"], True, "stop", "p"
        )
        for own in ENGLISH
        for teacher in ("ann", "eve")
    ]
    write_rationales(Path("r.parquet"), rationales, {"gold_conditioned": {"ann": True}})
    return tmp_path


def write(path: str, questions: list[dict], language: str) -> None:
    lines = [json.dumps({**own, "language": language, "task": "m", "split": "train"}) for own in questions]
    Path(path).write_text("\n".join(lines))


def test_a_pivot_is_its_translations_own_once(folder: Path, capsys: pytest.CaptureFixture) -> None:
    pivot.main([*RUN, "--teacher=ann"])
    written = Path("out/p.parquet").read_bytes()
    questions = {question.id: question for question in load_questions("de.jsonl")}
    found = load_rationales(["out/p.parquet"], questions)
    assert [(own.question_id, own.teacher, own.answer, own.correct) for own in found] == [
        ("de-0", "ann-pivot", "B", True),
        ("de-1", "ann-pivot", "A", True),
    ]
    assert "2 rationales; 2 translations" in capsys.readouterr().out
    pivot.main([*RUN, "--teacher=ann"])
    assert "complete already" in capsys.readouterr().out and Path("out/p.parquet").read_bytes() == written
    write("de.jsonl", GERMAN[:1], "de")
    with pytest.raises(ValueError, match="made with another configuration, or from other files"):
        pivot.main([*RUN, "--teacher=ann"])


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"choices": ["4", "3"]},
            r"de.jsonl:1: parallel '0': option B '3', the gold answer, in another place, than in",
        ),
        ({"gold": "A"}, r"de.jsonl:1: parallel '0': gold answer 'A', another one; its options may be in another order"),
    ],
)
def test_a_translation_whose_options_changed_order_is_refused(folder: Path, changed: dict, line: str) -> None:
    write("de.jsonl", [GERMAN[0] | changed, GERMAN[1]], "de")
    with pytest.raises(ValueError, match=line):
        pivot.main(RUN)
    assert not Path("out").exists()


@pytest.mark.parametrize(("translations", "number"), [("en.jsonl", "2 of 2"), ("both.jsonl", "2 of 4")])
def test_questions_are_not_their_own_translations(folder: Path, translations: str, number: str) -> None:
    Path("both.jsonl").write_text(f"{Path('en.jsonl').read_text()}\n{Path('de.jsonl').read_text()}")
    place = f"{translations}:1: question 'en-0' is both a question and its translation, in language 'en', as {number} "
    with pytest.raises(ValueError, match=f"^{place}translations are; give others$"):
        pivot.main([*RUN[:2], f"--translations={translations}", RUN[3]])
    assert not Path("out").exists()


def test_a_teacher_that_has_none_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"r.parquet: no rationale of 'max'; there are ann, eve"):
        pivot.main([*RUN, "--teacher=max"])

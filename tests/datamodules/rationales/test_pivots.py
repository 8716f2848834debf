"""Tests of English pivots: a question's rationales as those of its translations."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.rationales.pivots import give_translations
from datamodules.rationales.store import Rationale, load_rationales, read_flat_rationales
from datamodules.tasks.questions import Question, load_questions
from scripts import import_rationales

SUM = Question("chal-1", "svamp", "train", "2 + 2?", None, "4")
GERMAN = Question("msvamp-0-de", "msvamp", "test", "Wie viel?", None, "4", language="de", original="chal-1")
WHY = Rationale("chal-1", "svamp", "train", "t", "f", 0, "It is 4.", "4", True, "imported", "imported")


def test_a_translation_gets_the_rationales_of_its_original() -> None:
    wrong = replace(WHY, sample=1, answer="5", correct=False)
    french = replace(GERMAN, id="msvamp-0-fr", language="fr")
    given, counts = give_translations([WHY, wrong], [SUM], [GERMAN, french])
    assert [(item.question_id, item.sample, item.correct) for item in given] == [
        ("msvamp-0-de", 0, True),
        ("msvamp-0-de", 1, False),
        ("msvamp-0-fr", 0, True),
        ("msvamp-0-fr", 1, False),
    ]
    assert given[0].text == WHY.text and (given[0].task, given[0].split) == ("msvamp", "test")
    assert counts == {"translations": 2}


def test_what_is_left_out_is_counted() -> None:
    other = Question("chal-2", "svamp", "train", "3 + 3?", None, "6")
    translations = [
        GERMAN,
        replace(GERMAN, id="a", gold="5"),
        replace(GERMAN, id="b", original="chal-2", gold="6"),
        replace(GERMAN, id="c", original="chal-9"),
        replace(GERMAN, id="d", original=None),
    ]
    given, counts = give_translations([WHY], [SUM, other], translations)
    assert [item.question_id for item in given] == ["msvamp-0-de"]
    assert counts == {
        "translations": 1,
        "translations left out: another gold answer than the original": 1,
        "translations left out: no rationale": 1,
        "translations left out: of no question here": 2,
    }


def test_a_parallel_question_is_the_original_and_its_options_are_in_the_same_order() -> None:
    options = {"choices": ("3", "4"), "gold": "B", "parallel": "0", "original": None}
    english = replace(SUM, **options | {"id": "e"})
    german, turned = replace(GERMAN, **options), replace(GERMAN, **options | {"id": "t", "choices": ("4", "3")})
    given, counts = give_translations([replace(WHY, question_id="e", answer="B")], [english], [german, turned])
    assert [(item.question_id, item.correct) for item in given] == [("msvamp-0-de", True)]
    assert counts == {
        "translations": 1,
        "translations left out: options in another order than the original's": 1,
    }


def test_questions_that_translate_none_of_these_are_refused() -> None:
    lost = replace(GERMAN, original=None, place="q.jsonl:1")
    with pytest.raises(ValueError, match=r"q.jsonl:1: question 'msvamp-0-de' and 0 others translate none of these"):
        give_translations([WHY], [SUM], [lost])


def test_real_pivots(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = gzip.open(shared_data / "svamp_all.jsonl.gz", "rt", encoding="utf-8").readlines()
    english, german = tmp_path / "svamp_all.jsonl", str(shared_data / "languages" / "msvamp_all.jsonl.gz:de")
    english.write_text("".join(lines[::20]), encoding="utf-8")
    output = tmp_path / "pivot.parquet"
    where = ["--files=svamp_all.jsonl", f"--questions={english}", f"--translations={german}", f"--output={output}"]
    import_rationales.main(["records", str(tmp_path), *where])
    said = capsys.readouterr().out
    questions = {question.id: question for question in load_questions(german)}
    rationales = load_rationales([str(output)], questions)
    number = len({item.question_id for item in rationales})
    assert 30 < number <= 50 and f"{number} translations" in said and "left out: of no question here" in said
    assert {item.task for item in read_flat_rationales(str(output))} == {"msvamp"}

"""Tests of the summary of rationales: each number on texts made for it, and the whole on stores and collections."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.questions import Question
from scripts import annotate
from studies.inputs.rationale_quality import count_repeats, locate_answer, measure_quality, names_options, read_files

QUESTION = Question("q0", "canals", "train", "Where are canals?", ("Michigan", "New York", "Venice"), "C")
NUMBER = Question("n0", "sums", "train", "How many?", None, "7")
FIRST = Rationale(
    "q0", "canals", "train", "t", "f", 0, "The answer is C) Venice. It has many canals.", "C", True, "stop", "p", 9, 12
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is C) Venice. It has many canals.", (True, False)),
        ("Canals are in cities of water. The answer is C) Venice.", (False, True)),
        ("The answer is C. Canals are there. So the answer is C.", (True, True)),
        ("The answer is A. No, look again. The answer is C.", (False, True)),
        ("It is known. The answer is C. It has canals.", (False, False)),
        ("The answer is C) Venice.", None),
        ("Nobody knows. Nobody ever will.", None),
    ],
)
def test_the_answers_place_is_found(text: str, expected: tuple | None) -> None:
    assert locate_answer(text, QUESTION) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A) has lakes, C) has canals.", True),
        ("Option A is cold. Option B is large.", True),
        ("New York is large, and venice is wet.", True),
        ("A city of canals is Venice.", False),
        ("Newish Yorkers and Venetians.", False),
        ("", False),
    ],
)
def test_naming_options_is_naming_two(text: str, expected: bool) -> None:
    assert names_options(text, QUESTION) is expected
    assert names_options(text, NUMBER) is None


def test_repeats_are_counted_whatever_their_case_and_spaces() -> None:
    assert count_repeats(["a b", "A  b\n", "c", "a b"]) == 2


def test_shares_are_of_those_that_can_tell() -> None:
    imported = replace(FIRST, finish_reason="imported")
    rationales = [
        FIRST,
        replace(FIRST, sample=1, text="Venice, I think", finish_reason="length", num_completion_tokens=30),
        replace(imported, sample=2, text="?", answer=None, correct=False, num_completion_tokens=None),
        replace(imported, sample=3, text="The answer is C) Venice.", correct=None),
        replace(FIRST, question_id="n0", task="sums", text="It is 7.", answer="7"),
    ]  # fmt: skip
    canals, sums = measure_quality(rationales, {"q0": QUESTION})
    assert (canals.task, canals.teacher, canals.number) == ("canals", "t", 4)
    assert canals.shares["answered"] == 0.75 and canals.shares["right"] == pytest.approx(2 / 3)
    assert canals.shares["neutral"] == 0.75 and canals.shares["paper"] == 0.5
    assert canals.shares["cut"] == 0.5 and canals.tokens == pytest.approx((12 + 30 + 12) / 3)
    assert canals.shares["first"] == 1 and canals.shares["last"] == 0 and canals.words == pytest.approx(18 / 4)
    # Its question is not at hand.
    unknown = ("neutral", "paper", "first", "last", "options")
    assert all(sums.shares[name] is None for name in unknown) and sums.shares["right"] == 1


def test_other_languages_than_english_are_told_apart() -> None:
    words = "运河在水城里。答案是 C"
    chinese = replace(FIRST, question_id="z0", text=words)
    questions = {"q0": QUESTION, "z0": replace(QUESTION, id="z0", language="zh")}
    english, other = measure_quality([FIRST, chinese], questions)
    assert (english.task, other.task) == ("canals", "canals/zh")
    assert other.words == len(words) - 1 and other.shares["neutral"] == 1


def test_a_text_that_a_teacher_gives_twice_to_a_question_is_counted() -> None:
    [quality] = measure_quality([FIRST, replace(FIRST, sample=1), replace(FIRST, question_id="q1")], {})
    assert quality.shares["twice"] == pytest.approx(1 / 3) and quality.shares["same"] == pytest.approx(2 / 3)


def write_inputs(folder: Path) -> list[str]:
    write_rationales(folder / "r.parquet", [FIRST, replace(FIRST, teacher="u", finish_reason="length")], {})
    record = {
        "id": "n0",
        "question": "How many?",
        "gold": 7,
        "rationales": {"v": {"text": "3 + 4 = 7.", "answer": 7.0}},
    }
    (folder / "sums_train.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "canals_train.jsonl").write_text(json.dumps(vars(QUESTION)) + "\n")
    return [str(folder / "r.parquet"), str(folder / "sums_train.jsonl")]


def test_the_script_prints_a_table_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = write_inputs(tmp_path)
    png = tmp_path / "q.png"
    annotate.main(["summary", *files, "--questions", str(tmp_path / "canals_train.jsonl"), "--png", str(png)])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[:3] for row in rows[2:]] == [["canals", "t", "1"], ["canals", "u", "1"], ["sums", "v", "1"]]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert [row["cut"] for row in table] == ["0.0%", "100.0%", "–"]
    assert [row["right"] for row in table] == ["100.0%"] * 3 and table[0]["tokens"] == "12"
    with Image.open(png) as image:
        assert image.width > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "canals_train.jsonl", "q.png", "r.parquet", "sums_train.jsonl",
    ]  # fmt: skip


def test_files_that_cannot_be_summed_up_are_refused(tmp_path: Path) -> None:
    files = write_inputs(tmp_path)
    with pytest.raises(ValueError, match=r"r\.parquet: rationale 'q0/t/0' of canals is there twice"):
        read_files([files[0], files[0]], None)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no rationales"):
        read_files([str(tmp_path / "empty.jsonl")], None)
    (tmp_path / "other.jsonl").write_text('{"question_id": "q0"}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl:1: rationale without field task"):
        read_files([str(tmp_path / "other.jsonl")], None)


def test_published_rationales_are_summed_up(shared_data: Path) -> None:
    qualities = measure_quality(*read_files([str(shared_data / "obqa_valid.jsonl.gz")], None))
    by_teacher = {item.teacher: item for item in qualities}
    assert by_teacher["flan-t5"].number == 500 and by_teacher["flan-t5"].shares["right"] == 1
    # Its text was cut at about 100 tokens, before any answer.
    assert by_teacher["llama-2"].shares["answered"] == 0 and by_teacher["llama-2"].words > 30

"""Which rationale of a question a teacher with privileged context sees."""

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.rationales.shown import check_shown, read_shown
from datamodules.rationales.store import write_rationales
from tests.tiny import make_questions, make_rationale, write_questions


def test_the_first_right_rationale_of_a_question_is_shown_or_else_the_first(tmp_path: Path) -> None:
    questions = make_questions(4)
    source, path = write_questions(tmp_path / "colours_train.jsonl", questions), tmp_path / "r.parquet"
    first, second, third, _ = questions

    def write(question, sample: int, text: str, **changes: object):
        return replace(make_rationale(question, "t"), sample=sample, text=text, **changes)

    rationales = [
        write(first, 0, "Wrong.", correct=False),
        write(first, 1, " Right. ", correct=True),
        write(first, 2, "Right again.", correct=True),
        write(second, 0, "Only wrong.", correct=False),
        write(second, 1, "Wrong, too.", correct=False),
        write(third, 0, "Cut o", finish_reason="length", correct=True),
        write(third, 1, "  ", correct=True),
    ]
    write_rationales(path, rationales, {})
    assert read_shown(str(path), source) == {first.id: "Right.", second.id: "Only wrong."}


def test_a_prompt_and_the_file_of_what_it_shows_go_together() -> None:
    check_shown("p", "plain", "s", None)
    check_shown("on_policy.teacher_prompt", "with_rationale", "s", "r")
    check_shown("p", "cot_with_rationale", "s", "r")
    with pytest.raises(ValueError, match=r"^p 'cot_with_rationale' shows rationales: name their file by s$"):
        check_shown("p", "cot_with_rationale", "s", None)
    with pytest.raises(ValueError, match=r"^s would be ignored: p 'cot' shows no rationale$"):
        check_shown("p", "cot", "s", "r")
    with pytest.raises(ValueError, match=r"^data.shown_rationales: no such file or folder: nowhere"):
        read_shown("nowhere.parquet", "q")

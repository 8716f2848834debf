"""Tests of what inspect_data shows of a file: counts of what is there, what is wrong, and examples."""

import json
from pathlib import Path

import pytest

from datamodules.tasks.prompts import get_prompt
from scripts.inspect_data import main
from studies.inputs.data_report import add_examples, add_filters, inspect_file

RECORDS = [
    {
        "question": "Which barks?",
        "choices": ["cat", "dog"],
        "answer": "B",
        "rationale": "The answer is B.",
        "by": "\x1b[31m",
    },
    {"id": "m", "question": "Who meows?", "choices": ["cat", "dog"], "answer": 0, "rationale": "Hm.\u202e\x07"},
    {"question": "2 + 2?", "answer": 4, "rationales": ["It is 4.", {"text": "It", "finish_reason": "length"}]},
    {"question": "Which?", "choices": ["a", "b"], "answer": "C", "rationale": "x"},
]


def write(folder: Path, records: list[dict]) -> str:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_file_is_counted_and_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    report = inspect_file(write(tmp_path, RECORDS))
    assert report.used == {"question": 4, "choices": 3, "answer": 4, "rationale": 3, "rationales": 1, "id": 1}
    assert report.ignored == {"by": 1}
    assert (len(report.questions), len(report.rationales), report.num_made_ids) == (3, 4, 2)
    [problem] = report.problems
    assert "mine.jsonl:4: gold answer 'C' is no option" in problem
    add_filters(report)
    add_examples(report, None, get_prompt("plain"), 100)
    assert [line.split() for line in report.notes[1:5]] == [
        ["keep_truncated=false", "(default)", "3", "3"],
        ["not", "empty", "(default)", "4", "3"],
        ["correct_only=true", "(default)", "2", "2"],
        ["samples_per_question=1", "3", "2"],
    ]
    assert [example["answer"] for example in report.examples] == [
        "The answer is B.",
        "(states none)",
        "The answer is 4.",
    ]


def test_what_lies_between_think_marks_is_counted_with_what_is_left_without(tmp_path: Path) -> None:
    asked = {"choices": ["cat", "dog"], "answer": "B"}
    written = [
        "<think>Dogs bark.</think> The answer is B.",
        "<think>Dogs bark.</think> A dog barks. The answer is B.",
        "<think>Dogs bark. The answer is B.</think>",
        "<think>Dogs",
        "Dogs bark. The answer is B.",
    ]
    records = [{**asked, "question": f"Which of {n} barks?", "rationale": text} for n, text in enumerate(written)]
    report = inspect_file(write(tmp_path, records))
    add_examples(report, None, get_prompt("plain"), 100)
    [line] = [line for line in report.format().splitlines() if "thinking" in line]
    assert line.split()[:3] == ["thinking", "4", "rationales"]
    assert "what is left is an answer alone in 1, nothing in 2; data.controls.thinking=keep teaches it" in line
    plain = inspect_file(write(tmp_path, records[4:]))
    add_examples(plain, None, get_prompt("plain"), 100)
    assert "thinking" not in plain.format()


def test_control_characters_are_made_safe_and_parts_are_coloured_on_demand(tmp_path: Path) -> None:
    report = inspect_file(write(tmp_path, RECORDS))
    add_examples(report, None, get_prompt("plain"), 100)
    plain, coloured = report.format(), report.format(colour=True)
    assert not {"\x1b", "\x07", "\u202e"} & set(plain) and "[rationale] Hm." in plain
    assert "\033[33mHm.\ufffd\ufffd\033[0m" in coloured and "\x07" not in coloured


def test_unmatched_rationales_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({**RECORDS[0], "rationale": None}) + "\n")
    main([write(tmp_path, RECORDS[:3]), "--questions", str(questions)])
    printed = capsys.readouterr().out
    assert "1 by mine (1): 1 state an answer, 1 right, 0 truncated, 2 unmatched" in printed

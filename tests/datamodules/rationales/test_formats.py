"""Tests of formats of the field, in and out: data sets of the hub from a folder, and messages."""

import json
from pathlib import Path

import pytest

from datamodules.rationales.hub import parse_mapping, read_data_set
from datamodules.rationales.published import import_rationales
from datamodules.rationales.store import Rationale, load_rationales, write_rationales
from datamodules.tasks.questions import Question, load_questions
from scripts.export_rationales import main as export_rationales
from scripts.import_data import main as import_data

PET = Question("q1", "pets", "train", "Which barks?", ("cat", "dog"), "B")
SUM = Question("q2", "pets", "train", "2 + 2?", None, "4")


def write(path: Path, records: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_store_goes_out_as_messages_and_comes_back_the_same(tmp_path: Path) -> None:
    stored = [
        Rationale("q1", "pets", "train", "big", "llama", 2, "It barks. é", "B", True, "stop", "p", thinking="Hm."),
        Rationale(
            "q1", "pets", "train", "big", "llama", 0, "A cat\nmeows. The answer is A.", "A", False, "length", "p"
        ),
        Rationale("q2", "pets", "train", "other", "unknown", 0, "It is 4.", "4", True, "imported", "imported"),
    ]
    write_rationales(tmp_path / "r.parquet", stored, {})
    questions = write(tmp_path / "q.jsonl", [PET.content, SUM.content])
    output = tmp_path / "out.jsonl"
    export_rationales([str(tmp_path / "r.parquet"), "--questions", questions, "--output", str(output)])
    again = load_questions(str(output))
    assert again == [PET, SUM]
    read = load_rationales([str(output)], {question.id: question for question in again})
    for name in ("id", "text", "thinking", "answer", "correct", "family", "finish_reason"):
        assert [getattr(one, name) for one in read] == [getattr(one, name) for one in stored]
    first = json.loads(output.read_text().split("\n")[0])
    assert first["messages"][1] == {"role": "assistant", "content": "It barks. é", "reasoning_content": "Hm."}
    assert "B) dog" in first["messages"][0]["content"]
    export_rationales(
        [str(output), "--questions", str(output), "--correct_only", "--output", str(tmp_path / "x.jsonl")]
    )
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2


def test_a_data_set_of_a_folder_is_mapped(tmp_path: Path) -> None:
    rows = [{"meta": {"text": "Which barks?"}, "trace": "A dog.", "options": ["cat", "dog"], "final": 1, "x": 1}]
    write(tmp_path / "set" / "train.jsonl", rows)
    fields = ["question=meta.text", "rationale=trace", "choices=options", "answer=final"]
    output = tmp_path / "mine.jsonl"
    import_data([str(tmp_path / "set"), "--fields", *fields, "--output", str(output)])
    [question] = load_questions(str(output))
    [rationale] = load_rationales([str(output)], {question.id: question})
    assert (question.gold, rationale.text) == ("B", "A dog.")
    with pytest.raises(ValueError, match=r"row 0: no field 'meta\.none'; it has text"):
        list(read_data_set(str(tmp_path / "set"), "train", None, {"question": "meta.none"}))
    with pytest.raises(ValueError, match="--fields colour=x: write OURS=THEIRS, where OURS is one of"):
        parse_mapping(["colour=x"])
    with pytest.raises(ValueError, match="set: cannot be loaded"):
        list(read_data_set(str(tmp_path / "set"), "none", None, {}))


def test_records_of_any_shape_find_questions_of_others(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Which barks? Answer choices: A: cat, B: dog"},
        {"from": "gpt", "value": "The answer is B."},
    ]
    several = {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}
    records = [{"conversations": turns}, {"instruction": "2 + 2?", "output": "<think>Hm.</think>It is 4."}, several]
    write(tmp_path / "traces.jsonl", records)
    asked = [Question("q1", "pets", "train", "Which barks", ("cat", "dog"), "B"), SUM]
    rationales, _, counts = import_rationales("records", tmp_path, asked)
    own = [(item.question_id, item.teacher, item.correct, item.thinking) for item in rationales]
    assert own == [("q1", "traces", True, ""), ("q2", "traces", True, "Hm.")]
    assert any("asks 2 questions" in reason for reason in counts)

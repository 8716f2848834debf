"""Tests of the rationale store and of published collections."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from datamodules.rationales.store import (
    Rationale,
    load_rationales,
    read_flat_rationales,
    read_metadata,
    write_rationales,
    write_table,
)
from datamodules.tasks.questions import Question

QUESTIONS: dict[str, Question | None] = {
    "q1": Question("q1", "obqa", "train", "Which?", ("cat", "dog"), "B"),
    "q2": Question("q2", "obqa", "train", "How?", ("up", "down"), None),
    "m1": Question("m1", "gsm8k", "train", "How many?", None, "72"),
}
FIRST = Rationale("q1", "obqa", "train", "big", "llama", 0, "It barks.", "B", True, "stop", "cot-12345678")
STORED = [
    FIRST,
    replace(FIRST, sample=1, text="é\nIt meows.", answer="A", correct=False, finish_reason="length"),
    replace(FIRST, teacher="other", answer=None, correct=False, text=""),
    replace(FIRST, question_id="q2", correct=None),
]


def write_nested(folder: Path, *records: dict) -> str:
    path = folder / "obqa_train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_store_round_trip_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    metadata = {"teacher": "big", "revision": None, "decoding": {"temperature": 0.7}, "prompt": "é"}
    write_rationales(path, iter(STORED), metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_rationales([str(path)], QUESTIONS) == STORED
    assert read_metadata(path) == metadata


def test_an_empty_store_keeps_its_metadata_and_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_rationales(path, [], {"teacher": "big"})
    assert read_metadata(path) == {"teacher": "big"}
    with pytest.raises(ValueError, match=r"r\.parquet: no rationales"):
        load_rationales([str(path)], QUESTIONS)


def test_a_foreign_table_has_no_metadata_and_a_missing_one_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    assert read_metadata(tmp_path / "x.parquet") == {}
    with pytest.raises(ValueError, match="table: no such file or folder: "):
        read_metadata(tmp_path / "none.parquet")


def test_a_flat_jsonl_is_imported(tmp_path: Path) -> None:
    path = write_nested(tmp_path, *map(asdict, STORED))
    assert load_rationales([path], QUESTIONS) == STORED


def test_ids_name_question_teacher_and_sample() -> None:
    assert [rationale.id for rationale in STORED] == ["q1/big/0", "q1/big/1", "q1/other/0", "q2/big/0"]


def test_published_shape(tmp_path: Path) -> None:
    path = write_nested(
        tmp_path,
        {"id": "q1", "rationales": {"gpt": {"text": "It barks.", "answer": "B"}, "t5": {"text": "x", "answer": "cat"}}},
        {"id": "q2", "rationales": {"gpt": {"text": "Hm.", "answer": None}, "t5": {"text": "x", "answer": "sideways"}}},
        {"id": "m1", "rationales": {"gpt": {"text": "6 * 12", "answer": 72.0}, "t5": {"text": "So it is 71."}}},
    )
    loaded = {rationale.id: rationale for rationale in load_rationales([path], QUESTIONS)}
    assert loaded["q1/gpt/0"] == Rationale(
        "q1", "obqa", "train", "gpt", "unknown", 0, "It barks.", "B", True, "imported", "imported"
    )
    assert {name: (rationale.answer, rationale.correct) for name, rationale in loaded.items()} == {
        "q1/gpt/0": ("B", True),
        "q1/t5/0": ("A", False),
        # Gold is unknown: so is whether the answer is correct.
        "q2/gpt/0": (None, None),
        # An answer that is no option counts as none.
        "q2/t5/0": (None, None),
        "m1/gpt/0": ("72", True),
        # Without a recorded answer, it is read from the text.
        "m1/t5/0": ("71", False),
    }


def test_empty_published_texts_are_kept_for_the_reader_to_leave_out(tmp_path: Path) -> None:
    path = write_nested(tmp_path, {"id": "q1", "rationales": {"gpt": {"text": " \n"}, "t5": {"text": "b"}}})
    assert [(r.teacher, r.text, r.finish_reason) for r in load_rationales([path], QUESTIONS)] == [
        ("gpt", " \n", "imported"),
        ("t5", "b", "imported"),
    ]


def test_rationales_of_unknown_questions_are_refused(tmp_path: Path) -> None:
    path = write_nested(
        tmp_path, {"id": "q1", "rationales": {"gpt": {"text": "a"}}}, {"id": "q2", "rationales": {"gpt": {"text": "b"}}}
    )
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:2: a rationale for the unknown question 'q2'"):
        load_rationales([path], {"q1": QUESTIONS["q1"]})
    store = tmp_path / "r.parquet"
    write_rationales(store, STORED, {})
    with pytest.raises(ValueError, match=r"r\.parquet:row 3: a rationale for the unknown question 'q2'"):
        load_rationales([str(store)], {"q1": QUESTIONS["q1"]})


def test_a_rationale_that_is_there_twice_is_refused_within_and_across_files(tmp_path: Path) -> None:
    store, path = tmp_path / "r.parquet", write_nested(tmp_path, {"id": "q1", "rationales": {"big": {"text": "a"}}})
    write_rationales(store, STORED, {})
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:1: rationale 'q1/big/0' is there twice"):
        load_rationales([str(store), path], QUESTIONS)
    write_rationales(store, [FIRST, FIRST], {})
    with pytest.raises(ValueError, match=r"r\.parquet:row 1: rationale 'q1/big/0' is there twice"):
        load_rationales([str(store)], QUESTIONS)


def test_a_malformed_rationale_is_named(tmp_path: Path) -> None:
    record = asdict(FIRST)
    del record["answer"], record["prompt_id"]
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:1: rationale without field answer, prompt_id$"):
        load_rationales([write_nested(tmp_path, record)], QUESTIONS)
    for entry in ("text", {"answer": "A"}, {"text": None}):
        path = write_nested(tmp_path, {"id": "q1", "rationales": {"gpt": entry}})
        with pytest.raises(ValueError, match=r"obqa_train\.jsonl:1: rationale of 'gpt' has no text"):
            load_rationales([path], QUESTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": ["q1"]}, "a rationale for the unknown question ['q1']"),
        ({"text": None}, "`text` must be a text, found NoneType"),
        ({"text": 5}, "`text` must be a text, found int: 5"),
        ({"text": "\ud800"}, "`text` holds half a surrogate pair"),
        ({"teacher": 3}, "`teacher` must be a text, found int: 3"),
        ({"teacher": ""}, "`teacher` must not be empty"),
        ({"sample": True}, "`sample` must be a whole number of 0 or more, found True"),
        ({"sample": None}, "`sample` must be a whole number of 0 or more, found None"),
        ({"num_completion_tokens": -1}, "`num_completion_tokens` must be a whole number of 0 or more, found -1"),
        ({"correct": "yes"}, "`correct` must be true, false or null, found 'yes'"),
        ({"finish_reason": "done"}, "`finish_reason` must be one of stop, length, content_filter, imported"),
        ({"answer": 5}, "`answer` must be a text, found int: 5"),
        ({"answer": "ZZZ"}, "`answer` 'ZZZ' is no option of question 'q1': AB"),
        ({"answer": None}, "`correct` is true, but the answer None is not 'B', which is gold"),
        ({"answer": "A"}, "`correct` is true, but the answer 'A' is not 'B', which is gold"),
        ({"question_id": "m1", "answer": "71"}, "`correct` is true, but the answer '71' is not '72', which is gold"),
        ({"question_id": "m1", "answer": "many"}, "'many' is no number"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = write_nested(tmp_path, asdict(FIRST), {**asdict(FIRST), "sample": 1, **change})
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:2: ") as caught:
        load_rationales([path], QUESTIONS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_published_answer_is_a_text_or_a_number(tmp_path: Path) -> None:
    path = write_nested(tmp_path, {"id": "q1", "rationales": {"gpt": {"text": "x", "answer": ["A"]}}})
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:1: answer of 'gpt' must be a text, a number or null"):
        load_rationales([path], QUESTIONS)


@pytest.mark.parametrize("metadata", ["[]", "{", "3"])
def test_metadata_that_are_no_object_are_refused(tmp_path: Path, metadata: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"kindred": metadata}), path)
    with pytest.raises(ValueError, match=r"r\.parquet: its metadata: "):
        read_metadata(path)


def test_a_store_that_lost_rationales_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_rationales(path, STORED, {"num_records": 5})
    for read in (lambda: load_rationales([str(path)], QUESTIONS), lambda: read_flat_rationales(str(path))):
        with pytest.raises(ValueError, match=r"r\.parquet: holds 4 of the 5 rationales that were written"):
            read()


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_rationales(path, STORED, {"made": 1})
    with pytest.raises(TypeError):
        write_rationales(path, STORED, {"made": object()})
    import pyarrow as pa

    with pytest.raises(pa.ArrowInvalid):
        write_table(path, [{"a": 1}, {"a": "x"}], {})
    assert read_metadata(path) == {"made": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.parquet"]

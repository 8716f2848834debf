"""Files of questions and of rationales that are none: one clear line on stderr, exit code 2, and nothing written."""

import gzip
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

QUESTION = {"id": "q0", "task": "t", "split": "train", "question": "Is it iron?", "choices": ["a", "b"], "gold": "A"}


def to_lines(*records: dict) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


GOOD = to_lines(QUESTION)
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.jsonl", b"", "no questions"),
        ("x.jsonl", b"\n\n", "no questions"),
        ("x.jsonl", GOOD.replace(b"iron", b"ir\xe9n"), "x.jsonl: cannot be read"),
        ("x.jsonl", GOOD.decode().encode("utf-16"), "x.jsonl: cannot be read"),
        ("x.jsonl", PACKED, "x.jsonl: cannot be read"),
        ("x.jsonl", b"[" * 100_000 + b"\n", "x.jsonl:1"),
        ("x.jsonl", GOOD.replace(b'"A"', b"9" * 5000), "x.jsonl:1"),
        ("x.jsonl", GOOD.replace(b'"q0"', b'"\\ud800"'), "x.jsonl:1: `id` holds half a surrogate pair"),
        ("x.jsonl", GOOD.replace(b"iron", b"\\udfff"), "x.jsonl:1: `question` holds half a surrogate pair"),
        ("x.jsonl.gz", PACKED[:-12], "x.jsonl.gz: cannot be read"),
        ("x.jsonl.gz", PACKED[:20], "x.jsonl.gz: cannot be read"),
        ("x.jsonl.gz", PACKED[:-8] + bytes(3) + PACKED[-5:], "x.jsonl.gz: cannot be read"),
        ("x.jsonl.gz", GOOD, "x.jsonl.gz: cannot be read"),
        ("x.parquet", b"", "x.parquet: cannot be read as parquet"),
        ("x.parquet", b"hello", "x.parquet: cannot be read as parquet"),
        ("x.jsonl", None, "x.jsonl"),
        ("x.parquet", None, "x.parquet"),
    ],
)
def test_a_file_of_questions_is_none(bench, name: str, content: bytes | None, named: str) -> None:
    path = bench.folder / name
    path.mkdir() if content is None else path.write_bytes(content)
    assert named in bench.refuse("annotate", f"--data.questions={name}")


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3.5},
        {"id": "a\0b"},
        {"id": "a\nb"},
        {"id": "\x1b[31m"},
        {"id": "a\x85"},
        {"question": "\0\0"},
        {"question": ["x"]},
        {"choices": {"a": [1]}},
        {"choices": "abc"},
        {"choices": [1, 2, None]},
        {"choices": ["\0", "b"]},
        {"choices": [str(number) for number in range(30)]},
        {"choices": ["a", "a", "a"]},
        {"task": 3},
        {"task": ["x"], "language": 5},
        {"group": 3},
        {"gold": ["A"]},
        {"choices": None, "gold": {"a": 1}},
        {"choices": None, "gold": float("nan")},
        {"choices": None, "gold": float("inf")},
    ],
    ids=str,
)
def test_a_field_of_a_question_is_wrong(bench, change: dict) -> None:
    (bench.folder / "x.jsonl").write_bytes(to_lines({**QUESTION, "id": "first"}, {**QUESTION, **change}))
    assert "x.jsonl:2: " in bench.refuse("annotate", "--data.questions=x.jsonl")


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"x": pa.array([1, 2])}, "x.parquet:row 0: question without field 'question'"),
        ({"id": pa.array([], pa.string()), "question": pa.array([], pa.string())}, "x.parquet: no questions"),
        ({"id": pa.array(["a"]), "question": pa.array([b"\xff\xfe"])}, "x.parquet:row 0"),
        ({"id": pa.array(["a"]), "question": pa.array([1])}, "x.parquet:row 0"),
    ],
)
def test_a_table_of_questions_is_none(bench, columns: dict, named: str) -> None:
    pq.write_table(pa.table(columns), bench.folder / "x.parquet")
    assert named in bench.refuse("annotate", "--data.questions=x.parquet")


@pytest.mark.parametrize("source", ["microworld:train:-3:0", "microworld:train:1e3:0", "task:openbookqa:train@."])
def test_a_source_of_questions_is_wrong(bench, source: str) -> None:
    assert source in bench.refuse("annotate", f"--data.questions={source}")


# Rationales, which are read without their logits.

ALONE = ["--data.supervision=rationale", "--model.loss.kl_weight=0", "--data.logits=null"]


def replace_column(name: str, values: list, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values * len(table), kind))


def replace_metadata(metadata: bytes) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({b"kindred": metadata})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda table: table.slice(0, 0), "x.parquet: no rationales"),
        (lambda table: table.drop_columns(["text"]), "x.parquet: 0 of 8 records have a rationale"),
        (replace_column("text", [None], pa.string()), "x.parquet:row 0: `text` must be a text"),
        (replace_column("text", [1], pa.int64()), "x.parquet:row 0: `text` must be a text"),
        (replace_column("text", ["\0\0"], pa.string()), "x.parquet:row 0: `text` holds nothing but control"),
        (replace_column("text", [" \x1b\x07 "], pa.string()), "x.parquet:row 0: `text` holds nothing but control"),
        (replace_column("text", ["   "], pa.string()), "'q0/teacher/0'"),
        (replace_column("teacher", [None], pa.string()), "x.parquet:row 0: `teacher` must be a text"),
        (replace_column("sample", [None], pa.int32()), "x.parquet:row 0: `sample` must be a whole number"),
        (replace_column("answer", ["ZZZ"], pa.string()), "x.parquet:row 0: `answer` 'ZZZ' is no option"),
        (replace_metadata(b"{not json"), "x.parquet: its metadata"),
        (replace_metadata(b"[]"), "x.parquet: its metadata"),
        (replace_metadata(b"\xff\xfe"), "x.parquet: its metadata"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", pytest.param("cache_logits", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*is not sealed")
def test_a_store_of_rationales_is_none(bench, stage: str, change: Callable[[pa.Table], pa.Table], named: str) -> None:
    # Metadata that know how many there should be would be what is found first.
    table = pq.read_table("r.parquet").replace_schema_metadata(None)
    pq.write_table(change(table), "x.parquet")
    options = ALONE if stage == "fit" else []
    assert named in bench.refuse(stage, '--data.rationales=["x.parquet"]', *options)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"id": "nowhere", "rationales": {"t": {"text": "x"}}}, "unknown question 'nowhere'"),
        ({"id": "q0", "rationales": {"t": "text"}}, "rationale of 't' has no text"),
        ({"id": "q0", "rationales": {"t": {"text": 5}}}, "rationale of 't' has no text"),
        ({"id": "q0", "rationales": {"t": {"text": "x", "answer": ["A"]}}}, "answer of 't' must be"),
        ({"question_id": ["a"], "text": "x"}, "unknown question"),
        ({"question_id": "q0", "text": "x"}, "rationale without field"),
    ],
)
def test_a_line_of_rationales_is_wrong(bench, record: dict, named: str) -> None:
    (bench.folder / "x.jsonl").write_bytes(to_lines(record))
    line = bench.refuse("fit", '--data.rationales=["x.jsonl"]', *ALONE)
    assert "x.jsonl:1: " in line and named in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text": 5}, "`text` must be a text"),
        ({"text": "\0"}, "`text` holds nothing but control characters"),
        ({"answer": 5}, "`answer` must be a text"),
        ({"teacher": "a\nb"}, "`teacher` holds a control character"),
        ({"answer": "AB"}, "`answer` 'AB' is no option"),
        ({"sample": 2**31}, "`sample` must be a whole number"),
        ({"correct": "yes"}, "`correct` must be true, false or null"),
        ({"correct": None, "sample": -1}, "`sample` must be a whole number"),
        ({"finish_reason": "bored"}, "`finish_reason` must be one of"),
    ],
)
def test_a_field_of_a_rationale_is_wrong(bench, change: dict, named: str) -> None:
    bench.edit("r.jsonl", lambda records: [records[0], {**records[1], **change}, *records[2:]])
    line = bench.refuse("fit", '--data.rationales=["r.jsonl"]', *ALONE)
    assert "r.jsonl:2: " in line and named in line


def test_records_without_rationales_are_counted(bench) -> None:
    (bench.folder / "x.jsonl").write_bytes(to_lines({"question_id": None}))
    line = bench.refuse("fit", '--data.rationales=["x.jsonl"]', *ALONE)
    assert "x.jsonl: 0 of 1 records have a rationale; name it `rationale`" in line


@pytest.mark.parametrize("content", [b"", to_lines({"id": "q0", "rationales": {}})])
def test_a_file_holds_no_rationales(bench, content: bytes) -> None:
    (bench.folder / "x.jsonl").write_bytes(content)
    assert "x.jsonl: no rationales" in bench.refuse("fit", '--data.rationales=["x.jsonl"]', *ALONE)

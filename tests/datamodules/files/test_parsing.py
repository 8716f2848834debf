"""JSON, YAML and parquet of others: read for what they say, or refused in one line that names the file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.files.parsing import parse_json, read_json_object, read_yaml, reading_parquet
from datamodules.files.tables import read_metadata, read_table
from datamodules.text.plain_text import describe_error

BOMB = "z0: &z0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"z{number + 1}: &z{number + 1} [{', '.join([f'*z{number}'] * 9)}]\n" for number in range(9)
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: [", "malformed YAML"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is there twice"),
        ("x: {a: 1, a: 1}", "the key 'a' is there twice"),
        (BOMB, "aliases stand for more than"),
        ("a: 1\nepochs: 010\n", "line 2: YAML reads 010 in another base than ten"),
        ("a: [1:30]", "line 1: YAML reads 1:30 in another base than ten"),
        ("a: -1:30.5", "line 1: YAML reads -1:30.5 in another base than ten"),
        ("a: &a [*a]", "line 1: an alias stands for what it is in"),
        ("a: *nowhere", "undefined alias"),
        ("[" * 100_000, "recursion"),
        ("a: " + "9" * 5000, "4300"),
        ("a: !!binary aGk=", "binary is no type of a setting"),
        ("a: !!set {b, c}", "set is no type of a setting"),
        ("a: !!python/object/apply:os.system [ls]", "is no type of a setting"),
        ("a: !mine 3", "!mine is no type of a setting"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 1\n---\na: 2\n", "single document"),
        ("? [a]\n: 1\n", "unhashable key"),
        (b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_yaml_is_refused_in_a_line_that_names_the_file(tmp_path: Path, text: str | bytes, named: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="malformed YAML") as refused:
        read_yaml(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and named in message and "\n" not in message


def test_yaml_says_what_json_can_say(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &base {a: 1, b: [x, ~, true]}\nown: {<<: *base, a: 2}\nday: 2020-01-01\nrate: 00.5\n")
    base = {"a": 1, "b": ["x", None, True]}
    # A date is text, and an own value goes before the one that is merged in.
    assert read_yaml(path) == {"base": base, "own": {**base, "a": 2}, "day": "2020-01-01", "rate": 0.5}
    path.write_text("")
    assert read_yaml(path) is None
    with pytest.raises(ValueError, match=r"malformed YAML: .*Is a directory"):
        read_yaml(tmp_path)


TEXTS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(value=JSON)
def test_yaml_reads_what_was_written(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    assert read_yaml(path) == value


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "nothing", b"\xff\xfe\x00", '{"a": 1} x'])
def test_json_is_refused_in_a_line_that_names_the_place(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^x\.json:7: cannot be read as JSON: .+$"):
        parse_json(text, "x.json:7")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"'])
def test_json_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: expected a JSON object, found "):
        read_json_object(tmp_path / "x.json")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [*range(100)], "b": ["text"] * 100}), path)
    content, refused = path.read_bytes(), 0
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        for read in (read_table, read_metadata):
            with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as parquet: .+"):
                read(path)
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError("no"), pa.ArrowTypeError("no"), OSError("no")])
def test_whatever_pyarrow_raises_names_the_file(error: Exception) -> None:
    with (
        pytest.raises(ValueError, match=r"^x\.parquet: cannot be read as parquet: no$"),
        reading_parquet(Path("x.parquet")),
    ):
        raise error


def test_an_error_is_one_line() -> None:
    assert describe_error(ValueError("two\n  lines\n\nand an explanation")) == "two lines"
    assert describe_error(ValueError()) == "ValueError"
    assert describe_error(RuntimeError("\n")) == "RuntimeError"
    assert describe_error(KeyError("name")) == "KeyError: 'name'"

"""Tests of loading questions: every kind of file, and each refusal."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.answers.extractors import extract_neutral
from datamodules.tasks.questions import Question, load_questions, normalize_gold, parse_question
from datamodules.text.expressions import normalize_number

OWN = {"id": "a", "question": "Which?", "choices": ["cat", "dog"], "gold": "B"}


def write(folder: Path, records: list[dict], name: str = "obqa_train.jsonl") -> str:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    records = [OWN, {**OWN, "id": "b", "gold": "cat"}, {**OWN, "id": "c", "gold": None}]
    loaded = load_questions(write(tmp_path, records, f"obqa_train.{ending}"))
    assert loaded[0] == Question("a", "obqa", "train", "Which?", ("cat", "dog"), "B")
    assert [question.gold for question in loaded] == ["B", "A", None]


def test_the_record_names_task_split_and_language(tmp_path: Path) -> None:
    (question,) = load_questions(write(tmp_path, [{**OWN, "task": "t", "split": "test", "language": "it"}]))
    assert (question.task, question.split, question.language) == ("t", "test", "it")


@pytest.mark.parametrize(
    ("name", "task", "split"),
    [("csqa.jsonl", "csqa", "train"), ("my_own_test.jsonl", "my_own", "test"), ("x_valid.v2.jsonl", "x", "valid")],
)
def test_the_files_name_gives_task_and_split(tmp_path: Path, name: str, task: str, split: str) -> None:
    (question,) = load_questions(write(tmp_path, [OWN], name))
    assert (question.task, question.split) == (task, split)


def test_a_numeric_text_is_an_options_own() -> None:
    own = {"id": "M", "question": "2 + 1?", "choices": ["4", "3", "2", "1"], "gold": "3"}
    assert parse_question(own, "here", "arc", "test").gold == "B"


@pytest.mark.parametrize(
    ("choices", "expression", "kind"),
    [
        (("cat", "dog"), False, "choice"),
        (("True", "False"), False, "boolean"),
        (("no", "yes"), False, "boolean"),
        (None, False, "number"),
        (None, True, "expression"),
    ],
)
def test_kinds_of_answer(choices: tuple | None, expression: bool, kind: str) -> None:
    assert Question("a", "t", "test", "Which?", choices, None, expression=expression).kind == kind


def test_expressions_are_normalised() -> None:
    record = {"id": "a", "question": "Half?", "choices": None, "gold": r"\dfrac12", "expression": True}
    question = parse_question(record, "here", "t", "test")
    assert (question.gold, question.expression) == ("0.5", True)
    with pytest.raises(ValueError, match="here: `expression` must be true or false"):
        parse_question({**record, "choices": ["a"]}, "here", "t", "test")


def test_options_beyond_five_have_letters() -> None:
    choices = [f"option {number}" for number in range(26)]
    question = parse_question({**OWN, "choices": choices, "gold": "option 25"}, "here", "t", "test")
    assert (question.gold, question.letters[-1], question.choice("F")) == ("Z", "Z", "option 5")
    with pytest.raises(ValueError, match="here: 27 options; at most 26 can be lettered"):
        parse_question({**OWN, "choices": [*choices, "more"]}, "here", "t", "test")


def test_true_and_false(tmp_path: Path) -> None:
    records = [{**OWN, "choices": ["True", "False"], "gold": "False"}]
    assert load_questions(write(tmp_path, records))[0].gold == "B"
    records = [{**OWN, "choices": ["True", "False"], "gold": True}]
    assert load_questions(write(tmp_path, records))[0].gold == "A"


@pytest.mark.parametrize("choices", [None, []])
def test_without_options_gold_is_a_number(choices: list | None) -> None:
    question = parse_question({**OWN, "choices": choices, "gold": 72.0}, "here", "t", "test")
    assert (question.choices, question.gold, question.letters) == (None, "72", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1,000", "1000"),
        (72.0, "72"),
        (72, "72"),
        ("072.50", "72.5"),
        ("-0.0", "0"),
        ("-3", "-3"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("9" * 400, "9" * 400),
        ("100", "100"),
    ],
)
def test_normalize_number(value: object, text: str) -> None:
    assert normalize_number(value) == text


@pytest.mark.parametrize("value", ["nan", "inf", float("-inf"), "seven", "", "1.2.3", "1_0"])
def test_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"is no (finite )?number"):
        normalize_number(value)


def test_a_letter_goes_before_an_options_text() -> None:
    assert normalize_gold("A", ("B", "A")) == "A"
    assert normalize_gold("b", ("a", "b")) == "B"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": "C"}, r"gold answer 'C' is no option \(letters AB, texts \['cat', 'dog'\]\)"),
        ({"gold": "doge"}, "gold answer 'doge' is no option"),
        ({"choices": None, "gold": "B"}, "answer 'B' is no number"),
        ({"id": 7.5}, "`id` and `question` must be non-empty texts"),
        ({"id": ""}, "`id` and `question` must be non-empty texts"),
        ({"question": " "}, "`id` and `question` must be non-empty texts"),
        ({"choices": "cat, dog"}, "`choices` must be a list of texts or null, found str"),
    ],
)
def test_a_bad_field_is_named_with_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path, [OWN, {**OWN, "id": "b", **change}])
    with pytest.raises(ValueError, match=rf"obqa_train\.jsonl:2: {message}"):
        load_questions(path)


def test_a_missing_question_is_named(tmp_path: Path) -> None:
    record = {name: value for name, value in OWN.items() if name != "question"}
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:1: question without field 'question'"):
        load_questions(write(tmp_path, [record]))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [OWN, OWN])
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:2: question id 'a' is there twice"):
        load_questions(path)
    Path(path).write_text(json.dumps(OWN) + "\n{'id'\n")
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl:2: cannot be read as JSON"):
        load_questions(path)
    Path(path).write_text("")
    with pytest.raises(ValueError, match=r"obqa_train\.jsonl: no questions"):
        load_questions(path)
    with pytest.raises(ValueError, match=r"no such file or folder: .*none\.jsonl"):
        load_questions(str(tmp_path / "none.jsonl"))


def test_limit_keeps_the_first_and_reads_no_further(tmp_path: Path) -> None:
    records = [{**OWN, "id": str(number)} for number in range(5)]
    path = write(tmp_path, [*records, {"broken": 1}])
    assert [question.id for question in load_questions(path, limit=3)] == ["0", "1", "2"]
    assert len(load_questions(path, limit=5)) == 5
    with pytest.raises(ValueError, match=":6: "):
        load_questions(path)


@pytest.mark.parametrize(
    ("gold", "choices", "letter"),
    [
        ("Yes", ("True", "False"), "A"),
        ("no", ("True", "False"), "B"),
        ("False", ("yes", "no"), "B"),
        ("TRUE", ("False", "True"), "B"),
        (False, ("True", "False"), "B"),
    ],
)
def test_yes_is_true_and_no_is_false(gold: str | bool, choices: tuple[str, str], letter: str) -> None:
    assert normalize_gold(gold, choices) == letter


def test_yes_is_no_option_of_another_question() -> None:
    with pytest.raises(ValueError, match="'Yes' is no option"):
        normalize_gold("Yes", ("True", "False", "Unknown"))


def test_several_sources_follow_one_another_each_with_its_own_limit(tmp_path: Path) -> None:
    first = write(tmp_path, [{**OWN, "id": f"a{number}"} for number in range(3)], "obqa_test.jsonl")
    second = write(tmp_path, [{**OWN, "id": f"b{number}"} for number in range(3)], "arc_test.jsonl")
    loaded = load_questions([second, first], limit=2)
    assert [(question.task, question.id) for question in loaded] == [
        ("arc", "b0"),
        ("arc", "b1"),
        ("obqa", "a0"),
        ("obqa", "a1"),
    ]


def test_sources_that_share_an_id_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path, [OWN], f"{task}_test.jsonl") for task in ("obqa", "arc")]
    with pytest.raises(ValueError, match=r"arc_test\.jsonl:1: question id 'a' is there twice"):
        load_questions(paths)


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.questions is empty"):
        load_questions([])


def test_options_with_the_same_words_are_said(tmp_path: Path) -> None:
    records = [
        {"id": "q0", "question": "Which?", "choices": ["a", "b"], "gold": "A"},
        {"id": "q1", "question": "Which?", "choices": ["The sea", "a lake", "the  sea!"], "gold": "A"},
        {"id": "q2", "question": "Which?", "choices": ["+", "-"], "gold": "A"},
    ]
    with pytest.warns(UserWarning, match="1 questions have options with the same words, the first is 'q1'"):
        questions = load_questions(write(tmp_path, records))
    # Its letter names it, its text does not.
    assert extract_neutral("The answer is the sea.", questions[1]) is None
    found = extract_neutral("The answer is C) the sea.", questions[1])
    assert found is not None and found.answer == "C"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": 3}, "`task` must be a text, found int: 3"),
        ({"task": ["x"]}, "`task` must be a text, found list"),
        ({"split": {"a": 1}}, "`split` must be a text, found dict"),
        ({"language": 5}, "`language` must be a text, found int: 5"),
        ({"group": 7}, "`group` must be a text, found int: 7"),
        ({"choices": ["a", None]}, "`choices` must be a text, found NoneType"),
        ({"choices": ["a", ["b"]]}, "`choices` must be a text, found list"),
        ({"gold": ["A"]}, "must be a text or a number, found list"),
        ({"choices": None, "gold": {"a": 1}}, "must be a text or a number, found dict"),
        ({"id": "\ud800"}, "`id` holds half a surrogate pair"),
        ({"question": "x \udfff"}, "`question` holds half a surrogate pair"),
        ({"choices": ["a", "a", "a"], "gold": "A"}, "all 3 options are 'a'"),
        ({"choices": ["a", "b", "a"], "gold": "a"}, "'a' is the text of several options"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r"^here: ") as caught:
        parse_question({**OWN, **change}, "here", "t", "test")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": "a", "question": "x", "gold": ' + "9" * 5000 + "}"])
def test_a_line_that_python_cannot_hold_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q_test.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"q_test\.jsonl:1: cannot be read as JSON"):
        load_questions(str(path))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_questions_may_have_a_group(tmp_path: Path, ending: str) -> None:
    records = [{**OWN, "group": "passage 1"}, {**OWN, "id": "b", "group": None}]
    loaded = load_questions(write(tmp_path, records, f"obqa_train.{ending}"))
    assert [question.group for question in loaded] == ["passage 1", None]

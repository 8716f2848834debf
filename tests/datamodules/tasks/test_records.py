"""Tests of one's own file as questions and as rationales: every shape, with and without ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.rationales.store import Rationale, load_rationales
from datamodules.tasks.questions import Question, load_questions, parse_question

PET = {"question": "Which barks?", "choices": ["cat", "dog"], "answer": "dog", "rationale": "It barks: a dog."}
REPLY = {"role": "assistant", "content": "It barks."}


def write(folder: Path, records: list[dict], name: str = "mine.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def load(path: str, rationales: str | None = None) -> tuple[list[Question], list[Rationale]]:
    questions = load_questions(path)
    return questions, load_rationales([rationales or path], {question.id: question for question in questions})


def test_one_file_is_questions_and_rationales_with_and_without_ids(tmp_path: Path) -> None:
    for more in ({}, {"id": "mine-1"}, {"id": 1}, {"id": None}):
        [question], [rationale] = load(write(tmp_path, [{**PET, **more}]))
        assert (question.gold, question.task, question.split) == ("B", "mine", "train")
        assert (rationale.question_id, rationale.teacher, rationale.answer) == (question.id, "mine", "B")
        assert rationale.correct is True and rationale.finish_reason == "imported"
        assert more.get("id") is None or question.id == str(more["id"])


@pytest.mark.parametrize(
    ("answer", "question", "read"),
    [
        ("B", {"choices": ["cat", "dog"], "gold": "B"}, "B"),
        ("cat", {"choices": ["cat", "dog"], "gold": "B"}, "A"),
        (1, {"choices": ["cat", "dog"], "gold": "B"}, "B"),
        ("\\boxed{B}", {"choices": ["cat", "dog"], "gold": "B"}, "B"),
        ("Option B.", {"choices": ["cat", "dog"], "gold": "B"}, "B"),
        ("No idea", {"choices": ["cat", "dog"], "gold": "B"}, None),
        ("Yes.", {"choices": ["True", "False"], "gold": "A"}, "A"),
        ("$1,080", {"gold": 1080}, "1080"),
        ("1080 clips", {"gold": 1080}, "1080"),
        ("#### 1080", {"gold": 1080}, "1080"),
        ("many", {"gold": 1080}, None),
    ],
)
@pytest.mark.parametrize("more", [{}, {"gold": "left out"}])
def test_an_answer_beside_a_rationale_alone_is_what_the_rationale_concludes(
    tmp_path: Path, answer: Any, question: dict, read: str | None, more: dict
) -> None:
    write(tmp_path, [{"id": "q", "question": "Which?", **question}], "q.jsonl")
    own = {"question_id": "q", "rationale": "Because.", "answer": answer, **more}
    [_], [rationale] = load(str(tmp_path / "q.jsonl"), write(tmp_path, [own]))
    assert (rationale.answer, rationale.correct) == (read, read in ("B", "1080") or question["gold"] == read)


@pytest.mark.parametrize("name", ["finish_reason", "stop_reason"])
@pytest.mark.parametrize(
    ("reason", "read"),
    [
        *((cut, "length") for cut in ("length", "LENGTH", "max_tokens", "MAX_TOKENS", "max_output_tokens")),
        *((stop, stop.casefold()) for stop in ("stop", "STOP", "content_filter")),
        ("end_turn", "imported"),
        (None, "imported"),
    ],
)
def test_a_text_that_an_api_cut_off_is_truncated(tmp_path: Path, name: str, reason: str | None, read: str) -> None:
    for record in ({**PET, name: reason}, {**PET, "rationale": {"text": "It barks", name: reason}}):
        _, [rationale] = load(write(tmp_path, [record]))
        assert (rationale.finish_reason, rationale.is_truncated) == (read, read == "length")


def test_a_made_id_is_of_text_and_options_alone(tmp_path: Path) -> None:
    [made] = load_questions(write(tmp_path, [PET]))
    [again] = load_questions(
        write(tmp_path, [{**PET, "question": " Which\u00a0 barks?", "answer": "A"}], "x_test.jsonl")
    )
    [other] = load_questions(write(tmp_path, [{**PET, "choices": ["dog", "cat"]}]))
    assert made.id == again.id != other.id
    # Pinned: what a store or a cache is keyed by must not change.
    assert made.id == parse_question(PET, "here", "t", "test").id == "c6bc1178950a9e2d"


@pytest.mark.parametrize(
    ("answer", "choices", "gold"),
    [
        ("B", ["cat", "dog"], "B"),
        ("b", ["cat", "dog"], "B"),
        ("(B)", ["cat", "dog"], "B"),
        ("B) dog", ["cat", "dog"], "B"),
        ("Dog ", ["cat", "dog"], "B"),
        ("dog", ["cat", "dog"], "B"),
        (1, ["cat", "dog"], "B"),
        (0, ["cat", "dog"], "A"),
        (1.0, ["cat", "dog"], "B"),
        (5, [3, 5], "B"),
        (5, ["3", "5"], "B"),
        ("5", ["3", "5"], "B"),
        (1, ["5", "1"], "B"),
        ("B", {"A": "cat", "B": "dog", "C": None}, "B"),
        ("dog", {"A": "cat", "B": "dog"}, "B"),
        (1, {"A": "cat", "B": "dog"}, "B"),
        ("2", {"text": ["cat", "dog"], "label": ["1", "2"]}, "B"),
        (2, {"text": ["cat", "dog"], "label": ["1", "2"]}, "B"),
        ("B", [{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}], "B"),
        ("B", ["A) cat", "B) dog"], "B"),
        ("dog", ["(A) cat", "(B) dog"], "B"),
        (True, None, "A"),
        ("no", None, "B"),
        ("1,080", None, "1080"),
        ("-1,080.50", None, "-1080.5"),
        ("10,00,000", None, "1000000"),
        ("0e999999999", None, "0"),
        (72, None, "72"),
        ("6 * 12 = <<6*12=72>>72\n#### 72", None, "72"),
    ],
)
def test_an_answer_is_a_letter_a_label_a_text_an_index_or_a_number(answer: Any, choices: Any, gold: str) -> None:
    question = parse_question({"question": "Which?", "choices": choices, "answer": answer}, "here", "t", "test")
    assert question.gold == gold
    if choices is not None and gold == "B" and not isinstance(choices, list):
        assert question.choices == ("cat", "dog")


def test_a_number_that_is_an_index_and_another_text_is_decided_by_the_file_or_refused(tmp_path: Path) -> None:
    unclear = {"question": "Which?", "choices": ["2", "3", "1"], "answer": 1}
    with pytest.raises(
        ValueError, match=r"mine\.jsonl:1: the answer 1 is the text of option C and the index .*B; write"
    ):
        load_questions(write(tmp_path, [unclear]))
    for other, gold in (({"choices": ["x", "y"], "answer": 0}, "B"), ({"choices": ["7", "9"], "answer": 9}, "C")):
        path = write(tmp_path, [unclear, {"question": "What?", **other}])
        assert load_questions(path)[0].gold == gold
    with pytest.raises(ValueError, match=r"gold answer 2 is no option .*the indices are 0 to 1"):
        parse_question({**PET, "answer": 2}, "here", "t", "test")


@pytest.mark.parametrize(
    ("fields", "text", "thinking"),
    [
        ({"rationale": "It barks."}, "It barks.", ""),
        ({"rationales": ["It barks."]}, "It barks.", ""),
        ({"rationales": [{"text": "It barks.", "thinking": "Hm."}]}, "It barks.", "Hm."),
        ({"rationale": "<think>Hm.</think>It barks."}, "It barks.", "Hm."),
        (
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It barks."}]},
            "It barks.",
            "",
        ),
        (
            {"messages": [{"role": "assistant", "content": "It barks.", "reasoning_content": "Hm."}]},
            "It barks.",
            "Hm.",
        ),
        ({"messages": [{"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIt barks."}]}, "It barks.", "Hm."),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "It barks."}]}]}, "It barks.", ""),
        ({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "It barks."}]}, "It barks.", ""),
        (
            {
                "conversations": [
                    {
                        "from": "assistant",
                        "value": "<|begin_of_thought|>\n\nHm.\n\n<|end_of_thought|>\n\n"
                        "<|begin_of_solution|>\n\nIt barks.\n\n<|end_of_solution|>",
                    }
                ]
            },
            "It barks.",
            "Hm.",
        ),
        ({"generations": ["<think>Hm.</think>It barks."], "is_reasoning_complete": [True]}, "It barks.", "Hm."),
    ],
)
def test_every_way_to_write_a_rationale(tmp_path: Path, fields: dict, text: str, thinking: str) -> None:
    record = {"question": "Which barks?", "choices": ["cat", "dog"], "answer": "B", **fields}
    with pytest.warns(UserWarning, match="1 of 1 rationales state no answer"):
        _, [rationale] = load(write(tmp_path, [record]))
    assert (rationale.text, rationale.thinking) == (text, thinking)


@pytest.mark.parametrize(
    ("record", "question", "gold", "text"),
    [
        (
            {"instruction": "Add.", "input": "2 and 3", "output": "It is 5.", "answer": 5},
            "Add.\n\n2 and 3",
            "5",
            "It is 5.",
        ),
        ({"problem": "2+3?", "solution": r"So \boxed{5}."}, "2+3?", "5", r"So \boxed{5}."),
        ({"problem": "2+3?", "solution": "s", "answer": "5", "generations": ["It is 5."]}, "2+3?", "5", "It is 5."),
        (
            {
                "messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "It is 5."}],
                "answer": 5,
            },
            "2+3?",
            "5",
            "It is 5.",
        ),
        ({"question": "2+3?", "answer": "It is <<2+3=5>>5.\n#### 5"}, "2+3?", "5", "It is 5."),
    ],
)
def test_formats_of_the_field(tmp_path: Path, record: dict, question: str, gold: str, text: str) -> None:
    [read], [rationale] = load(write(tmp_path, [record]))
    assert (read.question, read.gold, rationale.text.strip(), rationale.correct) == (question, gold, text, True)


def test_a_trace_that_was_cut_off_is_truncated(tmp_path: Path) -> None:
    record = {"problem": "2+3?", "answer": "5", "generations": ["It is 5.", "<think>Hm"]}
    _, [whole, cut] = load(write(tmp_path, [{**record, "is_reasoning_complete": [True, False]}]))
    assert (whole.finish_reason, whole.sample, cut.finish_reason, cut.sample) == ("imported", 0, "length", 1)


def test_lines_of_one_question_are_its_samples_and_the_record_names_the_teacher(tmp_path: Path) -> None:
    lines = [PET, {**PET, "rationale": "A dog does."}, {**PET, "teacher": "big"}, {**PET, "model": "bigger"}]
    for more in ({}, {"id": "q"}):
        questions, rationales = load(write(tmp_path, [{**line, **more} for line in lines]))
        assert len(questions) == 1
        names = [(rationale.teacher, rationale.sample) for rationale in rationales]
        assert names == [("mine", 0), ("mine", 1), ("big", 0), ("bigger", 0)]
    with pytest.raises(ValueError, match=r"mine\.jsonl:2: question id .* is there twice, first in .*:1, with another"):
        load_questions(write(tmp_path, [PET, {**PET, "answer": "cat"}]))


def test_rationales_match_by_text_normalised_alike(tmp_path: Path) -> None:
    composed, apart = "Où est le café?", "Où  est le café ?"
    questions = write(tmp_path, [{**PET, "question": composed, "rationale": None}], "q.jsonl")
    rationales = write(tmp_path, [{"question": apart, "rationale": "The answer is B."}], "r.jsonl")
    _, [rationale] = load(questions, rationales)
    assert (rationale.teacher, rationale.correct) == ("r", True)
    questions = write(tmp_path, [{"question": f"2 {sign} 2?", "answer": 0} for sign in "-+"], "q.jsonl")
    rationales = write(tmp_path, [{"question": "2 + 2?", "rationale": "It is 0."}], "r.jsonl")
    [_, added], [rationale] = load(questions, rationales)
    assert rationale.question_id == added.id


def test_what_does_not_fit_is_refused_with_its_lines(tmp_path: Path) -> None:
    twins = [PET, {**PET, "choices": ["hen", "dog"]}]
    questions = write(tmp_path, twins, "q.jsonl")
    assert len(load(questions)[1]) == 2
    rationales = write(tmp_path, [{"question": "which barks?", "rationale": "The answer is B."}], "r.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl:1: .* that of several: .*q\.jsonl:1 .*q\.jsonl:2 .*question's id"):
        load(questions, rationales)
    swapped = write(tmp_path, [{**PET, "choices": ["dog", "cat"]}], "r.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl:1: question '.*' has other options, or in another order"):
        load(write(tmp_path, [PET], "q.jsonl"), swapped)
    other = write(tmp_path, [{**PET, "id": "q", "question": "Who meows?"}], "r.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl:1: question 'q' has another text there than in .*q\.jsonl:1"):
        load(write(tmp_path, [{**PET, "id": "q"}], "q.jsonl"), other)
    unknown = write(tmp_path, [{"question": "Who?", "rationale": "x"}], "r.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl:1: a rationale for the unknown question 'Who\?'"):
        load(write(tmp_path, [PET], "q.jsonl"), unknown)
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(ValueError, match=r"`messages` asks 2 questions"):
        load_questions(write(tmp_path, [{"messages": turns}]))
    with pytest.raises(ValueError, match=r"mine\.jsonl: 0 of 1 records have a rationale; name it `rationale`"):
        load(write(tmp_path, [{**PET, "rationale": None}]))
    with pytest.raises(ValueError, match="answer 'B' is no number; an option needs `choices`"):
        load_questions(write(tmp_path, [{"question": "x", "answer": "B"}]))


def test_a_file_without_gold_says_so(tmp_path: Path) -> None:
    record = {"question": "Which?", "choices": ["cat", "dog"], "target": "B", "rationale": "The answer is B."}
    path = write(tmp_path, [record, {**record, "question": "What?"}])
    with pytest.warns(UserWarning, match=r"0 of 2 questions have a gold answer; name it .* \(not read: target\)"):
        _, [rationale, _] = load(path)
    assert (rationale.answer, rationale.correct) == ("B", None)


def test_marks_blank_lines_and_lists_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = json.dumps(PET)
    path.write_bytes(b"\xef\xbb\xbf" + f"\r\n{line}\r\n\r\n".encode())
    [question], [rationale] = load(str(path))
    (tmp_path / "mine.json").write_text(json.dumps([PET], indent=1))
    assert load(str(tmp_path / "mine.json")) == ([question], [rationale])
    (tmp_path / "mine.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"mine\.json:record 1: expected a JSON object"):
        load_questions(str(tmp_path / "mine.json"))


@pytest.mark.parametrize("answer", ["1,5", "1.080,5", "10,80", "1,0805", "1e999999999", "1e-999999999"])
def test_a_number_whose_comma_parts_no_thousands_or_that_would_fill_the_memory_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"^here: answer '.*' has (a comma|more than 1000 zeros)"):
        parse_question({"question": "How many?", "answer": answer}, "here", "t", "test")

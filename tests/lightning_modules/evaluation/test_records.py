"""Tests of how completions become answers and records."""

import pytest

from datamodules.answers.extractors import EXTRACTORS, MORE_EXTRACTORS
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question
from lightning_modules.evaluation.records import choose_options, examine, grade, vote

QUESTION = Question("q", "t", "test", "Which?", ("red", "blue", "green"), "B")


def test_the_most_frequent_answer_counts() -> None:
    texts = ["Hm.", "The answer is C) green.", "The answer is A) red.", "So the answer is A) red.", "The answer is C."]
    answers, place, votes = vote([*texts, "The answer is A) red."], QUESTION, EXTRACTORS)
    assert (answers["neutral"], place, votes) == ("A", 2, 3)
    # Of equally frequent ones the first; without any, none.
    answers, place, votes = vote(texts, QUESTION, EXTRACTORS)
    assert (answers["neutral"], place, votes) == ("C", 1, 2)
    assert vote(["Hm.", "Well."], QUESTION, EXTRACTORS) == ({"neutral": None, "paper": None}, 0, 0)


def test_another_extractor_has_a_vote_of_its_own() -> None:
    question = Question("q", "t", "test", "Wie viel?", None, "70000", language="de")
    texts = ["Die Antwort ist 70.000.", "The answer is 70,000.", "Es sind 7."]
    answers, place, votes = vote(texts, question, {**EXTRACTORS, **MORE_EXTRACTORS})
    assert (answers, place, votes) == ({"neutral": "70000", "paper": None, "english": "70"}, 0, 2)


def test_bytes_are_no_characters() -> None:
    question = Question("q", "t", "test", "Which?", ("ééé", "abcd"), "A")
    chosen = choose_options([-4.0, -4.5], list(question.choices or ()), question)
    assert chosen == {"likelihood": "A", "likelihood_norm": "B", "likelihood_bytes": "A"}
    assert set(choose_options([], [], question).values()) == {None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is red. The answer is B) blue.", (True, 10, "A", "B")),
        ("The sky is so. The answer is B) blue.", (True, 14, None, "B")),
        ("It is blue. So the answer is B.", (False, 11, "B", "B")),
        ("The answer is B) blue.", (True, 0, None, "B")),
        ("I choose B) blue. It is like the sky", (False, 36, None, None)),
        ("", (False, 0, None, None)),
    ],
)
def test_a_completions_parts_are_read_apart(text: str, expected: tuple) -> None:
    assert tuple(examine(text, QUESTION, get_prompt("cot")).values()) == expected


def test_twin_options_have_no_likeliest() -> None:
    question = Question("q", "t", "test", "Which?", ("red", "blue", "red"), "B")
    assert choose_options([-1.0, -2.0, -1.0], ["red", "blue", "red"], question)["likelihood"] is None
    assert choose_options([-3.0, -2.0, -3.0], ["red", "blue", "red"], question)["likelihood"] == "B"


def test_an_expression_is_right_in_any_notation() -> None:
    question = Question("q", "t", "test", "Solve.", None, r"2\sqrt{2}", expression=True)
    assert grade("neutral", r"\sqrt{8}", False, question) is True
    assert grade("neutral", r"\sqrt{7}", False, question) is False

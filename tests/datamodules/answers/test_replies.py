"""Tests of where a reply begins and ends: thinking before it, invented questions and turns after it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.answers.extractors import extract_neutral, find_statements, split_answer_sentence
from datamodules.answers.replies import cut_run_on, find_reply
from datamodules.rationales.controls import remove_answer
from datamodules.tasks.questions import Question
from tests.datamodules.answers.answer_tables import CANALS, FORMULA, MATHS

CITY = Question(
    "q", "t", "test", "Which southern city has canals?", ("Michigan", "New York", "Amsterdam", "Venice"), "D"
)
REPLY = "It has canals. The answer is D) Venice."
INVENTED = [
    "\n\nQ: Which city is in the USA?\nA: The answer is B.",
    "\n\nQuestion: Which city is in the USA?\nChoices:\nA) Rome\nB) New York\nAnswer: The answer is B) New York.",
    "\nQuestion 2: Which city is in the USA?\nAnswer: B",
    "\n\n**Question:** Which city is in the USA?\n**Answer:** B",
    "\n\n### Question\nWhich city is in the USA?\n### Answer\nThe answer is B.",
    "\n\nHuman: And in the USA?\n\nAssistant: The answer is B.",
    "\nUser: thanks\nAssistant: The answer is B.",
    "\n\n### Instruction:\nPick one.\n### Response:\nThe answer is B.",
    "\n\nInstruction: Choose the answer to the question only from options A, B.\nInput: Which?\nOutput: It is B.",
    "\n\nInput: Which city is in the USA?\nOutput: The answer is B.",
    "<|im_end|>\n<|im_start|>user\nOther?<|im_end|>\n<|im_start|>assistant\nThe answer is B.",
    "\n<|user|>\nAnd in the USA?\n<|assistant|>\nThe answer is B.",
    "</s> The answer is B.",
    "<eos><bos>The answer is B.",
    "[|endofturn|]\n[|user|]Other?\n[|assistant|]The answer is B.",
    "<|eot|><|header_start|>user<|header_end|>\n\nThe answer is B.",
    "<|endoftext|>The answer is B.",
    "<end_of_turn>\n<start_of_turn>user\nNext\n<start_of_turn>model\nThe answer is B.",
    "[INST] And in the USA? [/INST] The answer is B.",
    " Question: Which city is in the USA? Answer: B",
    " Q: Which city is in the USA? A: B",
    " Which city is in the USA? Answer Choices: (a) Rome (b) New York A: So the answer is (b) New York.",
    "\n\nWhich city is in the USA?\nA) Rome\nB) New York\nThe answer is B) New York.",
    "\n\nWhich city is in the USA?\nAnswer: B",
    "\n\nQ. Which city is in the USA?\nA. The answer is B.",
    "\n\n2. Which city is in the USA?\nThe answer is B.",
    "\n\nExample 2:\nWhich city is in the USA? The answer is B.",
    "\n\n## Exercise 2\nWhich city is in the USA? The answer is B.",
    "\n\nNow let's try another question: which is in the USA? The answer is B.",
    "\n\nTranslate the following sentence into French: The answer is B.",
    "\n\nPassage: New York is in the USA.\nThe answer is B.",
    "\n\nChoices:\nA) Rome\nB) New York\nAnswer: B",
]


@pytest.mark.parametrize("invented", INVENTED)
def test_what_is_invented_after_the_reply_is_not_read(invented: str) -> None:
    text = REPLY + invented
    assert find_reply(text, CITY) == (0, len(REPLY))
    found = extract_neutral(text, CITY)
    assert found is not None and found.answer == "D" and text[found.start : found.end] == "answer is D) Venice"
    assert cut_run_on(text, CITY) == REPLY
    assert [statement.answer for statement in find_statements(text, CITY)] == ["D"]
    # More text after it means that it does not end with its answer.
    assert split_answer_sentence(text, CITY) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 2 = 5\n#### 5\n\nQuestion: Tom has 4 pens and buys 3 more. How many?\nAnswer: 4 + 3 = 7\n#### 7", "5"),
        ("3 + 2 = 5\n#### 5\nTom has 4 pens and buys 3 more. How many?\n#### 7", "5"),
        ("So 3 + 2 = 5.\n\nQ: Tom has 4 pens and buys 3 more. How many?\nA: 7", "5"),
        ("So 3 + 2 = 5.\n\nProblem 2: Tom has 4 pens and buys 3 more. How many?\n4 + 3 = 7", "5"),
        ("Problem 1:\n3 are red.\nProblem 2:\n2 are blue.\n3 + 2 = 5", "5"),
    ],
)
def test_a_number_is_read_from_the_reply(text: str, answer: str) -> None:
    found = extract_neutral(text, MATHS)
    assert found is not None and found.answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # The question, restated before it is answered.
        ("Question: Which southern city has canals?\nChoices:\nA) Michigan\nD) Venice\nAnswer: D", "D"),
        ("Let me restate it.\n\nQuestion: Which southern city has canals?\nAnswer: D) Venice", "D"),
        ("<|assistant|>\nThe answer is D.", "D"),
        # A second thought, with a question of its own.
        ("The answer is C. Wait, is that right?\nAmsterdam is north. The answer is D.", "D"),
        ("The answer is C.\n\nWait, is it southern?\nA) is not. So the answer is D.", "D"),
        ("The answer is C.\n\nNo, that is wrong. The answer is D.", "D"),
        # Without any answer before it, nothing after it answers this question.
        ("I cannot say.\n\nQuestion: Which city is in the USA?\nAnswer: The answer is B.", None),
        ("It must be Venice.\n\nQuestion: Which city is in the USA?\nAnswer: B", "D"),
    ],
)
def test_what_belongs_to_the_reply_is_read(text: str, answer: str | None) -> None:
    found = extract_neutral(text, CITY)
    assert (found and found.answer) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>Maybe the answer is A.</think>\n\nVenice.", "D"),
        ("<think>Maybe the answer is A. Hmm, let me check whether Amsterdam", None),
        ("Maybe the answer is A.</think> The answer is D.", "D"),
        ("[THINK]The answer is A.[/THINK]The answer is D.", "D"),
        ("<think>The answer is A.</think>", None),
    ],
)
def test_nothing_stated_in_thinking_counts(text: str, answer: str | None) -> None:
    found = extract_neutral(text, CITY)
    assert (found and found.answer) == answer
    assert found is None or "think" not in text[found.start : found.end].casefold()


def test_places_are_those_in_the_whole_text() -> None:
    text = "<think>The answer is A.</think>\nIt has canals. The answer is D.\n\nQ: Which?\nA: The answer is B."
    found = extract_neutral(text, CITY)
    assert found is not None and text[found.start : found.end] == "answer is D"
    kept = cut_run_on(text, CITY)
    assert split_answer_sentence(kept, CITY) == ("<think>The answer is A.</think>\nIt has canals.", "The answer is D.")
    assert remove_answer(kept, CITY, "D") == "<think>The answer is A.</think>\nIt has canals."


def test_the_shared_cases(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "evaluation" / "extraction.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    for case in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1]):
        choices = tuple(case["choices"]) if case["choices"] else None
        question = Question("q", "t", "test", "Which?", choices, None, expression=case["kind"] == "expression")
        found = extract_neutral(case["completion"], question)
        assert (found and found.answer) == case["right"], case


PIECES = st.sampled_from(
    [REPLY, "Q:", "\n", "<|user|>", "</think>", "<think>", "Question: Which?", "?\n", "#### 5", "A)"]
)


@given(st.lists(PIECES, max_size=8).map(" ".join), st.sampled_from([CITY, CANALS, MATHS, FORMULA]))
def test_a_reply_lies_within_its_text(text: str, question: Question) -> None:
    start, end = find_reply(text, question)
    assert 0 <= start <= end <= len(text)
    # What is cut off leaves a text that is its own reply.
    kept = cut_run_on(text, question)
    assert text.startswith(kept) and cut_run_on(kept, question) == kept

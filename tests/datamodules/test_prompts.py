"""Tests of the prompts: the paper's text, answer sentences, and ids that follow the text."""

from dataclasses import fields, replace

import pytest

from datamodules.prompts import PROMPTS, Prompt, get_prompt
from datamodules.questions import Question

CANALS = Question(
    "q",
    "csqa",
    "test",
    "Where in Southern Europe would you find many canals?",
    ("Michigan", "New York", "Amsterdam", "Venice", "Bridge"),
    "D",
)
MATHS = Question("m", "gsm8k", "test", "How many {clips}?", None, "72")

# Verbatim from the paper's figure (in-family-evidence.md, 2.1).
PAPER = """Choose the answer to the question only from options A, B, C, D, E.
Question: Where in Southern Europe would you find many canals?
Choices:
A) Michigan
B) New York
C) Amsterdam
D) Venice
E) Bridge
Answer: Let's think step-by-step"""


def test_cot_is_the_papers_prompt() -> None:
    assert get_prompt("cot").render(CANALS, chat=True) == PAPER
    assert get_prompt("cot").render(CANALS, chat=False) == PAPER + "\n"


def test_instruction_has_the_papers_fields() -> None:
    instruction, *rest = PAPER.split("\n")
    choices = "\n".join(rest[:-1])
    raw = get_prompt("instruction").render(CANALS, chat=False)
    assert raw == f"Instruction: {instruction}\nInput: {choices}\nOutput:\n"
    assert get_prompt("instruction").render(CANALS, chat=True) == raw.removesuffix("\nOutput:\n")


def test_plain_has_no_instruction() -> None:
    raw = get_prompt("plain").render(CANALS, chat=False)
    assert raw.startswith("Question: Where") and raw.endswith("\nE) Bridge\nAnswer:\n")


@pytest.mark.parametrize("name", PROMPTS)
def test_a_question_without_options_is_posed_as_it_is(name: str) -> None:
    raw = get_prompt(name).render(MATHS, chat=False)
    assert "Question: How many {clips}?\n" in raw and "Choices" not in raw and "options" not in raw
    assert get_prompt(name).answer_sentence(MATHS, "72") == "The answer is 72."


@pytest.mark.parametrize("name", PROMPTS)
def test_braces_in_a_question_are_only_text(name: str) -> None:
    odd = replace(CANALS, question="What is {question}?", choices=("{", "{letter}"))
    raw = get_prompt(name).render(odd, chat=False)
    assert "What is {question}?" in raw and "A) {\nB) {letter}\n" in raw
    assert "{letter}" in get_prompt(name).answer_sentence(odd, "B")


def test_answer_sentences() -> None:
    assert get_prompt("cot").answer_sentence(CANALS, "D") == "The answer is D) Venice."
    assert get_prompt("instruction").answer_sentence(CANALS, "E") == "The answer is E) Bridge."
    assert get_prompt("plain").answer_sentence(CANALS, "D") == "The answer is Venice."


def test_an_option_that_is_a_sentence_keeps_one_full_stop() -> None:
    question = replace(CANALS, choices=("Record the details.", "None"))
    assert get_prompt("cot").answer_sentence(question, "A") == "The answer is A) Record the details."
    assert get_prompt("plain").answer_sentence(question, "A") == "The answer is Record the details."


@pytest.mark.parametrize("field", [field.name for field in fields(Prompt)])
def test_every_edit_changes_the_id(field: str) -> None:
    prompt = get_prompt("cot")
    value = vars(prompt)[field]
    edited = replace(prompt, **{field: not value if isinstance(value, bool) else value + " "})
    assert edited.id != prompt.id
    assert replace(edited, **{field: value}).id == prompt.id


def test_ids_name_the_prompt_and_differ() -> None:
    ids = [prompt.id for prompt in PROMPTS.values()]
    assert len(set(ids)) == len(PROMPTS)
    assert all(identifier.startswith(f"{name}-") for name, identifier in zip(PROMPTS, ids, strict=True))


def test_an_unknown_prompt_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="prompt 'cto' is unknown; there are: cot, instruction, plain"):
        get_prompt("cto")

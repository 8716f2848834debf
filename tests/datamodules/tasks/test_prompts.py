"""Tests of the prompts: the paper's text, answer sentences, and ids that follow the text."""

from dataclasses import fields, replace

import pytest

from datamodules.answers.extractors import extract_neutral
from datamodules.tasks.prompts import Prompt, get_prompt, list_exemplars, list_prompts
from datamodules.tasks.questions import Question
from datamodules.text.languages import get_language, list_languages

SHOWN = {"q": "Some canals.", "m": "Some clips."}
PROMPTS = {
    name: replace(prompt, shown=SHOWN) if prompt.shows_rationale else prompt for name, prompt in list_prompts().items()
}
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
def test_a_question_without_options_is_posed_without_them(name: str) -> None:
    raw = PROMPTS[name].render(MATHS, chat=False)
    assert "Question: How many {clips}?\n" in raw and "Choices" not in raw and "options" not in raw
    assert PROMPTS[name].answer_sentence(MATHS, "72") == "The answer is 72."


def test_maths_forms() -> None:
    number = get_prompt("cot").render(MATHS, chat=True)
    cue = "Answer: Let's think step-by-step"
    assert number == f"Answer the question with a number.\nQuestion: How many {{clips}}?\n{cue}"
    expression = replace(MATHS, expression=True, gold=r"\frac{1}{3}")
    text = get_prompt("cot").render(expression, chat=True)
    assert text.startswith(r"Answer the question, and put the final answer in \boxed{}.")
    assert get_prompt("cot").answer_sentence(expression, r"\frac{1}{3}") == r"The answer is $\boxed{\frac{1}{3}}$."


def test_direct_asks_for_the_answer_alone() -> None:
    raw = get_prompt("direct").render(CANALS, chat=False)
    assert "without an explanation" in raw and "step" not in raw and raw.endswith("\nAnswer:\n")


POSED = {
    "choice": CANALS,
    "boolean": replace(CANALS, choices=("True", "False"), gold="A"),
    "number": MATHS,
    "expression": replace(MATHS, expression=True),
}


@pytest.mark.parametrize("kind", POSED)
def test_few_shot_shows_worked_examples_that_the_extractor_reads(kind: str) -> None:
    question = POSED[kind]
    assert question.kind == kind
    exemplars = list_exemplars(question.kind, "en")
    blocks = get_prompt("few_shot").render(question, chat=False).split("\n\n")
    assert len(blocks) == 2 + len(exemplars) and len(exemplars) >= 4
    for block, (example, _, answer) in zip(blocks[1:-1], exemplars, strict=True):
        assert example.kind == kind and example.gold == answer
        body, _, completion = block.partition("\nAnswer: ")
        assert example.question in body
        found = extract_neutral(completion, example)
        assert found is not None and found.answer == answer
    assert question.question in blocks[-1] and blocks[-1].endswith("\nAnswer:\n")


@pytest.mark.parametrize("name", PROMPTS)
def test_braces_in_a_question_are_only_text(name: str) -> None:
    odd = replace(CANALS, question="What is {question}?", choices=("{", "{letter}"), gold="B")
    raw = PROMPTS[name].render(odd, chat=False)
    assert "What is {question}?" in raw and "A) {\nB) {letter}\n" in raw
    assert "{letter}" in PROMPTS[name].answer_sentence(odd, "B")


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
    longer = {"number": "Other: {question}"}
    edits = {bool: lambda: not value, str: lambda: value + " ", dict: lambda: {**value, **longer}}
    edited = replace(prompt, **{field: edits[type(value)]()})
    assert edited.id != prompt.id
    assert replace(edited, **{field: value}).id == prompt.id


def test_ids_name_the_prompt_and_differ() -> None:
    ids = [prompt.id for prompt in PROMPTS.values()]
    assert len(set(ids)) == len(PROMPTS)
    assert all(identifier.startswith(f"{name}-") for name, identifier in zip(PROMPTS, ids, strict=True))


def test_an_unknown_prompt_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="prompt 'cto' is unknown; there are: cot, few_shot, direct"):
        get_prompt("cto")


def test_a_paraphrase_shows_what_is_to_be_rewritten() -> None:
    prompt = get_prompt("paraphrase", rewrites=True)
    assert [other.name for other in PROMPTS.values() if other.rewrites] == ["paraphrase", "translate"]
    text = prompt.render(CANALS, True, "Venice {has} canals.")
    assert "Question: Where in" in text and text.endswith("Explanation: Venice {has} canals.")
    with pytest.raises(ValueError, match=r"data\.rewrites"):
        get_prompt("paraphrase")
    with pytest.raises(ValueError, match="not 'cot'; there are: paraphrase, translate"):
        get_prompt("cot", rewrites=True)


def test_a_prompt_that_shows_the_gold_answer_is_a_teachers_alone() -> None:
    shown = get_prompt("plain_with_gold", privileged=True)
    blind = get_prompt("plain").render(CANALS, chat=False)
    assert shown.render(CANALS, chat=False) == blind.replace("\nAnswer:\n", "\nThe answer is Venice.\nAnswer:\n")
    assert shown.id.startswith("plain_with_gold-") and shown.shows_gold and not get_prompt("plain").shows_gold
    odd = replace(CANALS, choices=("{", "{letter}"), gold="B")
    assert shown.render(odd, chat=True).endswith("\nThe answer is {letter}.")
    german = get_prompt("cot_with_gold", privileged=True).render(replace(MATHS, language="de"), chat=True)
    assert "{clips}?\nDie Antwort ist 72.\n" in german
    with pytest.raises(ValueError, match=r"^question 'q': has no gold answer, which prompt 'plain_with_gold' shows$"):
        shown.render(replace(CANALS, gold=None), chat=True)
    with pytest.raises(ValueError, match=r"^prompt 'plain_with_gold' shows the gold answer, which only a teacher"):
        get_prompt("plain_with_gold")


def test_a_prompt_that_shows_a_rationale_is_a_teachers_alone() -> None:
    empty = get_prompt("plain_with_rationale", privileged=True)
    shown = replace(empty, shown={"q": "Venice {has} canals."})
    blind = get_prompt("plain").render(CANALS, chat=False)
    wanted = blind.replace("\nAnswer:\n", "\nExplanation: Venice {has} canals.\nAnswer:\n")
    assert shown.render(CANALS, chat=False) == wanted
    assert not shown.rewrites and not shown.shows_gold
    # What it shows is a part of what it is known by.
    assert shown.id.startswith("plain_with_rationale-")
    assert len({shown.id, empty.id, replace(empty, shown={"q": "Venice."}).id}) == 3
    several = [replace(CANALS, id=name) for name in "pqr"]
    message = r"^2 of 3 questions have no rationale that prompt 'plain_with_rationale' could show, the first is 'p'; "
    with pytest.raises(ValueError, match=message):
        shown.check_shown(several)
    with pytest.raises(ValueError, match=r"^1 of 1 questions have no rationale"):
        shown.render(several[0], chat=True)
    with pytest.raises(ValueError, match=r"^prompt 'cot_with_rationale' shows a rationale, which only a teacher"):
        get_prompt("cot_with_rationale")
    with pytest.raises(ValueError, match=r"unknown; there are: cot, few_shot, [^_]*$"):
        get_prompt("with_rationale")


@pytest.mark.parametrize("tag", list_languages())
def test_every_language_shows_a_rationale_in_its_own_words(tag: str) -> None:
    prompt = replace(get_prompt("cot_with_rationale", privileged=True), shown={"q": "RATIONALE"})
    lead = get_language(tag).prompts["explanation"].partition("{")[0]
    assert lead.strip() and f"\n{lead}RATIONALE\n" in prompt.render(replace(MATHS, id="q", language=tag), chat=False)
    in_english = replace(prompt, language="en").render(replace(MATHS, id="q", language=tag), chat=False)
    assert "\nExplanation: RATIONALE\n" in in_english

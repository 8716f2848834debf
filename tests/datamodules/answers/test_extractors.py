"""Tests of answer extraction: tables of styles, the paper's scorer, real rationales, and fuzzing."""

import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.answers.extractors import EXTRACTORS, extract_neutral, extract_paper, split_answer_sentence
from datamodules.files.atomic import hash_json
from datamodules.rationales.store import load_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions
from datamodules.text.expressions import normalize_expression, normalize_number
from tests.datamodules.answers.answer_tables import (
    BOOLEANS,
    CANALS,
    CHOICES,
    FORMULA,
    GPT_FIGURE,
    LENGTHS,
    LLAMA_FIGURE,
    MATHS,
    NUMERIC,
    POLAR,
    SENTENCES,
    TINS,
    ask,
)
from tests.datamodules.text.number_tables import EXPRESSIONS, NOTATIONS, NUMBERS


@pytest.mark.parametrize(("question", "completion", "answer"), CHOICES + BOOLEANS)
def test_neutral_reads_an_option(question: Question, completion: str, answer: str | None) -> None:
    found = extract_neutral(completion, question)
    assert (found and found.answer) == answer, found


@pytest.mark.parametrize(("completion", "answer"), NUMBERS + NOTATIONS)
def test_neutral_reads_a_number(completion: str, answer: str | None) -> None:
    found = extract_neutral(completion, MATHS)
    assert (found and found.answer) == answer, found


@pytest.mark.parametrize(("completion", "answer"), EXPRESSIONS)
def test_neutral_reads_an_expression(completion: str, answer: str | None) -> None:
    found = extract_neutral(completion, FORMULA)
    assert (found and found.answer) == answer, found


def test_the_tables_have_eighty_completions_for_each_kind() -> None:
    assert min(map(len, (CHOICES, BOOLEANS, NUMBERS))) >= 80
    assert {question.kind for question, *_ in BOOLEANS} == {"boolean"}


# lm-evaluation-harness, tasks gsm8k and gsm8k_cot: what its regular expressions read, and how it then compares.
HARNESS = {
    "strict": re.compile(r"#### (\-?[0-9\.\,]+)"),
    "strict of gsm8k_cot": re.compile(r"The answer is (\-?[0-9\.\,]+)."),
    "flexible": re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"),
}


def read_as_harness(rule: str, completion: str) -> str | None:
    """Returns what a rule reads: the strict ones the first match, the flexible one the last."""
    matches = list(HARNESS[rule].finditer(completion))
    if not matches:
        return None
    match = matches[-1 if rule == "flexible" else 0]
    text = next(filter(None, match.groups())).replace(",", "").replace("$", "").removesuffix(".")
    return normalize_number(text) if text.strip(".-") else None


@pytest.mark.parametrize("rule", ["strict", "strict of gsm8k_cot"])
def test_neutral_reads_what_the_harness_strict_rules_read(rule: str) -> None:
    read = {completion: answer for completion, _ in NUMBERS if (answer := read_as_harness(rule, completion))}
    # The last dot of gsm8k_cot's rule stands for any character: without a full stop it eats the last digit.
    read = {completion: answer for completion, answer in read.items() if rule == "strict" or completion.endswith(".")}
    # A calculation, "The answer is 16 - 3 = 13", has its value at its end, of which the harness takes the beginning.
    read = {completion: answer for completion, answer in read.items() if not re.search(r"is \S+ [-+*]", completion)}
    # Nor does it know a dozen.
    read = {completion: answer for completion, answer in read.items() if "dozen" not in completion}
    assert len(read) >= 5
    for completion, answer in read.items():
        found = extract_neutral(completion, MATHS)
        assert found is not None and found.answer == answer, completion


# Not where digits join with what is no number (v2), nor where a list of numbers ends in one.
UNMARKED = [text for text, _ in NUMBERS if not re.search(r"(?i)answer|####|boxed|v2|3,4|48/2|10-5|solution", text)]


@pytest.mark.parametrize("completion", UNMARKED)
def test_without_a_marked_answer_neutral_reads_what_the_harness_flexible_rule_reads(completion: str) -> None:
    found = extract_neutral(completion, MATHS)
    assert (found and found.answer) == read_as_harness("flexible", completion)


def test_a_changed_reading_needs_a_new_version() -> None:
    """What this version reads from all the tables; where an old row reads otherwise, count the version up."""
    rows = [(question, text) for question, text, _ in CHOICES + BOOLEANS]
    rows += [(MATHS, text) for text, _ in NUMBERS + NOTATIONS] + [(FORMULA, text) for text, _ in EXPRESSIONS]
    read = {
        extractor.id: hash_json([(found := extractor(text, question)) and found.answer for question, text in rows])
        for extractor in EXTRACTORS.values()
    }
    assert read == {"neutral-6": "14177233eefcce13", "paper-2": "8ab3d0d302bd57cf"}


# The paper's two styles and their like: what the released scorer counts as correct.
@pytest.mark.parametrize(
    ("question", "completion", "correct"),
    [
        (CANALS, "The answer is D) Venice.", True),
        (CANALS, LLAMA_FIGURE, True),
        (CANALS, "The correct answer is: D) Venice", False),
        (CANALS, GPT_FIGURE, False),
        (CANALS, "The correct answer is: D) Venice.", False),
        (CANALS, "The correct answer is D) Venice", False),
        (CANALS, "the answer is (D) Venice.", False),
        (CANALS, "The answer is D.", False),
        (ask("Michigan", "New York", "Rome", "Venice", "Bridge", gold="E"), "The answer is E) Bridge.", False),
        (ask("Rome", "Oslo", "London", "Paris", gold="D"), "The answer is C) Paris.", True),
        (ask("go to the store", "go to the shore", gold="B"), "The answer is A) go to the store.", True),
        (ask("3.5 meters", "12 miles", gold="A"), "The answer is A) 3.5 meters.", False),
        (MATHS, "The answer is 18.", False),
        (CANALS, "The answer is D) Venice. No, the answer is A) Michigan.", True),
        (CANALS, "The answer from the given options would be D) Venice.", True),
        (CANALS, "The correct answer to the question of canals is D) Venice.", True),
    ],
)
def test_paper_scores_as_the_released_code_does(question: Question, completion: str, correct: bool) -> None:
    found = extract_paper(completion, question)
    assert (found is not None and found.answer == question.gold) == correct


def test_paper_without_gold_takes_the_nearest_option() -> None:
    stores = ask("go to the store", "go to the shore")
    found = extract_paper("The answer is A) go to the store.", stores)
    assert found is not None and found.answer == "A"


@pytest.mark.parametrize(
    ("question", "text", "parts"),
    [
        (CANALS, "It has canals. The answer is D) Venice.", ("It has canals.", "The answer is D) Venice.")),
        (CANALS, "It has canals. The answer is D) Venice. \n", ("It has canals.", "The answer is D) Venice.")),
        (CANALS, GPT_FIGURE, (GPT_FIGURE.removesuffix(" The correct answer is: D) Venice"), GPT_FIGURE[-32:])),
        (CANALS, "One.\nTwo\n\nThe answer is (D).", ("One.\nTwo", "The answer is (D).")),
        (CANALS, "One.\n**Answer:** D", ("One.", "**Answer:** D")),
        (CANALS, "One.\nAnswer:\nD) Venice", ("One.", "Answer:\nD) Venice")),
        (CANALS, "It has canals. So (D) Venice is correct.", ("It has canals.", "So (D) Venice is correct.")),
        (CANALS, "The answer is D.", ("", "The answer is D.")),
        (LENGTHS, "It is 3.5. The answer is A) 3.5 meters.", ("It is 3.5.", "The answer is A) 3.5 meters.")),
        (SENTENCES, "So. The answer is A) It rains. It pours.", ("So.", "The answer is A) It rains. It pours.")),
        (SENTENCES, "So. The answer is Dr. Smith went home.", ("So.", "The answer is Dr. Smith went home.")),
        (MATHS, "He has 3.5 + 2. The answer is 5.5.", ("He has 3.5 + 2.", "The answer is 5.5.")),
        (MATHS, "48+24 = 72\n#### 72", ("48+24 = 72", "#### 72")),
        (POLAR, "Khan had sons. The answer is True.", ("Khan had sons.", "The answer is True.")),
        # The answer first, or nothing stated: nothing to split off.
        (CANALS, LLAMA_FIGURE, None),
        (TINS, "The answer is tin. Tin rusts.", None),
        (CANALS, "The answer is D.\nIt has canals.", None),
        (MATHS, "The answer is 5. That is all.", None),
        (CANALS, "It has canals, as Venice does.", None),
        (MATHS, "48+24 = 72", None),
        (CANALS, "", None),
    ],
)
def test_split_answer_sentence(question: Question, text: str, parts: tuple[str, str] | None) -> None:
    assert split_answer_sentence(text, question) == parts


WORDS = [
    *("the", "answer", "is", "Answer:", "####", "\\boxed{", "}", "not", "correct", "option", "choice", "(", ")", "**"),
    *("A", "B", "c)", "(D)", "D.", "\n", ". ", ", ", "=", "$", "-", "1,000", "3.5", "9" * 400, "٣", "²", "yes", "True"),
    *("tin", "tin can", "Venice", "False", "because", "would be", "ﬁ", "ß", "\u2019", "\x00", "I would choose "),
]
texts = st.one_of(
    st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), st.sampled_from([LLAMA_FIGURE])
)
option_texts = st.one_of(st.text(max_size=12), st.sampled_from(WORDS))
questions = st.one_of(
    st.sampled_from([CANALS, TINS, POLAR, MATHS, FORMULA, NUMERIC, SENTENCES]),
    st.lists(option_texts, min_size=1, max_size=26).map(lambda choices: ask(*choices)),
)


@given(text=texts, question=questions, name=st.sampled_from(sorted(EXTRACTORS)))
@settings(max_examples=600)
def test_extraction_never_raises_nor_invents_an_option(text: str, question: Question, name: str) -> None:
    found = EXTRACTORS[name](text, question)
    if found is None:
        return
    assert 0 <= found.start <= found.end and found.start <= len(text)
    if question.choices is not None:
        assert found.answer in question.letters
    elif question.expression:
        assert found.answer and normalize_expression(found.answer) == found.answer
    else:
        assert normalize_number(found.answer) == found.answer


@given(text=texts, question=questions, space=st.text(" \n\t", max_size=4))
@settings(max_examples=300)
def test_space_at_the_end_changes_nothing(text: str, question: Question, space: str) -> None:
    before, after = extract_neutral(text, question), extract_neutral(text + space, question)
    assert before == after
    assert split_answer_sentence(text, question) == split_answer_sentence(text + space, question)


@given(text=texts, question=questions)
@settings(max_examples=300)
def test_split_loses_nothing_but_space_and_keeps_the_answer(text: str, question: Question) -> None:
    parts = split_answer_sentence(text, question)
    if parts is not None:
        assert "".join(" ".join(parts).split()) == "".join(text.split())
        assert parts[1]


NAMES = st.text(string.ascii_lowercase, min_size=3, max_size=9)


@given(
    choices=st.lists(NAMES, min_size=2, max_size=26, unique=True),
    rationale=st.lists(NAMES, max_size=8).map(" ".join),
    prompt=st.sampled_from(["cot", "few_shot", "direct", "instruction", "plain"]),
    data=st.data(),
)
@settings(max_examples=200)
def test_every_prompts_answer_sentence_is_read_back(
    choices: list[str], rationale: str, prompt: str, data: st.DataObject
) -> None:
    question = ask(*choices)
    letter = data.draw(st.sampled_from(question.letters))
    sentence = get_prompt(prompt).answer_sentence(question, letter)
    found = extract_neutral(f"{rationale}. {sentence}", question)
    assert found is not None and found.answer == letter


@pytest.mark.filterwarnings("ignore:.*published rationales are empty")
@pytest.mark.parametrize("prompt", ["cot", "plain"])
@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("obqa_valid", None),
        ("obqa_test", None),
        ("arc_valid", None),
        ("csqa_train", 300),
        ("strategyqa_train", 300),
        ("svamp_all", 300),
        ("gsm8k_train", 300),
    ],
)
def test_real_rationales_with_their_answer_sentence(
    shared_data: Path, name: str, sample: int | None, prompt: str
) -> None:
    path = str(shared_data / f"{name}.jsonl.gz")
    everything = load_questions(path)
    kept = random.Random(0).sample(everything, sample) if sample else everything
    chosen = {question.id: question for question in kept}
    total, right, offenders = Counter(), Counter(), []
    for rationale in load_rationales([path], {question.id: question for question in everything}):
        if rationale.answer is None or rationale.question_id not in chosen:
            continue
        question = chosen[rationale.question_id]
        text = f"{rationale.text} {get_prompt(prompt).answer_sentence(question, rationale.answer)}"
        found = extract_neutral(text, question)
        total[rationale.teacher] += 1
        right[rationale.teacher] += found is not None and found.answer == rationale.answer
        if found is None or found.answer != rationale.answer:
            offenders.append(f"{rationale.id} is {rationale.answer}, found {found} in {text[-160:]!r}")
    assert total
    shares = {teacher: right[teacher] / total[teacher] for teacher in total}
    assert min(shares.values()) >= 0.99, "\n".join([str(shares), *offenders])

"""Tests of reading languages other than English: tables, published texts, and fuzzing."""

import gzip
import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.answers.extractors import (
    extract_english,
    extract_neutral,
    find_breaks,
    split_answer_sentence,
)
from datamodules.answers.localization import localize
from datamodules.answers.replies import cut_run_on
from datamodules.files.atomic import hash_json
from datamodules.rationales.controls import remove_answer
from datamodules.rationales.store import load_rationales
from datamodules.tasks.prompts import get_prompt, list_exemplars
from datamodules.tasks.questions import Question, load_questions
from datamodules.text.expressions import normalize_number
from datamodules.text.han_numerals import HAN_NUMERAL, MIXED_NUMERAL, read_han_numeral
from datamodules.text.languages import KINDS, list_languages
from tests.datamodules.answers.language_tables import AS_ENGLISH, CHOICES, NUMBERS, OPTIONS, POLAR


def ask(language: str, choices: tuple[str, ...] | None = None, expression: bool = False, text: str = "?") -> Question:
    return Question("1", "t", "test", text, choices, None, language=language, expression=expression)


def read(text: str, question: Question) -> str | None:
    found = extract_neutral(text, question)
    return found.answer if found else None


@pytest.mark.parametrize(("language", "completion", "answer"), NUMBERS)
def test_a_number_is_read(language: str, completion: str, answer: str | None) -> None:
    assert read(completion, ask(language)) == answer


@pytest.mark.parametrize(("language", "completion", "answer"), OPTIONS)
def test_an_option_is_read(language: str, completion: str, answer: str | None) -> None:
    assert read(completion, ask(language, CHOICES[language])) == answer


@pytest.mark.parametrize(("language", "choices", "completion", "answer"), POLAR)
def test_yes_and_no_are_read(language: str, choices: tuple[str, ...], completion: str, answer: str | None) -> None:
    assert read(completion, ask(language, choices)) == answer


def test_a_changed_reading_needs_a_new_version() -> None:
    read_now = [read(text, ask(language)) for language, text, _ in NUMBERS]
    read_now += [read(text, ask(language, CHOICES[language])) for language, text, _ in OPTIONS]
    assert (extract_neutral.id, hash_json(read_now)) == ("neutral-6", "5fdba0182ec6f738")


@pytest.mark.parametrize(("language", "choices", "completion", "answer"), AS_ENGLISH)
def test_english_reads_what_neutral_read_before(
    language: str, choices: tuple[str, ...] | None, completion: str, answer: str | None
) -> None:
    found = extract_english(completion, ask(language, choices))
    assert (found and found.answer) == answer


def test_english_reads_all_tables_as_version_3_of_neutral_did() -> None:
    rows = [(ask(language), text) for language, text, _ in NUMBERS]
    rows += [(ask(language, CHOICES[language]), text) for language, text, _ in OPTIONS]
    rows += [(ask(language, choices), text) for language, choices, text, _ in POLAR]
    found = [extract_english(text, question) for question, text in rows]
    assert hash_json([own and own.answer for own in found]) == "4142db867043bb5e"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "number", "answers"), [("mgsm_train", 88, "b0d0ec7fc0c21fe1"), ("xcopa_test", 700, "7ca18dc9d1e2679d")]
)
def test_english_reads_published_texts_as_version_3_of_neutral_did(
    shared_data: Path, name: str, number: int, answers: str
) -> None:
    path = str(shared_data / "languages" / f"{name}.jsonl.gz")
    questions = {question.id: question for question in load_questions(path)}
    found = [extract_english(own.text, questions[own.question_id]) for own in load_rationales([path], questions)]
    assert (len(found), hash_json([own and own.answer for own in found])) == (number, answers)


@pytest.mark.parametrize("prompt", ["cot", "plain"])
@pytest.mark.parametrize("tag", list_languages())
def test_each_languages_answer_sentence_is_read_back_and_split_off(tag: str, prompt: str) -> None:
    for kind in KINDS:
        for question, reasoning, answer in list_exemplars(kind, tag):
            sentence = get_prompt(prompt).answer_sentence(question, answer)
            text = f"{reasoning} {sentence}"
            found = extract_neutral(text, question)
            assert found is not None and found.answer == answer and found.rule.startswith("stated"), text
            assert split_answer_sentence(text, question) == (reasoning, sentence)
            assert remove_answer(text, question, answer) == reasoning
            starts = find_breaks(text, question)
            assert "".join(text[start:end] for start, end in itertools.pairwise(starts)) == text


def test_a_next_question_is_cut_off() -> None:
    question = ask("de", CHOICES["de"], text="Welche Stadt hat Kanäle?")
    text = "Die Antwort ist C) Venedig.\n\nFrage: Welche Stadt liegt am Tiber?\nAntwort: Die Antwort ist D) Rom."
    assert cut_run_on(text, question) == "Die Antwort ist C) Venedig."
    assert read(text, question) == "C"


def test_places_are_those_of_the_text_as_it_is_written() -> None:
    text = "\u200fだから４４個。\u200e答えは４４です。"
    found = extract_neutral(text, ask("ja"))
    assert found is not None and text[found.start : found.end] == "答えは４４"


def test_text_in_english_under_another_language_has_english_numbers() -> None:
    assert read("There are 1,234 of them. The answer is 1,234.", ask("de")) == "1234"
    assert read("Es sind 1,234. Die Antwort ist 1,234.", ask("de")) == "1.234"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("三十二", 32),
        ("一千零五", 1005),
        ("二〇二〇", 2020),
        ("一百二", None),
        ("3万5000", 35000),
        ("5千万", 50_000_000),
    ],
)
def test_han_numerals(text: str, value: int | None) -> None:
    match = HAN_NUMERAL.fullmatch(text) or MIXED_NUMERAL.fullmatch(text)
    assert match is not None and read_han_numeral(match.group()) == value


def test_no_han_numerals() -> None:
    assert HAN_NUMERAL.match("三分之一") is None and MIXED_NUMERAL.match("5千克") is None


WORDS = [text for _, text, _ in NUMBERS + OPTIONS] + [
    "答案是",
    "الإجابة هي",
    "B",
    "【",
    "】",
    "３",
    "不",
    "\u200f",
    "ก็",
    "１．",
    "万",
    "।",
]
PIECES = [piece for text in WORDS for piece in (text, *re.split(r"\s+", text))]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join))


@given(
    text=texts,
    language=st.sampled_from(list_languages()),
    choices=st.one_of(
        st.none(), st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PIECES)), min_size=1, max_size=6)
    ),
    expression=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_reading_never_raises_nor_invents(
    text: str, language: str, choices: list[str] | None, expression: bool
) -> None:
    question = ask(language, tuple(choices) if choices else None, expression and not choices)
    found = extract_neutral(text, question)
    parts = split_answer_sentence(text, question)
    if parts is not None:
        assert "".join(" ".join(parts).split()) == "".join(text.split())
    assert text.startswith(cut_run_on(text, question))
    if found is None:
        return
    assert 0 <= found.start <= found.end <= len(text)
    if question.choices is not None:
        assert found.answer in question.letters
    elif not question.expression:
        assert normalize_number(found.answer) == found.answer


def test_native_worked_examples_are_read_by_statement(shared_data: Path) -> None:
    num_read = 0
    for line in gzip.open(shared_data / "languages" / "mgsm_train.jsonl.gz", "rt", encoding="utf-8"):
        record = json.loads(line)
        text = record["rationales"]["human-translator"]["text"]
        found = extract_neutral(text, ask(record["language"], text=record["question"]))
        assert found is not None and found.rule == "stated number", text
        assert float(found.answer) == record["gold"]
        num_read += 1
    assert num_read == 88


def test_exam_answers_in_chinese(shared_data: Path) -> None:
    total, right, wrong = 0, 0, 0
    for line in gzip.open(shared_data / "languages" / "gaokao_zh.jsonl.gz", "rt", encoding="utf-8"):
        record = json.loads(line)
        question = ask("zh", tuple(record["choices"]), text=record["question"])
        for teacher, rationale in record["rationales"].items():
            chosen = re.search(r"故应?选[择项]?\s*[:：]?\s*([A-Z])(?![A-Z])", rationale["text"])
            stated = (chosen and chosen[1]) if teacher == "human" else rationale["answer"]
            if stated:
                answer = read(rationale.get("raw") or rationale["text"], question)
                total, right, wrong = total + 1, right + (answer == stated), wrong + (answer not in (None, stated))
    assert total > 1600 and right / total >= 0.97 and wrong / total <= 0.01, (total, right, wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "obqa_train",
        "obqa_valid",
        "obqa_test",
        "arc_train",
        "arc_valid",
        "csqa_train",
        "strategyqa_train",
        "svamp_all",
        "gsm8k_train",
    ],
)
def test_english_is_read_by_the_rules_for_english_alone(shared_data: Path, name: str) -> None:
    path = str(shared_data / f"{name}.jsonl.gz")
    questions = {question.id: question for question in load_questions(path)}
    for rationale in load_rationales([path], questions):
        question = questions[rationale.question_id]
        assert extract_neutral(rationale.text, question) == extract_english(rationale.text, question)


def test_english_is_not_rewritten() -> None:
    question = ask("en", CHOICES["en"])
    assert localize("The answer is C) Venice. Die Antwort ist A.", question) is None
    assert localize("It’s Venice — naturally.", question) is None

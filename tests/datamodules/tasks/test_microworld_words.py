"""Tests of the microworld in another language: the same world, solved from its own words."""

import re

import pytest

from datamodules.answers.extractors import extract_neutral
from datamodules.tasks.microworld import KINDS, draw_problems
from datamodules.tasks.microworld_words import WORDINGS, get_wording
from datamodules.tasks.questions import load_questions

WORDS = [word for kind in WORDINGS["ja"].words for word in kind]


def solve(text: str) -> str:
    """Solves a Japanese question from its text alone: the last sentence is the query, the others are facts."""
    *facts, query = re.findall("[^。]+。", text)
    pairs = [sorted((word for word in WORDS if word in fact), key=fact.index) for fact in facts]
    assert all(len(pair) == 2 for pair in pairs)
    follows = dict(pairs)
    [word] = [word for word in follows if word in query]
    while word in follows:
        word = follows[word]
    return word


@pytest.mark.parametrize("language", WORDINGS)
def test_every_word_has_one_that_is_in_no_other(language: str) -> None:
    words = WORDINGS[language].words
    assert [len(kind) for kind in words] == [len(kind) for kind in KINDS]
    everything = [word for kind in words for word in kind]
    assert all(sum(word in other for other in everything) == 1 for word in everything)


def test_a_translation_is_the_same_question_and_is_solved_from_its_words() -> None:
    english, japanese = (load_questions(f"microworld:train:40:3{tag}") for tag in ("", ":ja"))
    assert load_questions("microworld:train:40:3:en") == english
    for one, other in zip(english, japanese, strict=True):
        assert (other.original, other.gold, other.language) == (one.id, one.gold, "ja") and other.id != one.id
        assert other.choice(str(other.gold)) == solve(other.question)


def test_its_rationales_are_read() -> None:
    wording = get_wording("ja")
    assert wording is not None
    questions = load_questions("microworld:test:40:1:ja")
    for question, problem in zip(questions, draw_problems(40, "test", 1), strict=True):
        text = problem.explain(wording, "ja")
        assert text.startswith(tuple(WORDS)) and text.count("。") == problem.hops + 1
        read = extract_neutral(text, question)
        assert read is not None and read.answer == question.gold


@pytest.mark.parametrize("source", ["microworld:train:4:0:de", "microworld:train:4:0:ja:x", "microworld:train:4"])
def test_a_source_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=rf"{source}: write microworld:SPLIT:NUMBER:SEED\[:LANGUAGE\] \("):
        load_questions(source)

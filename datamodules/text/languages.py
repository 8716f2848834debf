"""What `configs/languages` says of languages: a file each, named by its BCP 47 tag, and nothing else in Kindred does.

A tag is looked up as RFC 4647 has it: without a file of its own, `pt-BR` is `pt`. Nothing falls back to English.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from datamodules.files.field_types import shorten
from datamodules.files.parsing import read_yaml

FOLDER = Path(__file__).parents[2] / "configs" / "languages"
ENGLISH = "en"
AnswerKind = Literal["choice", "boolean", "number", "expression"]
KINDS: tuple[AnswerKind, ...] = ("choice", "boolean", "number", "expression")
# Worked examples of each kind, at least.
MIN_EXEMPLARS = 2


@dataclass(frozen=True)
class Words:
    """Words and phrases by what they do in a text; those of a text without spaces are found within others.

    Attributes:
        answer: Nouns that announce an answer, with their usual forms: Antwort, Lösung.
        be: What joins the noun and the answer, or takes a verb's place: ist, lautet; は. A colon or dash always does.
        bare: Whether nothing has to stand between the noun and the answer.
        choose: Phrases right before the option that is chosen: ich wähle; 故选.
        correct: Phrases right after the option that is the answer: ist richtig; が正解.
        negation: What denies what is said.
        alternative: Between two options of which neither is chosen: oder.
        conjunction: Between two options that are both named: und.
        option: What may stand before a letter: Option, Buchstabe.
        filler: What may stand before an answer and changes nothing: also, ungefähr.
        closing: What may end a sentence after the answer: です.
        asks_for_false: What a question has that asks for the wrong statement; there `correct` does not say which.
        multiples: Words that multiply the number before them.
        how_many: What asks for a number, right before what is counted.
    """

    answer: tuple[str, ...]
    be: tuple[str, ...]
    bare: bool
    choose: tuple[str, ...]
    correct: tuple[str, ...]
    negation: tuple[str, ...]
    alternative: tuple[str, ...]
    conjunction: tuple[str, ...]
    option: tuple[str, ...]
    filler: tuple[str, ...]
    closing: tuple[str, ...]
    asks_for_false: tuple[str, ...]
    multiples: dict[str, int]
    how_many: tuple[str, ...]


@dataclass(frozen=True)
class Exemplar:
    """A worked example.

    Attributes:
        question: Its text.
        choices: The options, or None.
        reasoning: What leads to the answer, without it.
        answer: The right option's letter, the number or the expression.
    """

    question: str
    choices: tuple[str, ...] | None
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Language:
    """A language's file.

    Attributes:
        tag: BCP 47, the file's name.
        name: In English.
        letters: The letters of its script, as they stand within the brackets of a regular expression.
        digits: Its script's own ten digits, else 0123456789; those are understood anyway.
        spaces: Whether spaces separate words.
        decimal: The decimal sign.
        grouping: Signs between groups of three digits.
        sentence_ends: Signs that end a sentence; empty where none does, as in Thai.
        frequent: Its commonest words, which tell it from English; empty where its script does.
        polar: Words for `yes`, `no`, `true` and `false`, the usual one first.
        answers: The answer sentence: `choice` of `{letter}` and `{text}`, `text` of `{text}`, `number` and
            `expression` of `{answer}`.
        words: What an extractor looks for.
        prompts: By name, each text of a prompt (`PROMPT_TEXTS`), and by kind of answer the instructions.
        exemplars: By kind of answer, the worked examples of few-shot prompts.
    """

    tag: str
    name: str
    letters: str
    digits: str
    spaces: bool
    decimal: str
    grouping: tuple[str, ...]
    sentence_ends: str
    frequent: tuple[str, ...]
    polar: dict[str, tuple[str, ...]]
    answers: dict[str, str]
    words: Words
    prompts: dict[str, str]
    exemplars: dict[AnswerKind, tuple[Exemplar, ...]]


# Of each text of a prompt, which places it has to be filled in.
PROMPT_TEXTS: dict[str, tuple[str, ...]] = {
    **{f"instruction_{kind}": ("letters",) if kind in ("choice", "boolean") else () for kind in KINDS},
    "question": ("question",),
    "choices": ("choices",),
    "answer_cue": (),
    "step_by_step_cue": (),
    "answer_only": (),
    "instruction_label": (),
    "input_label": (),
    "output_cue": (),
    "rewrite": (),
    "explanation": ("rationale",),
    "rewritten_cue": (),
    "translate": (),
    "translated_cue": (),
}
_ANSWERS: dict[str, tuple[str, ...]] = {
    "choice": ("letter", "text"),
    "text": ("text",),
    "number": ("answer",),
    "expression": ("answer",),
}
_POLAR = ("yes", "no", "true", "false")


def _check_keys(value: Any, keys: set[str], name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        found = set(value) if isinstance(value, dict) else set()
        wrong = [f"no {key}" for key in sorted(keys - found)] + [
            f"unknown {key!r}" for key in sorted(found - keys, key=str)
        ]
        raise ValueError(f"{name} needs exactly {', '.join(sorted(keys))}: {', '.join(wrong) or shorten(value)}")
    return value


def _check_texts(value: Any, name: str, may_be_empty: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError(f"{name} must be a list of texts, found {shorten(value)}")
    if not value and not may_be_empty:
        raise ValueError(f"{name} is empty")
    return tuple(value)


def _list_places(template: str) -> list[str]:
    return sorted(place for _, place, _, _ in Formatter().parse(template) if place is not None)


def _check_templates(value: Any, places: Mapping[str, tuple[str, ...]], name: str) -> dict[str, str]:
    for key, template in _check_keys(value, set(places), name).items():
        if not isinstance(template, str) or not template or _list_places(template) != sorted(places[key]):
            needs = " and ".join(f"{{{place}}}" for place in places[key]) or "nothing to fill in"
            raise ValueError(f"{name}.{key} must be a text with {needs}, found {shorten(template)}")
    return dict(value)


def _parse_exemplars(value: Any) -> dict[AnswerKind, tuple[Exemplar, ...]]:
    exemplars: dict[AnswerKind, tuple[Exemplar, ...]] = {}
    _check_keys(value, set(KINDS), "exemplars")
    for kind in KINDS:
        entries = value[kind] if isinstance(value[kind], list) else []
        if len(entries) < MIN_EXEMPLARS:
            raise ValueError(f"exemplars.{kind} needs at least {MIN_EXEMPLARS} worked examples")
        with_choices = {"choices"} if kind in ("choice", "boolean") else set()
        for entry in entries:
            _check_keys(entry, {"question", "reasoning", "answer"} | with_choices, f"exemplars.{kind}")
        exemplars[kind] = tuple(
            Exemplar(
                question=entry["question"],
                choices=_check_texts(entry["choices"], f"exemplars.{kind}.choices") if with_choices else None,
                reasoning=entry["reasoning"],
                answer=str(entry["answer"]),
            )
            for entry in entries
        )
    return exemplars


def _parse_words(value: Any) -> Words:
    own = _check_keys(value, {field.name for field in fields(Words)}, "words")
    if not isinstance(own["bare"], bool):
        raise ValueError(f"words.bare must be true or false, found {shorten(own['bare'])}")
    if not isinstance(own["multiples"], dict) or not all(type(number) is int for number in own["multiples"].values()):
        raise ValueError("words.multiples must be words, each with a whole number")
    lists = {name: texts for name, texts in own.items() if name not in ("bare", "multiples")}
    needed = ("answer", "negation", "option", "alternative", "conjunction")
    return Words(
        bare=own["bare"],
        multiples=dict(own["multiples"]),
        **{name: _check_texts(texts, f"words.{name}", name not in needed) for name, texts in lists.items()},
    )


def _parse(tag: str, content: Any) -> Language:
    own = _check_keys(content, {field.name for field in fields(Language)} - {"tag"}, "a language")
    texts = ("name", "letters", "digits", "decimal")
    if any(not isinstance(own[name], str) or not own[name] for name in texts):
        raise ValueError(f"{', '.join(texts)} must be texts")
    if not isinstance(own["spaces"], bool) or not isinstance(own["sentence_ends"], str):
        raise ValueError("spaces must be true or false, and sentence_ends a text")
    if len(own["digits"]) != 10 or [int(digit) for digit in own["digits"] if digit.isdecimal()] != [*range(10)]:
        raise ValueError(f"digits must be ten, from 0 to 9, found {shorten(own['digits'])}")
    polar = _check_keys(own["polar"], set(_POLAR), "polar")
    return Language(
        tag=tag,
        name=own["name"],
        letters=own["letters"],
        digits=own["digits"],
        spaces=own["spaces"],
        decimal=own["decimal"],
        grouping=_check_texts(own["grouping"], "grouping"),
        sentence_ends=own["sentence_ends"],
        frequent=_check_texts(own["frequent"], "frequent", may_be_empty=True),
        polar={name: _check_texts(words, f"polar.{name}") for name, words in polar.items()},
        answers=_check_templates(own["answers"], _ANSWERS, "answers"),
        words=_parse_words(own["words"]),
        prompts=_check_templates(own["prompts"], PROMPT_TEXTS, "prompts"),
        exemplars=_parse_exemplars(own["exemplars"]),
    )


@cache
def list_languages() -> tuple[str, ...]:
    """Returns the tags of `configs/languages`, in order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def read_language(path: Path) -> Language:
    """Reads a language's file.

    Raises:
        ValueError: It is malformed, or lacks something; the message names the file.
    """
    content = read_yaml(path)
    try:
        return _parse(path.stem, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@cache
def resolve_tag(tag: str) -> str:
    """Returns the tag of the file that a tag's language has.

    Raises:
        ValueError: There is none.
    """
    parts = tag.split("-")
    known = {name.casefold(): name for name in list_languages()}
    for number in range(len(parts), 0, -1):
        if (name := known.get("-".join(parts[:number]).casefold())) and re.fullmatch(r"[A-Za-z0-9-]+", tag):
            return name
    raise ValueError(
        f"language {shorten(tag)} is unknown; there are: {', '.join(list_languages())} (one BCP 47 tag; another "
        "language is a file in configs/languages)"
    )


def get_language(tag: str) -> Language:
    """Returns what there is to know about a language.

    Args:
        tag: BCP 47, `de` or `pt-BR`.

    Raises:
        ValueError: There is no file of this language, or it is malformed.
    """
    return read_language(FOLDER / f"{resolve_tag(tag)}.yaml")

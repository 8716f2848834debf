"""Tests of the languages' files: all are complete, and what is wrong with one is said in a line."""

import shutil
from pathlib import Path

import pytest
import yaml

from datamodules.answers.extractors import extract_neutral
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions
from datamodules.text import languages
from datamodules.text.languages import KINDS, get_language, list_languages, read_language, resolve_tag

NEEDED = set("en de fr es it pt ru zh ja ko th sw bn te hi ar vi id tr".split())


def test_the_languages_are_there() -> None:
    assert set(list_languages()) >= NEEDED


@pytest.mark.parametrize("tag", list_languages())
def test_a_language_is_complete(tag: str) -> None:
    language = get_language(tag)
    assert language.tag == tag and len(language.digits) == 10
    assert language.decimal not in language.grouping
    for kind in KINDS:
        for own in language.exemplars[kind]:
            assert own.answer not in ("", "None") and own.reasoning
            if own.choices:
                assert own.answer in "ABCDEF"[: len(own.choices)]
                assert own.choices[0].casefold() != own.choices[1].casefold()
    # A prompt that was forgotten would be one in English.
    if tag != "en":
        english = get_language("en")
        same = {name for name, text in language.prompts.items() if text == english.prompts[name]}
        assert same <= {"input_label", "output_cue"}


def test_a_tag_is_looked_up_from_its_end() -> None:
    assert resolve_tag("pt-BR") == "pt" and resolve_tag("ZH-hant-TW") == "zh"


@pytest.mark.parametrize("tag", ["xx", "de,en", "en_US", "", "de en", "mul", "../en"])
def test_an_unknown_or_mixed_tag_lists_what_there_is(tag: str) -> None:
    with pytest.raises(
        ValueError, match=r"language .* is unknown; there are: ar, bn, de, en, .*\(one BCP 47 tag"
    ) as error:
        get_language(tag)
    assert "\n" not in str(error.value)


def test_a_question_in_a_language_without_a_file_is_neither_asked_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "1", "question": "?", "gold": 1, "language": "et"}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl:1: language 'et' is unknown; there are: ar, "):
        get_prompt("cot").render(*load_questions(str(path)), chat=True)
    with pytest.raises(ValueError, match=r"language 'et' is unknown; there are: ar, "):
        extract_neutral("Vastus on 1.", *load_questions(str(path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.pop("polar"), "a language needs exactly .*: no polar"),
        (lambda own: own["prompts"].pop("rewrite"), "prompts needs exactly .*: no rewrite"),
        (lambda own: own["prompts"].update(question="Frage"), r"prompts.question must be a text with \{question\}"),
        (lambda own: own["answers"].update(number="Die Antwort."), r"answers.number must be a text with \{answer\}"),
        (lambda own: own["words"].update(negation=[]), "words.negation is empty"),
        (lambda own: own["words"].update(colour=["rot"]), "unknown 'colour'"),
        (lambda own: own.update(digits="012"), "digits must be ten"),
        (lambda own: own["exemplars"].update(number=[]), "exemplars.number needs at least 2 worked examples"),
        (lambda own: own.update(spaces="no"), "spaces must be true or false"),
    ],
)
def test_a_malformed_file_is_refused_in_a_line(change: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "de.yaml"
    shutil.copy(languages.FOLDER / "de.yaml", path)
    own = yaml.safe_load(path.read_text())
    change(own)  # type: ignore[operator]
    path.write_text(yaml.safe_dump(own))
    with pytest.raises(ValueError, match=message) as error:
        read_language(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

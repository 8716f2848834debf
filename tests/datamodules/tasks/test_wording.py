"""Tests of what languages are to a run's identity: those of its questions, and what it reads and asks with alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.tasks import prompts, wording
from datamodules.tasks.prompts import list_prompts, word_prompt
from datamodules.tasks.wording import FIRST_ENGLISH, hash_wording, identify_languages
from datamodules.text.languages import Language, get_language

KNOWN = list_prompts()
GERMAN, MIXED = "task:mgsm:test:de", ["microworld:test:4:0", "task:mgsm:test:de", "task:mgsm:test:th"]


def change(monkeypatch: pytest.MonkeyPatch, tag: str, **fields: object) -> None:
    """A language's file says something else."""

    def read(asked: str) -> Language:
        own = get_language(asked)
        return replace(own, **fields) if own.tag == tag else own

    monkeypatch.setattr(wording, "get_language", read)
    monkeypatch.setattr(prompts, "get_language", read)
    word_prompt.cache_clear()
    monkeypatch.setattr(wording, "list_prompts", lambda: KNOWN)


@pytest.fixture(autouse=True)
def _clear():
    yield
    word_prompt.cache_clear()


def test_only_the_questions_languages_count_and_english_only_where_it_changed() -> None:
    assert identify_languages(["microworld:test:4:0", "task:svamp:test"], "cot", "question") == {}
    assert [*identify_languages(MIXED, "cot", "question")] == ["de", "th"]
    assert identify_languages(MIXED, "no such prompt", "question") == {}
    assert identify_languages(["nowhere.jsonl"], "cot", "question") == {}


@pytest.mark.parametrize("prompt", FIRST_ENGLISH)
def test_english_is_what_older_runs_were_made_with(prompt: str) -> None:
    """Where this fails, English reads or asks otherwise: leave the table as it is, and name here what changed."""
    assert hash_wording("en", prompt, "question") == FIRST_ENGLISH[prompt]


def test_a_files_languages_are_its_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    records = [{"question": "?", **({"language": tag} if tag else {})} for tag in ("de", None, "pt-BR", "et")]
    path.write_text("\n".join(map(json.dumps, records)))
    # Estonian has no file: who asks in it says so.
    assert [*identify_languages([str(path)], "plain", "question")] == ["de", "pt"]
    assert [*identify_languages([f"{path}:de"], "plain", "question")] == ["de"]
    path.write_text(json.dumps(records[1]))
    assert identify_languages([str(path)], "plain", "question") == {}


@pytest.mark.parametrize(
    ("fields", "moves"),
    [
        ({"decimal": "'"}, True),
        ({"words": replace(get_language("de").words, answer=("Lösung",))}, True),
        ({"answers": get_language("de").answers | {"number": "Es sind {answer}."}}, True),
        ({"prompts": get_language("de").prompts | {"step_by_step_cue": "Antwort:"}}, True),
        # Of other prompts.
        ({"prompts": get_language("de").prompts | {"output_cue": "Ausgabe, bitte:"}}, False),
        ({"name": "Deutsch"}, False),
    ],
)
def test_what_a_file_says_counts_where_it_is_used(monkeypatch: pytest.MonkeyPatch, fields: dict, moves: bool) -> None:
    before, thai = (identify_languages([GERMAN.replace("de", tag)], "cot", "question") for tag in ("de", "th"))
    change(monkeypatch, "de", **fields)
    assert (identify_languages([GERMAN], "cot", "question") != before) == moves
    assert identify_languages([GERMAN.replace("de", "th")], "cot", "question") == thai


def test_english_counts_once_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    german = identify_languages([GERMAN], "cot", "question")
    instructed = identify_languages([GERMAN], "cot", "en")
    assert instructed != german
    words = replace(get_language("en").words, answer=("solution",))
    change(monkeypatch, "en", words=words)
    assert [*identify_languages(["microworld:test:4:0"], "cot", "question")] == ["en"]
    changed = identify_languages([GERMAN], "cot", "question")
    assert changed == german | {"en": changed["en"]}

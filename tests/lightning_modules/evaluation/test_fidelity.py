"""Tests of which language a text is in."""

import builtins
from pathlib import Path

import pytest

from datamodules.tasks.questions import load_questions
from datamodules.text.languages import list_languages
from lightning_modules.evaluation.fidelity import LanguageIdentifier
from lightning_modules.evaluation.metrics import measure_fidelity

pytest.importorskip("py3langid", reason="needs the extra `languages`")


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier(["de", "ja", "nb", "zh-Hant"])


def record(completion: str, language: str, **more: object) -> dict:
    return {"completion": completion, "rationale_length": len(completion), "language": language, **more}


def test_every_language_with_a_file_is_known() -> None:
    assert LanguageIdentifier(list_languages())


def test_texts_are_told_apart(identifier: LanguageIdentifier) -> None:
    texts = [
        "Er hat drei Äpfel und isst einen davon.",
        "彼は三つのリンゴを持っています。",
        "Han har tre epler og spiser ett av dem.",
    ]
    assert [identifier.tell(text) for text in texts] == ["de", "ja", "no"]
    assert identifier.is_in(texts, ["de-AT", "de", "nb"]) == [True, False, True]
    assert identifier.is_in(["他有三個蘋果，吃了一個。"], ["zh-Hant"]) == [True]


def test_a_text_without_letters_is_in_no_language(identifier: LanguageIdentifier) -> None:
    assert [identifier.tell(text) for text in ("", "3 + 4 = 7", "＝ ৭")] == [None, None, None]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="language_fidelity: py3langid does not know aa, ii; leave it false"):
        LanguageIdentifier(["ii", "de", "aa"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("py3langid"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"needs py3langid; install it with: pip install 'kindred\[languages\]'"):
        LanguageIdentifier()


def test_fidelity_is_of_rationales_with_words(identifier: LanguageIdentifier) -> None:
    records = [
        record("Er hat drei Äpfel und isst einen davon.", "de"),
        record("He has three apples and eats one of them.", "de"),
        record("3 - 1 = 2", "de"),
        record("He has three apples and eats one of them.", "en"),
    ]
    metrics = measure_fidelity(records, identifier)
    assert (metrics["language_fidelity"].value, metrics["language_fidelity"].n) == (2 / 3, 3)
    assert (metrics["language_english"].value, metrics["language_english"].n) == (1 / 2, 2)
    assert measure_fidelity(records[2:3], identifier) == {}


@pytest.mark.parametrize("file", ["mgsm_test", "msvamp_all", "xcopa_valid"])
def test_real_questions_are_in_their_language(shared_data: Path, file: str) -> None:
    questions = load_questions(str(shared_data / "languages" / f"{file}.jsonl.gz"))[::7]
    identifier = LanguageIdentifier({item.language for item in questions})
    hits = identifier.is_in([item.question for item in questions], [item.language for item in questions])
    assert sum(hit is not True for hit in hits) <= 0.01 * len(hits)

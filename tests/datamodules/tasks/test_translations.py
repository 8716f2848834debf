"""Tests of questions in several languages: tags, and what is the translation of what."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.files.atomic import hash_source
from datamodules.rationales.store import load_rationales
from datamodules.tasks.benchmarks import list_tasks
from datamodules.tasks.questions import load_questions
from datamodules.tasks.translations import check_tag
from datamodules.text.languages import list_languages

DE = {"id": "q-de", "language": "de", "parallel": "q", "question": "Wie viele?", "gold": 3}
FR = {"id": "q-fr", "language": "fr", "parallel": "q", "question": "Combien ?", "gold": 3}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(path)


def choose(record: dict[str, Any], choices: list[str], gold: str) -> dict[str, Any]:
    return {**record, "choices": choices, "gold": gold}


@pytest.mark.parametrize("tag", [*list_languages(), "pt-BR", "zh-Hant", "es-419", "sr-Latn-RS", "ht", "qu", "yue"])
def test_a_tag_of_one_language(tag: str) -> None:
    assert check_tag(tag) == tag


def test_every_task_names_its_languages_by_tags() -> None:
    assert [check_tag(tag) for task in list_tasks() for tag in task.languages]


@pytest.mark.parametrize(
    "tag", ["xx", "DE", "german", "de,en", "de/en", "de-en", "de+en", "en-de", "zh_CN", "mul", "und", "e", "de-"]
)
def test_an_unknown_or_mixed_tag_is_refused_where_it_stands(tmp_path: Path, tag: str) -> None:
    path = write(tmp_path / "q.jsonl", DE, {**FR, "language": tag})
    message = (
        f"q.jsonl:2: `language` '{tag}' is no BCP 47 tag of one language, such as de or zh-Hant; configs/languages"
    )
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_questions(path)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=8))
def test_any_text_is_a_tag_or_refused_in_one_line(tag: str) -> None:
    try:
        assert check_tag(tag) == tag and tag.isascii()
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


def test_translations_are_a_cluster(tmp_path: Path) -> None:
    german, french = load_questions(write(tmp_path / "q.jsonl", DE, FR))
    assert (german.language, french.language) == ("de", "fr")
    assert german.cluster == french.cluster == "q"
    [grouped] = load_questions(write(tmp_path / "g.jsonl", {**DE, "group": "passage"}))
    assert (grouped.cluster, grouped.parallel) == ("passage", "q")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [DE, FR, {**DE, "id": "q2-de"}],
            "3: parallel 'q' is there twice in language 'de', first in .*q.jsonl:1",
        ),
        ([DE, {**FR, "gold": 4}], "2: parallel 'q': gold answer '4', another one, than in .*q.jsonl:1 .de., so"),
        ([DE, {**FR, "group": "p"}], "2: parallel 'q': group 'p', another one than in .*:1 .de."),
        (
            [choose(DE, ["ja", "nein"], "A"), choose(FR, ["oui", "non", "peut-être"], "A")],
            "2: parallel 'q': 3 options, more or fewer than in",
        ),
        (
            [choose(DE, ["ja", "nein"], "A"), choose(FR, ["non", "oui"], "B")],
            "2: parallel 'q': gold answer 'B', another one; its options may be in another order, than in .*:1 .de.",
        ),
        # The letter is the same, but not what it names: numbers show it in any language.
        (
            [choose(DE, ["3", "5 ", "7"], "B"), choose(FR, ["5", "3", "7"], "B")],
            "2: parallel 'q': option B '3', the gold answer, in another place, than in",
        ),
        (
            [choose(DE, ["3", "5", "7"], "B"), choose({**FR, "language": "bn"}, ["৫", "৩", "৭"], "B")],
            "2: parallel 'q': option B '৩', the gold answer, in another place, than in",
        ),
    ],
)
def test_what_is_no_translation_is_refused_in_one_line(tmp_path: Path, records: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=f"q.jsonl:{message}") as raised:
        load_questions(write(tmp_path / "q.jsonl", *records))
    assert "\n" not in str(raised.value)


def test_translations_are_compared_over_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / "de.jsonl", DE), write(tmp_path / "fr.jsonl", {**FR, "gold": 4})]
    with pytest.raises(ValueError, match=r"fr.jsonl:1: parallel 'q': gold answer '4'"):
        load_questions(paths)


def test_an_unknown_gold_answer_is_no_other_one(tmp_path: Path) -> None:
    assert len(load_questions(write(tmp_path / "q.jsonl", DE, {**FR, "gold": None}))) == 2


def test_a_files_questions_in_one_language(tmp_path: Path) -> None:
    path = write(tmp_path / "mgsm_test.jsonl", DE, FR)
    [question] = load_questions(f"{path}:fr")
    assert (question.id, question.task, question.split) == ("q-fr", "mgsm", "test")
    with pytest.raises(ValueError, match=r"jsonl:it: no questions in language 'it'; there are de, fr"):
        load_questions(f"{path}:it")


def test_a_files_rationales_in_one_language(tmp_path: Path) -> None:
    own = {record["id"]: {"t": {"text": f"So 3, {record['id']}.", "answer": 3}} for record in (DE, FR)}
    path = write(tmp_path / "mgsm_test.jsonl", *({**record, "rationales": own[record["id"]]} for record in (DE, FR)))
    french = {question.id: question for question in load_questions(f"{path}:fr")}
    assert [item.text for item in load_rationales([f"{path}:fr"], french)] == ["So 3, q-fr."]
    assert len({hash_source(source) for source in (path, f"{path}:de", f"{path}:fr")}) == 3
    with pytest.raises(ValueError, match="jsonl:it: no rationales"):
        load_rationales([f"{path}:it"], french)


@pytest.mark.parametrize(
    ("file", "languages", "kind", "parallel", "original"),
    [
        ("mgsm_test", 11, "number", True, "gsm8k-test-0"),
        ("mgsm_train", 11, "number", True, None),
        ("msvamp_all", 10, "number", True, "chal-407"),
        ("xcopa_valid", 11, "choice", True, None),
        ("xcopa_test", 11, "choice", True, None),
        ("talscq_train", 2, "choice", False, None),
        ("gaokao_zh", 1, "choice", False, None),
        ("jcommonsenseqa_train", 1, "choice", False, None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*options with the same words")
def test_real_questions_in_many_languages(
    shared_data: Path, file: str, languages: int, kind: str, parallel: bool, original: str | None
) -> None:
    questions = load_questions(str(shared_data / "languages" / f"{file}.jsonl.gz"))
    assert len({question.language for question in questions}) == languages
    assert {question.kind for question in questions} - {"boolean"} == {kind}
    assert all(question.gold is not None and (question.parallel is not None) == parallel for question in questions)
    assert questions[0].original == original
    sizes = {
        sum(question.parallel == name for question in questions)
        for name in {questions[0].parallel, questions[-1].parallel}
    }
    assert not parallel or sizes == {languages}


def test_a_causal_question_of_a_file_says_what_it_asks(shared_data: Path) -> None:
    first, second = load_questions(str(shared_data / "languages" / "xcopa_test.jsonl.gz:et"), limit=2)
    assert first.question == "Ese oli mullikilesse mässitud sest"
    assert second.question == "Ma tühjendasin oma taskud seetõttu"


def test_corrected_questions_of_the_file_and_of_the_task_are_the_same(shared_data: Path) -> None:
    [task] = [task for task in list_tasks() if task.name == "mgsm"]
    for language, rows in task.replaced_in_rev2.items():
        questions = load_questions(str(shared_data / "languages" / f"mgsm_test.jsonl.gz:{language}"))
        found = {int(question.id.split("-")[1]) for question in questions if question.replaced_in_rev2}
        there = {int(question.id.split("-")[1]) for question in questions}
        assert found == set(rows) & there

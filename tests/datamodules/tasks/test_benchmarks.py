"""Tests of the tasks: every file of configs/tasks against hand-made rows of the hub's schema."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datamodules.files.atomic import hash_path
from datamodules.tasks.benchmarks import (
    ask_why,
    find_commit,
    find_source,
    format_tasks,
    identify_source,
    list_tasks,
    load_task,
)
from datamodules.tasks.questions import Question, load_questions
from tests.datamodules.tasks.hub_rows import ROWS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, split: str, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def name_source(name: str, split: str, folder: Path) -> str:
    """A task in several languages is asked in the first of them that is not English."""
    languages = [tag for tag in load_task(name).languages if tag != "en"]
    return ":".join(["task", name, split, *languages[:1]]) + f"@{folder}"


def test_every_task_has_hand_made_rows() -> None:
    assert {task.name for task in list_tasks()} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_hand_made_rows_of_the_hubs_schema_since_the_hub_is_out_of_reach(tmp_path: Path, name: str) -> None:
    split, rows, expected = ROWS[name]
    task = load_task(name)
    folder = write(tmp_path / "clone", task.splits[split], rows)
    source = name_source(name, split, folder)
    questions = load_questions(source)
    assert [(question.question, question.choices, question.gold) for question in questions] == expected
    first = questions[0]
    assert (first.task, first.split, first.kind) == (name, split, task.answer)
    own = find_source(source)
    assert own is not None and first.language == (own.language or "en")
    identifier = str(rows[0][task.fields["id"]]) if "id" in task.fields else f"{name}-{split}-0"
    assert first.id == (f"{identifier}-{own.language}" if own.language else identifier)
    assert (first.parallel is None) == ("parallel" not in task.fields)


@pytest.mark.parametrize("name", ROWS)
def test_every_file_is_complete(name: str) -> None:
    task = load_task(name)
    assert set(task.splits) == set(task.sizes) and set(task.splits) <= {"train", "validation", "test"}
    assert task.hub.count("/") == 1 and task.licence and task.citation
    assert (task.num_options is None) == (task.answer in ("number", "expression"))
    assert task.revision == "main" or len(task.revision) == 40


def test_a_clone_has_a_folder_for_each_configuration(tmp_path: Path) -> None:
    _, [row, _], _ = ROWS["hendrycks_math"]
    for config in ("geometry", "algebra"):
        write(tmp_path / config, "train", [{**row, "problem": config}])
    questions = load_questions(f"task:hendrycks_math:train@{tmp_path}")
    # In the task's order, and numbered through.
    assert [question.question for question in questions] == ["algebra", "geometry"]
    assert [question.id for question in questions] == ["hendrycks_math-train-0", "hendrycks_math-train-1"]


def test_a_card_names_the_configurations(tmp_path: Path) -> None:
    _, rows, expected = ROWS["gsm8k"]
    write(tmp_path / "main", "train", rows)
    write(tmp_path / "socratic", "train", [{"question": "Other?", "answer": "#### 1"}])
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.jsonl\n"
        for name in ("main", "socratic")
    )
    (tmp_path / "README.md").write_text(card + "---\n")
    [question] = load_questions(f"task:gsm8k:train@{tmp_path}")
    assert (question.question, question.choices, question.gold) == expected[0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("openbookqa", {"answerKey": "F"}, r"row 0: gold answer 'F' is no option \(labels \['A', 'B', 'C', 'D'\]\)"),
        ("openbookqa", {"choices": {"text": ["a"], "label": ["A"]}}, "row 0: 1 options, where openbookqa has 4 to 4"),
        ("piqa", {"label": -1}, "row 0: gold answer -1 is no option"),
        ("gsm8k", {"answer": "#### many"}, "row 0: answer 'many' is no number"),
        ("hendrycks_math", {"solution": "It is 5."}, r"row 0: the solution has no \\boxed\{\} answer"),
    ],
)
def test_a_row_that_is_not_as_the_task_says_is_named(tmp_path: Path, name: str, change: dict, message: str) -> None:
    split, rows, _ = ROWS[name]
    write(tmp_path, split, [{**rows[0], **change}])
    with pytest.raises(ValueError, match=message):
        load_questions(name_source(name, split, tmp_path))


def test_languages_share_what_is_parallel_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    for language, text in (("de", "Wie viele?"), ("th", "กี่ตัว")):
        write(folder / language, "test", [{"question": text, "answer_number": number} for number in (3, 4, 5)])
    german, thai = (load_questions(f"task:mgsm:test:{language}@{folder}") for language in ("de", "th"))
    assert [question.parallel for question in german] == [f"mgsm-test-{row}" for row in range(3)]
    assert [question.parallel for question in thai] == [question.parallel for question in german]
    assert german[0].question == "Wie viele?" and not {item.id for item in german} & {item.id for item in thai}
    assert german[1].original == thai[1].original == "gsm8k-test-1"
    # Number 3 of both, of 1 to 250, is among those that the revision corrects.
    assert [question.replaced_in_rev2 for question in german] == [False, False, True]
    both = load_questions([f"task:mgsm:test:{language}@{folder}" for language in ("de", "th")])
    assert [question.language for question in both] == ["de"] * 3 + ["th"] * 3


def test_the_revision_of_mgsm_corrects_as_many_questions_as_it_says() -> None:
    replaced = load_task("mgsm").replaced_in_rev2
    assert (len(replaced["en"]), len(replaced["te"]), set(replaced)) == (22, 52, set(load_task("mgsm").languages))
    assert all(rows == sorted(set(rows)) and 0 <= rows[0] and rows[-1] < 250 for rows in replaced.values())


def test_every_language_of_a_causal_task_has_its_words() -> None:
    task = load_task("xcopa")
    assert all({*task.connectives[tag]} == {"cause", "effect"} for tag in task.languages)
    assert ask_why("物品用泡沫包装起来了。", "cause", "zh") == "物品用泡沫包装起来了 因为"
    assert ask_why("It rained.", "effect", "en") == "It rained therefore"
    with pytest.raises(ValueError, match="`asks` 'why' in language 'et': write cause or effect; there is en, et"):
        ask_why("Ese.", "why", "et")
    with pytest.raises(ValueError, match="`asks` 'cause' in language 'fr'"):
        ask_why("Il pleut.", "cause", "fr")


def test_a_card_names_a_source_without_its_folder(tmp_path: Path) -> None:
    source = find_source(f"task:mgsm:test:de@{tmp_path}")
    assert source is not None and source.name == "task:mgsm:test:de" and source.configs == ["de"]
    assert find_source("microworld:train:4:0") is None


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"question": "How many?"}])
    with pytest.raises(ValueError, match=r"row 0: row without field 'answer'; it has \['question'\]"):
        load_questions(f"task:gsm8k:train@{tmp_path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("task:gsm8k", "write task:NAME:SPLIT, task:NAME:SPLIT:LANGUAGE, or either with @FOLDER"),
        ("task:mgsm:test", "mgsm has several languages; add one, like task:mgsm:test:bn; there are bn, de, en, es"),
        ("task:mgsm:test:et", "mgsm has no language 'et'; there are bn, de"),
        ("task:mgsm:test:de,fr", "mgsm has no language 'de,fr'; there are bn, de"),
        ("task:mgsm:train:de", "mgsm has no split 'train' with answers; there are test"),
        ("task:gsm8k:test:de", "gsm8k has no language 'de'; it is in one, which is not named"),
        ("task:gsm9k:train", "task 'gsm9k' is unknown; there are: aqua_rat, arc_challenge"),
        ("task:piqa:test", "piqa has no split 'test' with answers; there are train, validation"),
        ("task:piqa:train@nowhere", "no such folder: nowhere"),
    ],
)
def test_a_bad_source_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_questions(source)


def test_a_folder_without_the_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train", ROWS["gsm8k"][1])
    with pytest.raises(ValueError, match=r"cannot be loaded: .*test"):
        load_questions(f"task:gsm8k:test@{tmp_path}")


def test_a_task_of_ones_own_lies_anywhere(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "configs" / "tasks" / "gsm8k.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("gold: answer", "gold: result"))
    write(tmp_path / "data", "train", [{"question": "How many?", "result": 3}])
    [question] = load_questions(f"task:{tmp_path / 'mine.yaml'}:train@{tmp_path / 'data'}")
    assert (question.task, question.gold) == ("mine", "3")
    (tmp_path / "mine.yaml").write_text(text.replace("licence:", "license:"))
    with pytest.raises(ValueError, match="a task needs exactly the keys answer, citation"):
        load_task(str(tmp_path / "mine.yaml"))


def test_a_source_is_another_when_its_data_or_what_is_said_of_them_change(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "configs" / "tasks" / "gsm8k.yaml").read_text()
    file, source = tmp_path / "mine.yaml", f"task:{tmp_path / 'mine.yaml'}:train"
    write(tmp_path / "data", "train", ROWS["gsm8k"][1])
    texts = [text, text.replace("licence: MIT", "licence: mine"), text.replace("gold: answer", "gold: result")]
    texts.append(re.sub("(?m)^revision:.*", f"revision: {'a' * 40}", text))
    found = []
    for text in texts:
        file.write_text(text)
        found.append((identify_source(source), identify_source(f"{source}@{tmp_path / 'data'}")))
    assert found[0] == found[1] and all(len({own[n] for own in found}) == 3 for n in range(2))
    write(tmp_path / "data", "train", ROWS["gsm8k"][1] * 2)
    assert (identify_source(source) == found[-1][0]) and identify_source(f"{source}@{tmp_path / 'data'}") != found[-1][
        1
    ]
    assert identify_source("microworld:train:8:0") is None and identify_source(str(file)) == hash_path(file)


def test_the_commit_is_the_pinned_one_or_none(tmp_path: Path) -> None:
    assert find_commit("task:gsm8k:train") == load_task("gsm8k").revision
    assert find_commit(f"task:gsm8k:train@{tmp_path}") is None


def test_the_table_names_every_task_with_sizes_and_licence() -> None:
    lines = format_tasks().splitlines()
    assert len(lines) == 1 + len(ROWS)
    [line] = [line for line in lines if line.startswith("gsm8k")]
    assert "train 7473, test 1319" in line and "MIT" in line and "openai/gsm8k@740312a" in line
    [line] = [line for line in lines if line.startswith("mgsm")]
    assert "bn de en es fr ja ru sw te th zh" in line


@pytest.mark.parametrize(
    ("file", "kind", "number"),
    [
        ("csqa_train", "choice", 5),
        ("obqa_test", "choice", 4),
        ("strategyqa_train", "boolean", 2),
        ("svamp_all", "number", 0),
    ],
)
def test_real_questions_from_files(shared_data: Path, file: str, kind: str, number: int) -> None:
    questions = load_questions(str(shared_data / f"{file}.jsonl.gz"))
    assert {(question.kind, len(question.choices or ())) for question in questions} == {(kind, number)}
    assert all(question.gold is not None for question in questions)


def test_real_questions_as_a_hub_file(shared_data: Path, tmp_path: Path) -> None:
    """Real questions in the hub's schema are the same questions."""

    def to_row(question: Question) -> dict[str, Any]:
        choices = {"text": list(question.choices or ()), "label": list(question.letters)}
        return {"id": question.id, "question_stem": question.question, "choices": choices, "answerKey": question.gold}

    questions = load_questions(str(shared_data / "obqa_valid.jsonl.gz"))
    folder = write(tmp_path / "clone", "validation", [to_row(question) for question in questions])
    loaded = load_questions(f"task:openbookqa:validation@{folder}")
    keep = lambda question: (question.id, question.question.strip(), question.gold)  # noqa: E731
    assert list(map(keep, loaded)) == list(map(keep, questions))

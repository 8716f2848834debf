"""Tests of what a student learns from: filters, the split by question, and logits that belong to the rationale."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.logit_cache import LogitCache
from datamodules.tokenization import ANSWER, PROMPT
from tests.tiny import capture, make_questions, make_rationale, save_model, write_questions, write_store

QUESTIONS = make_questions(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers of one tokenizer, three rationales of each for every question: the second is wrong."""
    folder = tmp_path_factory.mktemp("data")
    write_questions(folder / "colours_train.jsonl", QUESTIONS)
    for seed, name in enumerate(("ada", "bob")):
        model = save_model(folder / name, seed=seed)
        rationales = [
            make_rationale(question, name, sample, right=sample != 1) for question in QUESTIONS for sample in range(3)
        ]
        write_store(folder / f"{name}.parquet", rationales, model)
    return folder


@pytest.fixture(scope="module")
def logits(folder: Path) -> Path:
    """Each teacher's logits of both teachers' rationales."""
    for name in ("ada", "bob"):
        stores = [str(folder / "ada.parquet"), str(folder / "bob.parquet")]
        capture(folder / f"{name}-logits", str(folder / name), str(folder / "colours_train.jsonl"), stores, top_k=4)
    return folder


def make_data(folder: Path, stores: tuple = ("ada",), logits: tuple = (), **options) -> DistillationDataModule:
    data = DistillationDataModule(
        str(folder / "ada"),
        str(folder / "colours_train.jsonl"),
        rationales=[str(folder / f"{name}.parquet") for name in stores],
        logits=[str(folder / f"{name}-logits") for name in logits],
        **{"prompt": "plain", "supervision": "rationale+logits" if logits else "rationale", **options},
    )
    data.setup("fit")
    return data


def ids(data: DistillationDataModule) -> list[str]:
    return [example.id for example in data.examples]


def test_filters(folder: Path) -> None:
    assert ids(make_data(folder)) == [f"q{index}/ada/{sample}" for index in range(10) for sample in (0, 2)]
    assert len(ids(make_data(folder, correct_only=False))) == 30
    assert ids(make_data(folder, samples_per_question=1)) == [f"q{index}/ada/0" for index in range(10)]
    both = ids(make_data(folder, ("ada", "bob"), samples_per_question=1))
    assert both == [f"q{index}/{name}/0" for index in range(10) for name in ("ada", "bob")]
    assert ids(make_data(folder, ("ada", "bob"), teachers=["bob"], limit=2)) == [
        f"q{index}/bob/{sample}" for index in range(2) for sample in (0, 2)
    ]


def test_nothing_left_is_refused(folder: Path, tmp_path: Path) -> None:
    wrong = [make_rationale(question, "ada", right=False) for question in QUESTIONS]
    write_store(tmp_path / "ada.parquet", wrong, str(folder / "ada"))
    options = {"prompt": "plain", "rationales": [str(tmp_path / "ada.parquet")]}
    data = DistillationDataModule(str(folder / "ada"), str(folder / "colours_train.jsonl"), **options)
    with pytest.raises(ValueError, match=r"none of 10 rationales is left after filtering \(correct_only is on\)"):
        data.setup("fit")
    with pytest.raises(ValueError, match=r"data\.rationales is empty"):
        make_data(folder, ())
    with pytest.raises(ValueError, match="20 of 20 examples are longer than the context of 20 tokens"):
        make_data(folder, max_length=20)
    with pytest.raises(ValueError, match="all 20 examples are longer than max_length=20"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_data(folder, max_length=20, skip_too_long=True)


def test_the_split_is_by_question_and_depends_on_its_seed(folder: Path) -> None:
    def split(seed: int) -> tuple[set, set]:
        data = make_data(folder, ("ada", "bob"), validation_fraction=0.3, split_seed=seed)
        assert len(data.train_examples) + len(data.val_examples) == 40
        return {e.question_id for e in data.train_examples}, {e.question_id for e in data.val_examples}

    train, held_out = split(0)
    assert len(held_out) == 3 and not train & held_out and len(train | held_out) == 10
    assert split(0)[1] == held_out != split(1)[1]
    assert make_data(folder).val_examples == []
    with pytest.raises(ValueError, match=r"validation_fraction=1\.0 leaves no question to learn from"):
        make_data(folder, validation_fraction=1.0)


def test_labels_need_no_rationales(folder: Path) -> None:
    data = make_data(folder, (), supervision="label")
    assert ids(data) == [f"q{index}/label" for index in range(10)]
    for example, question in zip(data.examples, QUESTIONS, strict=True):
        text = data.tokenizer.decode(example.token_ids[example.segments == ANSWER])
        assert text == f"The answer is {question.choice(question.gold)}.</s>"
        assert set(example.segments) == {PROMPT, ANSWER} and example.teacher == ""


@pytest.mark.parametrize(
    ("stores", "caches", "teacher", "expected"),
    [
        (("ada",), ("ada",), None, lambda writer: "ada"),
        (("ada", "bob"), ("ada", "bob"), None, lambda writer: writer),
        (("ada", "bob"), ("bob", "ada"), None, lambda writer: writer),
        (("ada", "bob"), ("bob",), "bob", lambda writer: "bob"),
        (("ada",), ("bob",), "bob", lambda writer: "bob"),
    ],
)
def test_logits_are_the_writers_or_the_named_teachers(logits: Path, stores, caches, teacher, expected) -> None:
    data = make_data(logits, stores, caches, logits_teacher=teacher)
    for example in data.examples:
        right = LogitCache(logits / f"{expected(example.teacher)}-logits").read(example)["log_probs"]
        np.testing.assert_array_equal(data.cache_of_example[example.id].read(example)["log_probs"], right)


def test_logits_of_the_wrong_teacher_are_refused(logits: Path) -> None:
    message = r"logits of \['bob'\], but those of \['ada'\] are wanted; set data\.logits_teacher"
    with pytest.raises(ValueError, match=message):
        make_data(logits, ("ada",), ("bob",))
    with pytest.raises(ValueError, match=r"logits of \['ada'\], but those of \['ada', 'bob'\] are wanted"):
        make_data(logits, ("ada", "bob"), ("ada",))
    with pytest.raises(ValueError, match=r"data\.logits names no logit cache"):
        make_data(logits, supervision="rationale+logits")


def test_logits_of_another_revision_are_refused(logits: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "ada", seed=9)
    rationales = [make_rationale(question, "ada") for question in QUESTIONS]
    options = {"supervision": "rationale+logits", "logits": [str(logits / "ada-logits")], "prompt": "plain"}
    store = write_store(tmp_path / "ada.parquet", rationales, other)
    data = DistillationDataModule(other, str(logits / "colours_train.jsonl"), rationales=[store], **options)
    with pytest.raises(ValueError, match=r"written by revision \w+ of 'ada', but the logits are of revision \w+"):
        data.setup("fit")


def test_a_changed_rationale_another_prompt_and_another_tokenizer_are_refused(logits: Path, tmp_path: Path) -> None:
    rationales = [make_rationale(question, "ada") for question in QUESTIONS]
    rationales[3] = replace(rationales[3], text=f"Hm. {rationales[3].text}")
    store = write_store(tmp_path / "ada.parquet", rationales, str(logits / "ada"))
    options = {"supervision": "rationale+logits", "logits": [str(logits / "ada-logits")]}
    questions = str(logits / "colours_train.jsonl")
    with pytest.raises(ValueError, match="the text of 'q3/ada/0' was changed"):
        DistillationDataModule(str(logits / "ada"), questions, rationales=[store], prompt="plain", **options).setup(
            "fit"
        )
    with pytest.raises(ValueError, match="captured with prompt plain-"):
        make_data(logits, ("ada",), ("ada",), prompt="instruction")
    alien = save_model(tmp_path / "alien", corpus=("yellow", "violet"))
    stores = [str(logits / "ada.parquet")]
    data = DistillationDataModule(alien, questions, rationales=stores, prompt="plain", **options)
    with pytest.raises(ValueError, match=r"teacher 'ada' \(.*\) and student '.*alien' \(.*\) do not share a tokenizer"):
        data.setup("fit")


def test_caches_of_different_settings_do_not_mix(logits: Path, tmp_path: Path) -> None:
    questions, store = str(logits / "colours_train.jsonl"), str(logits / "bob.parquet")
    capture(tmp_path / "bob", str(logits / "bob"), questions, [store], temperatures=(1.0,), top_k=4)
    options = {"supervision": "rationale+logits", "prompt": "plain"}
    data = DistillationDataModule(
        str(logits / "ada"),
        questions,
        logits=[str(logits / "ada-logits"), str(tmp_path / "bob")],
        rationales=[str(logits / "ada.parquet"), store],
        **options,
    )
    with pytest.raises(ValueError, match="captured with different temperatures or kinds of rows"):
        data.setup("fit")


def test_what_is_not_read_is_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"data\.rationales is not read with supervision label"):
        make_data(folder, supervision="label")
    with pytest.warns(UserWarning, match=r"data\.logits is not read with supervision rationale"):
        make_data(folder, logits=("nothing",), supervision="rationale")


def test_scoring_hands_out_what_is_not_done(folder: Path) -> None:
    data = RationaleDataModule(str(folder / "ada"), str(folder / "colours_train.jsonl"), [str(folder / "ada.parquet")])
    data.setup("predict")
    assert len(data.examples) == 20
    before = data.examples
    data.setup("predict")
    assert data.examples is before

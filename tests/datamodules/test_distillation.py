"""Tests of what a student learns from: filters, the split by question, and how examples are drawn."""

import gzip
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.annotation import QuestionDataModule
from datamodules.batches.packing import StepSampler, count_padded
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.examples.tokenization import ANSWER, PROMPT
from datamodules.rationales.store import write_rationales
from tests.datamodules.two_teachers import QUESTIONS, make_data, write_two_teachers
from tests.tiny import (
    build,
    build_tokenizer,
    make_rationale,
    write_store,
)

STUDENT = Path(__file__).parents[2] / "configs" / "models" / "microworld" / "a-student"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_two_teachers(folder)
    return folder


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


@pytest.fixture(scope="module")
def uneven(folder: Path) -> Path:
    """Two stores: cleo leaves every third question without an answer, dan errs on every fourth."""
    cleo = [
        replace(make_rationale(question, "cleo"), **({"answer": None, "correct": False} if index % 3 == 0 else {}))
        for index, question in enumerate(QUESTIONS)
    ]
    dan = [make_rationale(question, "dan", right=index % 4 != 0) for index, question in enumerate(QUESTIONS)]
    write_rationales(folder / "cleo.parquet", cleo, {"gold_conditioned": {"cleo": True}})
    write_rationales(folder / "dan.parquet", dan, {"teacher": "dan", "revision": "1"})
    return folder


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"answered_by": ["cleo"]}, [1, 2, 4, 5, 7, 8]),
        ({"answered_by": ["cleo", "dan"]}, [1, 2, 4, 5, 7, 8]),
        ({"solved_by": ["dan"]}, [1, 2, 3, 5, 6, 7, 9]),
        ({"solved_by": ["cleo", "dan"]}, [1, 2, 5, 7]),
        ({"answered_by": ["cleo"], "solved_by": ["dan"]}, [1, 2, 5, 7]),
    ],
)
@pytest.mark.filterwarnings("ignore:cleo wrote with the gold answer")
def test_arms_can_learn_from_the_questions_that_all_teachers_share(uneven: Path, options: dict, kept: list) -> None:
    """An arm of one teacher alone, and one of both, have the same questions."""
    for teachers in (["dan"], None):
        data = make_data(uneven, ("cleo", "dan"), teachers=teachers, correct_only=False, **options)
        assert [int(question_id[1:]) for question_id in dict.fromkeys(data.examples.column("question_id"))] == kept
        assert len(data.examples) == len(kept) * (1 if teachers else 2)


def test_an_unknown_teacher_of_shared_questions_is_refused(uneven: Path) -> None:
    with pytest.raises(ValueError, match=r"no rationale of \['eve'\]; there are \['dan'\]"):
        make_data(uneven, ("dan",), solved_by=["eve"])


def test_mixing_gold_conditioned_and_free_teachers_warns(uneven: Path) -> None:
    message = "^cleo wrote with the gold answer in view, dan without"
    with pytest.warns(UserWarning, match=message):
        make_data(uneven, ("cleo", "dan"))
    with pytest.warns(UserWarning, match=message):
        make_data(uneven, ("cleo", "dan"), teachers=["dan"], solved_by=["cleo"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_data(uneven, ("cleo", "dan"), teachers=["cleo"])


def test_nothing_left_is_refused(folder: Path, tmp_path: Path) -> None:
    wrong = [make_rationale(question, "ada", right=False) for question in QUESTIONS]
    write_store(tmp_path / "ada.parquet", wrong, str(folder / "ada"))
    options = {"prompt": "plain", "rationales": [str(tmp_path / "ada.parquet")]}
    data = build(DistillationDataModule, str(folder / "ada"), str(folder / "colours_train.jsonl"), **options)
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
        data = make_data(folder, ("ada", "bob"), fraction=0.3, seed=seed)
        assert len(data.train_examples) + len(data.val_examples) == 40
        return {e.question_id for e in data.train_examples}, {e.question_id for e in data.val_examples}

    train, held_out = split(0)
    assert len(held_out) == 3 and not train & held_out and len(train | held_out) == 10
    assert split(0)[1] == held_out != split(1)[1]
    assert len(make_data(folder).val_examples) == 0
    with pytest.raises(ValueError, match=r"fraction=1\.0 leaves no question to learn from"):
        make_data(folder, fraction=1.0)
    with pytest.warns(UserWarning, match=r"fraction=0\.04 holds out none of 10 questions"):
        assert len(make_data(folder, fraction=0.04).val_examples) == 0


def test_labels_need_no_rationales(folder: Path) -> None:
    data = make_data(folder, (), supervision="label")
    assert ids(data) == [f"q{index}/label" for index in range(10)]
    for example, question in zip(data.examples, QUESTIONS, strict=True):
        text = data.tokenizer.decode(example.token_ids[example.segments == ANSWER])
        assert text == f"The answer is {question.choice(question.gold)}.</s>"
        assert set(example.segments) == {PROMPT, ANSWER} and example.teacher == ""


def test_what_is_not_read_is_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"data\.rationales is not read with supervision label"):
        make_data(folder, supervision="label")
    with pytest.warns(UserWarning, match=r"data\.logits is not read with supervision rationale"):
        make_data(folder, logits=("nothing",), supervision="rationale")


def test_scoring_hands_out_what_is_not_done(folder: Path) -> None:
    data = build(
        RationaleDataModule, str(folder / "ada"), str(folder / "colours_train.jsonl"), [str(folder / "ada.parquet")]
    )
    data.setup("predict")
    assert len(data.examples) == 20
    before = data.examples
    data.setup("predict")
    assert data.examples is before


def test_arms_that_filter_differently_share_what_was_tokenized(folder: Path, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path), "stores": ("ada", "bob")}
    arms = [
        make_data(folder, **options),
        make_data(folder, **options, correct_only=False, limit=3),
        make_data(folder, **options, teachers=["bob"], samples_per_question=1),
        make_data(folder, **options, max_length=200, fraction=0.2),
    ]
    assert len({data.examples.store.folder for data in arms}) == 1 and len(list(tmp_path.iterdir())) == 1
    make_data(folder, (), supervision="label", cache_dir=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_absent_teachers_are_named_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"ada\.parquet: no rationale of \['llama'\]; there are \['ada'\]$"):
        make_data(folder, teachers=["ada", "llama"])


def test_empty_published_texts_are_left_out_with_a_warning_each_time(folder: Path, tmp_path: Path) -> None:
    records = [{"id": f"q{index}", "rationales": {"gpt": {"text": " \n"}, "t5": {"text": "b"}}} for index in range(10)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"rationales": [str(tmp_path / "p.jsonl")], "prompt": "plain", "correct_only": False}
    for _ in range(2):
        data = build(DistillationDataModule, str(folder / "ada"), str(folder / "colours_train.jsonl"), **options)
        with pytest.warns(UserWarning, match=r"p\.jsonl: 10 published rationales are empty and are left out"):
            data.setup("fit")
        assert ids(data) == [f"q{index}/t5/0" for index in range(10)]
    data = build(
        DistillationDataModule,
        str(folder / "ada"),
        str(folder / "colours_train.jsonl"),
        **{**options, "teachers": ["t5"]},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("fit")


def test_settings_of_the_draw_that_would_be_ignored_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="samples_per_epoch draws rationales, of which supervision label has none"):
        make_data(folder, (), supervision="label", samples_per_epoch=1)
    with pytest.raises(
        ValueError, match=r"teacher_weights is for drawing rationales; set data\.batches\.samples_per_epoch"
    ):
        make_data(folder, teacher_weights={"ada": 1.0})
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"teacher_weights must be above 0 and finite, not \{'ada': "):
            make_data(folder, samples_per_epoch=1, teacher_weights={"ada": weight})
    for weights in ({"ada": 1.0}, {"ada": 1.0, "bob": 1.0, "eve": 1.0}):
        with pytest.raises(ValueError, match=r"names \['ada'.*\], but the rationales are of \['ada', 'bob'\]"):
            make_data(folder, ("ada", "bob"), samples_per_epoch=1, teacher_weights=weights)


def test_examples_of_real_rationales_are_few_padded_tokens(shared_data: Path, tmp_path: Path) -> None:
    """A share of what a training run reads; `python -m scripts.benchmark data` measures the whole."""
    records = [json.loads(line) for line in gzip.open(shared_data / "obqa_train.jsonl.gz", "rt")][:1500]
    (tmp_path / "obqa_train.jsonl").write_text(
        "".join(json.dumps({**r, "rationales": {"gpt-4o/L1": r["rationales"]["gpt-4o/L1"]}}) + "\n" for r in records)
    )
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    path = str(tmp_path / "obqa_train.jsonl")
    data = build(DistillationDataModule, str(tmp_path / "tokenizer"), path, rationales=[path], tokens_per_step=8192)
    data.setup("fit")
    lengths = data.train_examples.lengths
    sampler = StepSampler(lengths, 8192, 8192, 0, 0, 1)
    padded = sum(count_padded(step, lengths) for step in sampler.plan(1))
    assert 1 - lengths.sum() / padded < 0.05


@pytest.mark.parametrize("supervision", ["label", "rationale"])
def test_characters_without_a_token_are_named_each_time(tmp_path: Path, supervision: str) -> None:
    path = tmp_path / "mine.jsonl"
    own = {"choices": ["iron", "wood"], "answer": "iron", "rationale": "The answer is A."}
    records = [{"id": f"q{n}", "question": f"{text}?", **own} for n, text in enumerate(("iron", "我们", "wood"))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    kept = {"rationales": [str(path)]} if supervision == "rationale" else {"rationales": None}
    kept |= {"supervision": supervision, "prompt": "plain", "cache_dir": str(tmp_path / "kept")}
    for _ in range(2):
        data = build(DistillationDataModule, str(STUDENT), str(path), **kept)
        with pytest.warns(UserWarning, match=r"1 of 3 examples, the first 'q1.*', have characters that .* is <unk> to"):
            data.setup("fit")
    asked = build(QuestionDataModule, str(STUDENT), str(path), prompt="plain")
    with pytest.warns(UserWarning, match=r"1 of 3 questions, the first 'q1', have characters"):
        asked.setup("predict")

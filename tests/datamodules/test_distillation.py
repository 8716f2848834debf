"""Tests of what a student learns from: filters, the split by question, and logits that belong to the rationale."""

import gzip
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.batches.packing import StepSampler, count_padded
from datamodules.batches.teacher_rows import collate_targets
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.examples.tokenization import ANSWER, PROMPT
from datamodules.logit_cache.mixture import mix_rows
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import write_rationales
from tests.tiny import (
    build,
    build_tokenizer,
    capture,
    make_questions,
    make_rationale,
    save_model,
    write_questions,
    write_store,
)

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


def make_data(
    folder: Path, stores: tuple = ("ada",), logits: tuple = (), more_logits: Sequence[str] = (), **options
) -> DistillationDataModule:
    data = build(
        DistillationDataModule,
        str(folder / "ada"),
        str(folder / "colours_train.jsonl"),
        rationales=[str(folder / f"{name}.parquet") for name in stores],
        logits=[*(str(folder / f"{name}-logits") for name in logits), *more_logits],
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
    message = r"logits of \['bob'\], but those of \['ada'\] are wanted; set data\.controls\.logits_teacher"
    with pytest.raises(ValueError, match=message):
        make_data(logits, ("ada",), ("bob",))
    with pytest.raises(ValueError, match=r"logits of \['ada'\], but those of \['ada', 'bob'\] are wanted"):
        make_data(logits, ("ada", "bob"), ("ada",))
    with pytest.raises(ValueError, match=r"data\.logits names no logit cache"):
        make_data(logits, supervision="rationale+logits")


def test_logits_of_several_teachers_are_mixed_on_every_text(logits: Path, tmp_path: Path) -> None:
    """One of them has a cache for each writer's texts."""
    questions = str(logits / "colours_train.jsonl")
    parts = [
        capture(tmp_path / name, str(logits / "bob"), questions, [str(logits / f"{name}.parquet")], top_k=4)
        for name in ("ada", "bob")
    ]
    for paths in ([str(logits / "bob-logits")], parts):
        data = make_data(
            logits, ("ada", "bob"), logits=("ada",), logit_weights={"bob": 3.0, "ada": 1.0}, more_logits=paths
        )
        assert len({id(reader) for reader in data.cache_of_example.values()}) == len(paths)
        for example in data.examples:
            rows = [LogitCache(logits / f"{name}-logits").read(example) for name in ("bob", "ada")]
            labels = example.token_ids[example.num_prompt_tokens :]
            expected = mix_rows(rows, np.array([0.75, 0.25]), (1.0, 2.0), labels)
            found = collate_targets([example], data.cache_of_example)
            assert set(found) == set(expected)
            for name, plane in expected.items():
                np.testing.assert_array_equal(found[name], plane)
        everything = list(data.examples)
        joined = collate_targets(everything[::-1], data.cache_of_example)
        assert joined["log_probs"].shape == (*joined["support"].shape, 2)
        last = collate_targets(everything[:1], data.cache_of_example)
        count, width = last["support"].shape
        np.testing.assert_array_equal(joined["support"][-count:, :width], last["support"])
        np.testing.assert_array_equal(joined["log_probs"][-count:, :width], last["log_probs"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"logit_weights": {"ada": 1.0, "eve": 1.0}},
            r"names \['ada', 'eve'\], but the logits given are of .*'ada', 'bob'",
        ),
        ({"logit_weights": {"ada": 1.0}}, "two teachers at least"),
        ({"logit_weights": {"ada": 1.0, "bob": float("inf")}}, "finite weights"),
        ({"logit_weights": {"ada": 1.0, "bob": 1.0}, "logits_teacher": "ada"}, "both say whose logits"),
        ({"logit_weights": {"ada": 1.0, "bob": 1.0}, "supervision": "rationale"}, "logit_weights would be ignored"),
    ],
)
@pytest.mark.filterwarnings("ignore:data.logits is not read")
def test_weights_that_make_no_mixture_are_refused(logits: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(logits, ("ada", "bob"), ("ada", "bob"), **options)


def test_only_rows_of_a_kind_teach(logits: Path) -> None:
    """Whoever wrote the text, those where the most probable tokens of two teachers differ, or agree."""
    against = [str(logits / "bob-logits")]
    data = {
        kind: make_data(logits, logits=("ada",), rows=kind, rows_against=against) for kind in ("divergent", "agreeing")
    }
    own, other = (LogitCache(logits / f"{name}-logits") for name in ("ada", "bob"))
    num_divergent = []
    for example in data["divergent"].examples:
        rows, others = own.read(example), other.read(example)
        best = [
            part["support"][np.arange(len(part["support"])), part["log_probs"].argmax(1)] for part in (rows, others)
        ]
        differ = best[0] != best[1]
        num_divergent += differ.tolist()
        softened = rows["log_probs"][..., None] / np.array([1.0, 2.0]) - rows["log_normalizers"][:, None]
        for kind, expected in (("divergent", differ), ("agreeing", ~differ)):
            found = collate_targets([example], data[kind].cache_of_example)
            assert set(found) == {"support", "log_probs", "log_tails", "has_target"}
            np.testing.assert_array_equal(found["has_target"], expected)
            np.testing.assert_array_equal(found["support"], rows["support"])
            np.testing.assert_allclose(found["log_probs"], softened, rtol=1e-6)
            np.testing.assert_array_equal(found["log_tails"], rows["log_tails"])
    share = float(np.mean(num_divergent))
    assert 0 < share < 1
    for kind in data:
        assert data[kind].row_shares == pytest.approx({"divergent": share, "agreeing": 1 - share, "unknown": 0})
        assert data[kind].shares == {f"rows/{name}": value for name, value in data[kind].row_shares.items()}
        assert data[kind].softens
    joined = collate_targets([*data["divergent"].examples], data["divergent"].cache_of_example)
    np.testing.assert_array_equal(joined["has_target"], num_divergent)


def test_rows_that_cannot_be_compared_are_refused(logits: Path, tmp_path: Path) -> None:
    against = [str(logits / "bob-logits")]

    def refuse(message: str, **options) -> None:
        with pytest.raises(ValueError, match=message):
            make_data(logits, **{"logits": ("ada",), "rows": "divergent", "rows_against": against, **options})

    refuse("data.rows_against which caches decide it; give both", rows_against=None)
    refuse("data.rows_against which caches decide it; give both", rows=None)
    refuse("data.rows would be ignored: supervision rationale has no logits", logits=())
    refuse("leave one", stores=("ada", "bob"), logits=("ada", "bob"), logit_weights={"ada": 1.0, "bob": 1.0})
    refuse(
        "ada-logits: of the teacher that teaches; data.rows_against needs another",
        rows_against=[str(logits / "ada-logits")],
    )
    refuse(r"rows_against holds logits of \['ada', 'bob'\]", rows_against=[*against, str(logits / "ada-logits")])
    stores = [str(logits / "ada.parquet")]
    questions = str(logits / "colours_train.jsonl")
    drawn = {"kind": "sampled", "top_k": None, "draws": 9, "temperatures": None}
    cold = capture(tmp_path / "drawn", str(logits / "bob"), questions, stores, **drawn)
    refuse("drawn: kind sampled has no most probable token for data.rows; capture kind top_k", rows_against=[cold])
    other = save_model(tmp_path / "eve", corpus=("violet", "orange"))
    foreign = capture(tmp_path / "eve-logits", other, questions, stores, top_k=4)
    refuse("eve-logits: teacher 'eve' .* do not share a tokenizer; .* data.alignment.kind", rows_against=[foreign])


def test_caches_that_make_no_mixture_are_refused(logits: Path, tmp_path: Path) -> None:
    questions, weights = str(logits / "colours_train.jsonl"), {"ada": 1.0, "bob": 1.0}

    def mix(name: str, stores: list[str], **options) -> None:
        paths = [str(logits / f"{store}.parquet") for store in stores]
        made = capture(tmp_path / name, str(logits / "bob"), questions, paths, **{"top_k": 4, **options})
        more = [str(logits / "bob-logits"), made] if name == "twice" else [made]
        make_data(logits, ("ada", "bob"), ("ada",), logit_weights=weights, more_logits=more)

    with pytest.raises(ValueError, match="20 of 40 examples are not cached, the first is 'q0/ada/0'"):
        mix("part", ["bob"])
    with pytest.raises(ValueError, match=r"bob-logits and .*twice both hold 'q0/ada/0'; name one"):
        mix("twice", ["ada"])
    with pytest.raises(ValueError, match="captured with different temperatures or kinds of rows"):
        mix("cold", ["ada", "bob"], temperatures=(1.0,))
    with pytest.raises(ValueError, match="captured with different temperatures or kinds of rows"):
        mix("drawn", ["ada", "bob"], kind="sampled", top_k=None, draws=9, temperatures=None)
    with pytest.raises(ValueError, match=r"hidden: kind hidden does not mix with logit_weights"):
        mix("hidden", ["ada", "bob"], kind="hidden", top_k=None, temperatures=None)


def test_logits_of_another_revision_are_refused(logits: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "ada", seed=9)
    rationales = [make_rationale(question, "ada") for question in QUESTIONS]
    options = {"supervision": "rationale+logits", "logits": [str(logits / "ada-logits")], "prompt": "plain"}
    store = write_store(tmp_path / "ada.parquet", rationales, other)
    data = build(DistillationDataModule, other, str(logits / "colours_train.jsonl"), rationales=[store], **options)
    with pytest.raises(ValueError, match=r"written by revision \w+ of 'ada', but the logits are of revision \w+"):
        data.setup("fit")


def test_a_changed_rationale_another_prompt_and_another_tokenizer_are_refused(logits: Path, tmp_path: Path) -> None:
    rationales = [make_rationale(question, "ada") for question in QUESTIONS]
    rationales[3] = replace(rationales[3], text=f"Hm. {rationales[3].text}")
    store = write_store(tmp_path / "ada.parquet", rationales, str(logits / "ada"))
    options = {"supervision": "rationale+logits", "logits": [str(logits / "ada-logits")]}
    questions = str(logits / "colours_train.jsonl")
    with pytest.raises(ValueError, match="the text of 'q3/ada/0' was changed"):
        build(
            DistillationDataModule, str(logits / "ada"), questions, rationales=[store], prompt="plain", **options
        ).setup("fit")
    with pytest.raises(ValueError, match="captured with prompt plain-"):
        make_data(logits, ("ada",), ("ada",), prompt="instruction")
    alien = save_model(tmp_path / "alien", corpus=("yellow", "violet"))
    stores = [str(logits / "ada.parquet")]
    data = build(DistillationDataModule, alien, questions, rationales=stores, prompt="plain", **options)
    with pytest.raises(ValueError, match=r"teacher 'ada' \(.*\) and student '.*alien' \(.*\) do not share a tokenizer"):
        data.setup("fit")


def test_caches_of_different_settings_do_not_mix(logits: Path, tmp_path: Path) -> None:
    questions, store = str(logits / "colours_train.jsonl"), str(logits / "bob.parquet")
    capture(tmp_path / "bob", str(logits / "bob"), questions, [store], temperatures=(1.0,), top_k=4)
    options = {"supervision": "rationale+logits", "prompt": "plain"}
    data = build(
        DistillationDataModule,
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

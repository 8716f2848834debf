"""Tests of the logits that a student learns from, which belong to its rationales."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.batches.teacher_rows import collate_targets
from datamodules.distillation import DistillationDataModule
from datamodules.logit_cache.mixture import mix_rows
from datamodules.logit_cache.reader import LogitCache
from tests.datamodules.two_teachers import QUESTIONS, make_data, write_two_teachers
from tests.tiny import (
    build,
    capture,
    make_rationale,
    save_model,
    write_store,
)


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each teacher's logits of both teachers' rationales."""
    folder = tmp_path_factory.mktemp("data")
    write_two_teachers(folder)
    for name in ("ada", "bob"):
        stores = [str(folder / "ada.parquet"), str(folder / "bob.parquet")]
        capture(folder / f"{name}-logits", str(folder / name), str(folder / "colours_train.jsonl"), stores, top_k=4)
    return folder


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


def test_each_text_has_its_rows_in_one_of_its_teachers_caches(logits: Path, tmp_path: Path) -> None:
    texts = [make_rationale(question, "ada", sample, sample != 1) for question in QUESTIONS for sample in range(3)]

    def capture_some(name: str, some: slice) -> str:
        store = write_store(tmp_path / f"{name}.parquet", texts[some], str(logits / "ada"))
        return capture(tmp_path / name, str(logits / "ada"), str(logits / "colours_train.jsonl"), [store], top_k=4)

    first, rest = capture_some("first", slice(5)), capture_some("rest", slice(5, None))
    data = make_data(logits, more_logits=[rest, first], supervision="rationale+logits")
    assert {str(cache.folder) for cache in data.cache_of_example.values()} == {first, rest}
    with pytest.raises(ValueError, match=r"ada-logits and .*first both hold 'q0/ada/0'; name one of them"):
        make_data(logits, logits=("ada",), more_logits=[first])


def test_logits_of_the_wrong_teacher_are_refused(logits: Path) -> None:
    message = r"logits of \['bob'\], but those of \['ada'\] are wanted; set data\.controls\.logits_teacher"
    with pytest.raises(ValueError, match=message):
        make_data(logits, ("ada",), ("bob",))
    with pytest.raises(ValueError, match=r"logits of \['ada'\], but those of \['ada', 'bob'\] are wanted"):
        make_data(logits, ("ada", "bob"), ("ada",))
    with pytest.raises(ValueError, match=r"data\.logits names no logit cache"):
        make_data(logits, supervision="rationale+logits")


def test_who_has_no_logits_is_told_how_to_learn_without(logits: Path) -> None:
    missing = r"data\.logits: nowhere: no finished logit cache .* run python -m scripts\.cache_logits"
    without = r"text alone: --data\.supervision=rationale --data\.logits=null --model\.loss\.kl_weight=0$"
    with pytest.raises(ValueError, match=f"{missing}, .*{without}"):
        make_data(logits, ("ada",), logits=("ada",), more_logits=["nowhere"])
    with pytest.raises(ValueError, match=rf"logits of \['bob'\], but .*{without}"):
        make_data(logits, ("ada",), ("bob",))


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

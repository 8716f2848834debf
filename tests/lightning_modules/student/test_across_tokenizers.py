"""Tests of students that learn from a teacher with another tokenizer: the microworld's b from its a."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.batches.teacher_rows import collate_targets
from datamodules.distillation import DistillationDataModule
from datamodules.logit_cache.aligned import AlignmentSettings
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.rationales.store import Rationale
from datamodules.tasks.questions import load_questions
from datamodules.text.token_bytes import SPECIAL, VocabularyBytes
from lightning_modules.student.cached_targets import check_cache
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from losses.divergences import DIVERGENCES
from losses.schedules import Schedule
from tests.tiny import build, capture, fit, write_store

MODELS = Path(__file__).parents[3] / "configs" / "models" / "microworld"
TEACHER, STUDENT = str(MODELS / "a-teacher"), str(MODELS / "b-student")
QUESTIONS = "microworld:train:8:0"
ALIGNED = {
    "strict": AlignmentSettings(kind="strict"),
    "bytes": AlignmentSettings(kind="bytes"),
    "chunks": AlignmentSettings(kind="chunks"),
}
KINDS: dict[str, dict] = {
    "top_k": {"top_k": 32},
    "sampled": {"kind": "sampled", "top_k": None, "draws": 20, "temperatures": None},
    "hybrid": {"kind": "hybrid", "top_k": 8, "draws": 8, "temperatures": None},
    "hidden": {"kind": "hidden", "top_k": None, "values": "float32", "temperatures": None},
    "labels": {"kind": "labels", "top_k": None, "temperatures": None},
    "whole": {"top_k": 400, "values": "float16"},
}


@dataclass(frozen=True)
class Families:
    """Where a teacher's texts and caches, by kind, are."""

    folder: Path
    rationales: str
    caches: dict[str, str]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    folder = tmp_path_factory.mktemp("families")
    rationales = []
    for question in load_questions(QUESTIONS):
        text = f"{question.question} It can {question.choice(question.gold)}."
        rationales.append(
            Rationale(
                question_id=question.id,
                task=question.task,
                split=question.split,
                teacher="a-teacher",
                family="a",
                sample=0,
                text=text,
                answer=question.gold,
                correct=True,
                finish_reason="stop",
                prompt_id="plain-test",
            )
        )
    store = write_store(folder / "a.parquet", rationales, TEACHER)
    caches = {
        kind: capture(folder / kind, TEACHER, QUESTIONS, [store], max_length=500, **options)
        for kind, options in KINDS.items()
    }
    return Families(folder, store, caches)


def make_data(families: Families, alignment: str | AlignmentSettings, kind: str = "top_k", **options: Any):
    return build(
        DistillationDataModule,
        options.pop("student", STUDENT),
        QUESTIONS,
        "rationale+logits",
        rationales=[families.rationales],
        logits=[families.caches.get(kind, kind)],
        alignment=ALIGNED[alignment] if isinstance(alignment, str) else alignment,
        prompt="plain",
        **{"max_length": 500, "cache_dir": str(families.folder / "tokenized"), "tokens_per_step": 512, **options},
    )


def train(families: Families, alignment, kind: str = "top_k", **options: Any) -> tuple[dict, dict[str, torch.Tensor]]:
    """Returns what a training logs last, and its weights."""
    loss = options.pop("loss", DistillationLoss(kl_weight=0.5))
    trainer = options.pop("trainer", {})
    checkpoint = options.pop("ckpt_path", None)
    data = make_data(families, alignment, kind, **options)
    module = DistillationModule(data.source.tokenizer_name, loss, learning_rate=1e-3)
    done = fit(module, data, checkpoint, **{"max_epochs": 2, **trainer})
    weights = {name: tensor.detach().clone() for name, tensor in module.model.state_dict().items()}
    return {name: value.item() for name, value in done.callback_metrics.items()}, weights


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("alignment", "kind"),
    [
        *((alignment, kind) for alignment in ("strict", "bytes") for kind in KINDS if kind not in ("labels", "whole")),
        ("chunks", "labels"),
        ("chunks", "top_k"),
    ],
)
def test_a_student_learns_from_a_teacher_of_another_family(families: Families, alignment: str, kind: str) -> None:
    metrics, weights = train(families, alignment, kind)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["train/divergence_rationale"] > 0
    shares = {name: value for name, value in metrics.items() if name.startswith("align/")}
    assert set(shares) == {f"align/{name}" for name in ("strict", "exact", "conditional", "spanning", "none")}
    assert sum(shares.values()) == pytest.approx(1) and shares["align/strict"] > 0.8
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_rows_of_two_teachers_are_compared_in_the_students_tokens(families: Families, tmp_path: Path) -> None:
    """One of them of the student's own tokenizer; where an aligned row says nothing, it is of neither kind."""
    against = capture(tmp_path / "own", STUDENT, QUESTIONS, [families.rationales], max_length=500, top_k=32)
    parts = {
        kind: make_data(families, "strict", rows=kind, rows_against=[against]) for kind in ("divergent", "agreeing")
    }
    plain = make_data(families, "strict")
    for data in (plain, *parts.values()):
        data.setup("fit")
    examples = [*plain.examples]
    masks = [collate_targets(examples, data.cache_of_example)["has_target"] for data in (plain, *parts.values())]
    assert torch.equal(masks[1] ^ masks[2], masks[0]) and masks[1].any() and masks[2].any()
    shares = parts["agreeing"].row_shares
    assert shares["unknown"] == pytest.approx(1 - masks[0].float().mean().item(), abs=1e-6) and shares["unknown"] > 0


def test_chunks_of_labels_are_those_of_any_kind(families: Families) -> None:
    labels, sampled = (train(families, "chunks", kind)[1] for kind in ("labels", "sampled"))
    assert_same(labels, sampled)


@pytest.mark.parametrize("alignment", ALIGNED)
def test_two_workers_load_what_the_process_loads(families: Families, alignment: str) -> None:
    assert_same(train(families, alignment)[1], train(families, alignment, num_workers=2)[1])


@pytest.mark.parametrize("alignment", ALIGNED)
def test_eight_micro_batches_are_one(families: Families, alignment: str) -> None:
    """In float64, where sums in another order agree far below float32's digits."""
    one, eight = (
        train(
            families,
            alignment,
            tokens_per_step=4096,
            tokens_per_batch=size,
            trainer={"max_epochs": 1, "precision": "64-true"},
        )
        for size in (4096, 500)
    )
    for name, tensor in one[1].items():
        torch.testing.assert_close(eight[1][name], tensor, rtol=0, atol=1e-9)
    for name in ("train/loss", "train/divergence_rationale", "train/gradient_norm"):
        assert eight[0][name] == pytest.approx(one[0][name], rel=1e-5)


@pytest.mark.parametrize("alignment", ALIGNED)
def test_a_resumed_training_is_the_uninterrupted_one(families: Families, alignment: str, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "callbacks": [saver]}
    whole = train(families, alignment, trainer=options)[1]
    assert_same(train(families, alignment, ckpt_path=str(tmp_path / "step=2.ckpt"))[1], whole)


def test_hidden_states_teach_what_the_whole_distribution_does_on_exact_rows(families: Families) -> None:
    loss = DistillationLoss(kl_weight=1.0, temperature=2.0)
    for settings in (AlignmentSettings(kind="strict"),):
        hidden, whole = (
            train(families, settings, kind, loss=loss, trainer={"max_steps": 1})[0] for kind in ("hidden", "whole")
        )
        for name in ("divergence", "agreement"):
            for segment in ("rationale", "answer"):
                key = f"train/{name}_{segment}"
                assert hidden[key] == pytest.approx(whole[key], rel=5e-3), key


@pytest.fixture(scope="module")
def twins(families: Families) -> tuple[str, str]:
    """A cache of the student's own tokenizer, and the same rows in other numbers for the same tokens."""
    teacher, folder = str(MODELS / "b-teacher"), families.folder
    source = LogitCache(
        Path(capture(folder / "b", teacher, QUESTIONS, [families.rationales], max_length=500, top_k=64))
    )
    data = make_data(families, AlignmentSettings(), str(folder / "b"), logits_teacher="b-teacher")
    data.setup("fit")
    vocabulary = source.read_vocabulary()
    numbers = np.random.default_rng(0).permutation(len(vocabulary))
    names, flags = [b""] * len(numbers), [0] * len(numbers)
    for old, new in enumerate(numbers.tolist()):
        names[new], flags[new] = vocabulary.entries[old], int(vocabulary.flags[old])
    for name, meaning in (("same", data.tokenizer), ("other", VocabularyBytes.from_tokens(names, flags))):
        writer = LogitCacheWriter(folder / name, source.description)
        writer.open()
        for example in data.examples:
            rows = source.read(example)
            assert (vocabulary.flags[rows["support"]] == SPECIAL).any()
            if name == "other":
                rows["token_ids"] = numbers[rows["token_ids"]]
                rows["support"] = np.where(rows["support"] < 0, -1, numbers[rows["support"]])
            writer.add([(example, rows)])
        writer.flush()
        writer.finish(meaning, {})
        writer.close()
    return str(folder / "same"), str(folder / "other")


LOSSES = {
    **{name: DistillationLoss(kl_weight=0.7, divergence=name) for name in DIVERGENCES},
    "renormalize": DistillationLoss(kl_weight=0.7, tail="renormalize"),
    "ignore": DistillationLoss(kl_weight=0.7, tail="ignore"),
    "temperature": DistillationLoss(kl_weight=0.7, temperature=2.0, divergence="reverse_kl"),
    "renormalized temperature": DistillationLoss(kl_weight=1.0, temperature=2.0, tail="renormalize"),
    "steps": DistillationLoss(kl_weight=0.7, temperature=Schedule(shape="step", start=2.0, end=1.0, begin=0.5)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_other_numbers_for_the_same_tokens_teach_the_same_to_the_bit(
    families: Families, twins: tuple[str, str], loss: str
) -> None:
    same, other = twins
    options = {"loss": LOSSES[loss], "logits_teacher": "b-teacher", "trainer": {"max_epochs": 1}}
    metrics, weights = train(families, AlignmentSettings(), same, **options)
    for settings in (ALIGNED["strict"], AlignmentSettings(kind="bytes", spans="skip", whitespace="keep")):
        found, aligned = train(families, settings, other, **options)
        assert_same(aligned, weights)
        assert found.pop("align/strict") == 1
        assert {name: value for name, value in found.items() if not name.startswith("align/")} == metrics


@pytest.mark.parametrize(
    ("alignment", "kind", "loss", "message"),
    [
        ("bytes", "top_k", {"temperature": 2.0}, r"exact at 1 only; set data\.alignment\.spans to skip$"),
        ("strict", "top_k", {"temperature": 3.0}, r"temperature 3\.0 is not in .*top_k, which has \[1\.0, 2\.0\]"),
        ("strict", "top_k", {"temperature": 1.5, "unstored_temperature": "interpolate"}, r"interpolate"),
        ("strict", "sampled", {"divergence": "jsd"}, "a sampled teacher gives only"),
        ("bytes", "hybrid", {"temperature": 2.0}, "drawn at 1, not at 2"),
        ("strict", "hidden", {"tail": "ignore"}, "tail ignore would be ignored"),
        ("chunks", "sampled", {"temperature": 2.0}, r"a sampled teacher was drawn at 1, not at 2\.0$"),
        ("chunks", "top_k", {"tail": "ignore"}, r"tail"),
    ],
)
def test_a_loss_that_converted_rows_cannot_give_is_refused(families, alignment, kind, loss: dict, message: str) -> None:
    data = make_data(families, alignment, kind)
    data.setup("fit")
    with pytest.raises(ValueError, match=message) as caught:
        check_cache(DistillationLoss(kl_weight=0.5, **loss), data.caches[0])
    assert "\n" not in str(caught.value)

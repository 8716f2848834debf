from types import SimpleNamespace

import pytest
import torch

from datamodules.batches.teacher_rows import ExactTensors
from lightning_modules.student.own_text import OWN_LOSS, add_own_statistics, add_sums, check_own_text, list_metrics
from losses.distillation import DistillationLoss, LossSums
from losses.targets import FullTarget


def check(loss: DistillationLoss, has_own: bool = True, cross_entropy: bool = False) -> None:
    student = SimpleNamespace(loss=DistillationLoss(), own_loss=loss, own_cross_entropy=cross_entropy)
    own = SimpleNamespace(caches=[]) if has_own else None
    check_own_text(student, SimpleNamespace(own_examples=own, own=SimpleNamespace(logit_weights=None)))


def test_cross_entropy_on_the_students_own_text_is_asked_for_by_name() -> None:
    check(OWN_LOSS)
    half = DistillationLoss(kl_weight=0.5)
    check(half, cross_entropy=True)
    for loss, message in (
        (
            half,
            r"own_loss.kl_weight is 0.5, and the rest is cross-entropy, .*; set it to 1, or model.own_cross_entropy",
        ),
        (DistillationLoss(kl_weight=1.0, rationale_weight=0.0), "own_loss.rationale_weight is 0, but all of what"),
    ):
        with pytest.raises(ValueError, match=message):
            check(loss)
    with pytest.raises(ValueError, match="is 0, so that no teacher corrects"):
        check(DistillationLoss(), cross_entropy=True)


def test_settings_for_own_text_that_there_is_none_of_are_refused() -> None:
    check(OWN_LOSS, has_own=False)
    for loss, cross_entropy in ((DistillationLoss(kl_weight=1.0), False), (OWN_LOSS, True)):
        with pytest.raises(ValueError, match=r"would be ignored without data.own.rationales"):
            check(loss, has_own=False, cross_entropy=cross_entropy)


def test_importance_weights_are_for_own_text() -> None:
    student = SimpleNamespace(loss=DistillationLoss(max_weight=3.0), own_loss=OWN_LOSS)
    with pytest.raises(ValueError, match=r"model.loss.max_weight is for what the student drew itself; set model.own_l"):
        check_own_text(student, SimpleNamespace(own_examples=None))


def test_a_cache_that_cannot_give_the_loss_is_refused() -> None:
    sampled = SimpleNamespace(description=SimpleNamespace(sparsity=SimpleNamespace(kind="sampled")))
    student = SimpleNamespace(loss=DistillationLoss(), own_loss=OWN_LOSS, own_cross_entropy=False)
    data = SimpleNamespace(
        own_examples=SimpleNamespace(caches=[sampled]), own=SimpleNamespace(logit_weights={"t": 1.0})
    )
    with pytest.raises(ValueError, match="a sampled teacher gives only"):
        check_own_text(student, data)


def test_what_a_student_wrote_has_statistics_of_its_own() -> None:
    one, logits = torch.tensor(1.0), torch.eye(20)[:4] * 3
    sums, labels = LossSums(one, one, {"ce_rationale": (one, one)}), torch.arange(4)
    batch = {"labels": labels, "drawn": ExactTensors({"log_probs": logits.log_softmax(-1)[range(4), labels]})}
    target = FullTarget(torch.zeros(4, 1), torch.zeros(20, 1))
    inputs = logits / 2, lambda hidden: 2 * hidden
    parts = add_own_statistics(sums, batch, *inputs, target).parts
    # Nothing has changed since the draw, and the teacher gives all of 20 tokens the same.
    assert {name: (round(total.item(), 4), count.item()) for name, (total, count) in parts.items()} == {
        "ce_rationale": (1, 1), "staleness_rationale": (0, 4), "teacher_mass_on_top_16_rationale": (4 * 0.8, 4),
    }  # fmt: skip
    assert add_own_statistics(sums, {"labels": labels}, *inputs, target) is sums
    assert add_own_statistics(sums, batch, *inputs, None) is sums


def test_what_a_training_logs_is_known_before_it() -> None:
    data = SimpleNamespace(supervision="label", val_examples=[], own_examples=None, shares={"rows/agreeing": 0.5})
    rates = ["train/gradient_norm", "train/learning_rate"]
    tokens = ["ce", "accuracy", "student_entropy"]
    answers = [f"train/{name}_answer" for name in tokens]
    assert list_metrics(DistillationLoss(), data) == [*rates, "train/loss", *answers, "rows/agreeing"]
    own = SimpleNamespace(statistics={"share": 0.5})
    data = SimpleNamespace(supervision="rationale", val_examples=["an example"], own_examples=own, shares={})
    both = [f"{name}_{segment}" for name in tokens for segment in ("rationale", "answer")]
    found = list_metrics(DistillationLoss(), data)
    assert [name for name in found if "/own_" not in name] == [
        *rates, "train/loss", *(f"train/{name}" for name in both), "val/loss", *(f"val/{name}" for name in both)
    ]  # fmt: skip
    assert {name.removeprefix("train/own_") for name in found if "/own_" in name} == {
        *("loss", *tokens, "divergence", "teacher_entropy", "student_tail", "teacher_tail", "agreement"),
        *("staleness", "teacher_mass_on_top_16", "importance_weight", "clipped", "share"),
    }


def test_both_texts_add_to_one_loss_and_own_text_has_metrics_of_its_own() -> None:
    one, sums = torch.tensor(1.0), {}
    parts = {"ce_rationale": (3 * one, 2 * one), "ce_answer": (5 * one, one)}
    batch = {"counts": True}
    for micro_batch in (batch, batch | {"drawn": None}, batch | {"drawn": None, "counts": False}):
        add_sums(sums, LossSums(8 * one, 4 * one, parts), micro_batch)
    found = {name: pair.tolist() for name, pair in sums.items()}
    assert found == {
        "loss": [16, 8], "ce_rationale": [3, 2], "ce_answer": [5, 1], "own_loss": [8, 4], "own_ce": [3, 2],
    }  # fmt: skip

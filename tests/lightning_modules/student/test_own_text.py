from types import SimpleNamespace

import pytest
import torch

from lightning_modules.student.own_text import OWN_LOSS, add_sums, check_own_text
from losses.distillation import DistillationLoss, LossSums


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

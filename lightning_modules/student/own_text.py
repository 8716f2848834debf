"""How a student learns from what it wrote itself, beside a teacher's text, and what its steps log of that."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.distillation import DistillationDataModule
from lightning_modules.student.cached_targets import check_cache
from losses.distillation import DistillationLoss, LossSums
from losses.drawn import DRAWN_STATISTICS
from losses.mixture import STATISTICS, TEACHER_STATISTICS
from losses.own_text import OWN_STATISTICS, describe_own_rows
from losses.schedules import bounds
from losses.targets import Target

if TYPE_CHECKING:
    from lightning_modules.student.student import DistillationModule

# The teacher alone corrects what the student wrote, where the student is sure rather than where the teacher is.
OWN_LOSS = DistillationLoss(kl_weight=1.0, divergence="reverse_kl")
OWN_METRICS = tuple(f"own_{name}" for name in ("loss", *TEACHER_STATISTICS, *OWN_STATISTICS, *DRAWN_STATISTICS))


def check_own_text(student: "DistillationModule", data: DistillationDataModule) -> None:
    """Refuses a loss that does not go with what the student wrote.

    Raises:
        ValueError: It would be ignored; it has a share of cross-entropy that nobody asked for by name; or a cache does
            not have what it needs.
    """
    own, loss = data.own_examples, student.own_loss
    if student.loss.max_weight is not None:
        raise ValueError("model.loss.max_weight is for what the student drew itself; set model.own_loss.max_weight")
    if own is None:
        if loss != OWN_LOSS or student.own_cross_entropy:
            raise ValueError("model.own_loss and model.own_cross_entropy would be ignored without data.own.rationales")
        return
    low, high = bounds(loss.kl_weight)
    if low < 1 and not student.own_cross_entropy:
        raise ValueError(
            f"model.own_loss.kl_weight is {low:g}, and the rest is cross-entropy, which teaches the student to write "
            "what it wrote; set it to 1, or model.own_cross_entropy=true if that is meant"
        )
    if high == 0:
        raise ValueError("model.own_loss.kl_weight is 0, so that no teacher corrects what the student wrote")
    if bounds(loss.rationale_weight)[1] == 0:
        raise ValueError("model.own_loss.rationale_weight is 0, but all of what the student wrote is the rationale's")
    for cache in own.caches:
        check_cache(loss, cache, data.own.logit_weights is not None)


def add_own_statistics(
    sums: LossSums,
    batch: dict[str, Any],
    student_ND: Tensor,
    project: Callable[[Tensor], Tensor],
    target: Target | None,
) -> LossSums:
    """Adds what `OWN_STATISTICS` names to the sums of a batch that the student wrote; returns others as they are."""
    if "drawn" not in batch or target is None:
        return sums
    found = describe_own_rows(student_ND, project, batch["labels"], batch["drawn"].tensors["log_probs"], target)
    return replace(sums, parts=sums.parts | {f"{name}_rationale": pair for name, pair in found.items()})


def add_sums(into: dict[str, Tensor], sums: LossSums, batch: dict[str, Any]) -> None:
    """Adds a batch's [sum, weight] by metric, of the same metrics for every batch of a kind; a segment may weigh 0.

    What the student wrote has no answer sentence, and beside the loss metrics of its own.
    """
    pairs = {"loss": (sums.total.detach(), sums.weight), **sums.parts}
    if "drawn" in batch:
        own = {name.removesuffix("_rationale"): pair for name, pair in pairs.items() if not name.endswith("_answer")}
        pairs = {"loss": pairs["loss"], **{f"own_{name}": pair for name, pair in own.items()}}
    for name, (total, weight) in pairs.items():
        pair = torch.stack([total, weight.to(total)]) * batch["counts"]
        into[name] = into[name] + pair if name in into else pair


def list_metrics(loss: DistillationLoss, data: DistillationDataModule) -> list[str]:
    """Returns the names of what a training on this data logs."""
    statistics = TEACHER_STATISTICS if loss.needs_teacher else STATISTICS
    segments = ("answer",) if data.supervision == "label" else ("rationale", "answer")
    names = ["loss", *(f"{statistic}_{segment}" for statistic in statistics for segment in segments)]
    held_out = [f"val/{name}" for name in names] if len(data.val_examples) else []
    if data.own_examples is not None:
        names += [*OWN_METRICS, *(f"own_{name}" for name in data.own_examples.statistics)]
    steps = [f"train/{name}" for name in ("gradient_norm", "learning_rate", *names)]
    return [*steps, *held_out, *data.shares]

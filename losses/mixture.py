"""The mixture (1 - lambda) CE + lambda T^2 D of every row, on logits that exist: the reference of the fused head.

Shapes: N supervised tokens, K support, V student vocabulary, M outcomes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.divergences import Divergence, forward_kl, weigh
from losses.targets import (
    FullTarget,
    RowTarget,
    SampledTarget,
    SoftenedTarget,
    SparseTarget,
    Tail,
    Target,
    UnstoredTemperature,
    has_tail,
    soften,
)

STATISTICS = ("ce", "accuracy", "student_entropy")
TEACHER_STATISTICS = (*STATISTICS, "divergence", "teacher_entropy", "student_tail", "teacher_tail", "agreement")


SupportTarget = SparseTarget | SoftenedTarget | SampledTarget


@dataclass(frozen=True)
class Mixture:
    """What is computed of each row, all numbers settled.

    Attributes:
        kl_weight: lambda.
        temperature: T of both distributions in the divergence.
        divergence: D.
        tail: What becomes of the teacher's mass outside a sparse support. `bucket` makes it one more outcome, whose
            student mass is all that lies outside too. `renormalize` gives it to the support (p / sum_K p; the
            student's probabilities stay those of the whole vocabulary). `ignore` drops it: the sum runs over the
            support, and can be negative.
        unstored_temperature: See `SparseTarget.at_temperature`.
        max_weight: Where importance weights are cut off; None is the default of losses/drawn.py.
    """

    kl_weight: float
    temperature: float
    divergence: Divergence
    tail: Tail = "bucket"
    unstored_temperature: UnstoredTemperature = "refuse"
    max_weight: float | None = None

    def teacher_outcomes(self, target: SupportTarget) -> Tensor:
        """Returns the teacher's log-probabilities of the outcomes at T: [N, K], or [N, K + 1] with the tail last."""
        if isinstance(target, SampledTarget):
            return target.weights_NK.log()
        log_p_NK, log_tail_N = target.at_temperature(self.temperature, self.unstored_temperature)
        if self.tail == "bucket":
            return torch.cat([log_p_NK, log_tail_N[:, None]], dim=-1)
        if self.tail == "renormalize":
            return log_p_NK - log_p_NK.logsumexp(-1, keepdim=True)
        return log_p_NK

    def weigh(self, weights_N: Tensor, has_target_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the weights of CE's gradient and of D's, with respect to logits / T; CE's alone without a target."""
        ce_weights_N = (1 - self.kl_weight) * weights_N
        kl_weights_N = self.kl_weight * self.temperature * weights_N  # T^2, and d(z / T) / dz
        if has_target_N is None:
            return ce_weights_N, kl_weights_N
        return torch.where(has_target_N, ce_weights_N, weights_N), torch.where(has_target_N, kl_weights_N, 0.0)

    def join(self, ce_N: Tensor, divergence_N: Tensor, has_target_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the rows' loss and D; without a target CE and 0."""
        if has_target_N is not None:
            # Before the mixture: a gradient of 0 times infinity would be NaN.
            divergence_N = torch.where(has_target_N, divergence_N, 0.0)
        loss_N = (1 - self.kl_weight) * ce_N + self.kl_weight * self.temperature**2 * divergence_N
        return loss_N if has_target_N is None else torch.where(has_target_N, loss_N, ce_N), divergence_N

    def has_bucket(self, target: Target) -> bool:
        """Whether the last outcome is a tail."""
        if isinstance(target, FullTarget):
            return target.ids_V is not None
        return has_tail(type(target)) and self.tail == "bucket"


class Rows(NamedTuple):
    """Values of each row.

    Attributes:
        loss_N: (1 - lambda) CE + lambda T^2 D; CE where the target says nothing of the row.
        statistics: [N] by name, without gradient. Of every row: `ce`; `accuracy`, 1 where no token is more
            probable than the label; `student_entropy` at T = 1. With a teacher: `divergence`, D at T without T^2;
            `teacher_entropy` of the outcomes at T; `student_tail` and `teacher_tail`, the mass outside the support
            at T; `agreement`, 1 where the teacher's most probable token is also the student's.
    """

    loss_N: Tensor
    statistics: dict[str, Tensor]


def entropy(log_p: Tensor) -> Tensor:
    """Returns -sum p log p over the last axis, in nats."""
    return weigh(log_p, -log_p).sum(-1)


def clamp_support(support_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ids that all exist, unused ones repeating one of the row's, and where they were unused."""
    unused_NK = support_NK < 0
    return torch.where(unused_NK, support_NK.amax(1, keepdim=True), support_NK), unused_NK


def _student_outcomes(log_q_NV: Tensor, target: SupportTarget, bucket: bool) -> Tensor:
    ids_NK, unused_NK = clamp_support(target.support_NK)
    log_q_NK = log_q_NV.gather(-1, ids_NK).masked_fill(unused_NK, -math.inf)
    if not bucket:
        return log_q_NK
    return _append_rest(log_q_NK, log_q_NV.scatter(-1, ids_NK, -math.inf))


def _append_rest(log_q_NM: Tensor, outside_NV: Tensor) -> Tensor:
    """Appends the mass of the tokens outside the outcomes: 1 minus theirs loses every digit where q is sure."""
    covered_N = outside_NV.isneginf().all(-1)
    # logsumexp of nothing but -inf has no gradient, only NaN.
    log_tail_N = torch.where(covered_N[:, None], 0.0, outside_NV).logsumexp(-1).masked_fill(covered_N, -math.inf)
    return torch.cat([log_q_NM, log_tail_N[:, None]], dim=-1)


def _full_outcomes(log_q_NV: Tensor, target: FullTarget) -> Tensor:
    if target.ids_V is None:
        return log_q_NV
    reached_V = target.reaches(log_q_NV.shape[-1])
    outside_NV = log_q_NV.masked_fill(reached_V, -math.inf)
    return _append_rest(log_q_NV.masked_fill(~reached_V, -math.inf), outside_NV)


def mix_rows(logits_NV: Tensor, labels_N: Tensor, target: RowTarget | None, mixture: Mixture) -> Rows:
    """Computes the mixture of every row from logits, with gradients by autograd.

    Args:
        logits_NV: The student's logits; computed with in float32 at least.
        labels_N: The tokens that were to be predicted, int64.
        target: The teacher's rows; None where lambda is 0.
        mixture: What to compute.
    """
    logits_NV = soften(logits_NV, None)
    loss_N = ce_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    top_N = logits_NV.detach().amax(-1)

    def is_top(ids_N: Tensor) -> Tensor:
        return (logits_NV.detach().gather(-1, ids_N[:, None])[:, 0] >= top_N).to(logits_NV.dtype)

    statistics = {"ce": ce_N, "accuracy": is_top(labels_N)}
    with torch.no_grad():
        statistics["student_entropy"] = entropy(logits_NV.log_softmax(-1))
    if target is not None:
        log_q_NV = (logits_NV / mixture.temperature).log_softmax(-1)
        bucket = mixture.has_bucket(target)
        if isinstance(target, FullTarget):
            log_p_NM = target.log_probs(mixture.temperature, logits_NV.shape[-1]).to(logits_NV.dtype)
            log_q_NM, best_N = _full_outcomes(log_q_NV, target), log_p_NM[:, : logits_NV.shape[-1]].argmax(-1)
        else:
            log_p_NM = mixture.teacher_outcomes(target).to(logits_NV.dtype)
            log_q_NM = _student_outcomes(log_q_NV, target, bucket)
            best_N = target.support_NK.gather(-1, find_best(target, log_p_NM))[:, 0]
        loss_N, divergence_N = mixture.join(ce_N, mixture.divergence(log_p_NM, log_q_NM), target.has_target_N)
        statistics |= describe_outcomes(log_p_NM, log_q_NM, bucket)
        statistics |= {"divergence": divergence_N, "agreement": is_top(best_N)}
    return Rows(loss_N, {name: value_N.detach() for name, value_N in statistics.items()})


def find_best(target: SupportTarget, log_p_NM: Tensor) -> Tensor:
    """Returns the place in the support of the teacher's most probable token, [N, 1]."""
    return log_p_NM[:, : target.support_NK.shape[-1]].argmax(-1, keepdim=True)


def describe_outcomes(log_p_NM: Tensor, log_q_NM: Tensor, bucket: bool) -> dict[str, Tensor]:
    """Returns the statistics that the outcomes alone determine."""
    with torch.no_grad():
        tails = [log[:, -1].exp() if bucket else torch.zeros_like(log[:, 0]) for log in (log_p_NM, log_q_NM)]
        return {"teacher_entropy": entropy(log_p_NM), "teacher_tail": tails[0], "student_tail": tails[1]}


CROSS_ENTROPY = Mixture(kl_weight=0.0, temperature=1.0, divergence=forward_kl)

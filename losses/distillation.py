"""The distillation loss as an experiment sets it: weights, divergence, temperature, and how they change in training.

Shapes: N supervised tokens, D hidden size, V student vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.chunks import mix_labels, mix_labels_fused
from losses.divergences import DivergenceName, forward_kl, get_divergence, reverse_kl, soft_cross_entropy
from losses.fused_head import Kernel, OutputHead, mix_fused
from losses.kernel_trial import can_have_kernels
from losses.mixture import STATISTICS, Mixture, mix_rows
from losses.schedules import Schedule, bounds, value_at
from losses.targets import ChunkTarget, DrawnTarget, SampledTarget, Tail, Target, UnstoredTemperature, has_tail


@dataclass(frozen=True)
class LossSums:
    """Sums over the supervised tokens of a batch; dividing by a global weight is the caller's.

    Attributes:
        total: sum_t w_t l_t, with gradient.
        weight: sum_t w_t.
        parts: Detached (sum, count) by `{statistic}_{segment}`, for logging; see `Rows.statistics`. What depends on
            the teacher is counted where there is a target.
    """

    total: Tensor
    weight: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepLoss:
    """The loss at one step of training: all its numbers are settled.

    Attributes:
        mixture: What is computed of each row.
        rationale_weight: w of the rationale's tokens.
        answer_weight: w of the answer sentence's tokens.
        kernel: What goes over the logits where they never exist; None is `mix_fused`'s choice.
    """

    mixture: Mixture
    rationale_weight: float
    answer_weight: float
    kernel: Kernel | None = None

    def __call__(self, logits_NV: Tensor, labels_N: Tensor, is_answer_N: Tensor, target: Target | None) -> LossSums:
        """Computes the weighted sum over N supervised tokens from logits that exist: the reference.

        Args:
            logits_NV: The student's logits; computed with in float32 at least.
            labels_N: The tokens that were to be predicted, int64.
            is_answer_N: True in the answer segment, False in the rationale.
            target: The teacher's rows; not read where lambda is 0.

        Raises:
            ValueError: Shapes disagree, or the target does not have what the loss needs.
        """
        target, weights_N = self._prepare(logits_NV, labels_N, is_answer_N, target)
        if isinstance(target, ChunkTarget | DrawnTarget):
            sums = mix_labels(logits_NV, labels_N, weights_N, target, self.mixture)
            return self._sum(*sums, weights_N, is_answer_N, _find_taught(target))
        rows = mix_rows(logits_NV, labels_N, target, self.mixture)
        # A row without weight does not count even where its loss is infinite.
        total = torch.where(weights_N > 0, weights_N * rows.loss_N, 0.0).sum()
        return self._sum(total, rows.statistics, weights_N, is_answer_N, target and target.has_target_N)

    def from_hidden(
        self, hidden_ND: Tensor, head: OutputHead, labels_N: Tensor, is_answer_N: Tensor, target: Target | None
    ) -> LossSums:
        """Computes the same from the student's last hidden states and its head; the logits never exist."""
        target, weights_N = self._prepare(hidden_ND, labels_N, is_answer_N, target)
        inputs = (hidden_ND, head, labels_N, weights_N)
        if isinstance(target, ChunkTarget | DrawnTarget):
            sums = mix_labels_fused(*inputs, target, self.mixture, self.kernel)
            return self._sum(*sums, weights_N, is_answer_N, _find_taught(target))
        total, statistics = mix_fused(*inputs, target, self.mixture, kernel=self.kernel)
        return self._sum(total, statistics, weights_N, is_answer_N, target and target.has_target_N)

    def _prepare(
        self, student_ND: Tensor, labels_N: Tensor, is_answer_N: Tensor, target: Target | None
    ) -> tuple[Target | None, Tensor]:
        """Returns the target, if it is needed, and the rows' weights."""
        lengths = {"labels": len(labels_N), "is_answer": len(is_answer_N)}
        if self.mixture.kl_weight == 0:
            target = None
        elif target is None:
            raise ValueError(f"loss.kl_weight is {self.mixture.kl_weight}, but there are no teacher rows")
        else:
            lengths["target"] = len(target[0])
            check_kind(self.mixture, type(target))
        if set(lengths.values()) != {len(student_ND)}:
            raise ValueError(f"there are {len(student_ND)} supervised rows, but {lengths}")
        dtype = torch.promote_types(student_ND.dtype, torch.float32)
        # Not as Python numbers, of which `where` makes float32, whatever the student's precision.
        answer, rationale = (
            is_answer_N.new_full((), w, dtype=dtype) for w in (self.answer_weight, self.rationale_weight)
        )
        return target, torch.where(is_answer_N, answer, rationale)

    @staticmethod
    def _sum(
        total: Tensor,
        statistics: dict[str, Tensor],
        weights_N: Tensor,
        is_answer_N: Tensor,
        has_target_N: Tensor | None,
    ) -> LossSums:
        parts = {}
        for segment, mask_N in (("rationale", ~is_answer_N), ("answer", is_answer_N)):
            taught_N = mask_N if has_target_N is None else mask_N & has_target_N
            count, taught = mask_N.sum(), taught_N.sum()
            for name, value_N in statistics.items():
                if name in STATISTICS:
                    parts[f"{name}_{segment}"] = (torch.where(mask_N, value_N, 0.0).sum(), count)
                else:
                    parts[f"{name}_{segment}"] = (torch.where(taught_N, value_N, 0.0).sum(), taught)
        return LossSums(total=total, weight=weights_N.sum(), parts=parts)


def _find_taught(target: ChunkTarget | DrawnTarget) -> Tensor | None:
    return target.chunks_N >= 0 if isinstance(target, ChunkTarget) else None


def check_kind(mixture: Mixture, kind: type[Target]) -> None:
    """Raises a ValueError if this kind of target cannot give the mixture's divergence, temperature or tail."""
    if kind is SampledTarget:
        if mixture.divergence not in (forward_kl, soft_cross_entropy):
            raise ValueError(
                "loss.divergence: a sampled teacher gives only forward_kl and soft_cross_entropy without bias; use one "
                "of them, or a logit cache of another kind"
            )
        if mixture.temperature != 1:
            raise ValueError(f"loss.temperature: a sampled teacher was drawn at 1, not at {mixture.temperature}")
    if kind is DrawnTarget:
        if mixture.divergence is not reverse_kl:
            raise ValueError(
                "loss.divergence: the probabilities of drawn tokens alone, kind labels, give only reverse_kl without "
                "bias; use it, or a logit cache of another kind"
            )
        if mixture.temperature != 1:
            raise ValueError(f"loss.temperature: the student's tokens were drawn at 1, not at {mixture.temperature}")
    elif mixture.max_weight is not None:
        raise ValueError(
            "loss.max_weight would be ignored: only a teacher's probabilities of drawn tokens alone, kind labels of "
            "data.own.logits, need importance weights; leave it out"
        )
    if not has_tail(kind) and mixture.tail != "bucket":
        raise ValueError(f"loss.tail {mixture.tail} would be ignored: only a teacher's top tokens leave a tail")


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """w_s [(1 - lambda) CE + lambda T^2 D] for each supervised token of segment s (rationale or answer).

    A token of which the teacher says nothing has w_s CE. Of spans of text (see losses/chunks.py) D has no T^2.

    T^2 keeps the gradient's size whatever T (Hinton et al. 2015, arXiv 1503.02531); it multiplies every divergence
    alike, value and gradient. At T = 1 with forward KL the mixture is one cross-entropy against the soft target
    (1 - lambda) label + lambda p, up to a constant. The four numbers may be schedules.

    Attributes:
        kl_weight: lambda, the divergence's share; 0 is cross-entropy alone and reads no teacher rows, 1 is the
            divergence alone.
        temperature: T, softens both distributions in the divergence; the cross-entropy stays at 1.
        rationale_weight: w of the rationale's tokens.
        answer_weight: w of the answer sentence's tokens.
        divergence: D; see losses/divergences.py.
        beta: jsd's weight of the teacher; null is 0.5.
        alpha: The share that skewed_kl and skewed_reverse_kl mix in; null is 0.1.
        head_mass: adaptive_kl's head; null is 0.5.
        tail: The teacher's mass outside a sparse support: bucket, renormalize or ignore; see `Mixture`.
        unstored_temperature: Refuse a temperature that the logit cache does not have, or interpolate.
        max_weight: Where the importance weights of tokens that the student drew itself are cut off, if a cache of kind
            labels has nothing but their probabilities, see losses/drawn.py; at least 1; null is 2.
        kernel: What goes over the logits: torch, or Triton kernels that read them twice and write them once; null is
            Triton on a CUDA GPU where, tried at the start, it runs and gives what torch gives, and has the loss: of
            whole distributions only forward_kl, soft_cross_entropy and reverse_kl between the same token ids.
    """

    kl_weight: float | Schedule = 0.0
    temperature: float | Schedule = 1.0
    rationale_weight: float | Schedule = 1.0
    answer_weight: float | Schedule = 1.0
    divergence: DivergenceName = "forward_kl"
    beta: float | None = None
    alpha: float | None = None
    head_mass: float | None = None
    tail: Tail = "bucket"
    unstored_temperature: UnstoredTemperature = "refuse"
    max_weight: float | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        if self.kernel == "triton" and not can_have_kernels():
            raise ValueError("loss.kernel triton needs the package triton and a CUDA GPU; use torch")
        numbers = {
            "kl_weight": self.kl_weight,
            "temperature": self.temperature,
            "rationale_weight": self.rationale_weight,
            "answer_weight": self.answer_weight,
        }
        for name, (low, high) in ((name, bounds(number)) for name, number in numbers.items()):
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"loss.{name} must be finite, not {numbers[name]}")
            too_low = low < 0 or (name == "temperature" and low == 0)
            if too_low or (name == "kl_weight" and high > 1):
                allowed = {"kl_weight": "between 0 and 1", "temperature": "above 0"}.get(name, "at least 0")
                raise ValueError(f"loss.{name} must be {allowed}, not {low if too_low else high}")
        if bounds(self.rationale_weight)[1] == bounds(self.answer_weight)[1] == 0:
            raise ValueError("loss.rationale_weight and loss.answer_weight are both 0; nothing is supervised")
        if self.max_weight is not None and not (math.isfinite(self.max_weight) and self.max_weight >= 1):
            raise ValueError(f"loss.max_weight must be finite and at least 1, not {self.max_weight}")
        self.at(0.0)

    @property
    def needs_teacher(self) -> bool:
        """Whether the divergence counts at any step."""
        return bounds(self.kl_weight)[1] > 0

    @property
    def supervises_answers(self) -> bool:
        """Whether the answer sentence counts at any step."""
        return bounds(self.answer_weight)[1] > 0

    def at(self, progress: float) -> StepLoss:
        """Returns the loss at a share of all optimizer steps, 0 at the first."""
        mixture = Mixture(
            kl_weight=value_at(self.kl_weight, progress),
            temperature=value_at(self.temperature, progress),
            divergence=get_divergence(self.divergence, beta=self.beta, alpha=self.alpha, head_mass=self.head_mass),
            tail=self.tail,
            unstored_temperature=self.unstored_temperature,
            max_weight=self.max_weight,
        )
        return StepLoss(
            mixture, value_at(self.rationale_weight, progress), value_at(self.answer_weight, progress), self.kernel
        )

"""The divergence between the probabilities that two models with any tokenizers give the same spans of a text.

A span c is the shortest in which both write whole tokens. With log P the sum of the teacher's log-probabilities of
its tokens over T, and log Q likewise of the student's, D compares (P, 1 - P) with (Q, 1 - Q); forward KL is
P log(P / Q) + (1 - P) log((1 - P) / (1 - Q)) (ALM, Minixhofer et al. 2025, arXiv 2503.20083). A span counts as much as
its rows of the student, so that sum_c n_c D_c stands beside the rows' cross-entropy. T makes long spans' probabilities
comparable; it softens no distribution, and the loss has no T^2.

What depends on the student's log-probabilities of the text's own tokens alone, as here and in losses/drawn.py, is
computed from each row's cross-entropy.

Shapes: N supervised tokens, C spans.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from losses.drawn import sum_drawn
from losses.fused_head import Kernel, OutputHead, mix_fused
from losses.mixture import CROSS_ENTROPY, Mixture, describe_outcomes, mix_rows
from losses.targets import ChunkTarget, DrawnTarget

# 1 minus a float32 knows no smaller rest.
_SURE = -(2.0**-24)


class LabelSums(NamedTuple):
    """The loss of a batch's rows.

    Attributes:
        total: sum_n w_n (1 - lambda) CE_n + lambda sum_c w_c D_c, w_c the sum of the span's rows' weights; CE alone of
            rows without a span. Of drawn tokens see `sum_drawn`.
        statistics: [N] by name; of a span the same in each of its rows.
    """

    total: Tensor
    statistics: dict[str, Tensor]


def log1mexp(x: Tensor) -> Tensor:
    """Returns log(1 - exp(x)) of numbers below 0 (Maechler 2012)."""
    small = x > -0.6931472
    # Each branch sees only numbers that it keeps finite, in its gradient too.
    near, far = torch.where(small, x, -1.0), torch.where(small, -1.0, x)
    return torch.where(small, (-torch.expm1(near)).log(), torch.log1p(-far.exp()))


def _binarise(log_p_C: Tensor, temperature: float) -> Tensor:
    """Returns the log-probabilities of a span's text and of any other, [C, 2]."""
    log_p_C = (log_p_C / temperature).clamp(max=_SURE)
    return torch.stack([log_p_C, log1mexp(log_p_C)], dim=-1)


def sum_chunks(ce_N: Tensor, weights_N: Tensor, target: ChunkTarget, mixture: Mixture) -> LabelSums:
    """Computes the loss of spans from the student's cross-entropy of each row; gradients flow to it."""
    C = len(target.log_probs_C)
    inside_N = target.chunks_N >= 0
    chunks_N = torch.where(inside_N, target.chunks_N, C)

    def sum_rows(value_N: Tensor) -> Tensor:
        return value_N.new_zeros(C + 1).index_add(0, chunks_N, value_N)[:C]

    log_p_C2 = _binarise(target.log_probs_C.to(ce_N.dtype), mixture.temperature)
    log_q_C2 = _binarise(-sum_rows(ce_N), mixture.temperature)
    divergence_C = mixture.divergence(log_p_C2, log_q_C2)
    ce_weights_N = torch.where(inside_N, (1 - mixture.kl_weight) * weights_N, weights_N)
    weights_C = mixture.kl_weight * sum_rows(weights_N)
    # What has no weight does not count even where its loss is infinite.
    total = torch.where(ce_weights_N > 0, ce_weights_N * ce_N, 0.0).sum()
    total = total + torch.where(weights_C > 0, weights_C * divergence_C, 0.0).sum()
    of_chunks = {"divergence": divergence_C.detach(), **describe_outcomes(log_p_C2, log_q_C2.detach(), bucket=True)}
    statistics = {name: torch.cat([value_C, value_C.new_zeros(1)])[chunks_N] for name, value_C in of_chunks.items()}
    return LabelSums(total, statistics)


def _sum(ce_N: Tensor, weights_N: Tensor, target: ChunkTarget | DrawnTarget, mixture: Mixture) -> LabelSums:
    if isinstance(target, ChunkTarget):
        return sum_chunks(ce_N, weights_N, target, mixture)
    return LabelSums(*sum_drawn(ce_N, weights_N, target, mixture))


def mix_labels(
    logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor, target: ChunkTarget | DrawnTarget, mixture: Mixture
) -> LabelSums:
    """Computes the loss from logits that exist: the reference."""
    rows = mix_rows(logits_NV, labels_N, None, CROSS_ENTROPY)
    sums = _sum(rows.loss_N, weights_N, target, mixture)
    return LabelSums(sums.total, _join(rows.statistics, sums.statistics, target))


def mix_labels_fused(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    weights_N: Tensor,
    target: ChunkTarget | DrawnTarget,
    mixture: Mixture,
    kernel: Kernel | None = None,
) -> LabelSums:
    """Computes the same from hidden states, projected twice: a row's gradient depends on all rows of its span.

    The first pass gives each row's cross-entropy; the gradient with respect to it is the row's weight in the second.
    """
    inputs = (hidden_ND, head, labels_N)
    with torch.no_grad():
        _, statistics = mix_fused(*inputs, weights_N, None, CROSS_ENTROPY, kernel=kernel)
    with torch.enable_grad():
        ce_N = statistics["ce"].detach().requires_grad_()
        sums = _sum(ce_N, weights_N, target, mixture)
        (row_weights_N,) = torch.autograd.grad(sums.total, ce_N)
    total = sums.total.detach()
    if torch.is_grad_enabled():
        linear, _ = mix_fused(*inputs, row_weights_N, None, CROSS_ENTROPY, kernel=kernel)
        total = total + (linear - linear.detach())
    return LabelSums(total, _join(statistics, sums.statistics, target))


def _join(rows: dict[str, Tensor], own: dict[str, Tensor], target: ChunkTarget | DrawnTarget) -> dict[str, Tensor]:
    """Joins both statistics; the one token that the teacher names is the label, unless the student named it."""
    named = {"agreement": rows["accuracy"]} if isinstance(target, ChunkTarget) else {}
    return {**rows, **own, **named}

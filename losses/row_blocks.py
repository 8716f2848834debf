"""A block of logits becomes its loss and, in the same memory, its gradient: the fused head between its products.

For a sparse target the gradient of (1 - lambda) CE + lambda T^2 D needs one number a row outside the support: with
g = dD / d log q, over the outcomes m, G = sum g_m, and kappa the student's mass outside the support,

    dD / dz_j = g_j - q_j G                    (j in the support)
    dD / dz_j = q_j (g_tail / kappa - G)       (j outside)

where g comes from autograd on the [rows, K + 1] outcomes, so that every divergence goes this road; forward KL at
T = 1 is then one cross-entropy against a soft target.

Shapes: B rows of a block, V vocabulary, K support, M outcomes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from losses.divergences import LOG_ZERO, forward_kl, reverse_kl, soft_cross_entropy
from losses.mixture import Mixture, Rows, clamp_support, describe_outcomes, entropy, find_best, mix_rows
from losses.rows import RowPasses
from losses.targets import FullTarget, RowTarget

# Whose gradient for a whole distribution is written down in `mix_full_block`; the others' is autograd's.
CLOSED_FORMS = (forward_kl, soft_cross_entropy, reverse_kl)
# Stands for a logit that is left out: exp of it is 0, and unlike -inf it may be multiplied by 0.
LEFT_OUT = -1e30


def has_closed_form(target: RowTarget | None, mixture: Mixture) -> bool:
    """Says whether the gradient is written down here, so that none is autograd's over the vocabulary."""
    return not isinstance(target, FullTarget) or (target.ids_V is None and mixture.divergence in CLOSED_FORMS)


def mix_sparse_block(
    z_BV: Tensor, labels_B: Tensor, weights_B: Tensor, target: Any, mixture: Mixture, passes: RowPasses
) -> Rows:
    """Replaces logits by their gradient times `weights_B`, and returns the rows' values.

    Args:
        z_BV: Logits; overwritten. All else is computed in the dtype of `weights_B`, float32 or float64.
        labels_B: Token ids.
        weights_B: The rows' weights; 0 leaves a gradient of 0.
        target: Sparse or sampled rows; None where lambda is 0.
        mixture: What to compute.
        passes: What goes over all of the logits.
    """
    exact = weights_B.dtype
    z_label_B = passes.read(z_BV, labels_B[:, None])[:, 0]
    if target is None:
        rest = passes.sum(z_BV)
        top_B = rest.top_B
        loss_B = rest.log_sum_B - z_label_B
        statistics = {"ce": loss_B, "student_entropy": rest.log_sum_B - rest.mean_B}
        passes.write(z_BV, weights_B, torch.zeros_like(weights_B), labels_B, weights_B)
    else:
        T, K = mixture.temperature, target.support_NK.shape[1]
        ce_weights_B, kl_weights_B = mixture.weigh(weights_B, target.has_target_N)
        ids_BK, unused_BK = clamp_support(target.support_NK)
        read_BK = passes.read(z_BV, ids_BK)
        z_BK = read_BK.masked_fill(unused_BK, -math.inf)
        covered_B = (~unused_BK).sum(1) == z_BV.shape[1]
        # What is left is the rest of the vocabulary; its softmax is the student's distribution given no support.
        z_BV.scatter_(1, ids_BK, max(LEFT_OUT, torch.finfo(z_BV.dtype).min))
        rest = passes.sum(z_BV)
        top_B = torch.maximum(rest.top_B, z_BK.amax(1))
        log_rest_B = rest.log_sum_B.masked_fill(covered_B, -math.inf)
        log_z_B = torch.logaddexp(log_rest_B, z_BK.logsumexp(1))
        log_kappa_B = log_rest_B - log_z_B
        rest_entropy_B = (log_rest_B - rest.mean_B).masked_fill_(covered_B, 0.0)
        student_entropy_B = entropy(torch.cat([z_BK - log_z_B[:, None], log_kappa_B[:, None]], dim=1))
        student_entropy_B += log_kappa_B.exp() * rest_entropy_B

        if T == 1:
            soft_log_z_B, soft_log_kappa_B = log_z_B, log_kappa_B
        else:
            soft_log_rest_B = rest.soft_log_sum_B.masked_fill(covered_B, -math.inf)
            soft_log_z_B = torch.logaddexp(soft_log_rest_B, (z_BK / T).logsumexp(1))
            soft_log_kappa_B = soft_log_rest_B - soft_log_z_B
        log_p_BM = mixture.teacher_outcomes(target).to(exact)
        log_q_BM = z_BK / T - soft_log_z_B[:, None]
        if bucket := mixture.has_bucket(target):
            log_q_BM = torch.cat([log_q_BM, soft_log_kappa_B[:, None]], dim=1)
        with torch.enable_grad():
            divergence_B = mixture.divergence(log_p_BM, log_q_BM.requires_grad_())
            (g_BM,) = torch.autograd.grad(divergence_B.sum(), log_q_BM)
        divergence_B, log_q_BM = divergence_B.detach(), log_q_BM.detach()
        if target.has_target_N is not None:
            g_BM = torch.where(target.has_target_N[:, None], g_BM, 0.0)

        # The gradient for the rest is a number a row times its own softmax; the support's is written over it.
        g_sum_B = g_BM.sum(1)
        kappa_weights_B = kl_weights_B * ((g_BM[:, -1] if bucket else 0.0) - g_sum_B * soft_log_kappa_B.exp())
        rest_weights_B = ce_weights_B * log_kappa_B.exp()
        is_label_BK = (ids_BK == labels_B[:, None]) & ~unused_BK
        d_BK = kl_weights_B[:, None] * (g_BM[:, :K] - g_sum_B[:, None] * log_q_BM[:, :K].exp())
        d_BK += ce_weights_B[:, None] * ((z_BK - log_z_B[:, None]).exp() - is_label_BK.to(exact))
        d_BK.masked_fill_(unused_BK, 0.0)
        label_weights_B = ce_weights_B.masked_fill(is_label_BK.any(1), 0.0)
        passes.write(z_BV, rest_weights_B, kappa_weights_B, labels_B, label_weights_B)
        # The support's places hold 0 by now; unused ones add their 0 to the row's first token.
        passes.add(z_BV, ids_BK, d_BK, read_BK)

        ce_B = log_z_B - z_label_B
        loss_B, divergence_B = mixture.join(ce_B, divergence_B, target.has_target_N)
        agrees_B = z_BK.gather(1, find_best(target, log_p_BM))[:, 0] >= top_B
        statistics = {"ce": ce_B, "student_entropy": student_entropy_B, "divergence": divergence_B}
        statistics |= {"agreement": agrees_B.to(exact), **describe_outcomes(log_p_BM, log_q_BM, bucket)}
    return Rows(loss_B, {**statistics, "accuracy": (z_label_B >= top_B).to(exact)})


def mix_full_block(
    z_BV: Tensor, labels_B: Tensor, weights_B: Tensor, target: FullTarget, mixture: Mixture, passes: RowPasses
) -> Rows:
    """Does what `mix_sparse_block` does, for a teacher's whole distribution over the same ids and a KL divergence.

    With p and q at T, d KL(p || q) / d (z / T) = q - p, and d KL(q || p) / d (z / T) = q (log q - log p - KL(q || p)).
    """
    exact = weights_B.dtype
    log_p_BV = target.log_probs(mixture.temperature, z_BV.shape[1]).to(exact)
    # An id that the teacher lacks counts as in losses/divergences.py.
    log_p_BV[:, len(target.weight_VD) :] = LOG_ZERO
    read_B2 = passes.read(z_BV, torch.stack([labels_B, log_p_BV.argmax(1)], dim=1))
    ce_weights_B, kl_weights_B = mixture.weigh(weights_B, target.has_target_N)
    is_reverse = mixture.divergence is reverse_kl
    sums, crossed_B, teacher_entropy_B = passes.compare(z_BV, log_p_BV, is_reverse)
    divergence_B = crossed_B - sums.soft_log_sum_B if is_reverse else sums.soft_log_sum_B - crossed_B
    if mixture.divergence is forward_kl:
        divergence_B -= teacher_entropy_B
    passes.write_compared(z_BV, log_p_BV, ce_weights_B, kl_weights_B, labels_B)

    ce_B = sums.log_sum_B - read_B2[:, 0]
    loss_B, divergence_B = mixture.join(ce_B, divergence_B, target.has_target_N)
    statistics = {"ce": ce_B, "student_entropy": sums.log_sum_B - sums.mean_B, "divergence": divergence_B}
    statistics["accuracy"], statistics["agreement"] = (read_B2 >= sums.top_B[:, None]).to(exact).unbind(1)
    nothing_B = torch.zeros_like(ce_B)
    tails = {"student_tail": nothing_B, "teacher_tail": nothing_B}
    return Rows(loss_B, {**statistics, "teacher_entropy": teacher_entropy_B, **tails})


def mix_block_by_autograd(z_BV: Tensor, labels_B: Tensor, weights_B: Tensor, target: Any, mixture: Mixture) -> Rows:
    """Does what `mix_sparse_block` does, for whole distributions of which nothing is known."""
    with torch.enable_grad():
        logits_BV = z_BV.clone().requires_grad_()
        rows = mix_rows(logits_BV, labels_B, target, mixture)
        (gradient_BV,) = torch.autograd.grad((weights_B * rows.loss_N).sum(), logits_BV)
    z_BV.copy_(gradient_BV)
    return Rows(rows.loss_N.detach(), rows.statistics)

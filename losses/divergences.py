"""Divergences between a teacher p and a student q, given as log-probabilities over the same outcomes.

The outcomes are the whole vocabulary, or a support and one bucket for the rest of it; the formulas are the same,
and by the data processing inequality a bucket never raises the divergence (it keeps all f-divergences below those
on the full vocabulary). Each function takes `log_p` and `log_q`, both [..., M] with one outcome in each last place,
and returns [...], in nats (total variation: in probability). An outcome with p = q = 0 counts nothing, and has no
gradient. A teacher's exact zero where the student has mass would make some of them infinite: it counts as
`LOG_ZERO`, the smallest float32. Gradients flow to `log_q` only where the caller wants them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

LOG_ZERO = math.log(torch.finfo(torch.float32).tiny)

DivergenceName = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skewed_kl",
    "skewed_reverse_kl",
    "total_variation",
    "adaptive_kl",
    "soft_cross_entropy",
]
Divergence = Callable[[Tensor, Tensor], Tensor]


def weigh(log_weight: Tensor, value: Tensor) -> Tensor:
    """Returns exp(log_weight) * value, which is 0, with a gradient of 0, where the weight is 0."""
    nothing = log_weight.isneginf()
    weight = torch.where(nothing, 0.0, log_weight).exp()
    return torch.where(nothing, 0.0, weight * torch.where(nothing, 0.0, value))


def _mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """Returns log(share * a + (1 - share) * b); -inf, with a gradient of 0, where both are 0."""
    nothing = log_a.isneginf() & log_b.isneginf()
    a, b = (torch.where(nothing, 0.0, log) for log in (log_a, log_b))
    return torch.where(nothing, -math.inf, torch.logaddexp(a + math.log(share), b + math.log1p(-share)))


def _without_zeros(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns log_p with the teacher's exact zeros raised to `LOG_ZERO` where the student has mass."""
    return torch.where(log_p.isneginf() & ~log_q.isneginf(), LOG_ZERO, log_p)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum p log(p / q) (Hinton et al. 2015, arXiv 1503.02531, up to the teacher's entropy)."""
    return weigh(log_p, log_p - log_q).sum(-1)


def soft_cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """-sum p log q: forward KL plus the teacher's entropy, with the same gradient."""
    return weigh(log_p, -log_q).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) = sum q log(q / p) (MiniLLM, Gu et al. 2024, arXiv 2306.08543)."""
    return weigh(log_q, log_q - _without_zeros(log_p, log_q)).sum(-1)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """JSD: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649).

    beta weighs the teacher, as in GKD. TRL and Liger write the same with beta = 0 and 1 as forward and reverse KL,
    where this formula is 0; the DistiLLM and KDFlow code weigh the student by it.
    """
    log_m = _mix(log_p, log_q, beta)
    return (beta * weigh(log_p, log_p - log_m) + (1 - beta) * weigh(log_q, log_q - log_m)).sum(-1)


def skewed_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) (DistiLLM, Ko et al. 2024, arXiv 2402.03898); alpha is the teacher's share."""
    return weigh(log_p, log_p - _mix(log_p, log_q, alpha)).sum(-1)


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """KL(q || (1 - alpha) p + alpha q) (DistiLLM, arXiv 2402.03898); alpha is the student's share."""
    return weigh(log_q, log_q - _mix(log_q, log_p, alpha)).sum(-1)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """0.5 sum |p - q| (f-distill, Wen et al. 2023, arXiv 2307.15190)."""
    ones = torch.ones_like(log_q)
    return 0.5 * (weigh(log_p, ones) - weigh(log_q, ones)).abs().sum(-1)


def adaptive_kl(log_p: Tensor, log_q: Tensor, head_mass: float) -> Tensor:
    """AKL: g KL(p || q) + (1 - g) KL(q || p), g the head's share of sum |p - q| (Wu et al. 2024, arXiv 2404.02657).

    The head is the longest run of the teacher's most probable outcomes whose mass is at most `head_mass`, and at
    least its first. g has no gradient; it is 1/2 where p = q.
    """
    with torch.no_grad():
        order = log_p.argsort(dim=-1, descending=True, stable=True)
        p = log_p.exp().gather(-1, order)
        gaps = (p - log_q.exp().gather(-1, order)).abs()
        in_head = p.cumsum(-1) <= head_mass
        in_head[..., 0] = True
        head, all_gaps = torch.where(in_head, gaps, 0.0).sum(-1), gaps.sum(-1)
        share = torch.where(all_gaps > 0, head / all_gaps, 0.5)
    return share * forward_kl(log_p, log_q) + (1 - share) * reverse_kl(log_p, log_q)


# Each divergence, and its parameter's name with the default.
DIVERGENCES: dict[str, tuple[Callable[..., Tensor], str | None, float | None]] = {
    "forward_kl": (forward_kl, None, None),
    "reverse_kl": (reverse_kl, None, None),
    "jsd": (jsd, "beta", 0.5),
    "skewed_kl": (skewed_kl, "alpha", 0.1),
    "skewed_reverse_kl": (skewed_reverse_kl, "alpha", 0.1),
    "total_variation": (total_variation, None, None),
    "adaptive_kl": (adaptive_kl, "head_mass", 0.5),
    "soft_cross_entropy": (soft_cross_entropy, None, None),
}


def get_divergence(name: DivergenceName, **parameters: float | None) -> Divergence:
    """Returns the divergence of this name with its parameter set.

    Args:
        name: See `DIVERGENCES`.
        parameters: By name; None leaves the default.

    Raises:
        ValueError: A parameter that this divergence does not have, or that is not strictly between 0 and 1.
    """
    function, parameter, default = DIVERGENCES[name]
    given = {key: value for key, value in parameters.items() if value is not None}
    for key, value in given.items():
        if key != parameter:
            raise ValueError(f"divergence {name} has no {key}; it would be ignored")
        if not 0 < value < 1:
            raise ValueError(f"{key} must be strictly between 0 and 1, not {value}")
    return function if parameter is None else partial(function, **{parameter: given.get(parameter, default)})

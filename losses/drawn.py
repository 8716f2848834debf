"""The reverse KL of rows whose tokens the student drew, from a teacher that gives these tokens' probability alone.

KL(q || p) is the mean of log q(y) / p(y) over tokens y of the student q, and its gradient that of
(log q(y) / p(y)) grad log q(y): the mean of grad log q(y) alone is 0. A token was drawn from the student as it was
then, q', and so counts w = q(y) / q'(y) times, 1 where nothing has changed since. A large w is cut off at a bound
(truncated importance sampling, Ionides 2008), which trades a little bias for bounded variance. Only the row's own
token is weighed so: what stands before it is taken as it was written, as every other divergence takes it.

Shapes: N supervised tokens.
"""

import torch
from torch import Tensor

from losses.divergences import LOG_ZERO
from losses.mixture import Mixture
from losses.targets import DrawnTarget

DRAWN_STATISTICS = ("importance_weight", "clipped")
# As far as a token's probability may rise between its draw and its use before its weight is cut off; null means it.
MAX_WEIGHT = 2.0


def weigh_draws(log_now_N: Tensor, log_then_N: Tensor, max_weight: float) -> tuple[Tensor, Tensor]:
    """Returns the tokens' importance weights, cut off at a bound, and where they were, bool; both [N]."""
    w_N = (log_now_N - log_then_N).exp()
    return w_N.clamp(max=max_weight), w_N > max_weight


def sum_drawn(
    ce_N: Tensor, weights_N: Tensor, target: DrawnTarget, mixture: Mixture
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes sum_n w_n [(1 - lambda) CE_n + lambda D_n], D the estimate, whose gradient is the reverse KL's.

    Args:
        ce_N: The student's cross-entropy of each token, with gradient.
        weights_N: The rows' weights.
        target: What teacher and student gave the tokens.
        mixture: lambda, and where importance weights are cut off.

    Returns:
        The sum, and by name of each row, [N]: `divergence`, D, which may be negative; `importance_weight`; and
        `clipped`, 1 where that was cut off.
    """
    log_now_N = -ce_N.detach()
    bound = MAX_WEIGHT if mixture.max_weight is None else mixture.max_weight
    importance_N, is_clipped_N = weigh_draws(log_now_N, target.log_then_N, bound)
    divergence_N = importance_N * (log_now_N - target.log_probs_N.clamp(min=LOG_ZERO))
    # Of value D, and of gradient D grad log q.
    estimate_N = divergence_N * (1 - log_now_N - ce_N)
    loss_N = (1 - mixture.kl_weight) * ce_N + mixture.kl_weight * estimate_N
    # What has no weight does not count even where its loss is infinite.
    total = torch.where(weights_N > 0, weights_N * loss_N, 0.0).sum()
    statistics = {"importance_weight": importance_N, "clipped": is_clipped_N.to(ce_N.dtype)}
    return total, {"divergence": divergence_N, **statistics}

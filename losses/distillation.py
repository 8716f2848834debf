"""The distillation loss: cross-entropy mixed with forward KL to a teacher's sparse distribution.

Shapes: N supervised tokens, V student vocabulary, K support.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat
from torch import Tensor


class SparseTarget(NamedTuple):
    """A teacher's next-token distributions on a support of K tokens plus one tail bucket.

    Attributes:
        support_NK: Token ids, int64.
        log_probs_NK: Log-probabilities at temperature 1, float32.
        log_normalizers_NT: A_T = log sum_V exp(log p / T) for each stored temperature, float32.
        log_tails_NT: Log of the mass outside the support at each stored temperature; -inf for none, float32.
        temperatures: The stored temperatures.
    """

    support_NK: Tensor
    log_probs_NK: Tensor
    log_normalizers_NT: Tensor
    log_tails_NT: Tensor
    temperatures: tuple[float, ...]

    def at_temperature(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Returns the exact (log p_NK, log tail_N) at a stored temperature.

        Raises:
            ValueError: The temperature was not stored.
        """
        if temperature not in self.temperatures:
            raise ValueError(
                f"temperature {temperature} is not in the logit cache, which has {list(self.temperatures)}; "
                "capture again with it, or train with one of these"
            )
        index = self.temperatures.index(temperature)
        log_p_NK = self.log_probs_NK / temperature - self.log_normalizers_NT[:, index, None]
        return log_p_NK, self.log_tails_NT[:, index]


def _weigh_log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns p (log p - log q), which is 0 where p is 0, with a gradient of 0 there too."""
    finite = torch.where(log_p.isneginf(), 0.0, log_p)
    return torch.where(log_p.isneginf(), 0.0, finite.exp() * (finite - log_q))


def forward_kl_with_tail(logits_NV: Tensor, support_NK: Tensor, log_p_NK: Tensor, log_tail_N: Tensor) -> Tensor:
    """Computes KL(p || q) over the support and one tail bucket: sum_K p log(p/q) + tau log(tau/kappa).

    tau and kappa are the teacher's and the student's mass outside the support (the "ghost token" of Anshumann et
    al. 2025, arXiv 2503.16870). By the data processing inequality it never exceeds the full KL.

    Args:
        logits_NV: The student's logits, already divided by the temperature.
        support_NK: Token ids.
        log_p_NK: The teacher's log-probabilities at the same temperature.
        log_tail_N: Log tau; -inf where the support covers everything.

    Returns:
        [N], nats.
    """
    log_z_N = logits_NV.logsumexp(-1)
    log_q_NK = logits_NV.gather(-1, support_NK) - log_z_N[:, None]
    divergence_N = _weigh_log_ratio(log_p_NK, log_q_NK).sum(-1)
    if support_NK.shape[-1] == logits_NV.shape[-1]:
        return divergence_N
    # The student's tail from the logits outside the support: 1 - sum_K q loses every digit when q is sure.
    log_kappa_N = logits_NV.scatter(-1, support_NK, float("-inf")).logsumexp(-1) - log_z_N
    return divergence_N + _weigh_log_ratio(log_tail_N, log_kappa_N)


@dataclass(frozen=True)
class LossSums:
    """Sums over the supervised tokens of a batch; dividing by a global weight is the caller's.

    Attributes:
        total: sum_t w_t l_t, with gradient.
        weight: sum_t w_t.
        parts: Detached (sum, count) by name, for logging.
    """

    total: Tensor
    weight: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """w_s [(1 - lambda) CE + lambda T^2 KL] for each supervised token of segment s (rationale or answer).

    T^2 keeps the gradient's size whatever T (Hinton et al. 2015, arXiv 1503.02531).

    Attributes:
        kl_weight: lambda; 0 is cross-entropy alone and reads no teacher rows, 1 is KL alone.
        temperature: T, softens both distributions in the KL; the cross-entropy stays at 1.
        rationale_weight: w of the rationale's tokens.
        answer_weight: w of the answer sentence's tokens.
    """

    kl_weight: ClosedUnitInterval = 0.0
    temperature: PositiveFloat = 1.0
    rationale_weight: NonNegativeFloat = 1.0
    answer_weight: NonNegativeFloat = 1.0

    def __call__(
        self, logits_NV: Tensor, labels_N: Tensor, is_answer_N: Tensor, target: SparseTarget | None
    ) -> LossSums:
        """Computes the weighted sum over N supervised tokens.

        Args:
            logits_NV: The student's logits; computed with in float32 at least.
            labels_N: The tokens that were to be predicted.
            is_answer_N: True in the answer segment, False in the rationale.
            target: The teacher's rows, if `kl_weight` > 0.

        Raises:
            ValueError: The temperature was not stored in the target.
        """
        if logits_NV.dtype in (torch.float16, torch.bfloat16):
            logits_NV = logits_NV.float()
        weights_N = torch.where(is_answer_N, self.answer_weight, self.rationale_weight).to(logits_NV.dtype)
        ce_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
        loss_N = ce_N
        values = {"ce": ce_N, "accuracy": (logits_NV.argmax(-1) == labels_N).to(logits_NV.dtype)}
        if self.kl_weight > 0:
            assert target is not None
            log_p_NK, log_tail_N = target.at_temperature(self.temperature)
            kl_N = forward_kl_with_tail(logits_NV / self.temperature, target.support_NK, log_p_NK, log_tail_N)
            loss_N = (1 - self.kl_weight) * ce_N + self.kl_weight * self.temperature**2 * kl_N
            values["kl"] = kl_N
        parts = {}
        for segment, mask_N in (("rationale", ~is_answer_N), ("answer", is_answer_N)):
            for name, value_N in values.items():
                parts[f"{name}_{segment}"] = (value_N.detach()[mask_N].sum(), mask_N.sum())
        return LossSums(total=(weights_N * loss_N).sum(), weight=weights_N.sum(), parts=parts)

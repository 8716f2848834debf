"""What a teacher says of a token: its distribution on a support, a sample of it, or all of it.

Shapes: N supervised tokens, K support, V vocabulary, D the teacher's width, M outcomes.
"""

import bisect
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Tail = Literal["bucket", "renormalize", "ignore"]
UnstoredTemperature = Literal["refuse", "interpolate"]


class SparseTarget(NamedTuple):
    """A teacher's next-token distributions on a support of at most K tokens, and the mass outside it.

    p_T(i) = exp(log_probs / T - A_T) for a token i of the support; the masses of support and tail add up to 1.

    Attributes:
        support_NK: Token ids, int64; a row with fewer tokens is filled with -1.
        log_probs_NK: Log-probabilities at temperature 1; -inf where the support has no token.
        log_normalizers_NT: A_T = log sum_V exp(log p / T) for each stored temperature.
        log_tails_NT: Log of the mass outside the support at each stored temperature; -inf for none.
        temperatures: The stored temperatures, ascending.
        has_target_N: Which rows the teacher says something of; None for all.
    """

    support_NK: Tensor
    log_probs_NK: Tensor
    log_normalizers_NT: Tensor
    log_tails_NT: Tensor
    temperatures: tuple[float, ...]
    has_target_N: Tensor | None = None

    def rows(self, start: int, stop: int) -> "SparseTarget":
        """Returns the target of these rows."""
        return SparseTarget(
            self.support_NK[start:stop],
            self.log_probs_NK[start:stop],
            self.log_normalizers_NT[start:stop],
            self.log_tails_NT[start:stop],
            self.temperatures,
            _cut(self.has_target_N, start, stop),
        )

    def at_temperature(self, temperature: float, unstored: UnstoredTemperature = "refuse") -> tuple[Tensor, Tensor]:
        """Returns (log p_NK, log tail_N) at a temperature, exact where it is stored.

        Args:
            temperature: T.
            unstored: `interpolate` takes A_T between stored temperatures as linear in 1/T. A_T is convex in 1/T, so
                this bounds it from above: it gives the support a little too little, and the tail too much.

        Raises:
            ValueError: The temperature is not stored, or, with `interpolate`, not between two that are.
        """
        if temperature in self.temperatures:
            index = self.temperatures.index(temperature)
            return self.log_probs_NK / temperature - self.log_normalizers_NT[:, index, None], self.log_tails_NT[
                :, index
            ]
        stored = list(self.temperatures)
        if unstored == "refuse":
            raise ValueError(
                f"temperature {temperature} is not in the logit cache, which has {stored}; capture again with it, "
                "train with one of these, or set unstored_temperature: interpolate"
            )
        after = bisect.bisect(stored, temperature)
        if not 0 < after < len(stored):
            raise ValueError(f"temperature {temperature} is not between the cached {stored}; it cannot be interpolated")
        low, high = stored[after - 1], stored[after]
        share = (1 / temperature - 1 / high) / (1 / low - 1 / high)
        normalizer_N = torch.lerp(self.log_normalizers_NT[:, after], self.log_normalizers_NT[:, after - 1], share)
        log_p_NK = self.log_probs_NK / temperature - normalizer_N[:, None]
        tail_N = 1 - log_p_NK.exp().sum(-1)
        return log_p_NK, torch.where(tail_N > 0, tail_N, 0.0).log()

    def check(self, vocabulary: int) -> None:
        """Looks at every value; costs about as much as one pass over the planes.

        Raises:
            ValueError: Shapes disagree, an id is not below `vocabulary`, a log-probability is above 0 or NaN, or
                the masses do not add up to 1 within 1e-3.
        """
        shape, pairs = self.support_NK.shape, (len(self.support_NK), len(self.temperatures))
        if self.log_probs_NK.shape != shape or {self.log_normalizers_NT.shape, self.log_tails_NT.shape} != {pairs}:
            raise ValueError(
                f"target planes disagree: support {tuple(shape)}, log_probs {tuple(self.log_probs_NK.shape)}, "
                f"log_normalizers {tuple(self.log_normalizers_NT.shape)}, log_tails {tuple(self.log_tails_NT.shape)} "
                f"for {len(self.temperatures)} temperatures"
            )
        check_support(self.support_NK, vocabulary)
        _check_masses(self)


class SoftenedTarget(NamedTuple):
    """A sparse target whose distributions are not one another's softenings, and so stand there one by one.

    Such are a mixture of several teachers' softened distributions, and one carried over to another vocabulary.

    Attributes:
        support_NK: Token ids, int64; a row with fewer tokens is filled with -1.
        log_probs_NKT: log p_T of the support at each stored temperature; -inf where it has no token.
        log_tails_NT: Log of the mass outside the support; -inf for none.
        temperatures: The stored temperatures, ascending.
        has_target_N: Which rows the teacher says something of; None for all. The others hold a valid distribution,
            which does not count.
    """

    support_NK: Tensor
    log_probs_NKT: Tensor
    log_tails_NT: Tensor
    temperatures: tuple[float, ...]
    has_target_N: Tensor | None = None

    def rows(self, start: int, stop: int) -> "SoftenedTarget":
        """Returns the target of these rows."""
        return SoftenedTarget(
            self.support_NK[start:stop],
            self.log_probs_NKT[start:stop],
            self.log_tails_NT[start:stop],
            self.temperatures,
            _cut(self.has_target_N, start, stop),
        )

    def at_temperature(self, temperature: float, unstored: UnstoredTemperature = "refuse") -> tuple[Tensor, Tensor]:
        """Returns (log p_NK, log tail_N) at a stored temperature.

        Raises:
            ValueError: The temperature is not stored; there is nothing to interpolate with.
        """
        if temperature not in self.temperatures:
            raise ValueError(
                f"temperature {temperature} is not in the logit cache, which has {list(self.temperatures)}; capture "
                "again with it, or train with one of these"
            )
        index = self.temperatures.index(temperature)
        return self.log_probs_NKT[..., index], self.log_tails_NT[:, index]

    def check(self, vocabulary: int) -> None:
        """Looks at every value.

        Raises:
            ValueError: See `SparseTarget.check`.
        """
        expected = (*self.support_NK.shape, len(self.temperatures))
        shapes = [tuple(self.log_probs_NKT.shape), tuple(self.log_tails_NT.shape)]
        if shapes != [expected, expected[::2]]:
            raise ValueError(
                f"target planes disagree: support {expected[:2]}, log_probs {shapes[0]}, log_tails {shapes[1]} for "
                f"{expected[2]} temperatures"
            )
        check_support(self.support_NK, vocabulary)
        _check_masses(self)


def _check_masses(target: "SparseTarget | SoftenedTarget") -> None:
    for temperature in target.temperatures:
        log_p_NK, log_tail_N = target.at_temperature(temperature)
        if not bool((log_p_NK <= 1e-4).all() & (log_tail_N <= 1e-4).all()):
            raise ValueError(f"the teacher has log-probabilities above 0, or NaN, at temperature {temperature}")
        mass_N = log_p_NK.exp().sum(-1) + log_tail_N.exp()
        worst = (mass_N - 1).abs().max().item() if len(mass_N) else 0.0
        if worst > 1e-3:
            raise ValueError(f"the teacher's mass at temperature {temperature} is off 1 by {worst:.2g}")


class SampledTarget(NamedTuple):
    """Tokens drawn from the teacher, with importance weights: an unbiased estimate of its distribution.

    Random sampling (Anshumann et al. 2025, arXiv 2503.16870) weighs a token by its share of the draws. A hybrid
    keeps the most probable tokens with their own probability, and gives the draws from the tail the tail's mass.
    The gradient of the cross-entropy against it is unbiased; no other divergence's is.

    Attributes:
        support_NK: Distinct token ids, int64; a row with fewer is filled with -1.
        weights_NK: Non-negative, adding up to 1 in each row; 0 where the support has no token.
        has_target_N: For a student with another tokenizer, which rows the teacher says something of; None for all.
            Weights then add up to less than 1 by what the student has no token for.
    """

    support_NK: Tensor
    weights_NK: Tensor
    has_target_N: Tensor | None = None

    def rows(self, start: int, stop: int) -> "SampledTarget":
        """Returns the target of these rows."""
        return SampledTarget(
            self.support_NK[start:stop], self.weights_NK[start:stop], _cut(self.has_target_N, start, stop)
        )

    def check(self, vocabulary: int) -> None:
        """Looks at every value.

        Raises:
            ValueError: Shapes disagree, an id is not below `vocabulary`, or weights are negative, NaN or do not add
                up to 1 within 1e-3.
        """
        if self.support_NK.shape != self.weights_NK.shape:
            shapes = f"support {tuple(self.support_NK.shape)}, weights {tuple(self.weights_NK.shape)}"
            raise ValueError(f"target planes disagree: {shapes}")
        check_support(self.support_NK, vocabulary)
        excess_N = self.weights_NK.sum(-1) - 1
        adds_up_N = excess_N.abs() <= 1e-3 if self.has_target_N is None else excess_N <= 1e-3
        fits_N = adds_up_N & (self.weights_NK >= 0).all(-1)
        if not bool(fits_N.all()):
            raise ValueError("the weights of a sampled target are negative, NaN, or do not add up to 1")


class FullTarget(NamedTuple):
    """The teacher's last hidden states and its output head: its whole distribution, at any temperature.

    Attributes:
        hidden_ND: What enters the head, already scaled as the teacher's architecture scales logits.
        weight_VD: The head, cut to the vocabulary that teacher and student share; ids beyond it have p = 0.
        bias_V: Its bias, if any.
        softcap: c of c tanh(logits / c), if the teacher's architecture has one.
        ids_V: For a student with another tokenizer, its id of each of the teacher's tokens, int64; -1 for none, whose
            mass is the tail. None where the ids are the same.
        has_target_N: Likewise, which rows the teacher says something of; None for all.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    ids_V: Tensor | None = None
    has_target_N: Tensor | None = None

    def rows(self, start: int, stop: int) -> "FullTarget":
        """Returns the target of these rows."""
        return self._replace(hidden_ND=self.hidden_ND[start:stop], has_target_N=_cut(self.has_target_N, start, stop))

    def log_probs(self, temperature: float, vocabulary: int) -> Tensor:
        """Returns log p_T, [N, vocabulary], for a student with so many ids, and, with `ids_V`, its tail in one more."""
        logits_NV = torch.nn.functional.linear(self.hidden_ND, self.weight_VD, self.bias_V)
        logits_NV = soften(logits_NV, self.softcap)
        log_p_NV = (logits_NV if temperature == 1 else logits_NV / temperature).log_softmax(-1)
        if self.ids_V is None and log_p_NV.shape[-1] == vocabulary:
            return log_p_NV
        if self.ids_V is None:
            return torch.nn.functional.pad(log_p_NV, (0, vocabulary - log_p_NV.shape[-1]), value=-math.inf)
        p_NM = log_p_NV.new_zeros(len(log_p_NV), vocabulary + 1)
        return p_NM.index_add_(1, self.ids_V % (vocabulary + 1), log_p_NV.exp()).log()

    def reaches(self, vocabulary: int) -> Tensor:
        """Returns which of the student's ids some token of the teacher is, bool [vocabulary]; with `ids_V`."""
        assert self.ids_V is not None
        reached_V = torch.zeros(vocabulary + 1, dtype=torch.bool, device=self.ids_V.device)
        return reached_V.index_fill_(0, self.ids_V % (vocabulary + 1), True)[:-1]

    def check(self, vocabulary: int) -> None:
        """Raises a ValueError if shapes disagree, or the teacher's shared vocabulary exceeds the student's."""
        has_ids = self.ids_V is None or (len(self.ids_V) == len(self.weight_VD) and bool(self.ids_V.max() < vocabulary))
        if not has_ids:
            raise ValueError(f"the student's ids of the teacher's tokens do not fit its vocabulary of {vocabulary}")
        is_shared = self.ids_V is not None or len(self.weight_VD) <= vocabulary
        if self.hidden_ND.shape[-1] != self.weight_VD.shape[-1] or not is_shared:
            raise ValueError(
                f"teacher's hidden states {tuple(self.hidden_ND.shape)} and head {tuple(self.weight_VD.shape)} do "
                f"not fit each other or the student's vocabulary of {vocabulary}"
            )


class ChunkTarget(NamedTuple):
    """What a teacher with any tokenizer gives the text of each span in which both write whole tokens.

    Attributes:
        chunks_N: The number of each row's span, int64; -1 for none.
        log_probs_C: Log-probability of each span's text, at temperature 1.
    """

    chunks_N: Tensor
    log_probs_C: Tensor

    def check(self, vocabulary: int) -> None:
        """Raises a ValueError if a span is not there, or a log-probability is above 0 or NaN."""
        if self.chunks_N.max() >= len(self.log_probs_C) or self.chunks_N.min() < -1:
            raise ValueError(f"a row's span is outside the teacher's {len(self.log_probs_C)}")
        if not bool((self.log_probs_C <= 1e-4).all()):
            raise ValueError("the teacher has log-probabilities above 0, or NaN, of a span")


class DrawnTarget(NamedTuple):
    """What a teacher gives tokens that the student drew itself, and nothing of any other.

    Attributes:
        log_probs_N: The teacher's log-probability of each row's token, at temperature 1.
        log_then_N: The student's, at temperature 1, when it drew the token from its whole distribution.
    """

    log_probs_N: Tensor
    log_then_N: Tensor

    def check(self, vocabulary: int) -> None:
        """Raises a ValueError if the shapes disagree, or a log-probability is above 0 or NaN."""
        if self.log_probs_N.shape != self.log_then_N.shape:
            raise ValueError(f"the teacher has {len(self.log_probs_N)} tokens, but {len(self.log_then_N)} were drawn")
        if not bool((self.log_probs_N <= 1e-4).all() & (self.log_then_N <= 1e-4).all()):
            raise ValueError("there are log-probabilities above 0, or NaN, of drawn tokens")


RowTarget = SparseTarget | SoftenedTarget | SampledTarget | FullTarget
Target = RowTarget | ChunkTarget | DrawnTarget


def has_tail(kind: type[Target]) -> bool:
    """Says whether a target of this kind has the teacher's mass outside a support."""
    return kind in (SparseTarget, SoftenedTarget)


def _cut(mask_N: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if mask_N is None else mask_N[start:stop]


def check_support(support_NK: Tensor, vocabulary: int) -> None:
    """Raises a ValueError if an id is not below `vocabulary`, or a row has no token."""
    if not support_NK.numel():
        return
    if support_NK.max() >= vocabulary or support_NK.min() < -1:
        raise ValueError(f"a teacher's token id is outside the student's vocabulary of {vocabulary}")
    if bool((support_NK < 0).all(-1).any()):
        raise ValueError("a row of the teacher's support has no token")


def soften(logits: Tensor, softcap: float | None) -> Tensor:
    """Returns c tanh(logits / c), in float32 at least; the logits themselves where there is no cap."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)

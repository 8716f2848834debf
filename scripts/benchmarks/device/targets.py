"""A teacher's rows of each kind, made on the CPU from a seed so that they are the same on any device.

Shapes: N rows, K support, V vocabulary, D the teacher's width.
"""

from typing import Any

import torch
from torch import Tensor

from losses.targets import FullTarget, RowTarget, SampledTarget, SparseTarget

KINDS = ("none", "sparse", "sampled", "full")
TEMPERATURES = (1.0, 2.0)
# The mass outside the support at each of them.
_TAILS = (0.1, 0.2)


def make_target(kind: str, rows: int, vocabulary: int, support: int, width: int) -> RowTarget | None:
    """Makes rows of one of `KINDS`; None for `none`."""
    generator = torch.Generator().manual_seed(1)
    if kind == "none":
        return None
    if kind == "full":
        hidden_ND = torch.randn(rows, width, generator=generator)
        return FullTarget(hidden_ND, torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5)
    first_N1 = torch.randint(vocabulary // support, (rows, 1), generator=generator)
    support_NK = first_N1 + torch.arange(support) * (vocabulary // support)
    logits_NK = 3 * torch.randn(rows, support, generator=generator)
    if kind == "sampled":
        return SampledTarget(support_NK, logits_NK.softmax(1))
    tails_T = torch.tensor(_TAILS)
    log_p_NK = logits_NK.log_softmax(1) + (1 - tails_T[0]).log()
    masses_NT = torch.stack([(log_p_NK / temperature).exp().sum(1) for temperature in TEMPERATURES], 1)
    normalizers_NT = (masses_NT / (1 - tails_T)).log()
    return SparseTarget(support_NK, log_p_NK, normalizers_NT, tails_T.log().expand(rows, -1), TEMPERATURES)


def move_target(target: RowTarget | None, device: str, dtype: torch.dtype | None = None) -> RowTarget | None:
    """Returns the target on a device, its numbers in a dtype if one is given."""
    if target is None:
        return None

    def move(part: object) -> Any:
        return part.to(device, dtype if part.is_floating_point() else None) if isinstance(part, Tensor) else part

    return type(target)(*map(move, target))

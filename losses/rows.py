"""The passes of the fused head over a block's logits: what a row sums to, and its gradient in the same memory.

Shapes: B rows of a block, V vocabulary.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class RowSums(NamedTuple):
    """Of each row.

    Attributes:
        top_B: The highest logit.
        log_sum_B: The logits' logsumexp.
        mean_B: Their mean under their own softmax.
        soft_log_sum_B: The logsumexp of logits / T.
    """

    top_B: Tensor
    log_sum_B: Tensor
    mean_B: Tensor
    soft_log_sum_B: Tensor

    def weigh(self, z_B: Tensor, weights_B: Tensor, soft_weights_B: Tensor, temperature: float) -> Tensor:
        """Returns weights * softmax(z) + soft_weights * softmax(z / T) where each row's logit is `z_B`."""
        soft_B = soft_weights_B * (z_B / temperature - self.soft_log_sum_B).exp()
        return weights_B * (z_B - self.log_sum_B).exp() + soft_B


class RowPasses(Protocol):
    """One block after another is summed, then written."""

    def sum(self, z_BV: Tensor) -> RowSums:
        """Sums the rows of logits, which only `write` may still read."""
        ...

    def write(self, z_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor) -> None:
        """Replaces logits that were summed by weights * softmax(z) + soft_weights * softmax(z / T)."""
        ...


class TorchRows:
    """The passes in torch, with each softmax in memory that all blocks share.

    Args:
        num_rows: Of the largest block.
        vocabulary: V.
        temperature: T.
        dtype: Of the logits, float32 or float64.
        device: Theirs.
    """

    def __init__(self, num_rows: int, vocabulary: int, temperature: float, dtype: torch.dtype, device: torch.device):
        self.temperature = temperature
        number = 1 if temperature == 1 else 2
        self.scratch = [torch.empty(num_rows, vocabulary, dtype=dtype, device=device) for _ in range(number)]

    def sum(self, z_BV: Tensor) -> RowSums:
        """Sums the rows; at T != 1 the logits are divided by it."""
        self._softmaxes = [scratch[: len(z_BV)] for scratch in self.scratch]
        top_B = z_BV.amax(1)
        log_sum_B = soft_log_sum_B = _softmax(z_BV, top_B, self._softmaxes[0])
        mean_B = sum_products(self._softmaxes[0], z_BV)
        if self.temperature != 1:
            z_BV.div_(self.temperature)
            soft_log_sum_B = _softmax(z_BV, top_B / self.temperature, self._softmaxes[1])
        return RowSums(top_B, log_sum_B, mean_B, soft_log_sum_B)

    @property
    def soft_softmax(self) -> Tensor:
        """The softmax at T of the rows that were summed."""
        return self._softmaxes[-1]

    def write(self, z_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor) -> None:
        """Replaces logits that were summed by weights * softmax(z) + soft_weights * softmax(z / T)."""
        if self.temperature == 1:
            torch.mul(self._softmaxes[0], (weights_B + soft_weights_B)[:, None], out=z_BV)
        else:
            torch.mul(self._softmaxes[0], weights_B[:, None], out=z_BV)
            z_BV.addcmul_(self._softmaxes[1], soft_weights_B[:, None])


def sum_products(a_BV: Tensor, b_BV: Tensor) -> Tensor:
    """Returns the rows' inner products, [B]."""
    if a_BV.device.type == "cpu":
        products_B: Tensor = torch.linalg.vecdot(a_BV, b_BV)
        return products_B
    # A product of matrices does not write the V products of a row before it adds them; on a CPU it is slower.
    return torch.bmm(a_BV[:, None, :], b_BV[:, :, None])[:, 0, 0]


def _softmax(z_BV: Tensor, top_B: Tensor, out_BV: Tensor) -> Tensor:
    """Writes the rows' softmax into `out_BV`, and returns their logsumexp, [B]; `top_B` is their highest."""
    torch.softmax(z_BV, dim=1, out=out_BV)
    return top_B - out_BV.amax(1).log()

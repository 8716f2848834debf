"""The passes of the fused head over a block's logits: what a row sums to, and its gradient in the same memory.

Shapes: B rows of a block, V vocabulary, K support.
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


class Comparison(NamedTuple):
    """Of each row, with q = softmax(z / T) and a teacher's p.

    Attributes:
        sums: See `RowSums`.
        crossed_B: sum p z / T, or, reversed, sum q (z / T - log p).
        teacher_entropy_B: -sum p log p.
    """

    sums: RowSums
    crossed_B: Tensor
    teacher_entropy_B: Tensor


class RowPasses(Protocol):
    """One block after another: `begin`; `sum` and `write`, or `compare` and `write_compared`; `add`; `end`.

    Logits are soft-capped where the student's architecture says so, and gradients are those of what was not. What is
    written has a label's own share in it before it is rounded: where the label is sure, the sum is all but nothing.
    """

    def begin(self, logits_BV: Tensor) -> Tensor:
        """Returns the block that the other passes take, in the logits' memory where their dtype allows it."""
        ...

    def read(self, z_BV: Tensor, ids_BK: Tensor) -> Tensor:
        """Returns some of the logits, capped, in float32 at least."""
        ...

    def sum(self, z_BV: Tensor) -> RowSums:
        """Sums the rows of logits, which only `write` may still read."""
        ...

    def write(
        self, z_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor, labels_B: Tensor, label_weights_B: Tensor
    ) -> None:
        """Replaces what was summed by weights * softmax(z) + soft_weights * q, less `label_weights` at the label."""
        ...

    def compare(self, z_BV: Tensor, log_p_BV: Tensor, is_reverse: bool) -> Comparison:
        """Sums rows of logits and of a teacher's log-probabilities, which only `write_compared` may still read."""
        ...

    def write_compared(
        self, z_BV: Tensor, log_p_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor, labels_B: Tensor
    ) -> None:
        """Replaces them by weights * (softmax(z) - label) + soft_weights * (q - p).

        Reversed, the last bracket is q (z / T - log p - its mean under q).
        """
        ...

    def add(self, z_BV: Tensor, ids_BK: Tensor, d_BK: Tensor, z_BK: Tensor) -> None:
        """Adds gradients to what was written; `z_BK` is what `read` gave."""
        ...

    def end(self, z_BV: Tensor, logits_BV: Tensor) -> None:
        """Leaves the block's gradient in the logits' memory."""
        ...


class TorchRows:
    """The passes in torch, with each softmax in memory that all blocks share; the first block is the largest.

    Args:
        temperature: T.
        softcap: c of c tanh(logits / c), if any.
        dtype: To compute in, float32 or float64.
    """

    def __init__(self, temperature: float, softcap: float | None, dtype: torch.dtype):
        self.temperature, self.softcap, self.dtype = temperature, softcap, dtype
        self._scratch: list[Tensor] = []

    def begin(self, logits_BV: Tensor) -> Tensor:
        """See `RowPasses`; in a lower precision this is a copy."""
        z_BV = logits_BV.to(self.dtype)
        if self.softcap is not None:
            z_BV.div_(self.softcap).tanh_()
            self._slope_BV = 1 - z_BV.square()
            z_BV.mul_(self.softcap)
        return z_BV

    def read(self, z_BV: Tensor, ids_BK: Tensor) -> Tensor:
        """See `RowPasses`."""
        return z_BV.gather(1, ids_BK)

    def sum(self, z_BV: Tensor) -> RowSums:
        """See `RowPasses`; at T != 1 the logits are divided by it."""
        if not self._scratch:
            self._scratch = [torch.empty_like(z_BV) for _ in range(1 if self.temperature == 1 else 2)]
        self._softmaxes = [scratch[: len(z_BV)] for scratch in self._scratch]
        top_B = z_BV.amax(1)
        log_sum_B = soft_log_sum_B = _softmax(z_BV, top_B, self._softmaxes[0])
        mean_B = _sum_products(self._softmaxes[0], z_BV)
        if self.temperature != 1:
            z_BV.div_(self.temperature)
            soft_log_sum_B = _softmax(z_BV, top_B / self.temperature, self._softmaxes[1])
        return RowSums(top_B, log_sum_B, mean_B, soft_log_sum_B)

    def write(
        self, z_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor, labels_B: Tensor, label_weights_B: Tensor
    ) -> None:
        """See `RowPasses`."""
        if self.temperature == 1:
            torch.mul(self._softmaxes[0], (weights_B + soft_weights_B)[:, None], out=z_BV)
        else:
            torch.mul(self._softmaxes[0], weights_B[:, None], out=z_BV)
            z_BV.addcmul_(self._softmaxes[1], soft_weights_B[:, None])
        z_BV.scatter_add_(1, labels_B[:, None], -label_weights_B[:, None])

    def compare(self, z_BV: Tensor, log_p_BV: Tensor, is_reverse: bool) -> Comparison:
        """See `RowPasses`; what `write_compared` adds stays in memory."""
        sums, p_BV = self.sum(z_BV), log_p_BV.exp()
        teacher_entropy_B = -_sum_products(p_BV, log_p_BV)
        self._is_reverse = is_reverse
        if not is_reverse:
            self._slope_of_z_BV = p_BV
            return Comparison(sums, _sum_products(p_BV, z_BV), teacher_entropy_B)
        ratio_BV, q_BV = torch.sub(z_BV, log_p_BV, out=p_BV), self._softmaxes[-1]
        crossed_B = _sum_products(q_BV, ratio_BV)
        self._slope_of_z_BV = ratio_BV.sub_(crossed_B[:, None]).mul_(q_BV)
        return Comparison(sums, crossed_B, teacher_entropy_B)

    def write_compared(
        self, z_BV: Tensor, log_p_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor, labels_B: Tensor
    ) -> None:
        """See `RowPasses`."""
        sign, own_B = (1, torch.zeros_like(soft_weights_B)) if self._is_reverse else (-1, soft_weights_B)
        self.write(z_BV, weights_B, own_B, labels_B, weights_B)
        z_BV.addcmul_(self._slope_of_z_BV, soft_weights_B[:, None], value=sign)
        del self._slope_of_z_BV  # the next block's is not to stand beside it

    def add(self, z_BV: Tensor, ids_BK: Tensor, d_BK: Tensor, z_BK: Tensor) -> None:
        """See `RowPasses`."""
        z_BV.scatter_add_(1, ids_BK, d_BK)

    def end(self, z_BV: Tensor, logits_BV: Tensor) -> None:
        """See `RowPasses`."""
        if self.softcap is not None:
            z_BV.mul_(self._slope_BV)
            del self._slope_BV
        if z_BV.dtype != logits_BV.dtype:
            logits_BV.copy_(z_BV)


def _sum_products(a_BV: Tensor, b_BV: Tensor) -> Tensor:
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

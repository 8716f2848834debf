"""A row's softmax and gradient on a GPU, as Triton kernels; imported where they are asked for.

The torch road goes over a chunk's logits about ten times in float32. Here the first kernel reads them as they were
multiplied, bfloat16 or float32, and keeps running sums a lane (Milakov & Gimelshein 2018, arXiv 1805.02867); the second
replaces them by their gradient. All sums are in float32. `TRITON_INTERPRET=1` runs both on a CPU, slowly.

Shapes: B rows of a block, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.rows import RowSums

LANES = 4096
# As `row_blocks.LEFT_OUT`; a kernel reads no Python number that is not a constant of its own.
_LOWEST = tl.constexpr(-1e30)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_rows(  # type: ignore[no-untyped-def]
    z, tops, log_sums, means, soft_log_sums, stride, V, inverse_T, LANES: tl.constexpr, SOFT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((LANES,), _LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    soft_total = tl.zeros((LANES,), tl.float32)
    for start in range(0, V, LANES):
        places = start + tl.arange(0, LANES)
        x = tl.load(z + row * stride + places, mask=places < V, other=_LOWEST).to(tl.float32)
        higher = tl.maximum(top, x)
        shrink = tl.exp(top - higher)
        p = tl.where(places < V, tl.exp(x - higher), 0.0)
        total = total * shrink + p
        weighted = weighted * shrink + tl.where(p > 0, p * x, 0.0)
        if SOFT:
            soft = tl.where(places < V, tl.exp((x - higher) * inverse_T), 0.0)
            soft_total = soft_total * tl.exp((top - higher) * inverse_T) + soft
        top = higher
    best = tl.max(top, 0)
    shrink = tl.exp(top - best)
    sum_p = tl.sum(total * shrink, 0)
    tl.store(tops + row, best)
    tl.store(log_sums + row, best + tl.log(sum_p))
    tl.store(means + row, tl.sum(weighted * shrink, 0) / sum_p)
    if SOFT:
        soft_sum = tl.sum(soft_total * tl.exp((top - best) * inverse_T), 0)
        tl.store(soft_log_sums + row, best * inverse_T + tl.log(soft_sum))


@triton.jit  # type: ignore[untyped-decorator]
def _write_rows(  # type: ignore[no-untyped-def]
    z, weights, log_sums, soft_weights, soft_log_sums, stride, V, inverse_T, LANES: tl.constexpr, SOFT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * LANES + tl.arange(0, LANES)
    x = tl.load(z + row * stride + places, mask=places < V, other=_LOWEST).to(tl.float32)
    d = tl.load(weights + row) * tl.exp(x - tl.load(log_sums + row))
    if SOFT:
        d += tl.load(soft_weights + row) * tl.exp(x * inverse_T - tl.load(soft_log_sums + row))
    tl.store(z + row * stride + places, d.to(z.dtype.element_ty), mask=places < V)


class TritonRows:
    """What `losses.rows.TorchRows` does, without memory beyond the logits.

    Args:
        temperature: T.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature

    @property
    def _options(self) -> dict[str, float | int | bool]:
        return {"inverse_T": 1 / self.temperature, "LANES": LANES, "SOFT": self.temperature != 1, "num_warps": 8}

    def sum(self, z_BV: Tensor) -> RowSums:
        """Sums the rows of bfloat16, float16 or float32 logits; they stay as they are."""
        top_B, self._log_sum_B, mean_B, soft_log_sum_B = torch.empty(
            4, len(z_BV), dtype=torch.float32, device=z_BV.device
        )
        self._soft_log_sum_B = self._log_sum_B if self.temperature == 1 else soft_log_sum_B
        sums = (top_B, self._log_sum_B, mean_B, soft_log_sum_B)
        _sum_rows[len(z_BV),](z_BV, *sums, z_BV.stride(0), z_BV.shape[1], **self._options)
        return RowSums(top_B, self._log_sum_B, mean_B, self._soft_log_sum_B)

    def write(self, z_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor) -> None:
        """Replaces logits that were summed by weights * softmax(z) + soft_weights * softmax(z / T)."""
        if self.temperature == 1:
            weights_B = weights_B + soft_weights_B
        grid = (len(z_BV), triton.cdiv(z_BV.shape[1], LANES))
        sums = (weights_B.contiguous(), self._log_sum_B, soft_weights_B.contiguous(), self._soft_log_sum_B)
        _write_rows[grid](z_BV, *sums, z_BV.stride(0), z_BV.shape[1], **self._options)

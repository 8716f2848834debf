"""A row's softmax and gradient on a GPU, as Triton kernels; imported where they are asked for.

The torch road goes over a chunk's logits about ten times in float32. Here the first kernel reads them as they were
multiplied, bfloat16 or float32, and keeps running sums a lane (Milakov & Gimelshein 2018, arXiv 1805.02867); the second
replaces them by their gradient. All sums are in float32. `TRITON_INTERPRET=1` runs both on a CPU, slowly.

Shapes: B rows of a block, V vocabulary, K support.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.rows import Comparison, RowSums

LANES = 4096
# Fused multiply-adds: Triton warns where this is left to its default.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
# As `row_blocks.LEFT_OUT`; a kernel reads no Python number that is not a constant of its own.
_LOWEST = tl.constexpr(-1e30)
# A logit below it was left out, in float16, too, and no cap makes it one that counts.
_CAPPED_ABOVE = tl.constexpr(-6e4)
# What a row is compared with.
_FORWARD, _REVERSE = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _squash(x, cap):  # type: ignore[no-untyped-def]
    """tanh(x / cap), of which exp may overflow to infinity."""
    return 1 - 2 / (tl.exp(2 * x / cap) + 1)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_rows(  # type: ignore[no-untyped-def]
    z, log_ps, tops, log_sums, means, soft_log_sums, crossed, entropies, stride, V, inverse_T, cap,
    LANES: tl.constexpr, SOFT: tl.constexpr, CAPPED: tl.constexpr, TEACHER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((LANES // 8,), _LOWEST, tl.float32)
    raw_top = top
    total = tl.zeros((LANES // 8,), tl.float32)
    weighted, soft_total, cross, p_log_p = total, total, total, total
    for start in range(0, V, LANES):
        # Of a thread's eight neighbours only the highest is remembered, and older sums shrink by one exp, not by eight.
        places = start + tl.arange(0, LANES // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
        x = tl.load(z + row * stride + places, mask=places < V, other=0.0).to(tl.float32)
        x = tl.where(places < V, x, _LOWEST)
        if CAPPED:
            raw_top = tl.maximum(raw_top, tl.max(x, 1))
            x = tl.where(x > _CAPPED_ABOVE, cap * _squash(x, cap), x)
        higher = tl.maximum(top, tl.max(x, 1))
        shrink = tl.exp(top - higher)
        p = tl.where(places < V, tl.exp(x - higher[:, None]), 0.0)
        total = total * shrink + tl.sum(p, 1)
        weighted = weighted * shrink + tl.sum(tl.where(p > 0, p * x, 0.0), 1)
        soft, soft_shrink = p, shrink
        if SOFT:
            soft = tl.where(places < V, tl.exp((x - higher[:, None]) * inverse_T), 0.0)
            soft_shrink = tl.exp((top - higher) * inverse_T)
            soft_total = soft_total * soft_shrink + tl.sum(soft, 1)
        if TEACHER > 0:
            log_p = tl.load(log_ps + row * V + places, mask=places < V, other=_LOWEST)
            teacher = tl.exp(log_p)
            p_log_p += tl.sum(tl.where(teacher > 0, teacher * log_p, 0.0), 1)
            if TEACHER == _FORWARD:
                cross += tl.sum(tl.where(places < V, teacher * x * inverse_T, 0.0), 1)
            else:
                distance = tl.where(places < V, soft * (x * inverse_T - log_p), 0.0)
                cross = cross * soft_shrink + tl.sum(distance, 1)
        top = higher
    best = tl.max(top, 0)
    shrink = tl.exp(top - best)
    sum_p = tl.sum(total * shrink, 0)
    soft_sum, soft_shrink = sum_p, shrink
    tl.store(tops + row, tl.max(raw_top, 0) if CAPPED else best)
    tl.store(log_sums + row, best + tl.log(sum_p))
    tl.store(means + row, tl.sum(weighted * shrink, 0) / sum_p)
    if SOFT:
        soft_shrink = tl.exp((top - best) * inverse_T)
        soft_sum = tl.sum(soft_total * soft_shrink, 0)
        tl.store(soft_log_sums + row, best * inverse_T + tl.log(soft_sum))
    if TEACHER > 0:
        tl.store(entropies + row, -tl.sum(p_log_p, 0))
        if TEACHER == _FORWARD:
            tl.store(crossed + row, tl.sum(cross, 0))
        else:
            tl.store(crossed + row, tl.sum(cross * soft_shrink, 0) / soft_sum)


@triton.jit  # type: ignore[untyped-decorator]
def _write_rows(  # type: ignore[no-untyped-def]
    z, log_ps, weights, log_sums, soft_weights, soft_log_sums, crossed, labels, label_weights, stride, V, inverse_T,
    cap, LANES: tl.constexpr, SOFT: tl.constexpr, CAPPED: tl.constexpr, TEACHER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * LANES + tl.arange(0, LANES)
    x = tl.load(z + row * stride + places, mask=places < V, other=0.0).to(tl.float32)
    x = tl.where(places < V, x, _LOWEST)
    squashed = x
    if CAPPED:
        squashed = tl.where(x > _CAPPED_ABOVE, _squash(x, cap), 1.0)
        x = tl.where(x > _CAPPED_ABOVE, cap * squashed, x)
    q = tl.exp(x - tl.load(log_sums + row))
    d = tl.load(weights + row) * q
    if SOFT:
        q = tl.exp(x * inverse_T - tl.load(soft_log_sums + row))
    soft_weight = tl.load(soft_weights + row)
    if TEACHER > 0:
        log_p = tl.load(log_ps + row * V + places, mask=places < V, other=0.0)
        if TEACHER == _FORWARD:
            d += soft_weight * (q - tl.exp(log_p))
        else:
            d += soft_weight * q * (x * inverse_T - log_p - tl.load(crossed + row))
    else:
        d += soft_weight * q
    d -= tl.where(places == tl.load(labels + row), tl.load(label_weights + row), 0.0)
    if CAPPED:
        d *= 1 - squashed * squashed
    tl.store(z + row * stride + places, d.to(z.dtype.element_ty), mask=places < V)


class TritonRows:
    """What `losses.rows.TorchRows` does, for bfloat16, float16 or float32, without memory beyond the logits.

    Args:
        temperature: T.
        softcap: c of c tanh(logits / c), if any.
    """

    def __init__(self, temperature: float, softcap: float | None):
        self.temperature, self.softcap = temperature, softcap

    def begin(self, logits_BV: Tensor) -> Tensor:
        """See `RowPasses`; the kernels cap what they load."""
        return logits_BV

    def _cap(self, z: Tensor) -> Tensor:
        return z if self.softcap is None else z.div(self.softcap).tanh_().mul_(self.softcap)

    def read(self, z_BV: Tensor, ids_BK: Tensor) -> Tensor:
        """See `RowPasses`."""
        return self._cap(z_BV.gather(1, ids_BK).float())

    def _list_options(self, z_BV: Tensor, teacher: int) -> tuple[tuple[float, ...], dict[str, int | bool]]:
        cap = 1.0 if self.softcap is None else self.softcap
        options = {"SOFT": self.temperature != 1, "CAPPED": self.softcap is not None, "TEACHER": teacher}
        return (z_BV.stride(0), z_BV.shape[1], 1 / self.temperature, cap), {"LANES": LANES, **options, **OPTIONS}

    def _sum(self, z_BV: Tensor, log_p_BV: Tensor, teacher: int) -> Comparison:
        top_B, self._log_sum_B, mean_B, soft_log_sum_B, self._crossed_B, entropy_B = torch.empty(
            6, len(z_BV), dtype=torch.float32, device=z_BV.device
        )
        self._soft_log_sum_B = self._log_sum_B if self.temperature == 1 else soft_log_sum_B
        sizes, options = self._list_options(z_BV, teacher)
        sums = (top_B, self._log_sum_B, mean_B, self._soft_log_sum_B, self._crossed_B, entropy_B)
        _sum_rows[len(z_BV),](z_BV, log_p_BV, *sums, *sizes, **options)
        # The same cap as that of what is read, to the bit: they are compared.
        sums_B = RowSums(self._cap(top_B), self._log_sum_B, mean_B, self._soft_log_sum_B)
        return Comparison(sums_B, self._crossed_B, entropy_B)

    def _write(self, z_BV: Tensor, log_p_BV: Tensor, teacher: int, *rows: Tensor) -> None:
        sizes, options = self._list_options(z_BV, teacher)
        weights_B, soft_weights_B, labels_B, label_weights_B = (row_B.contiguous() for row_B in rows)
        sums = (weights_B, self._log_sum_B, soft_weights_B, self._soft_log_sum_B, self._crossed_B)
        grid = (len(z_BV), triton.cdiv(z_BV.shape[1], LANES))
        _write_rows[grid](z_BV, log_p_BV, *sums, labels_B, label_weights_B, *sizes, **options)

    def sum(self, z_BV: Tensor) -> RowSums:
        """See `RowPasses`; the logits stay as they are."""
        return self._sum(z_BV, z_BV, 0).sums

    def write(
        self, z_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor, labels_B: Tensor, label_weights_B: Tensor
    ) -> None:
        """See `RowPasses`."""
        self._write(z_BV, z_BV, 0, weights_B, soft_weights_B, labels_B, label_weights_B)

    def compare(self, z_BV: Tensor, log_p_BV: Tensor, is_reverse: bool) -> Comparison:
        """See `RowPasses`; neither changes."""
        self._teacher = _REVERSE.value if is_reverse else _FORWARD.value
        return self._sum(z_BV, log_p_BV, self._teacher)

    def write_compared(
        self, z_BV: Tensor, log_p_BV: Tensor, weights_B: Tensor, soft_weights_B: Tensor, labels_B: Tensor
    ) -> None:
        """See `RowPasses`."""
        self._write(z_BV, log_p_BV, self._teacher, weights_B, soft_weights_B, labels_B, weights_B)

    def add(self, z_BV: Tensor, ids_BK: Tensor, d_BK: Tensor, z_BK: Tensor) -> None:
        """See `RowPasses`."""
        if self.softcap is not None:
            d_BK = d_BK * (1 - (z_BK / self.softcap).square())
        z_BV.scatter_add_(1, ids_BK, d_BK.to(z_BV.dtype))

    def end(self, z_BV: Tensor, logits_BV: Tensor) -> None:
        """See `RowPasses`; it is there already."""

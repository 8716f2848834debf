"""The output head and the loss in one: the student's [N, V] logits never exist, nor are they computed twice.

A chunk of rows is projected onto the vocabulary, turned into the loss and into the gradient of the logits in the
same memory, and multiplied back, so that forward and backward together cost 6 N V D operations, the least there
is. Statistics and the weight's gradient are accumulated in float32 whatever the inputs' dtype.

Shapes: N supervised tokens, D width, V vocabulary; C rows of a chunk, B of a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.kernel_trial import find_kernel_fault
from losses.mixture import STATISTICS, TEACHER_STATISTICS, Mixture, Rows
from losses.row_blocks import has_closed_form, mix_block_by_autograd, mix_full_block, mix_sparse_block
from losses.rows import TorchRows
from losses.targets import FullTarget, RowTarget, soften

Kernel = Literal["torch", "triton"]
# A chunk's logits, counted in float32. Each chunk reads the weight and adds to its gradient once more, which as many
# rows as this hide on a CPU.
CPU_CHUNK_BYTES, CPU_CHUNK_ROWS = 320 << 20, 512
GPU_CHUNK_BYTES, GPU_TILE_ROWS = 512 << 20, 128
# Rows that are turned from logits into gradients at a time on a CPU: what stays in its cache meanwhile.
BLOCK_BYTES = 8 << 20


class OutputHead(NamedTuple):
    """What turns last hidden states into logits: scale * (h W^T + b), soft-capped.

    Attributes:
        weight_VD: The weight; gradients flow to it unless it is frozen.
        bias_V: The bias, if any.
        scale: Multiplies the logits (Cohere, Granite).
        softcap: c of c tanh(logits / c) (Gemma 2).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def project(self, hidden_ND: Tensor) -> Tensor:
        """Returns the logits, [N, V], in float32 at least."""
        return soften(self.scale * F.linear(hidden_ND, self.weight_VD, self.bias_V), self.softcap)


def _add_product(total_VD: Tensor, d_NV: Tensor, hidden_ND: Tensor, beta: int) -> None:
    """Sets `total_VD`, which may be of a higher precision, to d^T h + beta total; beta = 0 reads nothing of it."""
    if d_NV.dtype == total_VD.dtype:
        total_VD.addmm_(d_NV.T, hidden_ND, beta=beta)
    elif d_NV.is_cuda:
        torch.addmm(total_VD, d_NV.T, hidden_ND, out_dtype=total_VD.dtype, beta=beta, out=total_VD)
    else:
        total_VD.addmm_(d_NV.T.to(total_VD.dtype), hidden_ND.to(total_VD.dtype), beta=beta)


class _FusedHead(torch.autograd.Function):
    """Computes sum_n weights_n loss_n and its gradients; see `mix_fused`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor,
        target: RowTarget | None,
        mixture: Mixture,
        softcap: float | None,
        rows_per_chunk: int,
        wants_gradients: bool,
        dtype: torch.dtype,
        kernel: Kernel,
    ) -> tuple[Tensor, Tensor]:
        # Cast here, not by autograd, so that the parameters' gradients are never rounded to the products' dtype.
        given_dtypes = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        weight_VD, bias_V = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        (N, _), V = hidden_ND.shape, len(weight_VD)
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        needs = [wants_gradients and needed for needed in ctx.needs_input_grad[:3]]
        d_hidden_ND = torch.empty_like(hidden_ND) if needs[0] else None
        # The first chunk writes it; without rows there is none.
        d_weight_VD = (torch.empty_like if N else torch.zeros_like)(weight_VD, dtype=exact) if needs[1] else None
        d_bias_V = torch.zeros(V, dtype=exact, device=hidden_ND.device) if needs[2] else None
        names = STATISTICS if target is None else TEACHER_STATISTICS
        statistics = torch.empty(len(names), N, dtype=exact, device=hidden_ND.device)
        loss_N = torch.empty(N, dtype=exact, device=hidden_ND.device)

        block = (
            min(rows_per_chunk, max(1, BLOCK_BYTES // (4 * V))) if hidden_ND.device.type == "cpu" else rows_per_chunk
        )
        T = 1.0 if target is None else mixture.temperature
        passes = _load_kernels()(T, softcap) if kernel == "triton" else TorchRows(T, softcap, exact)
        mix_block: Callable[..., Rows] = mix_block_by_autograd
        if has_closed_form(target, mixture):
            mix_block = partial(mix_full_block if isinstance(target, FullTarget) else mix_sparse_block, passes=passes)
        weights_N = weights_N.to(exact)
        chunk_CV = hidden_ND.new_empty(min(rows_per_chunk, N), V)
        for start in range(0, N, rows_per_chunk):
            stop = min(start + rows_per_chunk, N)
            logits_CV = chunk_CV[: stop - start]
            if bias_V is None:
                torch.mm(hidden_ND[start:stop], weight_VD.T, out=logits_CV)
            else:
                torch.addmm(bias_V, hidden_ND[start:stop], weight_VD.T, out=logits_CV)
            for first in range(start, stop, block):
                last = min(first + block, stop)
                logits_BV, there = logits_CV[first - start : last - start], slice(first, last)
                z_BV = passes.begin(logits_BV)
                part = None if target is None else target.rows(first, last)
                rows = mix_block(z_BV, labels_N[there], weights_N[there], part, mixture)
                loss_N[there] = rows.loss_N
                for row, name in zip(statistics, names, strict=True):
                    row[there] = rows.statistics[name]
                passes.end(z_BV, logits_BV)
            if d_hidden_ND is not None:
                torch.mm(logits_CV, weight_VD, out=d_hidden_ND[start:stop])
            if d_weight_VD is not None:
                _add_product(d_weight_VD, logits_CV, hidden_ND[start:stop], beta=min(start, 1))
            if d_bias_V is not None:
                d_bias_V += logits_CV.sum(0, dtype=exact)
        ctx.mark_non_differentiable(statistics)
        ctx.gradients = (
            d_hidden_ND,
            None if d_weight_VD is None else d_weight_VD.to(given_dtypes[0]),
            None if d_bias_V is None else d_bias_V.to(given_dtypes[1]),
        )
        # A row without weight does not count even where its loss is infinite.
        return torch.where(weights_N > 0, weights_N * loss_N, 0.0).sum(), statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, d_statistics: Tensor) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused head's gradients were computed in its forward pass, and are used up")
        # Dropped here, so that autograd may keep these very tensors as the parameters' gradients.
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if d is None else d.mul_(d_total) for d in gradients), *[None] * 9)


def _find_lack(head: OutputHead, target: RowTarget | None, mixture: Mixture) -> str | None:
    """Returns what the Triton kernels would have to do and do not."""
    if not has_closed_form(target, mixture):
        return "whole distributions but for a KL divergence between the same token ids"
    return "float64" if head.weight_VD.dtype == torch.float64 else None


def _load_kernels() -> Any:
    from losses.row_kernels import TritonRows

    return TritonRows


def count_chunk_rows(device: str, chunk_bytes: int, row_bytes: int) -> int:
    """Returns how many rows a chunk of so many bytes has; on a GPU a multiple of a matrix product's tile, if it can."""
    rows = max(1, chunk_bytes // row_bytes)
    return rows if device == "cpu" or rows < GPU_TILE_ROWS else rows - rows % GPU_TILE_ROWS


def mix_fused(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    weights_N: Tensor,
    target: RowTarget | None,
    mixture: Mixture,
    chunk_bytes: int | None = None,
    kernel: Kernel | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the weighted sum of the mixture over rows from hidden states, without their logits.

    Args:
        hidden_ND: The student's last hidden states at the supervised positions.
        head: The student's output head.
        labels_N: The tokens that were to be predicted, int64.
        weights_N: The rows' weights.
        target: The teacher's rows; None where lambda is 0.
        mixture: What to compute of each row.
        chunk_bytes: Size of the logits that exist at a time, counted in float32; None chooses it for the device.
        kernel: What goes over the logits: torch, or the Triton kernels of losses/row_kernels.py; None is Triton on a
            GPU that runs it, if it has what is asked.

    Returns:
        sum_n weights_n loss_n, with gradients to hidden states, weight and bias, once; and `Rows.statistics`.

    Raises:
        ValueError: The kernels do not have what is asked of them.
    """
    device = hidden_ND.device.type
    weight_VD, bias_V = head.weight_VD, head.bias_V
    lack = _find_lack(head, target, mixture)
    if kernel is None:
        kernel = "triton" if hidden_ND.is_cuda and not (lack or find_kernel_fault(hidden_ND.device)) else "torch"
    elif kernel == "triton" and lack:
        raise ValueError(f"loss.kernel triton has no {lack}; use torch")
    row_bytes = 4 * len(weight_VD)
    if chunk_bytes is None:
        chunk_bytes = min(CPU_CHUNK_BYTES, CPU_CHUNK_ROWS * row_bytes) if device == "cpu" else GPU_CHUNK_BYTES
    if head.scale != 1:
        hidden_ND, bias_V = head.scale * hidden_ND, None if bias_V is None else head.scale * bias_V
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    with torch.autocast(device, enabled=False):
        total, statistics = _FusedHead.apply(  # type: ignore[no-untyped-call]
            hidden_ND.to(dtype),
            weight_VD,
            bias_V,
            labels_N,
            weights_N,
            target,
            mixture,
            head.softcap,
            count_chunk_rows(device, chunk_bytes, row_bytes),
            torch.is_grad_enabled(),
            dtype,
            kernel,
        )
    names = STATISTICS if target is None else TEACHER_STATISTICS
    return total, dict(zip(names, statistics, strict=True))

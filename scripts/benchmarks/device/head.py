"""The fused head's time over that of its three matrix products, and its memory at 32,768 x 131,072.

    head LOSS               seconds of forward + backward in bf16-mixed, against its matrix products alone
    head LOSS compiled block    likewise, the elementwise passes compiled, against as they are
    head LOSS triton        likewise, by the Triton kernels, which are the default on a GPU; the others are torch's
    head chunk of M MiB     seconds with so large a chunk of logits, against the default
    head_memory LOSS        GiB beyond the inputs, gradients included, against that of all logits in float32 alone

Shapes: N rows, D width, V vocabulary, C rows of a chunk.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from losses import fused_head, row_blocks
from losses.divergences import forward_kl
from losses.fused_head import Kernel, OutputHead, mix_fused
from losses.kernel_trial import can_have_kernels
from losses.mixture import CROSS_ENTROPY, Mixture
from losses.targets import RowTarget
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.device.targets import make_target, move_target
from scripts.benchmarks.measure import Measurement

# By name: the kind of target, T, and the logits' cap.
LOSSES: dict[str, tuple[str, float, float | None]] = {
    "ce": ("none", 1.0, None),
    "sparse T=1": ("sparse", 1.0, None),
    "sparse T=2": ("sparse", 2.0, None),
    "sparse T=1 capped": ("sparse", 1.0, 30.0),
    "full T=1": ("full", 1.0, None),
}
CHUNKS_MIB = (64, 128, 256, 512, 1024, 2048)
CHUNK_ROWS = 1024


class HeadSize(NamedTuple):
    """N rows, V vocabulary, D width, K support."""

    N: int
    V: int
    D: int
    K: int


TIMED, LARGE = HeadSize(16_384, 128_256, 2048, 64), HeadSize(32_768, 131_072, 4096, 64)
TOY = HeadSize(48, 512, 16, 8)


class HeadInputs:
    """Hidden states in bf16 and a float32 weight, as a student in bf16-mixed has them."""

    def __init__(self, place: Place, size: HeadSize):
        torch.manual_seed(0)
        self.place, self.size = place, size
        device = place.device
        self.hidden_ND = torch.randn(size.N, size.D, device=device, dtype=torch.bfloat16).requires_grad_()
        self.weight_VD = torch.randn(size.V, size.D, device=device).mul_(0.02).requires_grad_()
        self.labels_N = torch.randint(size.V, (size.N,), device=device)
        self.weights_N = torch.ones(size.N, device=device)

    def make_target(self, kind: str) -> RowTarget | None:
        """Makes a teacher's rows; hidden states in bf16, as a cache has them."""
        target = make_target(kind, self.size.N, self.size.V, self.size.K, self.size.D)
        return move_target(target, self.place.device, torch.bfloat16 if kind == "full" else None)

    def prepare(self, name: str, chunk_bytes: int | None = None, kernel: Kernel = "torch") -> Callable[[], None]:
        """Returns a call of forward and backward."""
        kind, temperature, softcap = LOSSES[name]
        target = self.make_target(kind)
        mixture = CROSS_ENTROPY if target is None else Mixture(0.5, temperature, forward_kl)

        def call() -> None:
            with torch.autocast(self.place.device, torch.bfloat16):
                head = OutputHead(self.weight_VD, softcap=softcap)
                rows = (self.hidden_ND, head, self.labels_N, self.weights_N, target, mixture)
                total, _ = mix_fused(*rows, chunk_bytes, kernel)
            total.backward()
            self.hidden_ND.grad = self.weight_VD.grad = None

        return call

    @torch.no_grad()
    def multiply(self) -> None:
        """Does the head's three products alone, chunk by chunk in bf16."""
        weight_VD = self.weight_VD.bfloat16()
        d_weight_VD = torch.empty_like(weight_VD)
        for hidden_CD in self.hidden_ND.split(CHUNK_ROWS):
            logits_CV: Tensor = hidden_CD @ weight_VD.T
            torch.mm(logits_CV, weight_VD)
            d_weight_VD.addmm_(logits_CV.T, hidden_CD)


def measure_time(place: Place) -> Iterator[Measurement]:
    """Yields the times."""
    inputs = HeadInputs(place, TOY if place.is_toy else TIMED)
    products = place.time(inputs.multiply)
    flops = 6 * inputs.size.N * inputs.size.V * inputs.size.D
    yield Measurement("head_products", flops / products / 1e12, "TFLOP/s")
    seconds = {}
    for name in LOSSES:
        seconds[name] = place.time(inputs.prepare(name))
        yield Measurement.against(f"head {name}", seconds[name], products, "s")
    for mib in CHUNKS_MIB:
        chunk = place.time(inputs.prepare("sparse T=1", mib << 20))
        yield Measurement.against(f"head chunk of {mib} MiB", chunk, seconds["sparse T=1"], "s")
    # What a compiled block would give; the head itself has none.
    block = torch.compile(row_blocks.mix_sparse_block, dynamic=True, backend=place.compiler)
    with mock.patch.object(fused_head, "mix_sparse_block", block):
        for name in ("ce", "sparse T=1", "sparse T=2"):
            compiled = place.time(inputs.prepare(name))
            yield Measurement.against(f"head {name} compiled block", compiled, seconds[name], "s")
    if can_have_kernels():
        for name in LOSSES:
            triton = place.time(inputs.prepare(name, kernel="triton"))
            yield Measurement.against(f"head {name} triton", triton, seconds[name], "s")


def measure_memory(place: Place) -> Iterator[Measurement]:
    """Yields the memory."""
    size = TOY if place.is_toy else LARGE
    inputs = HeadInputs(place, size)
    logits = 4 * size.N * size.V / 2**30
    for name in LOSSES:
        peak = place.measure_peak(inputs.prepare(name))
        yield Measurement.against(f"head_memory {name}", peak, logits, "GiB")

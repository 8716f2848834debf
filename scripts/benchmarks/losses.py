"""The fused head against plain torch, cross-entropy heads and Liger's fused JSD: time and memory, forward + backward.

Each variant runs in a process of its own on the same seeded inputs: hidden states [N, d], a head [V, d], a teacher's
top-k distributions; they take turns, call by call. Memory is the peak beyond the inputs, gradients included. Variants:

    fused        cross-entropy + forward KL to the sparse target with its tail bucket (losses.fused_head)
    fused_ce     the same road with lambda = 0
    dense        the same loss from log_softmax and gather in plain torch
    torch_ce     torch.nn.functional.linear_cross_entropy: cross-entropy alone
    cce          Apple's cut-cross-entropy, compiled for the CPU: cross-entropy alone
    liger_jsd    LigerFusedLinearJSDLoss at beta = 0 (forward KL), the teacher given by hidden states and a head

    python -m scripts.benchmark losses --all            # more sizes
    python -m scripts.benchmark losses --device=cuda    # bf16, d = 4096, V = 128,256, k = 100
"""

import gc
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.divergences import forward_kl
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import CROSS_ENTROPY, Mixture
from losses.targets import SparseTarget
from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Measurement, compare, read_peak_rss
from scripts.benchmarks.turns import Turn, race_apart

MIXTURE = Mixture(kl_weight=0.5, temperature=1.0, divergence=forward_kl)


class Size(NamedTuple):
    """N supervised tokens, hidden size d, vocabulary V, support k, and where."""

    N: int
    d: int
    V: int
    k: int
    device: str = "cpu"

    def __str__(self) -> str:
        return f"N={self.N} d={self.d} V={self.V}"


class Inputs(NamedTuple):
    """What all variants read."""

    hidden_ND: Tensor
    weight_VD: Tensor
    labels_N: Tensor
    target: SparseTarget


# Shows that the code runs.
TOY = Size(64, 32, 1024, 8)
STANDARD = Size(2048, 576, 49_152, 64)
OTHERS = [Size(N, d, V, 64) for V, d in ((32_000, 576), (49_152, 576), (151_936, 896)) for N in (512, 2048, 4096)]
GPU = [Size(N, 4096, 128_256, 100, "cuda") for N in (4096, 8192, 32_768, 262_144)]


def make_inputs(size: Size) -> Inputs:
    """Makes hidden states, a head, labels and a teacher's top-k distributions, whose mass is 0.95 to 1."""
    generator = torch.Generator(size.device).manual_seed(0)
    dtype = torch.bfloat16 if size.device == "cuda" else torch.float32
    options: dict[str, Any] = {"generator": generator, "device": size.device}
    hidden_ND = torch.randn(size.N, size.d, dtype=dtype, **options).requires_grad_()
    # In place: a temporary would raise the peak that memory is counted from.
    weight_VD = torch.randn(size.V, size.d, dtype=dtype, **options).div_(size.d**0.5).requires_grad_()
    support_NK = torch.randint(size.V // size.k, (size.N, size.k), **options)
    support_NK += torch.arange(size.k, device=size.device) * (size.V // size.k)
    tail_N = 0.05 * torch.rand(size.N, **options)
    log_p_NK = (3 * torch.randn(size.N, size.k, **options)).log_softmax(-1) + torch.log1p(-tail_N)[:, None]
    target = SparseTarget(support_NK, log_p_NK, torch.zeros_like(tail_N)[:, None], tail_N.log()[:, None], (1.0,))
    return Inputs(hidden_ND, weight_VD, support_NK[:, 0].clone(), target)


def _run_fused(inputs: Inputs, mixture: Mixture) -> Tensor:
    weights_N = torch.ones(len(inputs.labels_N), device=inputs.labels_N.device)
    target = inputs.target if mixture.kl_weight > 0 else None
    return mix_fused(inputs.hidden_ND, OutputHead(inputs.weight_VD), inputs.labels_N, weights_N, target, mixture)[0]


def _run_dense(inputs: Inputs) -> Tensor:
    log_q_NV = F.linear(inputs.hidden_ND, inputs.weight_VD).float().log_softmax(-1)
    ce_N = -log_q_NV.gather(1, inputs.labels_N[:, None])[:, 0]
    log_q_NK = log_q_NV.gather(1, inputs.target.support_NK)
    log_p_NK, log_tail_N = inputs.target.at_temperature(1.0)
    log_kappa_N = torch.log1p(-log_q_NK.exp().sum(-1))
    kl_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1) + log_tail_N.exp() * (log_tail_N - log_kappa_N)
    return (0.5 * ce_N + 0.5 * kl_N).sum()


def _run_torch_ce(inputs: Inputs) -> Tensor:
    return F.linear_cross_entropy(inputs.hidden_ND, inputs.weight_VD, inputs.labels_N, reduction="sum")


def _run_cce(inputs: Inputs) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    road = "cce" if inputs.hidden_ND.is_cuda else "torch_compile"
    loss: Tensor = linear_cross_entropy(inputs.hidden_ND, inputs.weight_VD, inputs.labels_N, reduction="sum", impl=road)
    return loss


def _prepare_liger(inputs: Inputs) -> Callable[[Inputs], Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(beta=0.0, compiled=inputs.hidden_ND.is_cuda)
    # A teacher of the student's size whose head is another.
    hidden_ND, weight_VD = inputs.hidden_ND.detach().flip(0), inputs.weight_VD.detach().flip(0)
    return lambda i: loss(i.hidden_ND, i.weight_VD, hidden_ND, weight_VD, i.labels_N)


PACKAGES = {"cce": "cut_cross_entropy", "liger_jsd": "liger_kernel"}
VARIANTS: dict[str, Callable[[Inputs], Callable[[Inputs], Tensor]]] = {
    "fused": lambda _: lambda inputs: _run_fused(inputs, MIXTURE),
    "fused_ce": lambda _: lambda inputs: _run_fused(inputs, CROSS_ENTROPY),
    "dense": lambda _: _run_dense,
    "torch_ce": lambda _: _run_torch_ce,
    "cce": lambda _: _run_cce,
    "liger_jsd": _prepare_liger,
}


def is_installed(variant: str) -> bool:
    """Says whether a variant's package is there, and on stderr if it is not."""
    package = PACKAGES.get(variant)
    if package is None or find_spec(package):
        return True
    print(f"skipped {variant}: {package} is not installed", file=sys.stderr)
    return False


def measure(turn: Turn, variant: str, size: Size, repeats: int) -> float:
    """Takes a turn for each forward + backward; returns the peak MiB beyond the inputs."""
    inputs = make_inputs(size)
    call = VARIANTS[variant](inputs)
    gc.collect()
    before = torch.cuda.memory_allocated() if size.device == "cuda" else read_peak_rss()

    def step() -> None:
        call(inputs).backward()
        if size.device == "cuda":
            torch.cuda.synchronize()
        inputs.hidden_ND.grad = inputs.weight_VD.grad = None

    # The first call compiles, and touches memory for the first time.
    step()
    for _ in range(repeats):
        with turn:
            step()
        if size.device == "cuda":
            # The others need it meanwhile.
            torch.cuda.empty_cache()
    peak = torch.cuda.max_memory_allocated() if size.device == "cuda" else read_peak_rss()
    return (peak - before) / 2**20


def run(args: list[str]) -> Iterator[Measurement]:
    """Compares all variants at the standard size, and with `--all` or on a GPU at others."""
    parser = make_parser("losses", __doc__)
    parser.add_argument("--all", action="store_true", help="other sizes too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each, after one that is not counted")
    given = parser.parse_args(args)
    standard, repeats = (TOY, 2) if given.smoke else (STANDARD, given.repeats)
    sizes = [standard, *(size for size in OTHERS if size != STANDARD)] if given.all else [standard]
    for size in GPU if given.device == "cuda" else sizes:
        # Dense logits of 262,144 rows, or Liger's of 32,768, are more than a GPU has.
        left_out = {"dense", "liger_jsd"} if size.N > 32_768 else {"liger_jsd"} if size.N == 32_768 else set()
        # Compiling them takes longer than all else.
        left_out |= set(PACKAGES) if given.smoke else set()
        names = [name for name in VARIANTS if name not in left_out and is_installed(name)]
        found = race_apart({name: (measure, name, size, repeats) for name in names})
        costs = {name: own for name, (own, _) in found.items()}
        peaks: dict[str, float] = {name: peak for name, (_, peak) in found.items()}
        seconds = {name: statistics.median(own.wall) for name, own in costs.items()}
        for name in names:
            yield Measurement.against(f"head_time_{name} {size}", seconds[name], seconds["fused"], "s")
            yield Measurement.against(f"head_memory_{name} {size}", peaks[name], peaks["fused"], "MiB")
        if size == standard:
            fastest = min({"torch_ce", "cce"} & costs.keys(), key=lambda name: min(costs[name].wall))
            yield Measurement.against("head_memory_vs_dense", peaks["fused"], peaks["dense"], "MiB")
            yield from compare("head_time_vs_dense", costs["fused"], costs["dense"])
            yield from compare("head_time_vs_ce_only", costs["fused"], costs[fastest])
            if "liger_jsd" in costs:
                yield from compare("head_time_vs_liger_jsd", costs["fused"], costs["liger_jsd"])

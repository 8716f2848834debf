"""GPU tests, and every divergence on the device against float64 on the CPU.

    gpu_tests_failed        of the tests marked `gpu`; those that were skipped are said
    exact KIND DIVERGENCE T=T PRECISION
                            the largest relative error of loss and gradients of the fused head, against that of the same
                            loss on logits that exist; `triton`: by the kernels, against the fused head in torch

Shapes: N rows, D width, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.divergences import DIVERGENCES, get_divergence
from losses.fused_head import Kernel, OutputHead, mix_fused
from losses.kernel_trial import can_have_kernels
from losses.mixture import CROSS_ENTROPY, Mixture, mix_rows
from losses.row_blocks import has_closed_form
from losses.targets import RowTarget
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.device.targets import TEMPERATURES, make_target, move_target
from scripts.benchmarks.measure import Measurement

ROOT = Path(__file__).parents[3]
N, V, D, K = 64, 4099, 64, 16
TOY_V = 67
# More than one chunk.
CHUNK_ROWS = 24


class OutcomeCounter:
    """A plugin of pytest that counts how tests ended."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: object) -> None:
        """Counts a test once: when it ran, or where it ended before that."""
        outcome = str(getattr(report, "outcome", ""))
        if getattr(report, "when", "") == "call" or outcome != "passed":
            self.outcomes[outcome] += 1


def run_gpu_tests(place: Place) -> Iterator[Measurement]:
    """Runs the tests that need a GPU; without one they are skipped."""
    import pytest

    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    counter = OutcomeCounter()
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"-c={ROOT / 'pyproject.toml'}"]
    code = pytest.main([*options, *map(str, marked)], plugins=[counter])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest -m gpu ended with exit code {int(code)}")
    ran, skipped = counter.outcomes["passed"] + counter.outcomes["failed"], counter.outcomes["skipped"]
    yield Measurement("gpu_tests_failed", counter.outcomes["failed"], f"of {ran} ({skipped} skipped)", baseline=0)


def list_losses() -> list[tuple[str, str, float]]:
    """Returns every loss that there is, as kind of target, divergence and temperature."""
    full = [(kind, name, T) for kind in ("sparse", "full") for name in DIVERGENCES for T in TEMPERATURES]
    return [
        ("none", "cross_entropy", 1.0),
        *full,
        ("sampled", "forward_kl", 1.0),
        ("sampled", "soft_cross_entropy", 1.0),
    ]


def find_error(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Returns the largest relative error of several tensors."""
    pairs = zip(found, truth, strict=True)
    return max(float((one.detach().cpu().double() - true).norm() / true.norm()) for one, true in pairs)


def compute_dense(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    weights_N: Tensor,
    target: RowTarget | None,
    mixture: Mixture,
) -> tuple[Tensor, ...]:
    """Returns the loss on logits that exist, and its gradients."""
    total = (weights_N * mix_rows(F.linear(hidden_ND, weight_VD), labels_N, target, mixture).loss_N).sum()
    return total, *torch.autograd.grad(total, (hidden_ND, weight_VD))


def compute_fused(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    weights_N: Tensor,
    target: RowTarget | None,
    mixture: Mixture,
    kernel: Kernel = "torch",
) -> tuple[Tensor, ...]:
    """Returns the fused head's loss and gradients, in several chunks."""
    chunk = 4 * len(weight_VD) * CHUNK_ROWS
    total, _ = mix_fused(hidden_ND, OutputHead(weight_VD), labels_N, weights_N, target, mixture, chunk, kernel)
    return total, *torch.autograd.grad(total, (hidden_ND, weight_VD))


def measure_exactness(place: Place) -> Iterator[Measurement]:
    """Yields the errors of every loss in float32 and in bf16-mixed."""
    vocabulary = TOY_V if place.is_toy else V
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(N, D, generator=generator)
    weight_VD = 0.3 * torch.randn(vocabulary, D, generator=generator)
    labels_N = torch.randint(vocabulary, (N,), generator=generator)
    weights_N = torch.rand(N, generator=generator)
    for kind, name, T in list_losses():
        mixture = CROSS_ENTROPY if kind == "none" else Mixture(0.5, T, get_divergence(name))  # type: ignore[arg-type]
        target = make_target(kind, N, vocabulary, K, D)
        wide = [tensor.double().requires_grad_() for tensor in (hidden_ND, weight_VD)]
        wide_target = move_target(target, "cpu", torch.float64)
        truth = tuple(
            tensor.detach()
            for tensor in compute_dense(wide[0], wide[1], labels_N, weights_N.double(), wide_target, mixture)
        )
        own = [tensor.to(place.device).requires_grad_() for tensor in (hidden_ND, weight_VD)]
        rows = (labels_N.to(place.device), weights_N.to(place.device), move_target(target, place.device), mixture)
        for precision in ("float32", "bf16-mixed"):
            with torch.autocast(place.device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                fused, dense = (compute(own[0], own[1], *rows) for compute in (compute_fused, compute_dense))
            errors = find_error(fused, truth), find_error(dense, truth)
            yield Measurement.against(f"exact {kind} {name} T={T:g} {precision}", *errors, "relative")
            if has_closed_form(target, mixture) and can_have_kernels():
                with torch.autocast(place.device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                    errors = find_error(compute_fused(own[0], own[1], *rows, "triton"), truth), errors[0]
                yield Measurement.against(f"exact {kind} {name} T={T:g} {precision} triton", *errors, "relative")

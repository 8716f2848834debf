"""The Triton kernels give what the torch road gives, in Triton's own interpreter on a CPU."""

import importlib
from collections.abc import Iterator

import pytest
import torch

from losses import fused_head
from losses.chunks import mix_labels_fused
from losses.distillation import DistillationLoss
from losses.divergences import get_divergence
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import Mixture
from tests.losses.reference import DIVERGENCES
from tests.losses.test_chunks import CHUNKS
from tests.losses.test_fused_head import CASES, V, dense, make_inputs, make_target

pytest.importorskip("triton", reason="the package triton is not installed")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    """With fewer lanes than there are tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("losses.row_kernels"), "LANES", 16)
        yield


@pytest.mark.parametrize(("kind", "name", "temperature"), [case for case in CASES if case[0] != "full"])
def test_values_and_gradients_are_the_dense_ones(kind: str, name: str, temperature: float) -> None:
    hidden, weight, bias, labels, weights = make_inputs(torch.float32)
    target = None if kind == "none" else make_target(kind, torch.float32)
    mixture = Mixture(0.0 if target is None else 0.3, temperature, get_divergence(name, **DIVERGENCES[name]))
    head = OutputHead(weight, bias, scale=0.7)
    results = []
    for road, options in ((dense, {}), (mix_fused, {"kernel": "triton", "chunk_bytes": 4 * V * 3})):
        total, statistics = road(hidden, head, labels, weights, target, mixture, **options)
        results.append((total, torch.autograd.grad(total, (hidden, weight, bias)), statistics))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "padded"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_low_precision_is_rounded_once(kind: str, temperature: float, dtype: torch.dtype) -> None:
    """The torch road computes the same in float32 from the same products, and rounds at its end."""
    low = make_inputs(dtype)
    # A label that is nearly sure: its gradient is the small difference of two large numbers.
    with torch.no_grad():
        low[0][0] = 4 * low[1][low[3][0]]
    target = None if kind == "none" else make_target(kind, dtype)
    mixture = Mixture(0.0 if target is None else 0.3, 1.0 if target is None else temperature, get_divergence("jsd"))
    found = []
    for kernel in ("torch", "triton"):
        total, _ = mix_fused(low[0], OutputHead(*low[1:3]), low[3], low[4], target, mixture, kernel=kernel)
        found.append((total, *torch.autograd.grad(total, low[:3])))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.dtype == theirs.dtype
        distance = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert distance < torch.finfo(dtype).eps


def test_spans_of_text_go_by_the_kernels_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels, weights = make_inputs(torch.float32)
    kernels, loaded = fused_head._load_kernels(), []
    monkeypatch.setattr(fused_head, "_load_kernels", lambda: loaded.append(kernels) or kernels)
    mixture, found = Mixture(0.4, 1.0, get_divergence("jsd")), []
    for kernel in ("torch", "triton"):
        sums = mix_labels_fused(hidden, OutputHead(weight, bias), labels, weights, CHUNKS, mixture, kernel)
        found.append((sums.total, torch.autograd.grad(sums.total, (hidden, weight, bias)), sums.statistics))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=2e-5)
    assert len(loaded) == 2


def test_what_the_kernels_lack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels, weights = make_inputs(torch.float32)
    full = (make_target("full", torch.float32), Mixture(0.5, 1.0, get_divergence("forward_kl")))
    for head, target, lack in (
        (OutputHead(weight, bias, softcap=3.0), (None, Mixture(0.0, 1.0, get_divergence("forward_kl"))), "soft-capped"),
        (OutputHead(weight, bias), full, "whole distributions"),
    ):
        with pytest.raises(ValueError, match=rf"loss\.kernel triton has no {lack}"):
            mix_fused(hidden, head, labels, weights, *target, kernel="triton")
    assert DistillationLoss(kernel="triton").at(0.5).kernel == "triton"
    monkeypatch.setattr(fused_head.os, "environ", {})
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"loss\.kernel triton needs the package triton and a CUDA GPU; use torch"):
            DistillationLoss(kernel="triton")

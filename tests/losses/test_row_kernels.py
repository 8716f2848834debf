"""The Triton kernels give what the torch road gives, in Triton's own interpreter on a CPU, and compile for GPUs."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from losses import fused_head
from losses.chunks import mix_labels_fused
from losses.distillation import DistillationLoss
from losses.divergences import get_divergence
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import Mixture
from losses.row_blocks import has_closed_form
from losses.targets import FullTarget
from tests.losses.reference import DIVERGENCES
from tests.losses.test_chunks import CHUNKS
from tests.losses.test_fused_head import CASES, V, dense, make_inputs, make_target

triton = pytest.importorskip("triton", reason="the package triton is not installed")
# On a GPU they are compiled.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(value: Any) -> Any:
    """Returns tensors, alone or in tuples, where the kernels run."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad)

    return tree_map_only(torch.Tensor, move, value)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    """With fewer lanes than there are tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("losses.row_kernels"), "LANES", 16)
        yield


def is_for_kernels(kind: str, name: str) -> bool:
    target = make_target("full") if kind == "full" else None
    return has_closed_form(target, Mixture(0.3, 1.0, get_divergence(name, **DIVERGENCES[name])))


ROADS = [case for case in CASES if is_for_kernels(*case[:2])]


# A cap plays its part in the kernels, whatever the divergence of what they give.
@pytest.mark.parametrize(
    ("kind", "name", "temperature", "softcap"),
    [(*case, None) for case in ROADS] + [(*case, 3.0) for case in ROADS if case[1] in ("forward_kl", "reverse_kl")],
)
def test_values_and_gradients_are_the_dense_ones(
    kind: str, name: str, temperature: float, softcap: float | None
) -> None:
    hidden, weight, bias, labels, weights = place(make_inputs(torch.float32))
    target = None if kind == "none" else place(make_target(kind, torch.float32))
    mixture = Mixture(0.0 if target is None else 0.3, temperature, get_divergence(name, **DIVERGENCES[name]))
    head = OutputHead(weight, bias, 0.7, softcap)
    results = []
    for road, options in ((dense, {}), (mix_fused, {"kernel": "triton", "chunk_bytes": 4 * V * 3})):
        total, statistics = road(hidden, head, labels, weights, target, mixture, **options)
        results.append((total, torch.autograd.grad(total, (hidden, weight, bias)), statistics))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dtype", "softcap"), [(torch.bfloat16, None), (torch.bfloat16, 20.0), (torch.float16, None)])
@pytest.mark.parametrize(
    ("kind", "name"), [("none", "jsd"), ("padded", "jsd"), ("full", "forward_kl"), ("full", "reverse_kl")]
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_low_precision_is_rounded_once(
    kind: str, name: str, temperature: float, softcap: float | None, dtype: torch.dtype
) -> None:
    """The torch road computes the same in float32 from the same products, and rounds at its end."""
    low = place(make_inputs(dtype))
    # A label that is nearly sure: its gradient is the small difference of two large numbers.
    with torch.no_grad():
        low[0][0] = 4 * low[1][low[3][0]]
    target = None if kind == "none" else place(make_target(kind, dtype))
    mixture = Mixture(0.0 if target is None else 0.3, 1.0 if target is None else temperature, get_divergence(name))
    found = []
    for kernel in ("torch", "triton"):
        head = OutputHead(*low[1:3], softcap=softcap)
        total, statistics = mix_fused(low[0], head, low[3], low[4], target, mixture, kernel=kernel)
        found.append((total, *torch.autograd.grad(total, low[:3]), *statistics.values()))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.dtype == theirs.dtype
        distance = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-6)
        assert distance < torch.finfo(dtype).eps


def test_spans_of_text_go_by_the_kernels_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels, weights = place(make_inputs(torch.float32))
    kernels, loaded = fused_head._load_kernels(), []
    monkeypatch.setattr(fused_head, "_load_kernels", lambda: loaded.append(kernels) or kernels)
    mixture, found = Mixture(0.4, 1.0, get_divergence("jsd")), []
    for kernel in ("torch", "triton"):
        sums = mix_labels_fused(hidden, OutputHead(weight, bias), labels, weights, place(CHUNKS), mixture, kernel)
        found.append((sums.total, torch.autograd.grad(sums.total, (hidden, weight, bias)), sums.statistics))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=2e-5)
    assert len(loaded) == 2


def test_what_the_kernels_lack_is_refused() -> None:
    hidden, weight, bias, labels, weights = place(make_inputs(torch.float32))
    full = place(make_target("full", torch.float32))
    elsewhere = FullTarget(full.hidden_ND, full.weight_VD, ids_V=torch.arange(len(full.weight_VD), device=DEVICE))
    for target, name in ((full, "jsd"), (elsewhere, "forward_kl")):
        mixture = Mixture(0.5, 1.0, get_divergence(name))
        with pytest.raises(ValueError, match=r"loss\.kernel triton has no whole distributions but for a KL"):
            mix_fused(hidden, OutputHead(weight, bias), labels, weights, target, mixture, kernel="triton")
        mix_fused(hidden, OutputHead(weight, bias), labels, weights, target, mixture)
    with pytest.raises(ValueError, match=r"loss\.kernel triton has no float64"):
        mix_fused(
            hidden.double(), OutputHead(weight.double()), labels, weights.double(), None, mixture, kernel="triton"
        )


def test_the_loss_takes_them_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DistillationLoss(kernel="triton").at(0.5).kernel == "triton"
    assert DistillationLoss().at(0.5).kernel is None
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"loss\.kernel triton needs the package triton and a CUDA GPU; use torch"):
            DistillationLoss(kernel="triton")


COMPILE = """
import itertools, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from losses import row_kernels

NUMBERS = {"stride": "i32", "V": "i32", "inverse_T": "fp32", "cap": "fp32", "labels": "*i64"}
for kernel, dtype, soft, capped, teacher in itertools.product(
    (row_kernels._sum_rows, row_kernels._write_rows), ("bf16", "fp32"), (False, True), (False, True), (0, 1, 2)
):
    constants = {"LANES": row_kernels.LANES, "SOFT": soft, "CAPPED": capped, "TEACHER": teacher}
    names = [name for name in kernel.arg_names if name not in constants]
    types = {name: NUMBERS.get(name, f"*{dtype}" if name == "z" else "*fp32") for name in names}
    # As at a launch with a padded vocabulary: Triton specialises what 16 divides.
    aligned = [index for index, name in enumerate(kernel.arg_names) if name in ("z", "log_ps", "stride", "V")]
    source = ASTSource(
        fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": row_kernels.OPTIONS["num_warps"], "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    with open(f"{sys.argv[2]}/{kernel.__name__}-{dtype}-{soft}-{capped}-{teacher}.cubin", "wb") as file:
        file.write(compiled.asm["cubin"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_variant_compiles_for_a_gpu_and_spills_nothing(architecture: int, tmp_path: Path) -> None:
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    cubins = tmp_path / "cubins"
    cubins.mkdir()
    subprocess.run([sys.executable, "-c", COMPILE, str(architecture), str(cubins)], env=environment, check=True)
    files = sorted(cubins.iterdir())
    assert len(files) == 2 * 2 * 2 * 2 * 3
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for file in files:
        said = subprocess.run([cuobjdump, "-res-usage", file], check=True, capture_output=True, text=True).stdout
        registers, stack = (int(re.search(rf"{name}:(\d+)", said).group(1)) for name in ("REG", "STACK"))
        # Two blocks of 8 warps fit the 65,536 registers of a multiprocessor: one loads while another sums.
        assert stack == 0 and registers <= 128, f"{file.name}: {said}"

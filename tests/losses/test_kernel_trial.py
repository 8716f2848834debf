"""Whether the kernels run is tried on the device itself: on a CPU in Triton's interpreter."""

import importlib
from collections.abc import Iterator

import pytest
import torch

from losses import kernel_trial
from losses.kernel_trial import can_have_kernels, find_kernel_fault

pytest.importorskip("triton", reason="the package triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    find_kernel_fault.cache_clear()
    yield
    find_kernel_fault.cache_clear()


def test_kernels_that_run_have_no_fault() -> None:
    assert find_kernel_fault(DEVICE) is None


def test_a_compiler_that_fails_is_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module("losses.row_kernels")

    class Uncompiled:
        def __getitem__(self, grid: object) -> object:
            raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(kernels, "_sum_rows", Uncompiled())
    assert find_kernel_fault(DEVICE) == "RuntimeError: Failed to find C compiler."


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_kernels_that_give_something_else_have_a_fault(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = importlib.import_module("losses.row_kernels").TritonRows
    end = rows.end
    monkeypatch.setattr(rows, "end", lambda self, z_BV, out_BV: (out_BV.mul_(factor), end(self, z_BV, out_BV)))
    assert str(find_kernel_fault(DEVICE)).startswith("their gradient is off by ")


def test_without_the_package_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trial, "find_spec", lambda name: None)
    assert not can_have_kernels()
    assert find_kernel_fault(DEVICE) == "the package triton is not installed"

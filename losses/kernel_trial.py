"""Whether the Triton kernels run on a machine, which is tried: they are compiled there, by what its system has."""

import os
from functools import cache
from importlib.util import find_spec

import torch

from losses.rows import RowPasses, TorchRows

# Of a gradient in bfloat16, whose every number is rounded by up to 2^-9.
TOLERANCE = 2.0**-7


def can_have_kernels() -> bool:
    """Says whether there is what the kernels are compiled with and for."""
    return find_spec("triton") is not None and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")


@cache
def find_kernel_fault(device: torch.device) -> str | None:
    """Returns why the kernels do not run on a device, or that they do not give what torch gives; None if they do."""
    if not can_have_kernels():
        return "the package triton is not installed"
    generator = torch.Generator().manual_seed(0)
    logits_BV = (4 * torch.randn(3, 5003, generator=generator)).to(device, torch.bfloat16)
    weights_B, soft_weights_B = torch.tensor([[0.5, 1.0, 0.0], [0.5, -1.0, 2.0]], device=device)
    labels_B = torch.tensor([0, 5002, 7], device=device)

    def differentiate(passes: RowPasses) -> torch.Tensor:
        block_BV = logits_BV.clone()
        z_BV = passes.begin(block_BV)
        passes.sum(z_BV)
        passes.write(z_BV, weights_B, soft_weights_B, labels_B, weights_B)
        passes.end(z_BV, block_BV)
        return block_BV.double()

    expected_BV = differentiate(TorchRows(2.0, 30.0, torch.float32))
    try:
        from losses.row_kernels import TritonRows

        found_BV = differentiate(TritonRows(2.0, 30.0))
    # The driver, the compiler, its headers and the device each fail with an error of their own.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    distance = float((found_BV - expected_BV).norm() / expected_BV.norm())
    return None if distance < TOLERANCE else f"their gradient is off by {distance:.1%}"

"""What the fused head moves between its products: the oracles of its values are in test_fused_head.py."""

import math
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from losses.divergences import DivergenceName, get_divergence
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import Mixture
from losses.targets import FullTarget

N, V, D = 32, 4096, 8
VIEWS = {"slice", "t", "detach", "expand", "unsqueeze", "select", "view", "alias", "transpose", "squeeze"}
PRODUCTS = {"mm", "bmm", "addmm", "addmm_"}


class Bytes(TorchDispatchMode):
    """Counts what every operation but a product of matrices reads and writes of tensors as large as the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.name().split(".")[0].removeprefix("aten::")
        if name in VIEWS | PRODUCTS or "empty" in name or "gather" in name or "scatter" in name:
            return found
        for tensor in tree_leaves((args, {key: value for key, value in kwargs.items() if key != "out"}, found)):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= N * V // 2:
                self.moved[name] += tensor.numel() * tensor.element_size()
        return found


def count_bytes(name: DivergenceName, temperature: float) -> float:
    """Returns the bytes a logit that one chunk of a GPU takes for whole distributions in bfloat16."""
    with torch.device("meta"):
        hidden_ND, weight_VD = (torch.empty(size, D, dtype=torch.bfloat16, requires_grad=True) for size in (N, V))
        target = FullTarget(torch.empty(N, D, dtype=torch.bfloat16), torch.empty(V, D, dtype=torch.bfloat16))
        labels_N, weights_N = torch.empty(N, dtype=torch.int64), torch.empty(N)
    mixture = Mixture(0.5, temperature, get_divergence(name))
    with Bytes() as counter:
        mix_fused(hidden_ND, OutputHead(weight_VD), labels_N, weights_N, target, mixture, chunk_bytes=4 * N * V)
    return sum(counter.moved.values()) / (N * V)


@pytest.mark.parametrize(
    ("name", "temperature", "most"),
    [("forward_kl", 1.0, 90), ("forward_kl", 2.0, 130), ("reverse_kl", 1.0, 120), ("jsd", 1.0, math.inf)],
)
def test_a_whole_distribution_moves_few_bytes_a_logit(
    name: DivergenceName, temperature: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meta device has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    assert 50 < count_bytes(name, temperature) <= most

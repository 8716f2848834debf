"""Tests of the optimizer's step: what keeps float16 in range, and which kernel AdamW is."""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_modules.student.optimization import find_loss_divisor, is_fused
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.conftest import World
from tests.lightning_modules.student.test_student import MIXTURE, Gradients, make_data, make_module
from tests.tiny import fit


def test_a_loss_scale_is_that_of_a_divided_steps_every_part(world: World) -> None:
    """16-mixed needs a GPU in Lightning's own hands, but not in torch's."""
    gradients = []
    for tokens_per_batch in (1, 10_000):
        scaler: Any = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        kept = Gradients()
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        torch.manual_seed(7)
        module = DistillationModule(world.student, MIXTURE, learning_rate=1e-2, warmup_ratio=0.0)
        data = make_data(world, tokens_per_batch=tokens_per_batch)
        fit(module, data, plugins=[plugin], gradient_clip_val=0.5, callbacks=[kept])
        assert scaler.get_scale() == 2.0**8
        gradients.append(kept.last)
    norms = [torch.nn.utils.get_total_norm(list(kept.values())).item() for kept in gradients]
    assert norms == pytest.approx([0.5, 0.5], rel=1e-3)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0.05, atol=5e-3)


def test_what_keeps_float16_in_range_changes_no_gradient(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-mixed itself needs a GPU; in float64 a step divided beforehand is the same step."""
    assert (find_loss_divisor("16-mixed", 4096), find_loss_divisor("bf16-mixed", 4096)) == (4096.0, 1.0)
    weights, sizes = [], []
    for divisor in (1.0, 300.0):
        monkeypatch.setattr("lightning_modules.student.student.find_loss_divisor", lambda *_, own=divisor: own)
        module, scaled = make_module(world), []
        # What the loss scale multiplies.
        monkeypatch.setattr(
            module, "on_after_backward", lambda m=module, s=scaled: s.append(m.model.lm_head.weight.grad.norm().item())
        )
        fit(module, make_data(world), precision="64-true")
        weights.append(module.model.state_dict())
        sizes.append(scaled[0])
    assert sizes[0] / sizes[1] == pytest.approx(300)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-7)


def test_adamw_is_one_kernel_where_it_can_be() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert is_fused(cuda, "bf16-mixed", True) and is_fused(cuda, "16-mixed", False)
    assert not is_fused(cuda, "16-mixed", True) and not is_fused(cpu, "bf16-mixed", False)

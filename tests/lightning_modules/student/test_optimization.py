"""Tests of the optimizer: its decay, schedule and kernel, what keeps float16 in range, and losses without a number."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_modules.student.optimization import build_optimizer, find_loss_divisor, is_fused, refuse_infinite_loss
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.conftest import World
from tests.lightning_modules.student.test_student import MIXTURE, Gradients, make_data, make_module
from tests.tiny import TRAINER, fit


class ScaledNorm(L.Callback):
    """Keeps the size of the head's gradient as the backward pass leaves it."""

    def __init__(self, sizes: list[float]) -> None:
        self.sizes = sizes

    def on_after_backward(self, trainer: L.Trainer, pl_module: DistillationModule) -> None:
        self.sizes.append(pl_module.model.lm_head.weight.grad.norm().item())


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


def test_what_a_loss_scale_multiplies_is_divided_by_a_steps_tokens(world: World) -> None:
    sizes = list[float]()
    for tokens_per_step in (5_000, 10_000):
        scaler: Any = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        module = make_module(world)
        fit(
            module,
            make_data(world, tokens_per_step=tokens_per_step),
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
            callbacks=[ScaledNorm(sizes)],
        )
    # The same step either way: all examples fit.
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=1e-2)


def test_what_keeps_float16_in_range_changes_no_gradient(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-mixed itself needs a GPU; in float64 a step divided beforehand is the same step."""
    assert (find_loss_divisor("16-mixed", 4096), find_loss_divisor("bf16-mixed", 4096)) == (4096.0, 1.0)
    weights, sizes = [], list[float]()
    for divisor in (1.0, 300.0):
        monkeypatch.setattr("lightning_modules.student.student.find_loss_divisor", lambda *_, own=divisor: own)
        module = make_module(world)
        fit(module, make_data(world), precision="64-true", callbacks=[ScaledNorm(sizes)])
        weights.append(module.model.state_dict())
    assert sizes[0] / sizes[1] == pytest.approx(300)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-7)


def test_adamw_is_one_kernel_where_it_can_be() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert is_fused(cuda, "bf16-mixed", True) and is_fused(cuda, "16-mixed", False)
    assert not is_fused(cuda, "16-mixed", True) and not is_fused(cpu, "bf16-mixed", False)


def list_rates(schedule: str, warmup_ratio: float) -> list[float]:
    """Returns the learning rates of eight steps, as shares of the peak."""
    parameter = nn.Parameter(torch.ones(2, 2))
    found = build_optimizer([parameter], 0.5, 0.0, schedule, warmup_ratio, L.Trainer(**TRAINER), 8)
    rates = []
    for _ in range(8):
        rates.append(found["optimizer"].param_groups[0]["lr"] / 0.5)
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    return rates


def test_a_schedule_rises_over_the_warm_up_and_falls_to_the_end() -> None:
    assert list_rates("constant", 0.0) == [1.0] * 8
    assert list_rates("constant", 0.5) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert list_rates("linear", 0.5) == [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    # Half a cosine over the six steps after two of warm-up; a share of a step is rounded.
    after = [1.0, 0.9330, 0.75, 0.5, 0.25, 0.0670]
    assert list_rates("cosine", 0.27) == pytest.approx([0.0, 0.5, *after], abs=1e-4)


def test_a_schedule_goes_on_with_every_step(world: World) -> None:
    module = make_module(world, schedule="linear")
    trainer = fit(module, make_data(world, tokens_per_step=1))
    assert trainer.global_step == 8
    # The last of eight steps is taken with what the first seven left.
    assert trainer.callback_metrics["train/learning_rate"].item() == pytest.approx(1e-2 / 8)


def test_a_trainings_only_step_learns(world: World) -> None:
    module = make_module(world, warmup_ratio=1.0)
    trainer = fit(module, make_data(world), max_epochs=-1, max_steps=1)
    assert trainer.callback_metrics["train/learning_rate"].item() == pytest.approx(1e-2)


def test_decay_is_of_matrices_and_what_is_frozen_is_no_business_of_the_optimizer() -> None:
    matrix, vector, number, stack = (nn.Parameter(torch.ones(size)) for size in ((3, 4), (4,), (), (2, 3, 4)))
    frozen = nn.Parameter(torch.ones(3, 4), requires_grad=False)
    parameters = [matrix, vector, frozen, number, stack]
    optimizer = build_optimizer(parameters, 0.5, 0.2, "constant", 0.0, L.Trainer(**TRAINER), 4)["optimizer"]
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, (matrix, vector, number, stack)))
    for parameter in (matrix, vector, number, stack):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Without a gradient, a step is the decay alone: 1 - 0.5 * 0.2.
    for parameter, expected in ((matrix, 0.9), (stack, 0.9), (vector, 1.0), (number, 1.0)):
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


@pytest.mark.parametrize(
    ("precision", "clip", "is_one_kernel"),
    [("bf16-mixed", 1.0, True), ("16-mixed", None, True), ("16-mixed", 0.0, True), ("16-mixed", 1.0, None)],
)
def test_a_gpus_adamw_is_one_kernel_but_where_lightning_unscales(
    precision: str, clip: float | None, is_one_kernel: bool | None
) -> None:
    """The kernel exists on a CPU, too; only the trainer's device is made up."""
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    trainer: Any = SimpleNamespace(strategy=strategy, precision=precision, gradient_clip_val=clip)
    parameters = [nn.Parameter(torch.ones(2, 2))]
    optimizer = build_optimizer(parameters, 1e-3, 0.0, "constant", 0.0, trainer, 4)["optimizer"]
    assert optimizer.defaults["fused"] is is_one_kernel


def test_a_loss_without_a_number_is_refused_in_every_process() -> None:
    refuse_infinite_loss(3.0, [1.0, 2.0], [["a"], ["b"]], 7)
    with pytest.raises(ValueError, match=r"the loss is inf at step 7, in the batch of examples b, c; lower the"):
        refuse_infinite_loss(torch.inf, [1.0, torch.inf], [["a"], ["b", "c"]], 7)
    # What is infinite here is so even where another process has its opposite.
    with pytest.raises(ValueError, match=r"the loss is -inf at step 7, in the batch of examples a;"):
        refuse_infinite_loss(torch.nan, [-torch.inf, 2.0], [["a"], ["b"]], 7)
    with pytest.raises(ValueError, match=r"the loss is nan at step 7, in another process, which names the examples"):
        refuse_infinite_loss(torch.nan, [1.0, 2.0], [["a"], ["b"]], 7)

"""An optimizer step on the meta device, which shows on a CPU what a GPU would: mixed devices, and waiting for it."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules.batches.teacher_rows import ExactTensors
from lightning_modules.model.output_head import find_head_settings
from lightning_modules.student import step_sums
from lightning_modules.student.cached_targets import TeacherHead
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from losses.fused_head import OutputHead
from tests.lightning_modules.architectures import ARCHITECTURES, build_tiny, list_families
from tests.losses.reference import DIVERGENCES

B, S, N, K, V, D = 2, 12, 9, 4, 50, 16
# A step's numbers are fetched at once, when its gradients are there.
OWN = {("tolist", "totals"): 1}
# transformers looks, for each of a model's kinds of mask, whether a micro-batch holds packed sequences.
MASKS = ("bool", "find_packed_sequence_indices")


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, and uploads; a number in a tensor of the CPU is a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.device.type == "meta" or tensor.dim()}
        assert len(devices) <= 1, f"{func}: tensors on {devices}"
        result = func(*args, **(kwargs or {}))
        is_copy = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        made = {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        assert not (is_copy and "meta" in made and any(tensor.device.type == "cpu" for tensor in tensors)), "an upload"
        return result


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """What waits for the device, by method and caller; the meta device has no numbers, and no autocast."""
    found: Counter = Counter()

    def spy(name: str, own: Callable, answer: Callable) -> None:
        def method(tensor: torch.Tensor) -> Any:
            if tensor.device.type != "meta":
                return own(tensor)
            found[name, sys._getframe(1).f_code.co_name] += 1
            return answer(tensor)

        monkeypatch.setattr(torch.Tensor, f"__{name}__" if name in ("bool", "int", "float") else name, method)

    for kind in (bool, int, float):
        spy(kind.__name__, getattr(torch.Tensor, f"__{kind.__name__}__"), lambda tensor, kind=kind: kind(1))
    spy("item", torch.Tensor.item, lambda tensor: 1)
    spy("tolist", torch.Tensor.tolist, lambda tensor: [1.0] * tensor.numel())
    # Tokens are counted on the processor, where a batch comes from.
    monkeypatch.setattr(step_sums, "count_step", lambda batch: torch.zeros(3, dtype=torch.int64))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    yield found


def make_planes(kind: str) -> dict[str, torch.Tensor]:
    def plane(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device="meta")

    support = torch.zeros(N, K, dtype=torch.int32, device="meta")
    if kind == "sampled":
        return {"support": support, "weights": plane(N, K)}
    if kind == "hidden":
        return {"hidden": plane(N, D)}
    if kind == "chunks":
        return {"chunks": torch.zeros(N, dtype=torch.int64, device="meta"), "chunk_log_probs": plane(3)}
    if kind == "drawn":
        return {"label_log_prob": plane(N)}
    return {"support": support, "log_probs": plane(N, K), "log_normalizers": plane(N, 2), "log_tails": plane(N, 2)}


def make_batch(kind: str) -> dict[str, Any]:
    def numbers(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device="meta")

    batch = {"input_ids": numbers(B, S), "attention_mask": numbers(B, S), "rows": numbers(N), "labels": numbers(N)}
    batch |= {"is_answer": numbers(N).bool(), "example_ids": ["a", "b"], "temperatures": (1.0, 2.0), "counts": True}
    name = kind.removeprefix("own ")
    if name != kind:
        batch["drawn"] = ExactTensors({"log_probs": torch.zeros(N, device="meta")})
    return batch if kind == "none" else {**batch, "target": ExactTensors(make_planes(name))}


def step(name: str, loss: DistillationLoss, kind: str, mask: bool = False) -> None:
    """Runs an optimizer step of two micro-batches but for the optimizer."""
    real = build_tiny(name)
    module = DistillationModule("student", loss)
    module._head_settings, module._needs_mask = find_head_settings(real), mask
    assert module._head_settings is not None
    module.model, module._device = real.to("meta").train(), torch.device("meta")
    module._total_steps, module._has_checked_target = 10, True
    if kind == "hidden":
        module._teacher_head = TeacherHead(OutputHead(torch.zeros(V, D, device="meta")), None)
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor, backward=lambda loss, _: loss.backward())
    data = SimpleNamespace(shares={"align/share": 0.5}, own_examples=None)
    module._trainer = SimpleNamespace(strategy=strategy, world_size=1, global_step=0, datamodule=data)
    logged: dict[str, Any] = {}
    module.log = lambda name, value: logged.update({name: value})
    module.log_dict = logged.update
    optimizer = torch.optim.AdamW(module.parameters())
    with OneDevice():
        module.training_step([make_batch(kind), make_batch(kind)], 0).backward()
        module.on_before_optimizer_step(optimizer)
    assert all(parameter.grad is not None for parameter in module.parameters())
    # Fetched when the step is logged; all others are numbers of this process.
    on_device = {name for name, value in logged.items() if value.device.type == "meta"}
    assert "train/loss" in logged and on_device == {"train/gradient_norm"}


KINDS = {
    "cross-entropy": (DistillationLoss(), "none"),
    "sparse": (DistillationLoss(kl_weight=0.5), "sparse"),
    "sparse, T = 2": (DistillationLoss(kl_weight=0.5, temperature=2.0, answer_weight=2.0), "sparse"),
    "sampled": (DistillationLoss(kl_weight=0.5), "sampled"),
    "chunks": (DistillationLoss(kl_weight=0.5), "chunks"),
    "own, sparse": (DistillationLoss(), "own sparse"),
    "own, drawn": (DistillationLoss(), "own drawn"),
    "hidden, T = 2": (DistillationLoss(kl_weight=0.5, temperature=2.0), "hidden"),
}


def test_every_architecture_of_a_card_is_tried() -> None:
    assert ARCHITECTURES.keys() == list_families()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_stays_on_the_device_and_waits_for_it_once(name: str, kind: str, waits: Counter) -> None:
    step(name, *KINDS[kind])
    masks = waits.pop(MASKS)
    assert waits == OWN and masks == 2 * (2 if name in ("gemma-2", "gemma-3") else 1)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_so_does_every_divergence(divergence: str, waits: Counter) -> None:
    step("llama-3", DistillationLoss(kl_weight=0.5, divergence=divergence), "sparse")
    assert waits - Counter({MASKS: 2}) == OWN


def test_a_tensor_of_another_device_would_be_found(waits: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lightning_modules.student.test_meta_device.N", 3)
    loss = DistillationLoss(kl_weight=0.5)
    planted = make_batch("sparse") | {"labels": torch.zeros(3, dtype=torch.int64)}
    monkeypatch.setattr("tests.lightning_modules.student.test_meta_device.make_batch", lambda kind: planted)
    monkeypatch.setattr("lightning_modules.student.student.move_data_to_device", lambda batch, device: batch)
    with pytest.raises((AssertionError, RuntimeError), match=r"tensors on|device"):
        step("llama-3", loss, "sparse")

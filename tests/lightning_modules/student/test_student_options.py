"""Roads to the same student: recomputed activations, compiled blocks, half precisions; clashes are refused."""

import os
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_modules.model.adapters import Adapter
from lightning_modules.model.pretrained import Attention, load_causal_lm
from lightning_modules.model.sharding import ShardedStrategy
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from tests.lightning_modules.conftest import World
from tests.lightning_modules.student.test_student import MIXTURE, make_data, make_module
from tests.tiny import TRAINER, fit, save_model


def train(world: World, data: dict | None = None, precision: Any = "32-true", **options: Any) -> DistillationModule:
    torch.manual_seed(7)
    defaults = {"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0}
    module = DistillationModule(options.pop("student", world.student), MIXTURE, **{**defaults, **options})
    fit(module, make_data(world, **(data or {})), max_epochs=2, precision=precision)
    return module


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_recomputed_activations_change_no_bit(world: World, tmp_path: Any, precision: Any) -> None:
    """Dropout is on."""
    student = save_model(tmp_path / "student", seed=4, attention_dropout=0.3)
    calls = []
    states = []
    for recompute in (False, True):
        module = train(world, precision=precision, student=student, activation_checkpointing=recompute)
        states.append(module.model.state_dict())
        attention = module.model.base_model.layers[0].self_attn
        handle = attention.register_forward_hook(lambda *_: calls.append(None))
        [batch] = next(iter(module.trainer.datamodule.train_dataloader()))
        calls.clear()
        module.train()
        module.compute_loss(batch).total.backward()
        handle.remove()
        assert len(calls) == 1 + recompute
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_compute_the_same(world: World, recompute: bool) -> None:
    options = {"compile": True, "activation_checkpointing": recompute}
    compiled, plain = (train(world, precision="64-true", keep_layers=[0], **chosen) for chosen in (options, {}))
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused_head", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precisions_lose_about_what_float32_loses(world: World, precision: Any, fused_head: bool) -> None:
    half, single = (train(world, precision=chosen, fused_head=fused_head) for chosen in (precision, "32-true"))
    assert half.model.dtype == (torch.float32 if precision == "bf16-mixed" else torch.bfloat16)
    losses = [module.trainer.callback_metrics["train/loss"].item() for module in (half, single)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03) and losses[0] != losses[1]


@pytest.mark.parametrize("fused_head", [True, False])
def test_the_backward_passes_of_a_divided_step_leave_autocast(world: World, fused_head: bool) -> None:
    norms = []
    for tokens_per_batch in (1, 10_000):
        module = train(world, {"tokens_per_batch": tokens_per_batch}, precision="bf16-mixed", fused_head=fused_head)
        norms.append(module.trainer.callback_metrics["train/gradient_norm"].item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_a_half_precision_leaves_the_teachers_rows_exact(world: World) -> None:
    """In bfloat16, their masses would not add up to 1."""
    module = train(world, precision="bf16-true")
    [batch] = next(iter(module.trainer.datamodule.train_dataloader()))
    converted = module.trainer.precision_plugin.convert_input(batch)
    assert converted["target"].to(torch.device("cpu")).tensors["log_probs"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "trainer", "message"),
    [
        (
            {"dtype": "float32"},
            {"precision": "bf16-true"},
            "dtype float32 is given, but .* bf16-true makes it bfloat16",
        ),
        ({"dtype": "float32"}, {"precision": "64-true"}, "dtype float32 is given, but .* 64-true makes it float64"),
        ({"dtype": "bfloat16"}, {"precision": "bf16-mixed"}, "bf16-mixed trains float32 weights, but model.dtype is"),
        ({}, {"strategy": "fsdp", "accelerator": "cuda"}, "FSDP's first version"),
        ({}, {"strategy": ModelParallelStrategy()}, "over processes, but there is one"),
        ({}, {"strategy": ModelParallelStrategy(), "devices": 2}, "by fsdp2, not by another strategy"),
        ({"fake_quant": "Q4_0"}, {"strategy": ShardedStrategy(), "devices": 2}, "fake_quant does not go with fsdp2"),
        (
            {"adapter": Adapter(quantize=True)},
            {"strategy": ShardedStrategy(), "devices": 2},
            "4-bit weights are not sharded; use ddp",
        ),
        ({}, {"accumulate_grad_batches": 2}, r"would be ignored: data\.batches\.tokens_per_step says what"),
        (
            {},
            {"callbacks": [GradientAccumulationScheduler({0: 2})]},
            r"would be ignored: data\.batches\.tokens_per_step",
        ),
        ({}, {"max_epochs": 0}, r"trainer\.max_epochs=0 leaves nothing to train"),
        ({}, {"max_steps": 0}, r"trainer\.max_steps=0 leaves nothing"),
        ({}, {"limit_train_batches": 0}, r"trainer\.limit_train_batches=0 leaves nothing"),
        ({}, {"max_time": "00:00:00:00"}, r"trainer\.max_time=0\.0 leaves nothing"),
        ({}, {"max_epochs": -1}, r"trainer\.max_epochs=-1 has no end"),
    ],
)
def test_clashes_with_the_trainer_are_refused(world: World, options: dict, trainer: dict, message: str) -> None:
    if trainer.get("accelerator") == "cuda" and not torch.cuda.is_available():
        pytest.skip("Lightning itself refuses fsdp without a GPU")
    with pytest.raises(ValueError, match=message):
        DistillationModule(world.student, MIXTURE, **options).check_trainer(L.Trainer(**{**TRAINER, **trainer}))


@pytest.mark.parametrize(
    ("options", "trainer"),
    [
        ({}, {"strategy": ShardedStrategy(), "devices": 2}),
        ({"adapter": Adapter()}, {"strategy": ShardedStrategy(), "devices": 2}),
        ({"adapter": Adapter(quantize=True)}, {"strategy": "ddp", "devices": 2}),
        ({"fake_quant": "Q4_0"}, {"strategy": "ddp", "devices": 2}),
        ({"dtype": "bfloat16"}, {"precision": "bf16-true"}),
        ({"dtype": "float32"}, {"precision": "bf16-mixed"}),
        ({"dtype": "bfloat16", "adapter": Adapter()}, {"precision": "bf16-mixed"}),
    ],
)
def test_what_goes_with_the_trainer_is_not_refused(world: World, options: dict, trainer: dict) -> None:
    DistillationModule(world.student, MIXTURE, **options).check_trainer(L.Trainer(**{**TRAINER, **trainer}))


def test_weights_have_the_dtype_that_is_set_or_the_default(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model card's is for frozen weights alone: what is trained is float32 unless the setting says otherwise."""
    pytest.importorskip("peft")
    # The tiny student has no card.
    monkeypatch.setattr("lightning_modules.student.student.default_dtype", lambda model: "bfloat16")
    found = []
    for options in ({}, {"dtype": "bfloat16"}, {"adapter": Adapter()}, {"adapter": Adapter(), "dtype": "float32"}):
        weights = dict(train(world, **options).model.named_parameters())
        found.append({weight.dtype for name, weight in weights.items() if ".lora_" not in name})
    assert found == [{torch.float32}, {torch.bfloat16}, {torch.bfloat16}, {torch.float32}]


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_a_rate_that_is_not_finite_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{name} must be finite, not inf"):
        DistillationModule("a-student", **{name: float("inf")})


def test_layers_that_the_student_lacks_are_refused_before_it_is_loaded(world: World) -> None:
    module, data = make_module(world, keep_layers=[0, 2]), make_data(world)
    data.setup("fit")
    with pytest.raises(ValueError, match="keep_layers"):
        module.check(data)
    make_module(world, keep_layers=[1]).check(data)


def test_without_a_compiler_it_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU needs none")
    monkeypatch.setitem(os.environ, "CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"model.compile needs a C\+\+ compiler"):
        train(world, compile=True)


def test_a_kernel_is_for_logits_that_never_exist() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    loss = DistillationLoss(kernel="triton")
    assert DistillationModule("a-student", loss).fused_head
    with pytest.raises(ValueError, match=r"kernel triton would be ignored with model\.fused_head=false"):
        DistillationModule("a-student", loss, fused_head=False)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_computed_as_set(world: World, attention: Attention) -> None:
    module = make_module(world, attention=attention)
    fit(module, make_data(world), max_steps=1)
    assert module.model.config._attn_implementation == attention


def test_flash_attention_without_its_package_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match=r"model\.attention flash_attention_2 needs the package flash-attn and a CUDA"):
        load_causal_lm(world.student, attention="flash_attention_2")

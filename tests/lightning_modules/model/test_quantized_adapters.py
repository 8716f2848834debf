"""QLoRA with bitsandbytes itself, on a processor: what is frozen in 4 bits, what is trained, saved and exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_modules.model import adapters
from lightning_modules.model.adapters import Adapter, add_adapter
from lightning_modules.model.pretrained import load_causal_lm
from tests.lightning_modules.conftest import World
from tests.lightning_modules.model.test_adapters import make_module, train_and_keep
from tests.lightning_modules.student.test_student import make_data
from tests.tiny import fit, save_model

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
QLORA = Adapter(r=4, dropout=0.0, quantize=True)


@pytest.fixture(scope="module")
def wide(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """With a student whose layers are whole blocks of bitsandbytes: it quantizes 64 weights together."""
    student = save_model(tmp_path_factory.mktemp("wide"), seed=2, padding=5, width=64, layers=1)
    return replace(world, student=student)


@pytest.mark.parametrize("form", ["merged", "adapter"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_an_export_adds_what_was_learned_to_weights_that_were_never_in_four_bits(
    wide: World, tmp_path: Path, form: Any, precision: Any
) -> None:
    torch.manual_seed(7)
    module = make_module(wide, adapter=QLORA, export=form)
    fit(module, make_data(wide), max_epochs=2, precision=precision)
    module.export(tmp_path / "student")
    loaded, base = load_causal_lm(str(tmp_path / "student")), load_causal_lm(wide.student)
    for path in ("self_attn.q_proj", "mlp.down_proj"):
        layer = module.model.model.layers[0].get_submodule(path)
        assert layer.base_layer.weight.dtype == torch.uint8
        plain, whole = (model.model.layers[0].get_submodule(path).weight.float() for model in (base, loaded))
        learned = 4.0 * layer.lora_B.default.weight.detach().float() @ layer.lora_A.default.weight.detach().float()
        assert learned.abs().max() > 1e-3
        # In bf16-true the sum is rounded once, to 8 bits.
        tolerance = 1e-5 if precision != "bf16-true" else 2**-8 * float(plain.abs().max() + 1)
        torch.testing.assert_close(whole - plain, learned, rtol=0, atol=tolerance)


def test_only_the_adapter_is_trained_and_saved_and_it_resumes_to_the_bit(wide: World, tmp_path: Path) -> None:
    adapter = replace(QLORA, dropout=0.5)
    whole = train_and_keep(wide, tmp_path, adapter)
    checkpoint = torch.load(tmp_path / "1.ckpt", weights_only=True)
    assert checkpoint["state_dict"] and all(".lora_" in name for name in checkpoint["state_dict"])
    packed = load_causal_lm(wide.student, quantize_on=CPU).model.layers[0].mlp.up_proj.weight
    assert torch.equal(whole.model.model.layers[0].mlp.up_proj.base_layer.weight, packed)
    resumed = dict(train_and_keep(wide, tmp_path, adapter, tmp_path / "1.ckpt").named_parameters())
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.named_parameters())


def test_the_loss_is_that_of_the_weights_that_four_bits_stand_for(wide: World) -> None:
    import bitsandbytes.functional as F

    quantized, plain = load_causal_lm(wide.student, quantize_on=CPU), load_causal_lm(wide.student)
    for name, module in quantized.model.layers.named_modules():
        if hasattr(weight := getattr(module, "weight", None), "quant_state"):
            meant = F.dequantize_4bit(weight.data, weight.quant_state)
            original = plain.model.layers.get_submodule(name).weight
            assert 0 < (meant - original).norm() / original.norm() < 0.15
            original.data = meant
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(quantized(ids).logits, plain(ids).logits, rtol=1e-3, atol=1e-3)


def test_weights_in_four_bits_have_the_rank_of_what_they_stand_for(wide: World) -> None:
    model = load_causal_lm(wide.student, quantize_on=CPU)
    assert "LoRA r=8" in add_adapter(model, Adapter(r=8), "a student", None)
    assert model.model.layers[0].mlp.up_proj.lora_B.default.weight.shape == (128, 8)
    with pytest.raises(ValueError, match="have ranks up to 64; lower it"):
        add_adapter(model, Adapter(r=65), "a student", None)


def test_an_adapters_folder_has_no_packed_weights(wide: World, tmp_path: Path) -> None:
    module = make_module(wide, adapter=QLORA, export="adapter")
    fit(module, make_data(wide), max_epochs=1)
    module.export(tmp_path / "a")
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert stored and all("lora" in name and tensor.dtype == torch.float32 for name, tensor in stored.items())


def test_without_bitsandbytes_the_extra_is_named(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(
        ValueError, match=r"quantize needs bitsandbytes; install it with: pip install 'kindred\[qlora\]'"
    ):
        fit(make_module(wide, adapter=QLORA), make_data(wide))

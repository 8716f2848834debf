"""LoRA: what is trained and saved, what is exported, how it resumes; what cannot be had is refused in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lightning_modules.evaluation.evaluator import Evaluator
from lightning_modules.model import adapters
from lightning_modules.model.adapters import Adapter
from lightning_modules.model.pretrained import check_model, identify_weights, load_causal_lm
from lightning_modules.run.checkpoints import RngState, RotatingCheckpointIO
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.conftest import World
from tests.lightning_modules.student.test_student import MIXTURE, make_data
from tests.tiny import fit, save_model

pytest.importorskip("peft")


def make_module(world: World, **options: Any) -> DistillationModule:
    options = {"adapter": Adapter(), "schedule": "constant", "warmup_ratio": 0.0, "learning_rate": 1e-2, **options}
    return DistillationModule(world.student, MIXTURE, **options)


def train_and_keep(world: World, folder: Path, adapter: Adapter, ckpt_path: Path | None = None) -> DistillationModule:
    """Trains for three epochs, and keeps a checkpoint of each in a folder; or goes on from one."""
    torch.manual_seed(7)
    module = make_module(world, adapter=adapter)
    keep = ModelCheckpoint(dirpath=folder, filename="{step}", auto_insert_metric_name=False, save_top_k=-1)
    callbacks = [RngState(), *([keep] if ckpt_path is None else [])]
    options = {"callbacks": callbacks, "plugins": [RotatingCheckpointIO()], "enable_checkpointing": True}
    fit(module, make_data(world), ckpt_path, max_epochs=3, **options)
    return module


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("form", ["merged", "adapter"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_an_export_is_the_trained_student(
    world: World, tmp_path: Path, seeded: None, form: Any, precision: Any
) -> None:
    module = make_module(world, export=form)
    fit(module, make_data(world), max_epochs=2, precision=precision)
    student = str(tmp_path / "student")
    module.export(tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").exists() == (form == "merged")
    ids = torch.arange(10, 40)[None]
    loaded = load_causal_lm(student).eval()
    with torch.no_grad():
        expected = module.model.eval()(ids).logits.float()
        base = AutoModelForCausalLM.from_pretrained(world.student)(ids).logits
        logits = loaded(ids).logits
    # Merged weights are rounded once more.
    tolerance = 1e-4 if precision != "bf16-true" else 0.4
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
    assert (logits - base).abs().max() > 3 * tolerance
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]
    check_model(student, None, None, 1024, "data.encoding.max_length")
    with pytest.raises(ValueError, match="more than the context of 1024"):
        check_model(student, None, None, 1025, "data.encoding.max_length")
    evaluator = Evaluator(student)
    evaluator.configure_model()
    assert torch.equal(evaluator.model(ids).logits, logits)


def test_an_export_has_the_layers_that_were_kept(world: World, tmp_path: Path, seeded: None) -> None:
    module = make_module(world, keep_layers=[1])
    fit(module, make_data(world))
    module.export(tmp_path / "student")
    ids = torch.arange(10, 40)[None]
    loaded = load_causal_lm(str(tmp_path / "student")).eval()
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, module.model.eval()(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_adapter_of_a_tied_head_leaves_the_embedding_alone(
    world: World, tmp_path: Path, seeded: None, form: Any
) -> None:
    student = save_model(tmp_path / "tied", seed=2, tie_word_embeddings=True)
    tied = replace(world, student=student)
    module = make_module(tied, export=form, fused_head=False, adapter=Adapter(target_modules=["lm_head"], dropout=0.0))
    fit(module, make_data(tied), max_epochs=4)
    module.export(tmp_path / "student")
    before, after = load_causal_lm(student), load_causal_lm(str(tmp_path / "student"))
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert (before.lm_head.weight - after.lm_head.weight).abs().max() > 0.01
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        trained, exported = module.model.eval()(ids).logits, after.eval()(ids).logits
    torch.testing.assert_close(exported, trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(sorted(weights)[0]), "its weights are not those of its config: .*lora_A"),
        (lambda weights: weights.update({sorted(weights)[0]: torch.ones(3, 2)}), "no adapter can be loaded: .*lora_A"),
        (lambda weights: weights[sorted(weights)[0]].fill_(float("nan")), "holds numbers that are not finite"),
    ],
)
def test_an_adapters_weights_are_looked_at(world: World, tmp_path: Path, edit: Callable, message: str) -> None:
    model = load_causal_lm(world.student)
    adapters.add_adapter(model, Adapter(), world.student, None)
    model.save_pretrained(tmp_path)
    load_causal_lm(str(tmp_path))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as caught:
        load_causal_lm(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_only_the_adapter_is_trained_and_saved_and_it_resumes_to_the_bit(
    world: World, tmp_path: Path, seeded: None
) -> None:
    """Dropout is on."""
    adapter = Adapter(r=4, dropout=0.5)
    whole = train_and_keep(world, tmp_path, adapter)
    checkpoint = torch.load(tmp_path / "1.ckpt", weights_only=True)
    assert checkpoint["state_dict"] and all(".lora_" in name for name in checkpoint["state_dict"])
    state, base = whole.model.state_dict(), load_causal_lm(world.student).state_dict()
    frozen = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    assert len(frozen) == len(base)
    assert all(torch.equal(tensor, base[name.replace(".base_layer", "")]) for name, tensor in frozen.items())
    resumed = train_and_keep(world, tmp_path, adapter, tmp_path / "1.ckpt").model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in state.items())


def test_the_first_values_do_not_depend_on_what_was_drawn_before(world: World) -> None:
    states = []
    for draws in (0, 3):
        torch.manual_seed(7)
        torch.rand(draws)
        module = make_module(world)
        module.configure_model()
        states.append(module.model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_fused_heads_gradient_is_that_of_kept_logits(world: World, seeded: None) -> None:
    states = []
    for fused_head in (True, False):
        torch.manual_seed(7)
        module = make_module(world, fused_head=fused_head, adapter=Adapter(dropout=0.0))
        fit(module, make_data(world), max_epochs=2, precision="64-true")
        states.append(module.model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=1e-9)


def test_an_adapters_folder_is_known_by_its_base_too(world: World, tmp_path: Path) -> None:
    module = make_module(world, export="adapter")
    fit(module, make_data(world), max_epochs=1)
    module.export(tmp_path / "a")
    before = identify_weights(str(tmp_path / "a"), None)
    config = tmp_path / "a" / "adapter_config.json"
    told = json.loads(config.read_text())
    assert told["base_model_name_or_path"] == world.student
    config.write_text(json.dumps({**told, "base_model_name_or_path": world.teacher}))
    assert identify_weights(str(tmp_path / "a"), None) != before


def test_model_cards_give_the_layers_and_the_dtype(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's own hub id is out of reach; its facts are what is read."""
    from datamodules.model_cards import find_card

    card = find_card("model:smollm2-135m-instruct")
    assert card is not None and card.dtype == "bfloat16"
    model = load_causal_lm(world.student)
    done = adapters.add_adapter(model, Adapter(), "model:smollm2-135m-instruct", None)
    assert ", ".join(card.lora_targets) in done
    assert model.peft_config["default"].base_model_name_or_path == card.hub
    assert Evaluator("model:smollm2-135m-instruct").student_dtype == "bfloat16"
    assert Evaluator("model:smollm2-135m-instruct", dtype="float32").student_dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": Adapter(target_modules=["q_prj"])}, "no linear layer of .* is named q_prj"),
        ({"adapter": Adapter(target_modules=["lm_head"])}, "has the output head; that needs model.fused_head=false"),
        ({"adapter": Adapter(quantize=True), "compile": True}, "compile does not go with"),
        ({"adapter": None, "export": "merged"}, "model.export merged is given, but there is no model.adapter"),
        ({"export": "adapter", "keep_layers": [0]}, "would not say which layers were kept"),
    ],
)
def test_what_does_not_fit_is_refused(world: World, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make_module(world, **options), make_data(world))


def test_without_peft_the_extra_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"an adapter needs peft; install it with: pip install 'kindred\[peft\]'"):
        fit(make_module(world), make_data(world))

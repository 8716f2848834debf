"""Tests of what is changed in a student before training: the same function in other weights, or one part drawn anew."""

import copy
import json
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from datamodules.distillation import DistillationDataModule
from lightning_modules.student.model_card import describe_student
from lightning_modules.student.start import ResetPart, StudentStart, change_start, check_start
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.architectures import ARCHITECTURES
from tests.lightning_modules.conftest import World
from tests.tiny import build, fit

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}


def build_model(name: str) -> PreTrainedModel:
    """Builds a float64 model in which every weight counts, biases and norms, too."""
    config = copy.deepcopy(ARCHITECTURES[name])
    config.update(HEADS if name != "pythia" else {"num_attention_heads": 4})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def find_changed(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_permuted_units_compute_the_same(name: str) -> None:
    model, ids = build_model(name), torch.arange(18).view(2, 9)
    before, logits = copy.deepcopy(model.state_dict()), model(input_ids=ids).logits
    change_start(model, StudentStart(permuted_units=True, seed=3), name)
    torch.testing.assert_close(model(input_ids=ids).logits, logits, rtol=1e-9, atol=1e-9)
    # Every projection, but not the residual stream's vectors.
    kept = ("embed", "norm", "lm_head", "o_proj.bias", "down_proj.bias", "dense.bias", "dense_4h_to_h.bias")
    expected = {weight for weight in before if "layers" in weight and not any(part in weight for part in kept)}
    assert find_changed(model, before) == expected and len(expected) >= 8
    # Another seed is another order.
    other = build_model(name)
    change_start(other, StudentStart(permuted_units=True, seed=4), name)
    assert find_changed(other, dict(model.named_parameters())) == expected


@pytest.mark.parametrize("name", ["llama-2", "pythia"])
def test_a_part_is_what_its_seed_gives_a_new_model_and_the_rest_stays(name: str) -> None:
    before = dict(build_model(name).named_parameters())
    config = build_model(name).config
    torch.manual_seed(7)
    drawn = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    state = torch.get_rng_state()
    heads = {weight for weight in before if "lm_head" in weight}
    inputs = {weight for weight in before if "embed_tokens" in weight or "embed_in" in weight}
    parts = {"head": heads, "embeddings": inputs, "vocabulary": heads | inputs, "all": set(before)}
    parts["body"] = set(before) - heads - inputs
    for part, expected in parts.items():
        model = build_model(name)
        torch.set_rng_state(state)
        change_start(model, StudentStart(reset=part, seed=7), name)
        assert find_changed(model, before) == expected, part
        assert all(torch.equal(dict(model.named_parameters())[weight], drawn[weight].double()) for weight in expected)
        assert torch.equal(torch.get_rng_state(), state)


def save_config(folder: Path, name: str) -> str:
    (ARCHITECTURES[name] if name in ARCHITECTURES else GPT2Config(tie_word_embeddings=False)).save_pretrained(folder)
    return str(folder)


def test_tied_weights_are_reset_together_or_not_at_all(tmp_path: Path) -> None:
    student = save_config(tmp_path, "llama-3")
    for part in ("head", "embeddings"):
        for refuse in (
            lambda start: check_start(start, student, None, has_adapter=False),
            lambda start: change_start(build_model("llama-3"), start, student),
        ):
            with pytest.raises(ValueError, match=rf"reset {part}: .* has one weight .*; set it to vocabulary"):
                refuse(StudentStart(reset=part))
    before = dict(build_model("llama-3").named_parameters())
    for part, expected in (
        ("vocabulary", {"model.embed_tokens.weight"}),
        ("body", set(before) - {"model.embed_tokens.weight"}),
    ):
        check_start(StudentStart(reset=part), student, None, has_adapter=False)
        model = build_model("llama-3")
        change_start(model, StudentStart(reset=part), student)
        assert find_changed(model, before) == expected and model.lm_head.weight is model.model.embed_tokens.weight


def test_what_cannot_be_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed 3 would be ignored: nothing is reset or permuted"):
        StudentStart(seed=3)
    with pytest.raises(ValueError, match="leave one out"):
        check_start(StudentStart(reset="head"), "nowhere", None, has_adapter=True)
    student = save_config(tmp_path, "gpt2")
    with pytest.raises(ValueError, match=r"permuted_units: .* of architecture gpt2, whose units are not known; there"):
        check_start(StudentStart(permuted_units=True), student, None, has_adapter=False)
    check_start(StudentStart(reset="head"), student, None, has_adapter=False)


@pytest.mark.parametrize("part", ["head", "embeddings", "vocabulary", "body", "all"])
def test_a_part_is_named_on_the_command_line(part: ResetPart) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--start", type=StudentStart)
    parsed = parser.instantiate(parser.parse_args([f"--start.reset={part}"])).start
    assert parsed == StudentStart(reset=part)


def train(world: World, start: StudentStart) -> tuple[DistillationModule, dict[str, float]]:
    data = build(DistillationDataModule, world.student, world.questions, prompt="plain", rationales=[world.rationales])
    module = DistillationModule(world.student, start=start, learning_rate=1e-3)
    module.check(prepare(data))
    return module, {name: value.item() for name, value in fit(module, data, max_epochs=4).callback_metrics.items()}


def prepare(data: DistillationDataModule) -> DistillationDataModule:
    data.setup("fit")
    return data


def test_a_permuted_student_learns_the_same_and_a_reset_one_another_thing(world: World) -> None:
    _, plain = train(world, StudentStart())
    module, permuted = train(world, StudentStart(permuted_units=True, seed=2))
    _, reset = train(world, StudentStart(reset="head"))
    assert permuted == pytest.approx(plain, rel=1e-4)
    assert reset["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-2)
    facts = json.loads(describe_student(module, module.trainer.datamodule).split("```json\n")[1].split("\n```\n")[0])
    assert facts["start"] == {"reset": None, "permuted_units": True, "seed": 2}

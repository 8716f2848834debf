"""Learning for few bits: rounding as ggml's, gradients as if there were none, and weights that stay what they are."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules.distillation import DistillationDataModule
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.student.model_card import describe_student
from lightning_modules.student.rounding import round_to_q4_0, round_while_learning
from lightning_modules.student.student import DistillationModule
from studies.design.controls import ControlSpec
from tests.lightning_modules.conftest import World
from tests.lightning_modules.export.conftest import MODELS
from tests.studies.design.grid_study import find_jobs
from tests.tiny import build, fit

gguf = pytest.importorskip("gguf", reason="pip install 'kindred[gguf]'")


def round_by_ggml(weight: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType.Q4_0
    return gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (3, 64), elements=st.sampled_from([0.0, -0.5, 0.5, 0.125, 1.0, -1.0, 0.3, 1e-3, -7.25])))
def test_weights_are_rounded_as_ggml_does_it(weight: np.ndarray) -> None:
    np.testing.assert_array_equal(round_to_q4_0(torch.from_numpy(weight)).numpy(), round_by_ggml(weight))


def test_so_are_those_of_a_model_and_none_of_its_head() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((40, 96)).astype(np.float32) * 10.0 ** rng.uniform(-3, 3, (40, 1)).astype(np.float32)
    np.testing.assert_array_equal(round_to_q4_0(torch.from_numpy(drawn)).numpy(), round_by_ggml(drawn))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    # Llama's tied embedding is its head, which a file holds in more bits; GPT-NeoX's file holds it twice.
    for name, rounds_embedding in (("a-student", False), ("b-student", True)):
        model = load_causal_lm(str(MODELS / name)).eval()
        own, names = copy.deepcopy(model), list(model.state_dict())
        round_while_learning(own, "Q4_0")
        assert list(own.state_dict()) == names
        expected = copy.deepcopy(model)
        expected.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.clone())
        with torch.no_grad():
            for path, module in expected.named_modules():
                if isinstance(module, torch.nn.Linear) and module is not expected.get_output_embeddings():
                    module.weight.copy_(torch.from_numpy(round_by_ggml(module.weight.numpy())))
                    assert not torch.equal(module.weight, model.get_submodule(path).weight)
            if rounds_embedding:
                weight = expected.get_input_embeddings().weight
                weight.copy_(torch.from_numpy(round_by_ggml(weight.numpy())))
        found, wanted = own(ids), expected(ids)
        assert torch.equal(found.logits, wanted.logits) and not torch.equal(found.logits, model(ids).logits)
        # The gradient of the rounded weight is the weight's.
        for each in (found, wanted):
            each.logits.square().sum().backward()
        gradients = {path: weight.grad for path, weight in expected.named_parameters()}
        compared = [path for path, module in own.named_modules() if isinstance(module, torch.nn.Linear)]
        for path in compared:
            if path not in ("lm_head", "embed_out"):
                assert torch.equal(own.get_submodule(path).weight.grad, gradients[f"{path}.weight"])


def test_rows_that_blocks_do_not_divide_stay() -> None:
    config = LlamaConfig(vocab_size=9, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    before = model(torch.tensor([[1, 2, 3]])).logits
    round_while_learning(model, "Q4_0")
    assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, before)


def test_a_student_learns_for_few_bits(world: World) -> None:
    weights, losses = {}, {}
    for kind in (None, "Q4_0"):
        data = build(DistillationDataModule, world.student, world.questions, prompt="plain",
                     rationales=[world.rationales])  # fmt: skip
        module = DistillationModule(world.student, learning_rate=1e-3, fake_quant=kind)
        losses[kind] = fit(module, data, max_epochs=2).callback_metrics["train/loss"].item()
        weights[kind] = module.model.state_dict()
    assert losses["Q4_0"] != losses[None] and list(weights["Q4_0"]) == list(weights[None])
    # What is kept is not what was computed with.
    learned = [weight for name, weight in weights["Q4_0"].items() if name.endswith("q_proj.weight")]
    assert learned and not any(torch.equal(round_to_q4_0(weight), weight) for weight in learned)
    card = describe_student(module, module.trainer.datamodule).split("```json\n")[1].split("\n```\n")[0]
    assert json.loads(card)["fake_quant"] == "Q4_0"


def test_what_does_not_go_with_it_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match=r"leave out model\.compile"):
        DistillationModule(world.student, fake_quant="Q4_0", compile=True)


def test_an_arm_of_a_study_learns_so_by_one_line() -> None:
    jobs = find_jobs(controls={"aware": ControlSpec(fake_quant="Q4_0")})
    assert "--model.fake_quant=Q4_0" in jobs["fit-l-rationale-L-aware-seed1"].args
    assert not any("fake_quant" in arg for arg in jobs["fit-l-rationale-L-seed1"].args)

"""Real architectures, tiny: the split gives the model's own logits, or is not made."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    Qwen2Config,
)

from lightning_modules.model import output_head
from lightning_modules.model.output_head import (
    HeadSettings,
    find_head_settings,
    get_head,
    needs_padding_mask,
    run_body,
    try_kernels,
)
from tests.lightning_modules.architectures import ARCHITECTURES

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "llama": (LlamaConfig(**SIZES), HeadSettings()),
    "llama tied": (LlamaConfig(**SIZES, tie_word_embeddings=True), HeadSettings()),
    "qwen2": (Qwen2Config(**SIZES), HeadSettings()),
    "gpt-neox": (GPTNeoXConfig(**SIZES), HeadSettings()),
    "gpt2": (GPT2Config(**GPT2), HeadSettings()),
    "gemma2": (Gemma2Config(**SIZES, final_logit_softcapping=3.0), HeadSettings(1.0, 3.0)),
    "cohere": (CohereConfig(**SIZES, logit_scale=0.25), HeadSettings(0.25)),
    "granite": (GraniteConfig(**SIZES, logits_scaling=8.0), HeadSettings(1 / 8.0)),
    "hyperclovax": (HyperCLOVAXConfig(**SIZES, logits_scaling=8.0), HeadSettings(8.0)),
}


def build(config, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").train()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_body_and_head_give_the_models_logits(name: str, dtype: torch.dtype) -> None:
    config, expected = MODELS[name]
    model = build(config, dtype)
    settings = find_head_settings(model)
    assert settings == expected
    assert model.training
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    model.eval()
    logits = model(input_ids=ids, attention_mask=mask).logits
    hidden = run_body(model, ids, mask)
    assert hidden.shape == (2, 9, 16)
    found = get_head(model, settings).project(hidden.reshape(-1, 16)).reshape(2, 9, -1)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(found[0], logits[0].float(), **tolerance)
    torch.testing.assert_close(found[1, :6], logits[1, :6].float(), **tolerance)


def test_a_head_that_is_more_than_linear_is_not_split() -> None:
    config = BertConfig(**{key: value for key, value in SIZES.items() if key != "head_dim"}, is_decoder=True)
    with pytest.warns(UserWarning, match="BertLMHeadModel cannot be split"):
        assert find_head_settings(build(config)) is None


def test_a_number_of_the_config_that_the_model_does_not_use_is_not_used() -> None:
    config = LlamaConfig(**SIZES)
    config.logits_scaling = 8.0
    assert find_head_settings(build(config)) == HeadSettings()


# Gemma 2's scores are capped, which SDPA cannot.
ROADS = [(name, road) for name in ARCHITECTURES for road in ("eager", "sdpa") if (name, road) != ("gemma-2", "sdpa")]


@pytest.mark.parametrize(("name", "attention"), ROADS)
def test_a_causal_model_needs_no_mask_of_padding_on_the_right(name: str, attention: str) -> None:
    """Real tokens' hidden states are equal, sliding windows included, whatever the padding is."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation=attention).eval()
    assert not needs_padding_mask(model)
    input_ids, mask = torch.randint(50, (4, 24)), torch.ones(4, 24, dtype=torch.int64)
    for row, length in enumerate((24, 17, 9, 2)):
        mask[row, length:] = 0
    with torch.no_grad():
        found = run_body(model, input_ids, None)[mask.bool()]
        expected = run_body(model, input_ids * mask, mask)[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_model_that_attends_to_both_sides_needs_the_mask() -> None:
    assert needs_padding_mask(AutoModelForCausalLM.from_config(BertConfig(**SIZES)))


def test_flash_attention_is_left_out_of_the_trial_since_it_takes_no_float32() -> None:
    config, settings = MODELS["llama"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    # Its package is not needed until a forward pass.
    model.config._attn_implementation = "flash_attention_2"
    assert find_head_settings(model) == settings and not needs_padding_mask(model)
    assert model.config._attn_implementation == "flash_attention_2"


def test_kernels_that_do_not_run_are_said_once_on_a_gpu_and_refused_where_asked_for(monkeypatch, capsys) -> None:
    monkeypatch.setattr(output_head, "find_kernel_fault", lambda device: "no compiler")
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    for kernel, device in (("torch", gpu), (None, cpu)):
        try_kernels(kernel, device)
    assert capsys.readouterr().out == ""
    try_kernels(None, gpu)
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(ValueError, match=r"loss\.kernel triton does not run here: no compiler; use torch"):
        try_kernels("triton", gpu)
    monkeypatch.setattr(output_head, "find_kernel_fault", lambda device: None)
    for kernel in ("triton", None):
        try_kernels(kernel, gpu)
    assert capsys.readouterr().out == ""

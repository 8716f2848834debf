"""Tests of weights and sizes: a file's distributions are the model's, whatever the architecture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny import build_tokenizer

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from lightning_modules.export.architecture import can_convert, convert
from lightning_modules.export.quantization import write_gguf
from lightning_modules.model.llama_cpp import LlamaCpp

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 64, "initializer_range": 0.2, "eos_token_id": 1, "bos_token_id": None}
GROUPED = {"num_key_value_heads": 2}
STRETCHED = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 32,
}
CASES: list[tuple[type, type, dict[str, Any]]] = [
    (LlamaConfig, LlamaForCausalLM, {**GROUPED, "tie_word_embeddings": True, "rope_parameters": STRETCHED}),
    (MistralConfig, MistralForCausalLM, {**GROUPED, "sliding_window": None, "head_dim": 32}),
    (Qwen2Config, Qwen2ForCausalLM, {**GROUPED, "tie_word_embeddings": True}),
    (Qwen3Config, Qwen3ForCausalLM, {**GROUPED, "head_dim": 32}),
    (GPTNeoXConfig, GPTNeoXForCausalLM, {"use_parallel_residual": True, "rotary_pct": 0.25}),
]


def make(config: type, kind: type, options: dict[str, Any], padding: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = kind(config(vocab_size=len(tokenizer) + padding, **SIZES, **options)).eval()
    for parameter in model.parameters():
        # What begins as ones or zeros would hide a weight in another's place.
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, tokenizer


@pytest.mark.parametrize(("config", "kind", "options"), CASES, ids=lambda item: getattr(item, "__name__", None))
def test_distributions_are_the_models(config: type, kind: type, options: dict, tmp_path: Path) -> None:
    model, tokenizer = make(config, kind, options, padding=3)
    assert can_convert(model.config)
    source = convert(model, tokenizer)
    write_gguf(tmp_path / "m.gguf", source, "f32", {}, {})
    ids = tokenizer("Question: which one is red, and which of these 12 is blue?").input_ids
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    own = LlamaCpp(str(tmp_path / "m.gguf"))
    found = torch.from_numpy(own.read(ids, len(ids))).log_softmax(-1).numpy()
    own.close()
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert (found.argmax(-1) == wanted.argmax(-1)).all()
    assert source.is_tied == (options.get("tie_word_embeddings", False))


def test_other_architectures_need_llama_cpps_converter() -> None:
    for options in ({"sliding_window": 8}, {"hidden_act": "gelu"}):
        assert not can_convert(make(MistralConfig, MistralForCausalLM, GROUPED | options)[0].config)

"""The architectures of `configs/models`, tiny: by the name of the file that has their models' cards."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES = {
    "gemma-2": Gemma2Config(**SIZES, **WINDOW, head_dim=8, final_logit_softcapping=3.0),
    "gemma-3": Gemma3TextConfig(**SIZES, **WINDOW, head_dim=8),
    "llama-2": LlamaConfig(**SIZES),
    "llama-3": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "pythia": GPTNeoXConfig(**SIZES),
    "qwen2.5": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "smollm2": LlamaConfig(**SIZES, tie_word_embeddings=True),
}


def list_families() -> set[str]:
    """Returns the names of the files of `configs/models`."""
    return {path.stem for path in (Path(__file__).parents[2] / "configs" / "models").glob("*.yaml")}


def build_tiny(name: str) -> PreTrainedModel:
    """Returns a model with weights of its own, in transformers' choice of attention."""
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name])

"""A student's weights and sizes under the names that GGUF has for them."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.export.vocabulary import add_vocabulary


@dataclass(frozen=True)
class StoredTensor:
    """A weight of the file that is to be written.

    Attributes:
        name: GGUF's name of it.
        shape: Rows first, as in torch.
        read: Returns it, float32.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Source:
    """What a GGUF file is written from, whatever its types.

    Attributes:
        architecture: GGUF's name.
        num_layers: Of the decoder.
        is_tied: The output head is the embedding.
        tensors: All weights.
        add_metadata: Writes sizes and vocabulary.
        rename: Returns GGUF's name of a torch module's weight; None if it has none.
    """

    architecture: str
    num_layers: int
    is_tied: bool
    tensors: list[StoredTensor]
    add_metadata: Callable[[gguf.GGUFWriter], None]
    rename: Callable[[str], str | None]


# Transformers' model type to GGUF's architecture, and what computes a layer's feed-forward part there.
_KNOWN = {
    "llama": (gguf.MODEL_ARCH.LLAMA, {"silu"}),
    "mistral": (gguf.MODEL_ARCH.LLAMA, {"silu"}),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, {"silu"}),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, {"silu"}),
    "gpt_neox": (gguf.MODEL_ARCH.GPTNEOX, {"gelu", "gelu_new", "gelu_fast"}),
}


# What every file is written anew with.
_OWN = ("general.architecture", "general.file_type", "general.quantization_version", "general.name")


def can_convert(config: Any) -> bool:
    """Says whether an architecture, by a model's config, is written here, without llama.cpp's converter."""
    if config.model_type not in _KNOWN or config.hidden_act not in _KNOWN[config.model_type][1]:
        return False
    return getattr(config, "sliding_window", None) is None and _read_rope(config)["rope_type"] in ("default", "llama3")


def _read_rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.rope_parameters or {})}


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    """Writes what a model's config says of its shape."""
    rope, heads = _read_rope(config), config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 1.0)))
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _interleave(weight: Tensor, heads: int) -> Tensor:
    """Returns a query's or key's weight for rotations of neighbours, where torch's rotate halves."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _part_heads(weight: Tensor, heads: int) -> Tensor:
    """Returns GPT-NeoX's joint weight with all queries first, then all keys, then all values."""
    return weight.reshape(heads, 3, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def _arrange(name: str, weight: Tensor, config: Any) -> np.ndarray:
    """Returns a weight in llama.cpp's order, float32."""
    weight = weight.detach().float()
    if name.split(".")[-2] in ("q_proj", "k_proj") and config.model_type in ("llama", "mistral"):
        is_query = ".q_proj." in name
        weight = _interleave(weight, config.num_attention_heads if is_query else config.num_key_value_heads)
    elif ".query_key_value." in name:
        weight = _part_heads(weight, config.num_attention_heads)
    return weight.contiguous().cpu().numpy()


def _stretch_rope(config: Any) -> np.ndarray | None:
    """Returns by what Llama 3 divides each of its rotations' frequencies; None where nothing is divided."""
    rope = _read_rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factor, low, high = (rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    smooth = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    divisors: np.ndarray = (1 / np.clip((1 - smooth) / factor + smooth, 1 / factor, 1)).astype(np.float32)
    return divisors


def convert(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Source:
    """Returns a model of an architecture that is known here (`can_convert`) as a GGUF file's source.

    Raises:
        ValueError: llama.cpp has no tokenizer like this one.
    """
    config = model.config
    architecture, _ = _KNOWN[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)

    def rename(name: str) -> str | None:
        return names.get_name(name, try_suffixes=(".weight", ".bias"))

    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    is_tied = head is embedding
    tensors = []
    # llama.cpp's GPT-NeoX has no tied head, so that the embedding is there twice.
    is_doubled = is_tied and config.model_type == "gpt_neox"
    for name, weight in [*model.named_parameters(), *([("lm_head.weight", head)] if is_doubled else [])]:
        own = rename(name)
        assert own is not None, name
        tensors.append(StoredTensor(own, tuple(weight.shape), partial(_arrange, name, weight, config)))
    if (factors := _stretch_rope(config)) is not None:
        tensors.append(StoredTensor("rope_freqs.weight", factors.shape, lambda: factors))

    def add_metadata(writer: gguf.GGUFWriter) -> None:
        _add_sizes(writer, config)
        add_vocabulary(writer, tokenizer, config.vocab_size)

    name = gguf.MODEL_ARCH_NAMES[architecture]
    return Source(name, config.num_hidden_layers, is_tied and not is_doubled, tensors, add_metadata, rename)


def convert_by_llama_cpp(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, llama_cpp: Path, scratch: Path
) -> Source:
    """Returns a model as a GGUF file's source, by llama.cpp's own converter.

    Args:
        model: The model.
        tokenizer: The model's.
        llama_cpp: A checkout of llama.cpp, or its folder in the source package of llama-cpp-python.
        scratch: An empty folder, for weights in float32 twice.

    Raises:
        ValueError: There is no converter, or it does not know the model or its tokenizer.
    """
    script = llama_cpp / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise ValueError(f"--llama_cpp: {llama_cpp} has no {script.name}; name a checkout of llama.cpp")
    folder, file = scratch / "student", scratch / "student.gguf"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    command = [sys.executable, str(script), str(folder), "--outtype", "f32", "--outfile", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not file.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(f"{script}: does not convert this student: {lines[-1].strip()[:300] if lines else 'no word'}")
    reader = gguf.GGUFReader(file)
    fields = reader.fields
    architecture = str(fields["general.architecture"].contents())
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture),
        layers := int(fields[f"{architecture}.block_count"].contents()),
    )
    tensors = [
        StoredTensor(
            tensor.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            partial(np.ascontiguousarray, tensor.data, np.float32),
        )
        for tensor in reader.tensors
    ]

    def add_metadata(writer: gguf.GGUFWriter) -> None:
        for name, field in fields.items():
            if name.startswith("GGUF.") or name in _OWN:
                continue
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)

    is_tied = not any(tensor.name == "output.weight" for tensor in tensors)
    return Source(
        architecture,
        layers,
        is_tied,
        tensors,
        add_metadata,
        lambda name: names.get_name(name, try_suffixes=(".weight", ".bias")),
    )


def count_weights(source: Source) -> int:
    """Returns how many numbers the weights are."""
    return sum(int(torch.Size(tensor.shape).numel()) for tensor in source.tensors)

"""Loading a causal language model from the hub, a local folder, a GGUF file or a run's checkpoint."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available, logging

from datamodules.files.atomic import hash_json, hash_path
from datamodules.files.hub import is_reachable
from datamodules.files.seals import check_folder
from datamodules.model_cards import find_card
from datamodules.model_sources import loading, locate_pretrained, read_start, resolve_model
from lightning_modules.model.adapters import check_peft, find_base, merge_adapter

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]
SAMPLED_BYTES = 1 << 20
# What says beside weights and config how a model reads, writes and ends texts.
_TEXT_FILES = ("*token*.json", "*.model", "vocab*", "merges.txt", "chat_template*", "generation_config.json")


def default_dtype(model: str) -> Dtype:
    """Returns the dtype of a model card's weights, and float32 for a model without a card."""
    card = find_card(model)
    return card.dtype if card else "float32"


def identify_weights(model: str, revision: str | None) -> str:
    """Returns the hub commit, or a hash of local weights: names, sizes, first and last MiB of each file.

    Whole files are not read, since a large teacher's take minutes.
    """
    if not model.endswith(".ckpt"):
        model, revision = resolve_model(model, revision)
    path = Path(model)
    if not path.exists():
        # A branch such as `main` moves; the hub's cache keeps files in a folder named by their commit.
        return Path(
            hf_hub_download(model, "config.json", revision=revision, local_files_only=not is_reachable())
        ).parent.name
    digest = hashlib.sha256()
    config = "config.json"
    if base := find_base(model):
        config = "adapter_config.json"
        digest.update(identify_weights(*base).encode())
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.gguf"), path / config])
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLED_BYTES))
            stream.seek(max(0, size - SAMPLED_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def identify_local(model: str) -> str | None:
    """Returns a hash of a local model: its weights, its tokenizer and its templates; None for what is none, or a hub's.

    Raises:
        ValueError: It is an adapter whose config is malformed.
    """
    folder = Path(model)
    if folder.is_file():
        return identify_weights(model, None)
    if base := find_base(model):
        own = [*folder.glob("*.safetensors"), folder / "adapter_config.json"]
        parts = [identify_local(base[0]) or repr(base)]
    elif (folder / "config.json").is_file():
        own, parts = [], [identify_weights(model, None)]
    else:
        return None
    own += sorted({file for pattern in _TEXT_FILES for file in folder.glob(pattern) if file.is_file()})
    return hash_json([*parts, *([file.name, hash_path(file)] for file in sorted(own))])


def check_layers(layers: list[int], total: int) -> None:
    """Raises a ValueError unless the numbers are ascending layer numbers of a model with `total` layers."""
    if layers != sorted(set(layers)) or not layers or layers[0] < 0 or layers[-1] >= total:
        raise ValueError(f"keep_layers must be ascending numbers below the model's {total} layers, not {layers}")


def keep_only_layers(model: PreTrainedModel, layers: list[int]) -> None:
    """Makes a shallower model of the same family by keeping these decoder layers, in order.

    Raises:
        ValueError: The numbers are not ascending layer numbers of this model.
    """
    check_layers(layers, model.config.num_hidden_layers)
    decoder = model.base_model
    kept = nn.ModuleList([decoder.layers[number] for number in layers])
    for position, layer in enumerate(kept):
        for module in layer.modules():
            # Attention modules address the key-value cache by their own number.
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = position
    decoder.layers = kept
    model.config.num_hidden_layers = len(layers)
    if (types := vars(model.config).get("layer_types")) is not None:
        model.config.layer_types = [types[number] for number in layers]


def read_config(model: str, revision: str | None, keep_layers: list[int] | None = None) -> PreTrainedConfig:
    """Returns a model's config; an adapter's is its model's."""
    if base := find_base(model):
        return read_config(*base, keep_layers)
    name, options = locate_pretrained(model, revision)
    with loading(model, "model config"):
        config = AutoConfig.from_pretrained(name, **options).get_text_config()
    if keep_layers is not None:
        config.num_hidden_layers = len(keep_layers)
    return config


def load_causal_lm(
    model: str,
    revision: str | None = None,
    dtype: Dtype = "float32",
    keep_layers: list[int] | None = None,
    quantize_on: torch.device | None = None,
    attention: Attention | None = None,
) -> PreTrainedModel:
    """Loads a causal language model; weights are read from safetensors or GGUF, never from pickles.

    Args:
        model: Hub id, local folder, `.gguf` file, a run's `.ckpt`, or `model:NAME`; an exported adapter is added to its
            model's weights.
        revision: Commit of a hub model.
        dtype: Of the weights in memory.
        keep_layers: Keep only these decoder layers; of a checkpoint, the run's config has them.
        quantize_on: Where the linear layers' weights are held in 4 bits, and computed with in `dtype`.
        attention: How attention is computed; None is transformers' choice for the architecture.

    Raises:
        ValueError: There is no such model; its weights are not those of its config, or not all finite numbers.
    """
    if model.endswith(".ckpt"):
        start = read_start(model)
        loaded = load_causal_lm(start["student"], start["revision"], dtype, start["keep_layers"], attention=attention)
        weights = read_weights(model)
        shapes = {name: weight.shape for name, weight in loaded.state_dict().items()}
        common = [name for name in weights if name in shapes]
        refuse_other_weights(
            model,
            missing=shapes.keys() - weights.keys(),
            unexpected=weights.keys() - shapes.keys(),
            mismatched=[(name, weights[name].shape, shapes[name]) for name in common],
        )
        loaded.load_state_dict(weights)
        refuse_infinite(loaded, model)
        return loaded
    check_folder(Path(model))
    if base := find_base(model):
        merged = merge_adapter(load_causal_lm(*base, dtype, keep_layers, attention=attention), model)
        refuse_infinite(merged, model)
        return merged
    name, options = locate_pretrained(model, revision)
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("model.attention flash_attention_2 needs the package flash-attn and a CUDA GPU; use sdpa")
    if attention is not None:
        options["attn_implementation"] = attention
    if quantize_on is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        options |= {"device_map": {"": quantize_on}, "use_safetensors": True}
    elif "gguf_file" in options:
        # A student is trained and exported, so a GGUF file's blocks are unpacked into plain weights.
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    # What does not fit is named below, in one line.
    with loading(model, "model"), quiet_report():
        loaded, report = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    refuse_other_weights(model, report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    refuse_infinite(loaded, model)
    if quantize_on is not None:
        for module in loaded.modules():
            # A processor's layers would else take another form, and bfloat16, from their first evaluation on.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if keep_layers is not None:
        keep_only_layers(loaded, keep_layers)
    return loaded


def read_weights(checkpoint: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a run's checkpoint, by their names in the model.

    Raises:
        ValueError: It is no checkpoint, or damaged.
    """
    with loading(checkpoint, "checkpoint"):
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    stored = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(stored, dict) or not all(isinstance(weight, torch.Tensor) for weight in stored.values()):
        raise ValueError(f"{checkpoint}: no checkpoint of a run: it holds no state_dict of weights")
    return {str(name).removeprefix("model."): weight for name, weight in stored.items()}


@contextmanager
def quiet_report() -> Iterator[None]:
    """Keeps transformers from reporting in many lines what is refused in one."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def refuse_other_weights(
    model: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]
) -> None:
    """Raises a ValueError, with their names, if weights are not those that the model's config asks for.

    Args:
        model: Named in the message.
        missing: Weights that the file lacks; tied ones aside.
        unexpected: Weights that the model has no place for.
        mismatched: Names, with the file's shape and the model's.
    """
    shapes = [
        f"{name} ({'x'.join(map(str, own))} for {'x'.join(map(str, right))})"
        for name, own, right in mismatched
        if own != right
    ]
    wrong = {"lack": sorted(missing), "have no place for": sorted(unexpected), "have another shape of": sorted(shapes)}
    found = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in wrong.items()
        if names
    ]
    if found:
        raise ValueError(f"{model}: its weights are not those of its config: they {'; they '.join(found)}")


@torch.no_grad()
def refuse_infinite(loaded: PreTrainedModel, model: str) -> None:
    """Raises a ValueError, with its name, if a weight holds NaN or an infinity."""
    for name, weight in loaded.state_dict().items():
        # One pass and no copy: the least and the greatest of numbers with a NaN are NaN.
        if weight.is_floating_point() and weight.numel() and not all(map(torch.isfinite, weight.aminmax())):
            raise ValueError(f"{model}: {name} holds numbers that are not finite; take another file")


def read_end_ids(model: str, revision: str | None) -> list[int]:
    """Returns the end tokens of a model's own generation settings, without loading it; none where it has no such.

    Raises:
        ValueError: The settings are malformed.
    """
    name, options = locate_pretrained(model, revision)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "generation_config.json").is_file():
            return []
        with loading(model, "generation config"):
            settings = GenerationConfig.from_pretrained(name, **options)
    else:
        try:
            settings = GenerationConfig.from_pretrained(name, **options)
        except OSError:
            return []
    ends = list_end_ids(settings)
    if not all(type(end) is int for end in ends):
        raise ValueError(f"{model}: generation_config.json: eos_token_id is {ends}, but must be ids of tokens")
    return ends


def list_end_ids(settings: GenerationConfig) -> list[int]:
    """Returns the end tokens of generation settings."""
    own = settings.eos_token_id
    return own if isinstance(own, list) else [] if own is None else [own]


def add_end_ids(settings: GenerationConfig, end_ids: list[int]) -> None:
    """Makes generation settings end a text at these tokens, too, and first at those that a student learned to write."""
    settings.eos_token_id = list(dict.fromkeys([*end_ids, *list_end_ids(settings)]))


def check_model(
    model: str, revision: str | None, keep_layers: list[int] | None, length: int, what: str, highest_id: int = -1
) -> None:
    """Refuses, without loading it, a model that lacks weights, layers to keep, enough context, or a token's embedding.

    Args:
        model: Hub id, local folder, `.gguf` file, or `model:NAME`; only its config is read.
        revision: Commit of a hub model.
        keep_layers: Layers to keep; None keeps all.
        length: Longest sequence.
        what: The settings that add up to it, for the message.
        highest_id: Of the tokens that it is given; -1 if that is not known.

    Raises:
        ValueError: There is no such model, or it does not fit.
    """
    if base := find_base(model):
        check_peft()
        return check_model(*base, keep_layers, length, what, highest_id)
    name, options = locate_pretrained(model, revision)
    if model.endswith(".ckpt") and keep_layers is not None:
        raise ValueError(f"{model}: keep_layers is given, but the run's own config says which layers a checkpoint has")
    with loading(model, "model config"):
        sizes = AutoConfig.from_pretrained(name, **options).get_text_config().to_dict()
    path = Path(model)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ValueError(f"{model}: holds no weights (*.safetensors); others are not read")
    for name in ("num_hidden_layers", "vocab_size", "max_position_embeddings"):
        # Of these only the context may be left open.
        if type(size := sizes.get(name)) is not int and (size is not None or name != "max_position_embeddings"):
            raise ValueError(f"{model}: config.json: {name} is {size!r}, but must be a whole number")
    if keep_layers is not None:
        check_layers(keep_layers, sizes["num_hidden_layers"])
    context = sizes.get("max_position_embeddings")
    if context is not None and length > context:
        raise ValueError(f"{what} is {length}, more than the context of {context} tokens of {model}; lower it")
    if highest_id >= (size := sizes["vocab_size"]):
        raise ValueError(
            f"{model}: its tokenizer writes token {highest_id}, but its embedding has {size} rows: they are not of one "
            "model, or a token was added without resizing the embedding"
        )

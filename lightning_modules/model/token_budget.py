"""How many tokens fit a GPU's memory at a time, from the model's config: what a token takes is counted on fake tensors.

The numbers depend on the model, the settings and the size of the memory alone, so that a run that goes on, on any GPU
of the kind, computes as it did. All of them are upper bounds, with room to spare.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lightning_modules.model.output_head import run_body
from lightning_modules.model.pretrained import Attention, Dtype, read_config
from losses.fused_head import GPU_CHUNK_BYTES

# Of a GPU's memory; the rest is its driver's, other libraries', and lost between allocations.
USABLE_SHARE = 0.9
# Beyond these a GPU computes no faster.
MOST_TOKENS = 65_536
# A budget is a multiple of this.
GRAIN = 1024
# Logits that exist at a time in training, as chunks in float32: products, gradients, what they are made of.
LIVE_CHUNKS = 4
# Bytes a logit: of drawing a token, in float64 sorted and summed; of an option's, in the model's dtype and in float32.
DRAWN_BYTES, OPTION_BYTES = 48, 8
# A cache of fixed shapes has room for twice the rows and half more tokens, and the prompts' own is there beside it.
CACHE_ROOM = 4
# A text is at least so long, prompt and all; so many options' tokens at most are read for each of its tokens.
SHORTEST_TEXT, OPTIONS_SHARE = 64, 0.25


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes of a process's memory, in bytes.

    Attributes:
        parameters: Their number, tied ones once.
        itemsize: Of one of them.
        layers: Decoder layers.
        kept_by_layer: For the backward pass, of a token; no less than a layer needs at a time without one.
        kept_beside: Of a token, what is kept outside the layers.
        cached: Keys and values of a token, of all layers.
        width: Numbers of a hidden state.
        vocabulary: Its logits' number.
        is_mixed: Whether autocast computes in a half precision.
    """

    parameters: int
    itemsize: int
    layers: int
    kept_by_layer: int
    kept_beside: int
    cached: int
    width: int
    vocabulary: int
    is_mixed: bool

    @property
    def _head(self) -> int:
        # An accumulated gradient in float32, and a copy of the weights to multiply with.
        return LIVE_CHUNKS * GPU_CHUNK_BYTES + 8 * self.vocabulary * self.width

    @property
    def _gathered(self) -> int:
        # Two blocks at a time, and what is no block, in full.
        return self.itemsize * (2 * self.parameters // self.layers + 2 * self.vocabulary * self.width)

    def count_training(self, memory: int, *, trains_all: bool, recomputes: bool, shards: int = 1) -> int:
        """Returns how many tokens a training computes at a time.

        Args:
            memory: Of the GPU, in bytes.
            trains_all: Whether the weights are trained, with a gradient and AdamW's two moments, or an adapter.
            recomputes: Whether of each layer only the input is kept.
            shards: Over how many processes weights, gradients and moments are spread.
        """
        weight = self.itemsize * (4 if trains_all else 1)
        fixed = self.parameters * weight // shards + self._head
        if self.is_mixed:
            # Autocast's copies of the weights.
            fixed += 2 * self.parameters
        if shards > 1:
            fixed += self._gathered
        kept = 4 * self.width if recomputes else self.kept_by_layer
        # The layer that is gone through backwards has its gradients beside what it kept.
        return _fit(memory, fixed, self.layers * kept + 2 * self.kept_by_layer + self.kept_beside)

    def count_reading(self, memory: int, *, shards: int = 1) -> int:
        """Returns how many tokens a teacher reads at a time, whose weights are spread over so many processes."""
        fixed = self.itemsize * self.parameters // shards + self._head
        if shards > 1:
            fixed += self._gathered
        return _fit(memory, fixed, 2 * self.kept_by_layer + self.kept_beside)

    def count_writing(self, memory: int) -> int:
        """Returns how many tokens, of prompts and of what is written, are computed at a time."""
        logits = self.vocabulary * (DRAWN_BYTES / SHORTEST_TEXT + OPTION_BYTES * OPTIONS_SHARE)
        caches = CACHE_ROOM * self.cached
        return _fit(memory, self.itemsize * self.parameters, caches + 2 * self.kept_by_layer + int(logits))


def _fit(memory: int, fixed: int, of_token: int) -> int:
    """Returns a budget of at least `GRAIN` tokens: who has less memory than that is told so by the GPU."""
    tokens = int(USABLE_SHARE * memory - fixed) // of_token
    return max(GRAIN, min(tokens, MOST_TOKENS) // GRAIN * GRAIN)


def _count_kept(config: PreTrainedConfig, layers: int, rows: int, length: int, is_mixed: bool) -> int:
    """Returns the bytes that a forward pass keeps for the backward pass, the weights themselves apart."""
    config = deepcopy(config)
    config.num_hidden_layers = layers
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Held, so that no other gets its place.
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).train()
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=is_mixed):
            run_body(model, torch.zeros(rows, length, dtype=torch.int64), None)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


def _count_cached(config: PreTrainedConfig) -> int:
    """Returns the bytes of a layer's keys and values of a token."""
    config = deepcopy(config)
    config.num_hidden_layers = 1
    with FakeTensorMode(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def measure_memory(
    config: PreTrainedConfig,
    dtype: Dtype | str,
    length: int,
    is_mixed: bool = False,
    attention: Attention | None = None,
) -> ModelMemory:
    """Returns what a model takes, which is neither loaded nor run.

    Args:
        config: The model's.
        dtype: Of its weights in memory.
        length: Of the longest text: attention that keeps its weights keeps more of each token of a long one.
        is_mixed: Whether autocast computes in a half precision.
        attention: How attention is computed; flash attention keeps no more than sdpa.
    """
    config = deepcopy(config)
    config.dtype = getattr(torch, dtype)
    # Weights in 4 bits are unpacked a matrix at a time.
    vars(config).pop("quantization_config", None)
    if attention is not None:
        config._attn_implementation = "eager" if attention == "eager" else "sdpa"
    # What does not grow with the rows, such as copies of the weights, is left out.
    one, two = (
        (_count_kept(config, layers, 2, length, is_mixed) - _count_kept(config, layers, 1, length, is_mixed)) // length
        for layers in (1, 2)
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return ModelMemory(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        itemsize=config.dtype.itemsize,
        layers=config.num_hidden_layers,
        kept_by_layer=two - one,
        kept_beside=2 * one - two,
        cached=config.num_hidden_layers * _count_cached(config),
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        is_mixed=is_mixed,
    )


def find_memory(device: torch.device) -> int | None:
    """Returns a GPU's memory in bytes; None of a processor, whose caches are best filled by small batches."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def fit_token_budget(
    trainer: L.Trainer,
    count: Callable[[ModelMemory, int], int],
    model: str,
    revision: str | None,
    dtype: Dtype,
    keep_layers: list[int] | None,
    attention: Attention | None,
    is_mixed: bool = False,
) -> None:
    """Sets the data module's `token_budget` to what fits the GPU; a setting, and a processor's default, stay.

    Args:
        trainer: With its data module.
        count: Returns how many tokens fit so many bytes.
        model: Hub id, local folder, GGUF file or checkpoint.
        revision: Commit of a hub model.
        dtype: Of its weights in memory.
        keep_layers: Those of its layers that are kept.
        attention: How it is computed.
        is_mixed: Whether autocast computes in a half precision.
    """
    data: Any = trainer.datamodule
    device = trainer.strategy.root_device
    if data.batches.tokens_per_batch is not None or (memory := find_memory(device)) is None:
        return
    # All processes divide a step alike, also where one's GPU is smaller.
    memory = int(trainer.strategy.reduce(torch.tensor(memory, device=device), reduce_op="min"))
    config = read_config(model, revision, keep_layers)
    length = data.encoding.max_length + getattr(data, "max_new_tokens", 0)
    data.token_budget = count(measure_memory(config, dtype, length, is_mixed, attention), memory)
    rank_zero_only(print)(
        f"{data.token_budget} tokens are computed at a time, which fit {memory / 2**30:.0f} GiB; "
        "--data.batches.tokens_per_batch=N says otherwise"
    )

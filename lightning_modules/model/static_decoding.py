"""Decoding with a key-value cache of fixed shapes, so that a GPU is given a token's work as one compiled graph.

Shapes: B rows, H heads of keys and values, L tokens that the cache has room for, D width of a head, V vocabulary.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from datamodules.text.plain_text import clean_line, describe_error
from lightning_modules.model.generation import ReadPrompts, run_tokens

Generation = Literal["dynamic", "static", "compiled"]
# Fewer tokens than these are sooner written than a model is compiled. A guess, until a GPU has timed both.
COMPILED_FROM = 200_000
SHORTEST, FEWEST = 64, 2


def round_rows(number: int) -> int:
    """Returns the least power of two, 2 at least, that is not below a number of rows."""
    return max(FEWEST, 1 << (number - 1).bit_length())


def round_length(number: int) -> int:
    """Returns the least power of two, or half more than one, that is not below a number of tokens; 64 at least."""
    power = 1 << (number - 1).bit_length()
    return max(SHORTEST, 3 * power // 4 if 3 * power // 4 >= number else power)


class FixedLayer(StaticLayer):
    """A layer's keys and values, in memory that they do not own.

    transformers' own has memory of its own, whose address a recorded graph would have to be recorded anew for; and a
    window moves its tokens with each step. Here a window is a matter of the mask alone.

    Args:
        keys_BHLD: Of the tokens so far, and of those to come.
        values_BHLD: Likewise.
        place_1: Where the next token goes, int64, of all layers; whoever runs the model moves it.
    """

    def __init__(self, keys_BHLD: Tensor, values_BHLD: Tensor, place_1: Tensor):
        super().__init__(keys_BHLD.shape[2])
        self.keys, self.values, self.place_1 = keys_BHLD, values_BHLD, place_1
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Puts a token's in their place; returns all."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.place_1, key_states)
        self.values.index_copy_(2, self.place_1, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many tokens a mask is for, and the first."""
        assert self.keys is not None
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Any:
        """Returns the next token's place, [1]."""
        return self.place_1


class StaticDecoder:
    """Has a cache of few shapes at one address, for more rows and tokens than there are: `round_rows`, `round_length`.

    A row that has ended is computed on, unseen, until so many have that the next smaller shape holds the others. Sizes
    are symbols to the compiler, so that all shapes are one compilation; CUDA graphs are recorded for each shape, once.

    Args:
        model: The model, in evaluation mode.
        backend: What compiles it, by torch.compile's name; None compiles nothing.
    """

    # Of the batch under way: its rows' slots in the cache, and what each slot is given.
    _slots_B: Tensor
    _tokens_B1: Tensor
    _mask_BL: Tensor
    _positions_B1: Tensor
    _length: int
    # Stays where it is, as the memory does.
    _place_1: Tensor

    def __init__(self, model: PreTrainedModel, backend: str | Callable[..., Any] | None = None):
        self._model = model
        self._run: Callable[..., Tensor] = self._forward
        if backend is not None:
            mode = "reduce-overhead" if backend == "inductor" else None
            self._run = torch.compile(self._forward, backend=backend, mode=mode)
        self._memory: list[tuple[Tensor, Tensor]] = []
        self._caches: dict[tuple[int, int], Cache] = {}
        self._cache = Cache(layers=[])
        self._heads: list[tuple[int, int, int]] = []

    def _forward(self, tokens_B1: Tensor, mask_BL: Tensor, positions_B1: Tensor, cache: Cache) -> Tensor:
        return run_tokens(self._model, tokens_B1, mask_BL, positions_B1, cache)

    # Compiled code is for one autograd mode, whatever the caller's: inference tensors are refused by some backends.
    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(self, read: ReadPrompts, rows_B: Tensor, room: int) -> None:
        """See `generation.Decoder`."""
        number, start = len(rows_B), read.mask_PS.shape[1]
        self._length = round_length(start + room)
        self._reserve(read.cache, round_rows(number) * self._length)
        self._cache = self._shape(round_rows(number))
        for own, its in zip(self._cache.layers, read.cache.layers, strict=True):
            for mine_BHLD, read_PHSD in ((own.keys, its.keys), (own.values, its.values)):
                # What is masked weighs nothing, but nothing times infinity is no number.
                mine_BHLD.zero_()
                # Of a window, the last tokens are there.
                mine_BHLD[:number, :, start - read_PHSD.shape[2] : start] = read_PHSD[rows_B]
        read.cache.layers.clear()
        self._place_1.fill_(start)
        mask_BL = read.mask_PS.new_ones(number, self._length)
        mask_BL[:, :start] = read.mask_PS[rows_B]
        self._place_rows(mask_BL, read.positions_P1[rows_B])

    @torch.inference_mode(False)
    @torch.no_grad()
    def keep(self, places_B: Tensor) -> None:
        """See `generation.Decoder`."""
        self._slots_B = self._slots_B[places_B]
        number = len(places_B)
        if round_rows(number) < len(self._mask_BL):
            smaller = self._shape(round_rows(number))
            for own, its in zip(smaller.layers, self._cache.layers, strict=True):
                # Both lie in the same memory; indexing copies.
                own.keys[:number] = its.keys[self._slots_B]
                own.values[:number] = its.values[self._slots_B]
            self._cache = smaller
            self._place_rows(self._mask_BL[self._slots_B], self._positions_B1[self._slots_B])

    @torch.inference_mode(False)
    @torch.no_grad()
    def advance(self, tokens_B: Tensor) -> Tensor:
        """See `generation.Decoder`."""
        self._tokens_B1[self._slots_B, 0] = tokens_B
        inputs = (self._tokens_B1, self._mask_BL, self._positions_B1, self._cache)
        try:
            logits_BV = self._run(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            # Nothing has run yet.
            reason = clean_line(describe_error(error))
            warnings.warn(f"generation goes on without compiling, which failed here: {reason}", stacklevel=2)
            self._run = self._forward
            logits_BV = self._run(*inputs)
        self._place_1 += 1
        self._positions_B1 += 1
        # A copy: a recorded graph writes its next logits over these.
        return logits_BV[self._slots_B]

    def _place_rows(self, mask_BL: Tensor, positions_B1: Tensor) -> None:
        """Puts rows into the first slots of the cache's shape; those without a row see tokens that are zero."""
        number, shape = len(mask_BL), self._cache.layers[0].keys.shape[0]
        self._slots_B = torch.arange(number, device=mask_BL.device)
        self._tokens_B1 = mask_BL.new_zeros(shape, 1)
        self._mask_BL, self._positions_B1 = mask_BL.new_ones(shape, self._length), mask_BL.new_zeros(shape, 1)
        self._mask_BL[:number], self._positions_B1[:number] = mask_BL, positions_B1
        torch._dynamo.maybe_mark_dynamic(self._tokens_B1, 0)
        torch._dynamo.maybe_mark_dynamic(self._mask_BL, (0, 1))
        torch._dynamo.maybe_mark_dynamic(self._positions_B1, 0)

    def _reserve(self, read: DynamicCache, number: int) -> None:
        """Makes room for so many tokens, of all rows together, in every layer."""
        first = read.layers[0].keys
        assert first is not None
        if not self._memory:
            self._place_1 = torch.zeros(1, dtype=torch.int64, device=first.device)
            torch._dynamo.mark_static_address(self._place_1)
        self._heads = [(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in read.layers]
        num_heads, width, _ = self._heads[0]
        if not self._memory or self._memory[0][0].numel() < number * num_heads * width:
            # What there is goes before more is asked for.
            self._memory, self._caches, self._cache = [], {}, Cache(layers=[])
            for heads, *widths in self._heads:
                keys, values = (first.new_empty(number * heads * width) for width in widths)
                self._memory.append((keys, values))

    def _shape(self, rows: int) -> Cache:
        """Returns the memory as a cache of so many rows."""
        if (found := self._caches.get((rows, self._length))) is not None:
            return found

        def lay(memory: Tensor, heads: int, width: int) -> Tensor:
            sizes = (rows, heads, self._length, width)
            strides = (heads * self._length * width, self._length * width, width, 1)
            # Not a view of it, which a compiler would tell from a tensor.
            plane_BHLD = memory.new_empty(0).set_(memory.untyped_storage(), 0, sizes, strides)
            torch._dynamo.mark_static_address(plane_BHLD)
            torch._dynamo.maybe_mark_dynamic(plane_BHLD, (0, 2))
            return plane_BHLD

        layers = [
            FixedLayer(lay(keys, heads, key_width), lay(values, heads, value_width), self._place_1)
            for (heads, key_width, value_width), (keys, values) in zip(self._heads, self._memory, strict=True)
        ]
        return self._caches.setdefault((rows, self._length), Cache(layers=layers))


def find_obstacle(model: PreTrainedModel) -> str | None:
    """Returns why a model cannot be given a cache of fixed shapes; None if it can."""
    config = model.config.get_text_config()
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"model.attention {config._attn_implementation} reads the padding of a cache of fixed shapes"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds - {DynamicLayer, DynamicSlidingWindowLayer} or getattr(config, "attention_chunk_size", None) is not None:
        return f"layers of {config.model_type} keep more than keys and values"
    if not model._can_compile_fullgraph:
        return f"transformers says that {config.model_type} cannot be compiled as a whole"
    return None


def choose_decoder(model: PreTrainedModel, generation: Generation | None, num_tokens: int) -> StaticDecoder | None:
    """Returns what generates; None is a `DynamicDecoder`.

    Args:
        model: The model, on its device.
        generation: What was asked for; None compiles on a GPU, where so many tokens are worth it and the model allows.
        num_tokens: That are to be written at most.

    Raises:
        ValueError: The model does not allow what was asked for.
    """
    is_worth_it = model.device.type == "cuda" and num_tokens >= COMPILED_FROM
    wanted = generation or ("compiled" if is_worth_it else "dynamic")
    if wanted == "dynamic":
        return None
    if (obstacle := find_obstacle(model)) is not None:
        if generation is not None:
            raise ValueError(f"model.generation={generation}: {obstacle}; leave it")
        warnings.warn(f"generation is not compiled: {obstacle}", stacklevel=2)
        return None
    return StaticDecoder(model, "inductor" if wanted == "compiled" else None)

"""Prompts that a causal language model reads once: what it writes after them, and what it thinks of given endings."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from datamodules.batches.packing import pad_rows
from lightning_modules.model.pretrained import list_end_ids


def refuse_overflow(numbers: Tensor, model: PreTrainedModel) -> None:
    """Raises a ValueError if one of a model's numbers is none, or infinite: what they choose would mean nothing."""
    if bool((numbers.isnan() | numbers.isposinf()).any()):
        raise ValueError(
            f"{model.name_or_path}: what it computes in {str(model.dtype).removeprefix('torch.')} is not finite; set "
            "another model.dtype, or take another model"
        )


def keep_nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Returns the probabilities of the fewest most probable tokens that hold `top_p`, and 0 for all others.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751). The most probable token is always among them.
    """
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = torch.where(before_BV < top_p, sorted_BV, 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)


def choose_tokens(logits_BV: Tensor, temperature: float, uniform_B: Tensor | None, top_p: float = 1.0) -> Tensor:
    """Returns the next token of each row, int64 [B].

    Args:
        logits_BV: Of the next token.
        temperature: 0 takes the most probable token.
        uniform_B: A number in [0, 1) for each row, float64, which the row's distribution turns into a token (inverse
            transform sampling); None if greedy.
        top_p: Draws from the nucleus that holds so much probability; 1 draws from all.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    assert uniform_B is not None
    probs_BV = (logits_BV.double() / temperature).softmax(-1)
    sums_BV = (probs_BV if top_p == 1 else keep_nucleus(probs_BV, top_p)).cumsum(-1)
    # The last sum is 1 but for rounding; the first sum above the draw is never that of a token without probability.
    draws_B1 = (uniform_B * sums_BV[:, -1])[:, None]
    return torch.searchsorted(sums_BV, draws_B1, right=True)[:, 0]


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with alike, of which each leaves one at least; 0 for one prompt."""
    if len(prompts) == 1:
        return 0
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return next((index for index, tokens in enumerate(columns) if len(set(tokens)) > 1), min(map(len, prompts)) - 1)


def derive_seed(seed: int, question_id: str, sample: int) -> int:
    """Returns a completion's own seed, below 2**31, which no other completion plays a part in."""
    digest = hashlib.sha256(f"{seed}/{question_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


@dataclass
class ReadPrompts:
    """Prompts that a model has read: its key-value cache, and the next token's logits.

    P are the different prompts; a prompt may be there several times.

    Attributes:
        rows: For each prompt, its place among the different ones.
        cache: Of the different prompts.
        mask_PS: Which of the cache's tokens are prompt, not padding.
        positions_P1: Of the next token.
        logits_PV: Of the next token.
    """

    rows: list[int]
    cache: DynamicCache
    mask_PS: Tensor
    positions_P1: Tensor
    logits_PV: Tensor

    def repeat(self, number: int) -> "ReadPrompts":
        """Returns the same, with each prompt there so many times."""
        return replace(self, rows=[row for row in self.rows for _ in range(number)])

    def fork(self) -> "ReadPrompts":
        """Returns prompts that continue apart from these; memory is shared until one of them grows."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return replace(self, cache=cache)


def run_tokens(model: PreTrainedModel, ids_BS: Tensor, mask_BL: Tensor, positions_BS: Tensor, cache: Cache) -> Tensor:
    """Runs a model on tokens that follow those of its cache, which takes them in; returns the last's logits, [B, V].

    Args:
        model: The model.
        ids_BS: The tokens.
        mask_BL: Which of the L tokens, the cache's and these, are attended to.
        positions_BS: Where they stand.
        cache: Keys and values of those before.
    """
    logits_BV: Tensor = model(
        input_ids=ids_BS,
        attention_mask=mask_BL,
        position_ids=positions_BS,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits_BV


@torch.inference_mode()
def read_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> ReadPrompts:
    """Reads prompts as one batch.

    A prompt that is there several times is read once, and so is what all prompts begin with, such as exemplars; what
    follows is padded on the left, with a token that is not attended to.

    Args:
        model: The model, in evaluation mode.
        prompts: Token ids.
    """
    places = {tuple(prompt): index for index, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    cache = DynamicCache(config=model.config)
    # A sliding window counts the padding that would come between the shared tokens and the rest.
    shared = 0 if any(cache.is_sliding) else count_shared(list(places))
    input_ids_PS = pad_rows([prompt[shared:] for prompt in places], 0, left=True).to(model.device)
    mask_PS = pad_rows([[1] * (len(prompt) - shared) for prompt in places], 0, left=True)
    mask_PS = torch.cat([torch.ones(len(places), shared, dtype=torch.int64), mask_PS], 1).to(model.device)
    positions_PS = (mask_PS.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    if shared:
        first = torch.tensor([prompts[0][:shared]], device=model.device)
        model(input_ids=first, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(places))
    logits_PV = run_tokens(model, input_ids_PS, mask_PS, positions_PS, cache)
    refuse_overflow(logits_PV.amax(-1), model)
    rows = [places[tuple(prompt)] for prompt in prompts]
    return ReadPrompts(rows, cache, mask_PS, positions_PS[:, -1:] + 1, logits_PV)


class Decoder(Protocol):
    """Runs a model token by token after prompts that it has read."""

    def begin(self, read: ReadPrompts, rows_B: Tensor, room: int) -> None:
        """Begins to continue prompts, which are used up.

        Args:
            read: The prompts.
            rows_B: Of which prompt each row is; a prompt may have several.
            room: How many tokens each row is given at most.
        """

    def keep(self, places_B: Tensor) -> None:
        """Goes on with these rows alone, in this order."""

    def advance(self, tokens_B: Tensor) -> Tensor:
        """Gives each row a token; returns the logits of the next, [B, V]."""


class DynamicDecoder:
    """Has a key-value cache of the rows that there are, which grows by a token at a time: nothing is computed in vain.

    Args:
        model: The model, in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model

    def begin(self, read: ReadPrompts, rows_B: Tensor, room: int) -> None:
        """See `Decoder`."""
        self._cache, self._mask_BS, self._positions_B1 = read.cache, read.mask_PS, read.positions_P1
        self.keep(rows_B)

    def keep(self, places_B: Tensor) -> None:
        """See `Decoder`."""
        self._cache.batch_select_indices(places_B)
        self._mask_BS, self._positions_B1 = self._mask_BS[places_B], self._positions_B1[places_B]

    def advance(self, tokens_B: Tensor) -> Tensor:
        """See `Decoder`."""
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(tokens_B), 1)], 1)
        logits_BV = run_tokens(self._model, tokens_B[:, None], self._mask_BS, self._positions_B1, self._cache)
        self._positions_B1 = self._positions_B1 + 1
        return logits_BV


class Sample(NamedTuple):
    """What a model wrote, as it was drawn.

    Attributes:
        ids: Of its tokens, the end token included where it wrote one.
        log_probs: Of each, at temperature 1, whatever temperature and nucleus it was drawn from.
    """

    ids: list[int]
    log_probs: list[float]


def generate_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]] | ReadPrompts,
    end_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    has_stopped: Callable[[list[int]], bool] | None = None,
    top_p: float = 1.0,
    samples: list[Sample] | None = None,
    decoder: Decoder | None = None,
) -> list[tuple[list[int], Literal["stop", "length"]]]:
    """Continues each prompt, in one batch with a key-value cache, which a row leaves as soon as it has ended.

    Each row draws from a generator of its own, so that its tokens depend on its prompt and seed alone, but for
    rounding: a sum over more padding or other rows, or by another decoder, may differ in its last bit, and two tokens
    that close may then change places. In float32 that is rare, in bfloat16 it is not.

    Args:
        model: The model, in evaluation mode.
        prompts: Token ids; or what `read_prompts` made of them, which is used up.
        end_ids: End a completion (`find_end_tokens`), beside those of the model's own generation settings. Of these
            nothing else plays a part: published models bring repetition penalties and truncated sampling.
        max_new_tokens: Truncates a completion.
        temperature: 0 is greedy.
        seeds: One for each prompt; needed if not greedy.
        has_stopped: Whether a completion ends with these ids, end tokens apart.
        top_p: Draws from the nucleus that holds so much probability; 1 draws from all.
        samples: Takes what was drawn for each prompt, with its log-probabilities; None computes none.
        decoder: How tokens are computed; None is a DynamicDecoder.

    Returns:
        For each prompt its completion's token ids without the end token, and `stop` or `length`.
    """
    read = prompts if isinstance(prompts, ReadPrompts) else read_prompts(model, prompts)
    ends = {*end_ids, *list_end_ids(model.generation_config)}
    draws_BL = None
    if temperature > 0:
        assert seeds is not None
        draws = [np.random.default_rng(seed).random(max_new_tokens) for seed in seeds]
        draws_BL = torch.from_numpy(np.stack(draws)).to(model.device)
    completions: list[list[int]] = [[] for _ in read.rows]
    reasons: list[Literal["stop", "length"]] = ["length"] * len(completions)
    rows = list(range(len(completions)))
    drawn = [Sample([], []) for _ in completions]
    decoder = decoder or DynamicDecoder(model)
    # From here on a row is a completion, not a prompt.
    prompts_B = torch.tensor(read.rows, device=model.device)
    logits_BV = read.logits_PV[prompts_B]
    with torch.inference_mode():
        for step in range(max_new_tokens):
            uniform_B = None if draws_BL is None else draws_BL[rows, step]
            tokens_B = choose_tokens(logits_BV, temperature, uniform_B, top_p)
            if samples is not None:
                log_p_B = logits_BV.float().log_softmax(-1).gather(-1, tokens_B[:, None])[:, 0]
                for row, token, log_p in zip(rows, tokens_B.tolist(), log_p_B.tolist(), strict=True):
                    drawn[row].ids.append(token)
                    drawn[row].log_probs.append(log_p)
            left = []
            for place, (row, token) in enumerate(zip(rows, tokens_B.tolist(), strict=True)):
                if token not in ends:
                    completions[row].append(token)
                    if has_stopped is None or not has_stopped(completions[row]):
                        left.append(place)
                        continue
                reasons[row] = "stop"
            if not left or step == max_new_tokens - 1:
                break
            places_B = torch.tensor(left, device=model.device)
            if step == 0:
                decoder.begin(read, prompts_B[places_B], max_new_tokens - 1)
            elif len(left) < len(rows):
                decoder.keep(places_B)
            rows = [rows[place] for place in left]
            logits_BV = decoder.advance(tokens_B[places_B])
        # What is not finite once stays so, in a row that goes on to the end.
        refuse_overflow(logits_BV.amax(-1), model)
    if samples is not None:
        samples += drawn
    return list(zip(completions, reasons, strict=True))


@torch.inference_mode()
def score_endings(
    model: PreTrainedModel, read: ReadPrompts, endings: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Returns log p(ending | prompt), in nats, of each of the endings of each prompt.

    Args:
        model: The model, in evaluation mode.
        read: The prompts, which can be continued afterwards.
        endings: For each prompt, the token ids of any number of endings of one token at least.
    """
    pairs = [(place, ids) for place, own in zip(read.rows, endings, strict=True) for ids in own]
    if not pairs:
        return [[] for _ in endings]
    places_R = torch.tensor([place for place, _ in pairs], device=model.device)
    first_R1 = torch.tensor([[ids[0]] for _, ids in pairs], device=model.device)
    log_p_R = read.logits_PV.float().log_softmax(-1)[places_R].gather(-1, first_R1)[:, 0]
    rest = [ids[1:] for _, ids in pairs]
    if any(rest):
        fork = read.fork()
        fork.cache.batch_select_indices(places_R)
        mask_RS = pad_rows([[1] * len(ids) for ids in rest], 0).to(model.device)
        labels_RS = pad_rows(rest, 0).to(model.device)
        inputs_RS = torch.cat([first_R1, labels_RS[:, :-1]], 1)
        logits_RSV = model(
            input_ids=inputs_RS,
            attention_mask=torch.cat([fork.mask_PS[places_R], mask_RS], 1),
            position_ids=fork.positions_P1[places_R] + torch.arange(mask_RS.shape[1], device=model.device),
            past_key_values=fork.cache,
            use_cache=True,
        ).logits
        for row, ids in enumerate(rest):
            log_p_LV = logits_RSV[row, : len(ids)].float().log_softmax(-1)
            log_p_R[row] += log_p_LV.gather(-1, labels_RS[row, : len(ids), None]).sum()
    refuse_overflow(log_p_R, model)
    scores = iter(log_p_R.tolist())
    return [[next(scores) for _ in own] for own in endings]

"""Batched generation with a causal language model, and the log-likelihood of given completions."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from datamodules.batching import pad_rows


def choose_tokens(logits_BV: Tensor, temperature: float, uniform_B: Tensor | None) -> Tensor:
    """Returns the next token of each row, int64 [B].

    Args:
        logits_BV: Of the next token.
        temperature: 0 takes the most probable token.
        uniform_B: A number in [0, 1) for each row, float64, which the row's distribution turns into a token (inverse
            transform sampling); None if greedy.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    assert uniform_B is not None
    sums_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1)
    # The last sum is 1 but for rounding; the first sum above the draw is never that of a token without probability.
    draws_B1 = (uniform_B * sums_BV[:, -1])[:, None]
    return torch.searchsorted(sums_BV, draws_B1, right=True)[:, 0]


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with alike, of which each leaves one at least; 0 for one prompt."""
    if len(prompts) == 1:
        return 0
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return next((place for place, tokens in enumerate(columns) if len(set(tokens)) > 1), min(map(len, prompts)) - 1)


def generate_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    eos_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    has_stopped: Callable[[list[int]], bool] | None = None,
) -> list[tuple[list[int], Literal["stop", "length"]]]:
    """Continues each prompt, in one batch with a key-value cache, which a row leaves as soon as it has ended.

    A prompt that is there several times is read once, and so is what all prompts begin with, such as exemplars; what
    follows is padded on the left. Each row draws from a generator
    of its own, so that its tokens depend on its prompt and seed alone, but for rounding: a sum over more padding or
    other rows may differ in its last bit, and two tokens that close may then change places. In float32 that is rare,
    in bfloat16 it is not.

    Args:
        model: The model, in evaluation mode.
        prompts: Token ids.
        eos_id: Ends a completion, beside the end tokens of the model's own generation settings. Of those settings
            nothing else plays a part: published models bring repetition penalties and truncated sampling.
        max_new_tokens: Truncates a completion.
        temperature: 0 is greedy.
        seeds: One for each prompt; needed if not greedy.
        has_stopped: Whether a completion ends with these ids, end tokens apart.

    Returns:
        For each prompt its completion's token ids without the end token, and `stop` or `length`.
    """
    own = model.generation_config.eos_token_id
    end_ids = {eos_id, *(own if isinstance(own, list) else [own] if own is not None else [])}
    draws_BL = None
    if temperature > 0:
        assert seeds is not None
        draws = [np.random.default_rng(seed).random(max_new_tokens) for seed in seeds]
        draws_BL = torch.from_numpy(np.stack(draws)).to(model.device)
    places = {tuple(prompt): place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    cache = DynamicCache(config=model.config)
    # A sliding window counts the padding that would come between the shared tokens and the rest.
    shared = 0 if any(cache.is_sliding) else count_shared(list(places))
    input_ids_BS = pad_rows([prompt[shared:] for prompt in places], eos_id, left=True).to(model.device)
    mask_BS = pad_rows([[1] * (len(prompt) - shared) for prompt in places], 0, left=True)
    mask_BS = torch.cat([torch.ones(len(places), shared, dtype=torch.int64), mask_BS], 1).to(model.device)
    positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    completions: list[list[int]] = [[] for _ in prompts]
    reasons: list[Literal["stop", "length"]] = ["length"] * len(prompts)
    rows = list(range(len(prompts)))
    # From here on a row is a completion, not a prompt.
    kept = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=model.device)
    with torch.inference_mode():
        if shared:
            first = torch.tensor([prompts[0][:shared]], device=model.device)
            model(input_ids=first, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(places))
        for step in range(max_new_tokens):
            logits_BV = model(
                input_ids=input_ids_BS,
                attention_mask=mask_BS,
                position_ids=positions_BS,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if step == 0:
                logits_BV = logits_BV[kept]
            uniform_B = None if draws_BL is None else draws_BL[rows, step]
            tokens_B = choose_tokens(logits_BV, temperature, uniform_B)
            left = []
            for place, (row, token) in enumerate(zip(rows, tokens_B.tolist(), strict=True)):
                if token not in end_ids:
                    completions[row].append(token)
                    if has_stopped is None or not has_stopped(completions[row]):
                        left.append(place)
                        continue
                reasons[row] = "stop"
            if not left:
                break
            places_B = torch.tensor(left, device=model.device)
            kept = kept[places_B] if step == 0 else places_B
            if step == 0 or len(left) < len(rows):
                cache.batch_select_indices(kept)
                mask_BS, positions_BS = mask_BS[kept], positions_BS[kept]
            rows = [rows[place] for place in left]
            input_ids_BS = tokens_B[places_B][:, None]
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(rows), 1)], 1)
            positions_BS = positions_BS[:, -1:] + 1
    return list(zip(completions, reasons, strict=True))


def score_completions(
    model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]], pad_id: int
) -> list[float]:
    """Returns log p(completion | prompt) of each pair, in nats."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    input_ids_BS = pad_rows(rows, pad_id).to(model.device)
    attention_mask_BS = pad_rows([[1] * len(row) for row in rows], 0).to(model.device)
    logits_BSV = model(input_ids=input_ids_BS, attention_mask=attention_mask_BS).logits
    scores = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        span = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        log_p_LV = logits_BSV[number, span].float().log_softmax(-1)
        scores.append(log_p_LV.gather(-1, torch.tensor(completion, device=model.device)[:, None]).sum().item())
    return scores

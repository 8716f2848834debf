"""Rows of a logit cache from a teacher that vLLM serves: its `prompt_logprobs`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datamodules.logit_cache.format import CacheDescription, Sparsity

# vLLM's own: a list of mappings, or its `FlatLogprobs`.
PromptLogprobs = Any
# Tokens that are asked for beside top_k, in place of ids beyond the tokenizer.
SPARE = 8


def refuse_unknown(sparsity: Sparsity, temperatures: tuple[float, ...]) -> None:
    """Refuses what log-probabilities of some tokens cannot tell: the normaliser of another temperature, a draw.

    Raises:
        ValueError: The kind is neither top_k nor labels, or there is a temperature beside 1.
    """
    if sparsity.kind != "labels" and (sparsity.kind != "top_k" or temperatures != (1.0,)):
        raise ValueError(
            f"vLLM's prompt_logprobs give kinds labels and top_k at temperature 1 only, not {sparsity.kind} at "
            f"{list(temperatures)}; set model.kind to top_k and model.temperatures to [1], or leave model.vllm"
        )


def score_sequences(
    ask: Callable[[Sequence[Sequence[int]], int], list[PromptLogprobs]],
    sequences: Sequence[Sequence[int]],
    nums_prompt_tokens: Sequence[int],
    made: CacheDescription,
    num_padded: int,
) -> list[dict[str, np.ndarray]]:
    """Returns each sequence's rows; asks again, for more, where too many of the most probable ids mean nothing.

    Args:
        ask: Returns each sequence's `prompt_logprobs` of so many most probable tokens.
        sequences: Token ids of examples, prompt and completion.
        nums_prompt_tokens: How many of each are not supervised.
        made: See `read_prompt_logprobs`.
        num_padded: Ids that the teacher's head has beyond the tokenizer's.

    Raises:
        ValueError: vLLM returned fewer tokens than it was asked for.
    """
    if made.sparsity.kind == "labels":
        return _score_labels(ask, sequences, nums_prompt_tokens)
    found: dict[int, dict[str, np.ndarray]] = {}
    for number in sorted({made.support_size + min(num_padded, SPARE), made.support_size + num_padded}):
        left = [place for place in range(len(sequences)) if place not in found]
        answers = ask([sequences[place] for place in left], number) if left else []
        for place, answer in zip(left, answers, strict=True):
            rows = read_prompt_logprobs(answer, sequences[place], nums_prompt_tokens[place], made)
            if rows is not None:
                found[place] = rows
    if len(found) < len(sequences):
        raise ValueError(f"vLLM returned fewer than the {number} log-probabilities that it was asked for")
    return [found[place] for place in range(len(sequences))]


def list_entries(prompt_logprobs: PromptLogprobs, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids and log-probabilities from position `first` on, one after the other, and each position's number."""
    if hasattr(prompt_logprobs, "start_indices"):
        starts, ends = (np.asarray(getattr(prompt_logprobs, f"{side}_indices")[first:]) for side in ("start", "end"))
        part = slice(int(starts[0]), int(ends[-1]))
        ids, values = (np.asarray(getattr(prompt_logprobs, name)[part]) for name in ("token_ids", "logprobs"))
        return ids.astype(np.int64), values.astype(np.float64), ends - starts
    rows = prompt_logprobs[first:]
    return (
        np.array([token_id for row in rows for token_id in row], np.int64),
        np.array([entry.logprob for row in rows for entry in row.values()], np.float64),
        np.array([len(row) for row in rows]),
    )


def pad_entries(prompt_logprobs: PromptLogprobs, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and log-probabilities from position `first` on, a row a position, padded with -1 and -inf."""
    ids, values, widths = list_entries(prompt_logprobs, first)
    places = (
        np.repeat(np.arange(len(widths)), widths),
        np.arange(len(ids)) - np.repeat(widths.cumsum() - widths, widths),
    )
    padded_ids = np.full((len(widths), widths.max()), -1)
    padded_values = np.full(padded_ids.shape, -np.inf)
    padded_ids[places], padded_values[places] = ids, values
    return padded_ids, padded_values


def pick_labels(ids: np.ndarray, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns each row's log-probability of its own token, which vLLM always adds to the most probable."""
    own: np.ndarray = values[np.arange(len(ids)), (ids == labels[:, None]).argmax(1)]
    return own


def _score_labels(
    ask: Callable[[Sequence[Sequence[int]], int], list[PromptLogprobs]],
    sequences: Sequence[Sequence[int]],
    nums_prompt_tokens: Sequence[int],
) -> list[dict[str, np.ndarray]]:
    """Returns each sequence's rows of kind labels."""
    found = []
    for answer, ids, first in zip(ask(sequences, 1), sequences, nums_prompt_tokens, strict=True):
        completion = np.array(ids[first:], dtype=np.int64)
        found.append({"token_ids": completion, "label_log_prob": pick_labels(*pad_entries(answer, first), completion)})
    return found


def score_endings(
    ask: Callable[[Sequence[Sequence[int]], int], list[PromptLogprobs]],
    prompts: list[list[int]],
    endings: list[list[list[int]]],
) -> list[list[float]]:
    """Returns the log-likelihood of each of a prompt's endings, for each prompt.

    Args:
        ask: As in `score_sequences`.
        prompts: Token ids of each, at least one.
        endings: Token ids of each prompt's endings, none of them empty.
    """
    pairs = [(prompt, ending) for prompt, own in zip(prompts, endings, strict=True) for ending in own]
    answers = ask([prompt + ending for prompt, ending in pairs], 1) if pairs else []
    scores = iter(
        float(pick_labels(*pad_entries(answer, len(prompt)), np.array(ending)).sum())
        for answer, (prompt, ending) in zip(answers, pairs, strict=True)
    )
    return [[next(scores) for _ in own] for own in endings]


def read_prompt_logprobs(
    prompt_logprobs: PromptLogprobs, token_ids: Sequence[int], num_prompt_tokens: int, made: CacheDescription
) -> dict[str, np.ndarray] | None:
    """Returns one example's rows, as `logit_codec` takes them; None if a row has fewer known tokens than top_k.

    Args:
        prompt_logprobs: Of one request, an entry for each token: None for the first, else log-probabilities by token
            id, of the most probable tokens and of the token itself. Or vLLM's `FlatLogprobs` of the same, in which the
            token itself comes first, and again if it is one of the most probable.
        token_ids: The request's prompt: an example's prompt and completion.
        num_prompt_tokens: How many of them are not supervised.
        made: Of the kind top_k, for temperature 1 alone, see `refuse_unknown`.
    """
    assert len(prompt_logprobs) == len(token_ids) and num_prompt_tokens > 0
    size, completion = made.support_size, np.array(token_ids[num_prompt_tokens:], dtype=np.int64)
    ids, values = pad_entries(prompt_logprobs, num_prompt_tokens)
    labels = pick_labels(ids, values, completion)
    # A padded head's ids mean nothing.
    is_known = (ids >= 0) & (ids < made.vocabulary)
    is_known[:, 0] &= ~(ids[:, 1:] == ids[:, :1]).any(1)
    if is_known.sum(1).min() < size:
        return None
    best = np.argsort(np.where(is_known, -values, np.inf), axis=1, kind="stable")[:, :size]
    support, log_probs = np.take_along_axis(ids, best, 1), np.take_along_axis(values, best, 1)
    inside = np.minimum(np.exp(log_probs).sum(1), 1.0)
    # A rounded sum cannot say that a support of less than the vocabulary covers everything.
    outside = np.maximum(1 - inside, 0.0 if size == made.vocabulary else 2.0**-24)
    with np.errstate(divide="ignore"):
        log_tails = np.log(outside)[:, None]
    return {
        "token_ids": completion,
        "label_log_prob": labels,
        "support": support,
        "log_probs": log_probs,
        "log_tails": log_tails,
    }

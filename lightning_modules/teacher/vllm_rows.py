"""Rows of a logit cache from a teacher that vLLM serves: its `prompt_logprobs`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from datamodules.logit_cache.format import CacheDescription, Sparsity


class Logprob(Protocol):
    """What is used of vLLM's own class."""

    logprob: float


def refuse_unknown(sparsity: Sparsity, temperatures: tuple[float, ...]) -> None:
    """Refuses what log-probabilities of some tokens cannot tell: the normaliser of another temperature, a draw.

    Raises:
        ValueError: The kind is not top_k, or there is a temperature beside 1.
    """
    if sparsity.kind != "top_k" or temperatures != (1.0,):
        raise ValueError(
            f"vLLM's prompt_logprobs give kind top_k at temperature 1 only, not {sparsity.kind} at "
            f"{list(temperatures)}; set model.kind to top_k and model.temperatures to [1], or leave model.vllm"
        )


def read_prompt_logprobs(
    prompt_logprobs: Sequence[Mapping[int, Logprob] | None],
    token_ids: Sequence[int],
    num_prompt_tokens: int,
    made: CacheDescription,
) -> dict[str, np.ndarray]:
    """Returns one example's rows, as `logit_codec` takes them.

    Args:
        prompt_logprobs: Of one request, an entry for each token: None for the first, else log-probabilities by token
            id, of the `top_k` most probable tokens and of the token itself.
        token_ids: The request's prompt: an example's prompt and completion.
        num_prompt_tokens: How many of them are not supervised.
        made: Of the kind top_k, for temperature 1 alone, see `refuse_unknown`.

    Raises:
        ValueError: vLLM returned fewer tokens than top_k.
    """
    assert len(prompt_logprobs) == len(token_ids)
    size = made.support_size
    completion = np.array(token_ids[num_prompt_tokens:], dtype=np.int64)
    support = np.empty((len(completion), size), np.int64)
    log_probs = np.empty((len(completion), size), np.float64)
    labels = np.empty(len(completion), np.float64)
    for row, (token, entries) in enumerate(zip(completion.tolist(), prompt_logprobs[num_prompt_tokens:], strict=True)):
        assert entries is not None, "a completion without a prompt"
        labels[row] = entries[token].logprob
        # A padded head's ids mean nothing.
        known = {token_id: entry.logprob for token_id, entry in entries.items() if token_id < made.vocabulary}
        best = sorted(known, key=lambda token_id: -known[token_id])[:size]
        if len(best) < size:
            raise ValueError(
                f"vLLM returned {len(best)} log-probabilities where top_k is {size}; raise its max_logprobs and "
                "prompt_logprobs"
            )
        support[row], log_probs[row] = best, [known[token_id] for token_id in best]
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

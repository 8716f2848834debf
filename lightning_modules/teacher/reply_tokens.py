"""The log-probabilities that come with what a server writes: of a chat completion's reply, and of vLLM's own output."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.logit_cache.written_tokens import Meaning, WrittenToken
from datamodules.text.token_bytes import SPECIAL, VocabularyBytes

# "Below those that were asked for", in OpenAI's interface.
BELOW = -9999.0
MOST_OF_ENDPOINTS = 20
LEAVE_OUT = "leave model.log_probs out, or serve the teacher with a server that returns them, as vLLM does"


class NoLogProbsError(ValueError):
    """A reply is whole, but its server does not return what is to be kept."""


def _read_meaning(entry: dict[str, Any]) -> Meaning:
    # A token that stands for no text has no bytes.
    return bytes(entry["bytes"]) if entry.get("bytes") else str(entry["token"])


def _read_log_prob(entry: dict[str, Any]) -> float | None:
    value = float(entry["logprob"])
    if math.isnan(value):
        raise ValueError("a log-probability is not a number")
    # Rounded up, a certain token's is above 0.
    return None if value <= BELOW else min(value, 0.0)


def read_reply_tokens(body: str, text: str, has_best: bool) -> list[WrittenToken]:
    """Returns the tokens of a chat completion.

    Args:
        body: The reply.
        text: Of the completion, which `read_reply` has found in it.
        has_best: Whether the most probable tokens were asked for.

    Raises:
        NoLogProbsError: The reply has none, or tokens without their bytes.
        ValueError: It is malformed.
    """
    content = (json.loads(body)["choices"][0].get("logprobs") or {}).get("content")
    if not content:
        raise NoLogProbsError(f"the reply has no log-probabilities; {LEAVE_OUT}")
    try:
        tokens = []
        for entry in content:
            best = [(_read_meaning(other), _read_log_prob(other)) for other in entry.get("top_logprobs") or []]
            known = tuple((meaning, value) for meaning, value in best if value is not None)
            tokens.append(WrittenToken(_read_meaning(entry), _read_log_prob(entry), known if has_best else ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"malformed log-probabilities: {str(content)[:100]!r}") from None
    if has_best and not all(token.best for token in tokens):
        raise NoLogProbsError(
            f"the reply has no log-probabilities but of its own tokens; set model.log_probs to labels, or {LEAVE_OUT}"
        )
    nameless = [token.meaning for token in tokens if isinstance(token.meaning, str)]
    made = b"".join(token.meaning for token in tokens if isinstance(token.meaning, bytes))
    if nameless and text.strip().encode() not in made:
        raise NoLogProbsError(f"the reply has no bytes of its token {nameless[0]!r}; {LEAVE_OUT}")
    return tokens


def read_output_tokens(
    token_ids: Sequence[int], log_probs: Sequence[Mapping[int, Any]], number: int, vocabulary: VocabularyBytes
) -> list[WrittenToken]:
    """Returns the tokens of vLLM's `CompletionOutput`.

    Args:
        token_ids: What was written, with what ended it.
        log_probs: For each of these, vLLM's `Logprob` by token id, of the most probable and of itself.
        number: How many of the most probable are kept.
        vocabulary: The teacher's; what a padded head has beyond it means nothing.
    """

    def read(token_id: int) -> Meaning:
        is_special = vocabulary.flags[token_id] & SPECIAL
        return f"token {token_id}" if is_special else vocabulary.tokens[token_id]

    tokens = []
    for token_id, entries in zip(token_ids, log_probs, strict=True):
        known = {other: entry.logprob for other, entry in entries.items() if other < len(vocabulary)}
        best = sorted(known, key=lambda other: -known[other])[:number]
        log_prob = entries[token_id].logprob
        tokens.append(WrittenToken(read(token_id), log_prob, tuple((read(other), known[other]) for other in best)))
    return tokens

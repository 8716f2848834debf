"""A logit cache of what DistillKit captured, for the rationales that its texts hold.

A captured text is an example's when it begins with all of the example's tokens but the last, whose distribution the row
before is: a distribution depends on what stands before it and on nothing else. So prompt and rationale must have been
read in Kindred's very tokens, and what a teacher was shown after them, such as padding, does not matter.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.examples.tokenization import Example
from datamodules.files.field_types import shorten
from datamodules.logit_cache.captured import CapturedText, PrefixIndex
from datamodules.logit_cache.codec import SMALLEST_TAIL, Arrays
from datamodules.logit_cache.distillkit import Compression
from datamodules.logit_cache.format import Sparsity
from datamodules.logit_cache.writer import LogitCacheWriter


@dataclass
class ImportCounts:
    """What an import found.

    Attributes:
        texts: Captured texts.
        used: Those that were an example's.
        examples: The examples that the cache holds.
        tokens: Rows of these that were written now.
        outside: Of these rows, those whose own token is not among the kept ones.
        scaled: Of these rows, those whose probabilities added up to more than 1.
        largest_sum: The most that they added up to.
        beyond: The most mass that a row gave to ids beyond the tokenizer's vocabulary, as a padded head has them.
    """

    texts: int = 0
    used: int = 0
    examples: int = 0
    tokens: int = 0
    outside: int = 0
    scaled: int = 0
    largest_sum: float = 0.0
    beyond: float = 0.0


def describe_sparsity(compression: Compression) -> Sparsity:
    """Returns what a cache keeps of such distributions: all that was captured, fewer where ids are beyond."""
    return Sparsity.resolve("adaptive", top_k=compression.k, mass=1.0, values="float16")


def import_captures(
    writer: LogitCacheWriter,
    captures: Iterable[CapturedText],
    compression: Compression,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    creation: dict[str, Any],
) -> ImportCounts:
    """Writes the cache of the examples that captured texts hold, or what a killed process has left of it.

    Args:
        writer: Of the cache.
        captures: The texts.
        compression: How they were compressed.
        examples: Of the rationales, in the teacher's tokens; none is empty.
        tokenizer: The teacher's.
        creation: The creation record.

    Raises:
        ValueError: No text holds an example, bytes are no distributions, another process writes the cache, or the disk
            is full.
    """
    counts = ImportCounts()
    done, found = writer.find_done(), set[str]()
    index = PrefixIndex(example.token_ids[:-1] for example in examples)
    unused: CapturedText | None = None
    with closing(writer):
        for text in captures:
            counts.texts += 1
            own = [number for numbers in index.find(text.token_ids[: len(text.values)]) for number in numbers]
            counts.used += bool(own)
            unused = unused or (None if own else text)
            for example in (examples[number] for number in own):
                if example.id not in found | done:
                    rows = _make_rows(text, compression, example, writer.description.vocabulary, counts)
                    if not found - done:
                        writer.open()
                    writer.add([(example, rows)])
                found.add(example.id)
        if not counts.used:
            raise ValueError(_explain_none(unused, counts.texts, examples, tokenizer))
        if not found - done and writer.is_complete():
            return counts
        if not found - done:
            writer.open()
        writer.flush()
        writer.finish(tokenizer, creation)
    counts.examples = len(found | done)
    return counts


def _explain_none(
    text: CapturedText | None, number: int, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Returns why nothing was imported: where the first text parts from the example that is most like it."""
    if text is None:
        return "the capture holds no text"
    same = [_count_same(text.token_ids, example.token_ids) for example in examples]
    best = int(np.argmax(same))
    theirs, ours = (
        shorten(tokenizer.convert_ids_to_tokens(ids[same[best] :][:5].tolist()))
        for ids in (text.token_ids, examples[best].token_ids)
    )
    return (
        f"{text.where}: none of {number} captured texts begins with the prompt and the text of one of {len(examples)} "
        f"rationales; after {same[best]} tokens this one goes on {theirs}, and the nearest of those {ours}: name the "
        "teacher, the prompt and the rationales that were captured"
    )


def _count_same(first: np.ndarray, second: np.ndarray) -> int:
    size = min(len(first), len(second))
    differs = first[:size] != second[:size]
    return int(differs.argmax()) if differs.any() else size


def _make_rows(
    text: CapturedText, compression: Compression, example: Example, vocabulary: int, counts: ImportCounts
) -> Arrays:
    """Returns an example's rows, as `codec` takes them, and counts what is special about them."""
    first, stop = example.num_prompt_tokens - 1, len(example.token_ids) - 1
    tokens = example.token_ids[first + 1 :].astype(np.int64)
    try:
        ids, log_probs = compression.decode(text.values[first:stop], text.indices[first:stop])
    except ValueError as error:
        raise ValueError(f"{text.where}: {error}") from None
    beyond = ids >= vocabulary
    counts.beyond = max(counts.beyond, float(np.where(beyond, np.exp(log_probs), 0).sum(1).max()))
    unused = beyond | np.isneginf(log_probs)
    ids[unused], log_probs[unused] = -1, -np.inf
    sums = np.exp(log_probs).sum(1)
    if not sums.all():
        raise ValueError(f"{text.where}: a row gives all its probability to ids beyond the tokenizer's vocabulary")
    # A rounded sum cannot say that nothing else is there.
    tails = np.maximum(1 - sums, SMALLEST_TAIL)
    log_totals = np.log(sums + tails)
    log_probs -= log_totals[:, None]
    is_own = ids == tokens[:, None]
    counts.tokens += len(tokens)
    counts.outside += int((~is_own.any(1)).sum())
    counts.scaled += int((sums > 1).sum())
    counts.largest_sum = max(counts.largest_sum, float(sums.max()))
    return {
        "token_ids": tokens,
        # Of one outside nothing is known but that the tail has it.
        "label_log_prob": np.where(is_own, log_probs, -np.inf).max(1),
        "support": ids,
        "log_probs": log_probs,
        "log_tails": (np.log(tails) - log_totals)[:, None],
    }

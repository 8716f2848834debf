"""Diagnostics of how the student's tokenizer takes a teacher's text apart."""

import re

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.text.words import count_words
from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values
from studies.diagnostics.texts import Reading

_NUMBER = re.compile(r"\d{2,}")


def fertility(fit: Fit) -> Values:
    """The student's tokens per byte of text, the end token left out."""
    return (
        fit.collect(lambda reading: len(reading.text.token_ids) - 1),
        fit.collect(lambda reading: reading.text.num_bytes),
    )


def word_fertility(fit: Fit) -> Values:
    """The student's tokens per word; per character in scripts without spaces."""
    return (
        fit.collect(lambda reading: len(reading.text.token_ids) - 1),
        fit.collect(lambda reading: count_words(reading.text.completion)),
    )


def number_tokens(fit: Fit) -> Values:
    """The student's tokens per number of two digits or more: 1 where numbers stay whole."""
    counts = np.array([_count_number_tokens(reading) for reading in fit.readings], dtype=np.float64)
    return counts[:, 0], counts[:, 1]


def vocabulary_overlap(fit: Fit) -> Values | None:
    """Jaccard index of the teacher's and the student's vocabulary."""
    if fit.vocabularies is None:
        return None
    teacher, student = fit.vocabularies
    return np.full(len(fit.readings), len(teacher & student) / len(teacher | student))


def list_vocabulary(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Returns the texts of a vocabulary's tokens, whatever sign the tokenizer writes a space as."""
    return {tokenizer.convert_tokens_to_string([token]) for token in tokenizer.get_vocab()}


def _count_number_tokens(reading: Reading) -> tuple[int, int]:
    """Returns the number of tokens that long numbers touch, and the number of such numbers."""
    starts, ends = reading.text.offsets.T
    spans = [match.span() for match in _NUMBER.finditer(reading.text.completion)]
    return sum(int(((starts < end) & (ends > start)).sum()) for start, end in spans), len(spans)


METRICS: list[Diagnostic] = [
    Mean(fertility, None, "Rust et al. 2021, arXiv 2012.15613"),
    Mean(word_fertility, None, "Rust et al. 2021, arXiv 2012.15613"),
    Mean(number_tokens, None, "X-Token, arXiv 2605.21699"),
    Mean(vocabulary_overlap, "higher", "arXiv 2503.20083"),
]

"""Diagnostics from ranks and entropy: whether a rationale is informative and still within the student's reach."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values
from studies.diagnostics.texts import Reading

RANK_CLIP = 100
# A token below the third place is "shifted" (Lin et al. 2024, arXiv 2312.01552).
SHIFTED = 3
# The share of all teachers' tokens that count as surprising.
SURPRISING = 0.2


def rsr(fit: Fit) -> Values:
    """Rank-surprisal ratio: mean rank, clipped at 100, over mean surprisal; each averaged over rationales first."""
    return rank(fit), fit.collect(lambda reading: reading.nll.mean())


def rank(fit: Fit) -> np.ndarray:
    """Mean rank of a rationale's tokens in the student's distributions, clipped at 100; 1 is the most probable."""
    return fit.collect(lambda reading: np.minimum(reading.rank, RANK_CLIP).mean())


def rank_1(fit: Fit) -> Values:
    """Share of tokens that the student finds the most probable."""
    return fit.collect(lambda reading: (reading.rank == 1).mean())


def token_shift(fit: Fit) -> Values:
    """Share of tokens that the student ranks below the third place."""
    return fit.collect(lambda reading: (reading.rank > SHIFTED).mean())


def entropy(fit: Fit) -> Values:
    """Mean entropy of the student's distributions on the teacher's prefixes, nats."""
    return fit.collect(lambda reading: reading.entropy.mean())


def entropy_surprising(fit: Fit) -> Values:
    """Mean entropy at the most surprising fifth of all teachers' tokens, nats: high where the student hesitates."""
    threshold = np.quantile(np.concatenate([reading.nll for reading in fit.pool]), 1 - SURPRISING)
    surprising = [reading.nll >= threshold for reading in fit.readings]
    sums = [reading.entropy[mask].sum() for reading, mask in zip(fit.readings, surprising, strict=True)]
    return np.array(sums), np.array([float(mask.sum()) for mask in surprising])


def list_shifted_tokens(
    tokenizer: PreTrainedTokenizerBase, readings: Sequence[Reading], number: int
) -> list[tuple[str, int, int]]:
    """Returns the tokens that are shifted most often: (text, times shifted, times there)."""
    shifted, total = Counter[int](), Counter[int]()
    for reading in readings:
        ids = np.array(reading.text.token_ids)
        total.update(ids.tolist())
        shifted.update(ids[reading.rank > SHIFTED].tolist())
    return [(tokenizer.decode([token]), times, total[token]) for token, times in shifted.most_common(number)]


METRICS: list[Diagnostic] = [
    Mean(rsr, "lower", "Rank-Surprisal Ratio, arXiv 2601.14249"),
    Mean(rank, "lower", "arXiv 2601.14249"),
    Mean(rank_1, "higher", "arXiv 2601.14249"),
    Mean(token_shift, "lower", "Lin et al. 2024, arXiv 2312.01552; Small Models Struggle, arXiv 2502.12143"),
    Mean(entropy, None, "arXiv 2601.14249"),
    Mean(entropy_surprising, None, "arXiv 2601.14249"),
]

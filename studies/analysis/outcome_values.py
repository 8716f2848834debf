"""Outcomes of one question that are finer than right or wrong, from its prediction."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from datamodules.tasks.records import LETTERS

MEANINGS = {
    "likelihood": "probability of the gold option among the options, by their log-likelihoods",
    "agreement": "share of the tokens of the teacher's rationale on a test question at which student and teacher have "
    "the same most probable token, of those that are tokens of both",
    "reference_likelihood": "probability that the student gives a token of the references of a test question, the "
    "geometric mean over its tokens",
}
# What predictions hold of each.
COLUMNS = {"likelihood": "option_log_likelihoods", "agreement": "references", "reference_likelihood": "references"}


def measure_outcome(name: str, record: Mapping[str, Any], writer: str | None) -> float | None:
    """Returns an outcome of one question; None where its prediction does not tell.

    Args:
        name: Of the outcome.
        record: Of the predictions.
        writer: How references name the arm's teacher.
    """
    if name == "likelihood":
        scores, gold = record["option_log_likelihoods"], record["gold"]
        if not scores or gold not in LETTERS[: len(scores)]:
            return None
        chances = np.exp(np.array(scores) - max(scores))
        return float(chances[LETTERS.index(gold)] / chances.sum())
    if name == "reference_likelihood":
        means = [score["log_likelihood"] / score["num_tokens"] for score in record["references"] or ()]
        return float(np.mean(np.exp(means))) if means else None
    shares = [
        score["agreement"] / score["num_compared"]
        for score in record["references"] or ()
        if score["teacher"] == writer and score["num_compared"]
    ]
    return float(np.mean(shares)) if shares else None

"""Diagnostics from the student's surprisal: how familiar a rationale is, as a whole, in steps, beside its prompt."""

import math

import numpy as np

from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values
from studies.diagnostics.texts import Reading


def nll(fit: Fit) -> Values:
    """Mean surprisal of a completion's tokens, nats: -1/n sum log q(y_k | x, y_<k), averaged over rationales."""
    return fit.collect(lambda reading: reading.nll.mean())


def bits_per_byte(fit: Fit) -> Values:
    """Surprisal per byte of text, comparable between tokenizers: sum nll / (ln 2 * bytes)."""
    return (
        fit.collect(lambda reading: reading.nll.sum()) / math.log(2),
        fit.collect(lambda reading: reading.text.num_bytes),
    )


def nll_answer(fit: Fit) -> Values:
    """Mean surprisal of the answer sentence, nats: how well the rationale leads to the answer it ends with."""
    return fit.collect(lambda reading: _mean(reading.nll[reading.text.is_answer]))


def nll_local(fit: Fit) -> Values:
    """Mean over steps of a step's mean surprisal, nats, given the prompt and only a few steps before it."""
    return fit.collect(lambda reading: reading.local.mean())


def nll_first(fit: Fit) -> Values:
    """Mean surprisal of the steps' first tokens, nats: where reasoning branches."""
    return fit.collect(lambda reading: reading.nll[reading.text.steps].mean())


def nll_drop(fit: Fit) -> Values:
    """Mean surprisal without each step's first token, nats (ASLEC-DROP), which short steps would weigh more."""
    return fit.collect(lambda reading: _mean(np.delete(reading.nll, reading.text.steps)))


def nll_casl(fit: Fit) -> Values:
    """Mean surprisal less what the share of first tokens explains, nats (ASLEC-CASL).

    M - g F, where M ~ b_0 + b_1 M_non + b_2 M_first + g F is fitted by least squares to all teachers' rationales;
    M is the mean surprisal, M_non and M_first those of the other and of the first tokens, and F the number of steps
    over that of tokens.
    """
    table = np.array([_describe_steps(reading) for reading in fit.pool])
    table = table[np.isfinite(table).all(1)]
    predictors = np.column_stack([np.ones(len(table)), table[:, 1:]])
    slope = np.linalg.lstsq(predictors, table[:, 0], rcond=None)[0][3]
    own = np.array([_describe_steps(reading) for reading in fit.readings])
    values: np.ndarray = own[:, 0] - slope * own[:, 3]
    return values


def ifd(fit: Fit) -> Values:
    """Perplexity with the prompt over perplexity without it, from the second token on: what the question explains."""
    return fit.collect(lambda reading: math.exp(reading.nll[1:].mean() - reading.alone.mean()))


def car(fit: Fit) -> Values | None:
    """Compatibility-adjusted reward r / (1 + b L): mean reward, or share of right answers, over mean surprisal L."""
    if fit.rewards:
        rewards = fit.collect(lambda reading: fit.rewards.get(reading.text.rationale.id, math.nan))
    else:
        rewards = fit.collect(lambda reading: _number(reading.text.rationale.correct))
    return rewards, 1 + fit.reward_weight * fit.collect(lambda reading: reading.nll.mean())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _number(value: bool | None) -> float:
    return math.nan if value is None else float(value)


def _describe_steps(reading: Reading) -> tuple[float, float, float, float]:
    """Returns M, M_non, M_first and F of a rationale."""
    steps = reading.text.steps
    others = np.delete(reading.nll, steps)
    return reading.nll.mean(), _mean(others), reading.nll[steps].mean(), len(steps) / len(reading.nll)


METRICS: list[Diagnostic] = [
    Mean(nll, "lower", "GRAPE, arXiv 2502.04194; I Learn Better If You Speak My Language, arXiv 2402.11192"),
    Mean(bits_per_byte, "lower", "the same per byte, as lm-evaluation-harness's bits_per_byte"),
    Mean(nll_answer, "lower", "this project"),
    Mean(nll_local, "lower", "Local Naturalness, arXiv 2510.03988"),
    Mean(nll_first, None, "ASLEC, arXiv 2604.06834"),
    Mean(nll_drop, "lower", "ASLEC, arXiv 2604.06834"),
    Mean(nll_casl, "lower", "ASLEC, arXiv 2604.06834"),
    Mean(ifd, "higher", "Li et al. 2024, arXiv 2308.12032; as IFD-Self in arXiv 2411.07133"),
    Mean(car, "higher", "Xu et al. 2025, arXiv 2411.07133"),
]

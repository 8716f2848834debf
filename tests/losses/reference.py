"""The loss, token by token and outcome by outcome from the formulas, in float64; shares no code with losses/.

Gradients come from complex steps: f'(x) = Im f(x + ih) / h has no cancellation, so that h may be 1e-30. That needs
every formula to be written without abs, max or comparisons of anything but real parts.
"""

import math

import numpy as np

LOG_ZERO = math.log(np.finfo(np.float32).tiny)
DIVERGENCES = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.3},
    "skewed_kl": {"alpha": 0.2},
    "skewed_reverse_kl": {"alpha": 0.2},
    "total_variation": {},
    "adaptive_kl": {"head_mass": 0.6},
    "soft_cross_entropy": {},
}


def log_sum_exp(values) -> complex:
    largest = max((value.real for value in values), default=-math.inf)
    return largest if math.isinf(largest) else largest + np.log(sum(np.exp(value - largest) for value in values))


def divergence(name: str, log_p: list, log_q: list, **parameters: float) -> complex:
    """Returns D over outcomes that are given by their log-probabilities."""
    p, q = [math.exp(value) for value in log_p], [np.exp(value) for value in log_q]
    # A teacher's exact zero counts as the smallest float32 where it would be a divisor.
    floored = [max(value, LOG_ZERO) if math.isinf(value) else value for value in log_p]
    outcomes = range(len(p))

    def forward() -> complex:
        return sum(p[i] * (log_p[i] - log_q[i]) for i in outcomes if p[i] > 0)

    def reverse() -> complex:
        return sum(q[i] * (log_q[i] - floored[i]) for i in outcomes if not math.isinf(log_q[i].real))

    def to_mixture(a, log_a, m) -> complex:
        return sum(a[i] * (log_a[i] - np.log(m[i])) for i in outcomes if a[i].real > 0)

    if name == "forward_kl":
        return forward()
    if name == "reverse_kl":
        return reverse()
    if name == "soft_cross_entropy":
        return sum(-p[i] * log_q[i] for i in outcomes if p[i] > 0)
    if name == "jsd":
        beta = parameters["beta"]
        m = [beta * p[i] + (1 - beta) * q[i] for i in outcomes]
        return beta * to_mixture(p, log_p, m) + (1 - beta) * to_mixture(q, log_q, m)
    if name == "skewed_kl":
        alpha = parameters["alpha"]
        return to_mixture(p, log_p, [alpha * p[i] + (1 - alpha) * q[i] for i in outcomes])
    if name == "skewed_reverse_kl":
        alpha = parameters["alpha"]
        return to_mixture(q, log_q, [(1 - alpha) * p[i] + alpha * q[i] for i in outcomes])
    if name == "total_variation":
        return 0.5 * sum((p[i] - q[i]) * (1 if p[i] >= q[i].real else -1) for i in outcomes)
    assert name == "adaptive_kl"
    head, mass = [], 0.0
    for i in sorted(outcomes, key=lambda i: -p[i]):
        mass += p[i]
        if head and mass > parameters["head_mass"]:
            break
        head.append(i)
    gaps = [abs(p[i] - q[i].real) for i in outcomes]
    share = sum(gaps[i] for i in head) / sum(gaps) if sum(gaps) > 0 else 0.5
    return share * forward() + (1 - share) * reverse()


def row_loss(
    z: np.ndarray, teacher: np.ndarray, label: int, name: str, kl_weight: float, T: float, top_k: int | None, tail: str
) -> complex:
    """Returns (1 - lambda) CE + lambda T^2 D of one row of logits; top_k None is the whole vocabulary."""
    tokens = range(len(z))
    cross_entropy = log_sum_exp(z) - z[label]
    log_p = [value / T - log_sum_exp(teacher / T) for value in teacher]
    log_q = [value / T - log_sum_exp(z / T) for value in z]
    if top_k is not None:
        support = sorted(tokens, key=lambda token: -teacher[token])[:top_k]
        rest = [token for token in tokens if token not in support]
        p_rest, q_rest = log_sum_exp([log_p[i] for i in rest]), log_sum_exp([log_q[i] for i in rest])
        log_p, log_q = [log_p[i] for i in support], [log_q[i] for i in support]
        if tail == "bucket" and rest:
            log_p, log_q = [*log_p, p_rest], [*log_q, q_rest]
        if tail == "renormalize":
            log_p = [value - log_sum_exp(log_p) for value in log_p]
    log_p = [value.real for value in log_p]
    value = divergence(name, log_p, log_q, **DIVERGENCES[name])
    return (1 - kl_weight) * cross_entropy + kl_weight * T**2 * value


def value_and_gradient(z: np.ndarray, *settings) -> tuple[float, np.ndarray]:
    """Returns `row_loss` and its gradient with respect to the row's logits."""
    gradient = np.zeros(len(z))
    for token in range(len(z)):
        moved = z.astype(complex)
        moved[token] += 1e-30j
        gradient[token] = row_loss(moved, *settings).imag / 1e-30
    return row_loss(z.astype(complex), *settings).real, gradient

"""Every divergence, on the whole vocabulary and on a support, against the formulas; and what holds of all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from losses.divergences import LOG_ZERO, get_divergence
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import Mixture, mix_rows
from losses.targets import FullTarget
from tests.losses.conftest import TEMPERATURES, VOCABULARY, draw, make_sparse_target
from tests.losses.reference import DIVERGENCES, value_and_gradient

# Those whose value on merged outcomes cannot exceed that on all of them.
CONVEX = [name for name in DIVERGENCES if name not in ("adaptive_kl", "soft_cross_entropy")]


def full_target(teacher: np.ndarray, dtype: torch.dtype = torch.float64) -> FullTarget:
    """A teacher whose logits are given: its hidden states are the logits, its head the identity."""
    return FullTarget(torch.tensor(teacher, dtype=dtype), torch.eye(VOCABULARY, dtype=dtype))


def by_both_roads(student: np.ndarray, labels: np.ndarray, target, mixture: Mixture, dtype: torch.dtype) -> list:
    """Returns (row losses, gradient of their sum) of the dense road and, with an identity head, of the fused one."""
    results = []
    labels = torch.from_numpy(labels)
    logits = torch.tensor(student, dtype=dtype, requires_grad=True)
    loss_N = mix_rows(logits, labels, target, mixture).loss_N
    (gradient,) = torch.autograd.grad(loss_N.sum(), logits)
    results.append((loss_N.sum().item(), gradient.double().numpy()))
    head = OutputHead(torch.eye(VOCABULARY, dtype=dtype))
    weights = torch.ones(len(labels), dtype=dtype)
    total, _ = mix_fused(logits, head, labels, weights, target, mixture, chunk_bytes=4 * VOCABULARY * 4)
    (gradient,) = torch.autograd.grad(total, logits)
    return [*results, (total.item(), gradient.double().numpy())]


def check(
    student, teacher, labels, name: str, kl_weight: float, T: float, top_k: int | None, tail: str, dtype, slack=1.0
) -> None:
    """Compares both roads with the reference; `slack` widens the gradient's tolerance."""
    rows = [
        value_and_gradient(student[row], teacher[row], labels[row], name, kl_weight, T, top_k, tail)
        for row in range(len(student))
    ]
    value, gradient = sum(row[0] for row in rows), np.array([row[1] for row in rows]).reshape(student.shape)
    target = full_target(teacher, dtype) if top_k is None else make_sparse_target(teacher, top_k, dtype=dtype)
    mixture = Mixture(kl_weight, T, get_divergence(name, **DIVERGENCES[name]), tail)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    scale = max(1.0, np.abs(gradient).max(initial=0.0))
    for found, slope in by_both_roads(student, labels, target, mixture, dtype):
        assert found == pytest.approx(value, rel=tolerance, abs=tolerance)
        np.testing.assert_allclose(slope, gradient, rtol=slack * tolerance, atol=slack * tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("top_k", "tail"),
    [(None, "bucket")] + [(k, tail) for k in (1, 5, VOCABULARY) for tail in ("bucket", "renormalize", "ignore")],
)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradient_are_the_formulas(name, temperature, top_k, tail, dtype) -> None:
    student, teacher, labels, _ = draw(seed=len(name), rows=4)
    check(student, teacher, labels, name, 0.4, temperature, top_k, tail, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("top_k", [None, 1, 5, VOCABULARY])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl"])
def test_extreme_logits(name: str, top_k: int | None, dtype: torch.dtype) -> None:
    student, teacher, labels, _ = draw(seed=2)
    student[0, 4], student[1, :] = 1e4, -1e4
    student[2, 1:], student[3, labels[3]] = -1e4, 1e4
    teacher[4, 2], teacher[5, 1:] = 1e4, -1e4
    # A float32 logarithm of -5000 is known to 2e-4, and the dense road's gradient goes through it.
    check(student, teacher, labels, name, 0.5, 2.0, top_k, "bucket", dtype, slack=1 if dtype == torch.float64 else 10)


@pytest.mark.parametrize("top_k", [None, 1, 5, VOCABULARY])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_that_the_teacher_rules_out(name: str, top_k: int | None) -> None:
    """The teacher allows three tokens: with k = 5 the support has p = 0 entries, and its tail is empty."""
    student, teacher, labels, _ = draw(seed=1)
    teacher[:, 3:] = -math.inf
    if top_k is not None:
        check(student, teacher, labels, name, 1.0, 2.0, top_k, "bucket", torch.float64)
        return
    # Hidden states cannot be infinite: a head that gives these tokens a logit of -1e9 does the same.
    teacher[:, 3:] = -1e9
    if name in ("reverse_kl", "adaptive_kl"):
        teacher[:, 3:] = -200.0
    check(student, teacher, labels, name, 1.0, 2.0, None, "bucket", torch.float64)


@settings(max_examples=80, derandomize=True)
@given(
    st.integers(0, 10_000),
    st.sampled_from(list(DIVERGENCES)),
    st.sampled_from(TEMPERATURES),
    st.integers(0, 3),
    st.integers(1, VOCABULARY),
    st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    st.sampled_from(["bucket", "renormalize", "ignore"]),
    st.floats(0.0, 1.0),
)
def test_any_shape_ties_and_scale(seed, name, temperature, rows, top_k, scale, tail, kl_weight) -> None:
    """Rounded logits have ties; a scale of 0 makes all of them one, and 100 leaves probabilities of 0."""
    assume(scale > 0 or name != "total_variation")  # has a kink where p = q
    student, teacher, labels, _ = draw(seed, rows, scale)
    student, teacher = student.round(1), teacher.round(1)
    check(student, teacher, labels, name, kl_weight, temperature, top_k, tail, torch.float64)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_that_is_the_teacher(name: str) -> None:
    _, teacher, labels, _ = draw(seed=3)
    mixture = Mixture(1.0, 1.0, get_divergence(name))
    for target in (make_sparse_target(teacher, 5), full_target(teacher)):
        for value, gradient in by_both_roads(teacher, labels, target, mixture, torch.float64):
            if name == "soft_cross_entropy":
                assert value > 0.1
            else:
                assert value == pytest.approx(0.0, abs=1e-12)
            if name != "total_variation":  # has a kink there
                np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from(TEMPERATURES), st.sampled_from(CONVEX))
def test_a_bucket_rises_with_k_to_the_full_divergence(seed: int, temperature: float, name: str) -> None:
    student, teacher, labels, _ = draw(seed, rows=2)
    mixture = Mixture(1.0, temperature, get_divergence(name, **DIVERGENCES[name]))
    logits, labels = torch.tensor(student), torch.from_numpy(labels)
    full = mix_rows(logits, labels, full_target(teacher), mixture).loss_N
    previous = torch.zeros(2, dtype=torch.float64)
    for top_k in range(1, VOCABULARY + 1):
        bucketed = mix_rows(logits, labels, make_sparse_target(teacher, top_k), mixture).loss_N
        assert (bucketed >= previous - 1e-12).all()
        assert (bucketed <= full + 1e-12).all()
        previous = bucketed
    torch.testing.assert_close(previous, full)


def test_a_teachers_zero_is_the_smallest_float32() -> None:
    log_p, log_q = torch.tensor([[0.0, -math.inf]]), torch.tensor([[math.log(0.5)] * 2])
    expected = 0.5 * math.log(0.5) + 0.5 * (math.log(0.5) - LOG_ZERO)
    assert get_divergence("reverse_kl")(log_p, log_q).item() == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(get_divergence("forward_kl")(log_p, log_q)).all()


def test_a_student_without_mass_where_the_teacher_has_some_is_infinitely_far() -> None:
    log_p, log_q = torch.tensor([[math.log(0.5)] * 2]), torch.tensor([[0.0, -math.inf]])
    assert get_divergence("forward_kl")(log_p, log_q).item() == math.inf
    assert get_divergence("jsd")(log_p, log_q).item() < math.log(2)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("forward_kl", {"beta": 0.5}, "divergence forward_kl has no beta; it would be ignored"),
        ("jsd", {"alpha": 0.5}, "divergence jsd has no alpha"),
        ("jsd", {"beta": 0.0}, "beta must be strictly between 0 and 1, not 0.0"),
        ("skewed_kl", {"alpha": 1.0}, "alpha must be strictly between 0 and 1"),
        ("adaptive_kl", {"head_mass": math.nan}, "head_mass must be strictly between 0 and 1"),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_divergence(name, **parameters)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_distributions_lie_along_the_last_axis_whatever_comes_before(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (
        torch.randn(2, 3, VOCABULARY, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2)
    )
    divergence = get_divergence(name, **DIVERGENCES[name])
    rows = divergence(log_p.reshape(6, -1), log_q.reshape(6, -1))
    torch.testing.assert_close(divergence(log_p, log_q), rows.reshape(2, 3))

"""What a teacher says of a token: temperatures, interpolation, samples, whole distributions, and wrong planes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.divergences import forward_kl, get_divergence
from losses.mixture import Mixture, mix_rows
from losses.targets import FullTarget, SampledTarget, SoftenedTarget, SparseTarget
from tests.losses.conftest import TEMPERATURES, VOCABULARY, draw, make_sparse_target, pad_support


@settings(max_examples=50, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, VOCABULARY), st.floats(0.5, 4.0))
def test_interpolation_is_exact_where_stored_and_between_errs_towards_the_tail(seed, top_k, temperature) -> None:
    _, teacher, _, _ = draw(seed)
    target = make_sparse_target(teacher, top_k)
    for stored in TEMPERATURES:
        exact, given_back = target.at_temperature(stored), target.at_temperature(stored, "interpolate")
        assert all(torch.equal(*pair) for pair in zip(exact, given_back, strict=True))
    log_p, log_tail = target.at_temperature(temperature, "interpolate")
    exact = make_sparse_target(teacher, top_k, (temperature,)).at_temperature(temperature)[0]
    assert (log_p <= exact + 1e-12).all()
    # Stored temperatures a factor of two apart keep the error of log p small.
    assert (exact - log_p).max() < 0.5
    torch.testing.assert_close(log_p.exp().sum(-1) + log_tail.exp(), torch.ones(len(teacher), dtype=torch.float64))


def test_a_temperature_that_was_not_stored_is_refused_unless_interpolation_is_asked_for() -> None:
    target = make_sparse_target(draw(seed=8)[1], 5, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"temperature 1\.5 is not in the logit cache, which has \[1\.0, 2\.0\]"):
        target.at_temperature(1.5)
    for outside in (0.5, 3.0):
        with pytest.raises(ValueError, match=r"not between the cached \[1\.0, 2\.0\]"):
            target.at_temperature(outside, "interpolate")


def test_rows_are_those_of_every_plane() -> None:
    target = make_sparse_target(draw(seed=1)[1], 5)
    part = target.rows(2, 4)
    for name in ("support_NK", "log_probs_NK", "log_normalizers_NT", "log_tails_NT"):
        assert torch.equal(getattr(part, name), getattr(target, name)[2:4])
    assert part.temperatures == TEMPERATURES


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "ignore"])
def test_unused_places_of_the_support_play_no_part(tail: str) -> None:
    student, teacher, labels, _ = draw(seed=5)
    logits, labels = torch.tensor(student), torch.from_numpy(labels)
    target = make_sparse_target(teacher, 4)
    mixture = Mixture(0.5, 2.0, get_divergence("jsd"), tail)
    expected = mix_rows(logits, labels, target, mixture)
    padded = pad_support(target, 3)
    padded.check(VOCABULARY)
    torch.testing.assert_close(mix_rows(logits, labels, padded, mixture), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", [0, 3])
def test_a_samples_gradient_is_the_teachers_on_average(head: int) -> None:
    """Random sampling, and an exact head of three tokens with a sampled tail (Horvitz-Thompson weights)."""
    student, teacher, labels, _ = draw(seed=6, rows=1, scale=1.5)
    p = torch.tensor(teacher[0]).softmax(-1).numpy()
    order = np.argsort(-p)
    kept, rest = order[:head], order[head:]
    draws, samples = 25, 4000
    generator = np.random.default_rng(0)
    counts = generator.multinomial(draws, p[rest] / p[rest].sum(), size=samples)
    weights = np.zeros((samples, VOCABULARY))
    weights[:, kept] = p[kept]
    weights[:, rest] = p[rest].sum() * counts / draws
    support = np.where(weights > 0, np.arange(VOCABULARY), -1)
    support.sort(axis=-1)
    support = support[:, ::-1].copy()
    chosen = np.where(support >= 0, np.take_along_axis(weights, np.maximum(support, 0), -1), 0.0)
    target = SampledTarget(torch.from_numpy(support), torch.from_numpy(chosen))
    target.check(VOCABULARY)
    logits = torch.tensor(student).repeat(samples, 1).requires_grad_()
    rows = mix_rows(logits, torch.from_numpy(labels).repeat(samples), target, Mixture(1.0, 1.0, forward_kl))
    (gradient,) = torch.autograd.grad(rows.loss_N.sum(), logits)
    full = torch.tensor(student[0]).softmax(-1) - torch.from_numpy(p)
    deviation = gradient.std(0) / samples**0.5
    assert ((gradient.mean(0) - full).abs() <= 4.5 * deviation + 1e-12).all()
    assert (gradient[:, torch.from_numpy(kept)] - full[torch.from_numpy(kept)]).abs().max() <= 1e-9 if head else True


def test_a_full_target_knows_any_temperature_and_leaves_padding_without_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 4, generator=generator), torch.randn(9, 4, generator=generator)
    bias = torch.randn(9, generator=generator)
    log_p = FullTarget(hidden, weight, bias, 5.0).log_probs(1.7, 12)
    logits = 5.0 * torch.tanh((hidden @ weight.T + bias) / 5.0)
    torch.testing.assert_close(log_p[:, :9], (logits / 1.7).log_softmax(-1))
    assert log_p[:, 9:].isneginf().all()


def broken(**planes) -> SparseTarget:
    return make_sparse_target(draw(seed=2)[1], 5)._replace(**planes)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (broken(log_probs_NK=torch.zeros(6, 4)), "planes disagree: support"),
        (broken(log_tails_NT=torch.zeros(6, 3)), "planes disagree"),
        (broken(temperatures=(1.0,)), "for 1 temperatures"),
        (broken(support_NK=torch.full((6, 5), VOCABULARY)), f"outside the student's vocabulary of {VOCABULARY}"),
        (broken(support_NK=torch.full((6, 5), -2)), "outside the student's vocabulary"),
        (broken(support_NK=torch.full((6, 5), -1)), "no token"),
        (broken(log_probs_NK=torch.full((6, 5), 0.5)), "above 0, or NaN"),
        (broken(log_probs_NK=torch.full((6, 5), math.nan)), "above 0, or NaN"),
        (broken(log_probs_NK=torch.full((6, 5), -5.0)), "mass at temperature 0.5 is off 1 by"),
        (SampledTarget(torch.zeros(2, 3).long(), torch.full((2, 3), 0.5)), "do not add up to 1"),
        (SampledTarget(torch.zeros(2, 2).long(), torch.tensor([[2.0, -1.0]] * 2)), "are negative"),
        (SampledTarget(torch.zeros(2, 2).long(), torch.zeros(2, 3)), "planes disagree"),
        (FullTarget(torch.zeros(2, 4), torch.zeros(12, 4)), "do not fit"),
        (FullTarget(torch.zeros(2, 3), torch.zeros(5, 4)), "do not fit"),
    ],
)
def test_wrong_planes_are_refused(target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target.check(VOCABULARY)


def test_right_planes_pass() -> None:
    broken().check(VOCABULARY)
    broken().rows(0, 0).check(VOCABULARY)


def soften_target(target: SparseTarget) -> SoftenedTarget:
    planes = [target.at_temperature(temperature) for temperature in target.temperatures]
    log_probs, log_tails = (torch.stack(plane, -1) for plane in zip(*planes, strict=True))
    return SoftenedTarget(target.support_NK, log_probs, log_tails, target.temperatures)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "ignore"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distributions_that_stand_one_by_one_give_the_same_rows(tail: str, temperature: float) -> None:
    student, teacher, labels, _ = draw(seed=5)
    logits, labels = torch.tensor(student), torch.from_numpy(labels)
    target = pad_support(make_sparse_target(teacher, 4), 2)
    softened = soften_target(target)
    softened.check(VOCABULARY)
    mixture = Mixture(0.5, temperature, get_divergence("jsd"), tail)
    expected, found = (mix_rows(logits, labels, made, mixture) for made in (target, softened))
    assert torch.equal(found.loss_N, expected.loss_N)
    assert torch.equal(softened.rows(1, 4).log_probs_NKT, softened.log_probs_NKT[1:4])


def test_wrong_distributions_that_stand_one_by_one_are_refused() -> None:
    softened = soften_target(make_sparse_target(draw(seed=5)[1], 4))
    with pytest.raises(ValueError, match=r"temperature 1\.5 is not in the logit cache"):
        softened.at_temperature(1.5, "interpolate")
    with pytest.raises(ValueError, match="target planes disagree"):
        softened._replace(log_tails_NT=softened.log_tails_NT[:, :1]).check(VOCABULARY)
    with pytest.raises(ValueError, match="off 1 by"):
        softened._replace(log_tails_NT=softened.log_tails_NT - 1).check(VOCABULARY)

"""Tests of the distillation loss against an independent dense reference in numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError, ArgumentParser

from losses.distillation import DistillationLoss, LossSums, SparseTarget, forward_kl_with_tail

VOCABULARY = 11
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


def log_sum_exp(values: np.ndarray) -> float:
    largest = max(values, default=-math.inf)
    return largest if math.isinf(largest) else largest + math.log(sum(math.exp(value - largest) for value in values))


def reference(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    is_answer: np.ndarray,
    top_k: int,
    kl_weight: float,
    temperature: float,
    segment_weights: tuple[float, float],
) -> tuple[float, np.ndarray, float]:
    """Returns value, gradient and weight of the loss, token by token from dense float64 distributions."""
    value, weight, gradient = 0.0, 0.0, np.zeros_like(student)
    for row in range(len(student)):
        w = segment_weights[1 if is_answer[row] else 0]
        weight += w
        z = student[row]
        log_q = z - log_sum_exp(z)
        value += w * (1 - kl_weight) * -log_q[labels[row]]
        gradient[row] += w * (1 - kl_weight) * np.exp(log_q)
        gradient[row, labels[row]] -= w * (1 - kl_weight)

        support = np.argsort(-teacher[row], kind="stable")[:top_k]
        outside = [token for token in range(len(z)) if token not in support]
        u = z / temperature
        log_q = u - log_sum_exp(u)
        log_p = teacher[row] / temperature - log_sum_exp(teacher[row] / temperature)
        tau, log_kappa = sum(math.exp(log_p[token]) for token in outside), log_sum_exp(log_q[outside])
        divergence = sum(math.exp(log_p[i]) * (log_p[i] - log_q[i]) for i in support if math.exp(log_p[i]) > 0)
        if tau > 0:
            divergence += tau * (math.log(tau) - log_kappa)
        value += w * kl_weight * temperature**2 * divergence
        slope = np.zeros_like(z)
        for token in range(len(z)):
            slope[token] = math.exp(log_q[token])
            if token in support:
                slope[token] -= math.exp(log_p[token])
            elif tau > 0:
                slope[token] -= tau * math.exp(log_q[token] - log_kappa)
        gradient[row] += w * kl_weight * temperature * slope
    return value, gradient, weight


def sparse_target(teacher: np.ndarray, top_k: int, temperatures: tuple[float, ...] = TEMPERATURES) -> SparseTarget:
    """Builds a target in numpy from the teacher's logits."""
    support = np.argsort(-teacher, axis=-1, kind="stable")[:, :top_k]
    normalizers, tails = np.zeros((len(teacher), len(temperatures))), np.zeros((len(teacher), len(temperatures)))
    log_p = np.array([row - log_sum_exp(row) for row in teacher]).reshape(teacher.shape)
    for row in range(len(teacher)):
        outside = [token for token in range(teacher.shape[1]) if token not in support[row]]
        for index, temperature in enumerate(temperatures):
            normalizers[row, index] = log_sum_exp(log_p[row] / temperature)
            tails[row, index] = log_sum_exp(log_p[row][outside] / temperature) - normalizers[row, index]
    return SparseTarget(
        torch.from_numpy(support),
        torch.from_numpy(np.take_along_axis(log_p, support, -1)),
        torch.from_numpy(normalizers),
        torch.from_numpy(tails),
        temperatures,
    )


def evaluate(
    loss: DistillationLoss, student: np.ndarray, labels: np.ndarray, is_answer: np.ndarray, target, dtype=None
):
    """Returns (sums, gradient) of the loss under test."""
    logits = torch.tensor(student, dtype=dtype or torch.float64, requires_grad=True)
    sums: LossSums = loss(logits, torch.from_numpy(labels), torch.from_numpy(is_answer), target)
    (gradient,) = torch.autograd.grad(sums.total, logits)
    return sums, gradient.double().numpy()


def draw(seed: int, rows: int = 6, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    student, teacher = generator.normal(0, scale, (2, rows, VOCABULARY))
    labels = generator.integers(0, VOCABULARY, rows)
    is_answer = np.arange(rows) >= rows // 2
    return student, teacher, labels, is_answer


@pytest.mark.parametrize("top_k", [1, 5, VOCABULARY])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_the_dense_references(kl_weight: float, temperature: float, top_k: int) -> None:
    student, teacher, labels, is_answer = draw(seed=top_k)
    loss = DistillationLoss(kl_weight=kl_weight, temperature=temperature, rationale_weight=0.25, answer_weight=2.0)
    sums, gradient = evaluate(loss, student, labels, is_answer, sparse_target(teacher, top_k))
    value, expected, weight = reference(student, teacher, labels, is_answer, top_k, kl_weight, temperature, (0.25, 2.0))
    assert sums.total.item() == pytest.approx(value, rel=1e-12)
    assert sums.weight.item() == weight == 3 * 0.25 + 3 * 2.0
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 5, VOCABULARY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_logits_are_computed_with_in_float32(dtype: torch.dtype, top_k: int) -> None:
    student, teacher, labels, is_answer = draw(seed=9)
    student = torch.tensor(student).to(dtype).double().numpy()
    target = sparse_target(teacher, top_k)
    target = SparseTarget(target.support_NK, *(plane.float() for plane in target[1:4]), target.temperatures)
    sums, gradient = evaluate(
        DistillationLoss(kl_weight=0.5, temperature=2.0), student, labels, is_answer, target, dtype
    )
    value, expected, _ = reference(student, teacher, labels, is_answer, top_k, 0.5, 2.0, (1.0, 1.0))
    assert sums.total.dtype == torch.float32
    assert sums.total.item() == pytest.approx(value, rel=1e-5)
    # The gradient itself is rounded to the logits' type.
    np.testing.assert_allclose(gradient, expected, atol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("top_k", [1, 5, VOCABULARY])
def test_tokens_the_teacher_rules_out_weigh_nothing(top_k: int) -> None:
    """The teacher allows three tokens: with k = 5 the support has p = 0 entries, and its tail is -inf."""
    student, teacher, labels, is_answer = draw(seed=1)
    teacher[:, 3:] = -math.inf
    target = sparse_target(teacher, top_k)
    assert target.log_tails_NT.isneginf().all() == (top_k >= 3)
    loss = DistillationLoss(kl_weight=1.0, temperature=2.0)
    sums, gradient = evaluate(loss, student, labels, is_answer, target)
    value, expected, _ = reference(student, teacher, labels, is_answer, top_k, 1.0, 2.0, (1.0, 1.0))
    assert sums.total.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("top_k", [1, 5, VOCABULARY])
def test_extreme_logits_give_finite_and_right_results(top_k: int, dtype: torch.dtype) -> None:
    student, teacher, labels, is_answer = draw(seed=2)
    student[0, 4], student[1, :] = 1e4, -1e4
    student[2, 1:], student[3, labels[3]] = -1e4, 1e4
    teacher[4, 2], teacher[5, 1:] = 1e4, -1e4
    loss = DistillationLoss(kl_weight=0.5, temperature=2.0)
    target = sparse_target(teacher, top_k)
    target = SparseTarget(target.support_NK, *(plane.to(dtype) for plane in target[1:4]), target.temperatures)
    sums, gradient = evaluate(loss, student, labels, is_answer, target, dtype)
    value, expected, _ = reference(student, teacher, labels, is_answer, top_k, 0.5, 2.0, (1.0, 1.0))
    assert sums.total.item() == pytest.approx(value, rel=1e-10 if dtype == torch.float64 else 1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-10 if dtype == torch.float64 else 1e-4)


def test_tail_of_a_student_that_is_sure_keeps_its_digits() -> None:
    """With 1 - sum q the student's tail would be 0 in float32, and the loss infinite."""
    student = np.full((1, VOCABULARY), 0.0)
    student[0, 0] = 40.0
    log_p, log_tail = math.log(0.9), math.log(0.1)
    value = forward_kl_with_tail(
        torch.tensor(student, dtype=torch.float32),
        torch.tensor([[0]]),
        torch.tensor([[log_p]]),
        torch.tensor([log_tail]),
    )
    log_kappa = math.log(10) - 40
    assert value.item() == pytest.approx(0.9 * log_p + 0.1 * (log_tail - log_kappa), rel=1e-6)


@pytest.mark.parametrize("is_answer", [[True], [False]])
def test_one_row_and_a_segment_without_rows(is_answer: list[bool]) -> None:
    student, teacher, labels, _ = draw(seed=3, rows=1)
    mask = np.array(is_answer)
    loss = DistillationLoss(kl_weight=0.3, rationale_weight=3.0, answer_weight=5.0)
    sums, gradient = evaluate(loss, student, labels, mask, sparse_target(teacher, 5))
    value, expected, weight = reference(student, teacher, labels, mask, 5, 0.3, 1.0, (3.0, 5.0))
    assert (sums.total.item(), sums.weight.item()) == (pytest.approx(value), weight)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    empty, full = ("rationale", "answer") if is_answer[0] else ("answer", "rationale")
    assert [item.item() for item in sums.parts[f"ce_{empty}"]] == [0, 0]
    assert sums.parts[f"ce_{full}"][1].item() == 1


def test_no_rows_at_all() -> None:
    student, teacher, labels, mask = draw(seed=3, rows=0)
    sums, gradient = evaluate(DistillationLoss(kl_weight=0.3), student, labels, mask, sparse_target(teacher, 5))
    assert (sums.total.item(), sums.weight.item(), gradient.shape) == (0, 0, (0, VOCABULARY))


def test_parts_are_sums_over_each_segment() -> None:
    student, teacher, labels, is_answer = draw(seed=4)
    sums, _ = evaluate(
        DistillationLoss(kl_weight=0.5, temperature=2.0), student, labels, is_answer, sparse_target(teacher, 5)
    )
    for segment, mask in (("rationale", ~is_answer), ("answer", is_answer)):
        for name, kl_weight in (("ce", 0.0), ("kl", 1.0)):
            expected, _, count = reference(
                student[mask], teacher[mask], labels[mask], is_answer[mask], 5, kl_weight, 2.0, (1.0, 1.0)
            )
            total, number = sums.parts[f"{name}_{segment}"]
            assert not total.requires_grad
            # The logged KL is the divergence itself, without T^2.
            assert (total.item() * (4 if name == "kl" else 1), number.item()) == (pytest.approx(expected), count)
        hits = (student.argmax(-1) == labels)[mask].sum()
        assert sums.parts[f"accuracy_{segment}"][0].item() == hits


@pytest.mark.parametrize("top_k", [1, 5, VOCABULARY])
def test_gradcheck(top_k: int) -> None:
    student, teacher, labels, is_answer = draw(seed=5)
    target = sparse_target(teacher, top_k)
    loss = DistillationLoss(kl_weight=0.3, temperature=2.0, rationale_weight=0.5)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return loss(logits, torch.from_numpy(labels), torch.from_numpy(is_answer), target).total

    assert torch.autograd.gradcheck(total, torch.tensor(student, requires_grad=True))


def test_t_squared_keeps_the_gradient_by_finite_differences() -> None:
    """As T grows, T^2 KL tends to the squared distance of centred logits over 2V, whatever T (Hinton et al. 2015)."""
    student, teacher, labels, is_answer = draw(seed=6, rows=1, scale=0.5)
    gap = (student - student.mean()) - (teacher - teacher.mean())
    step = 1e-5
    for temperature in (100.0, 800.0):
        loss = DistillationLoss(kl_weight=1.0, temperature=temperature)
        target = sparse_target(teacher, VOCABULARY, (temperature,))
        slopes = []
        for token in range(VOCABULARY):
            moved = []
            for sign in (1, -1):
                shifted = student.copy()
                shifted[0, token] += sign * step
                moved.append(evaluate(loss, shifted, labels, is_answer, target)[0].total.item())
            slopes.append((moved[0] - moved[1]) / (2 * step))
        np.testing.assert_allclose(slopes, gap[0] / VOCABULARY, atol=0.2 / temperature)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from(TEMPERATURES))
def test_bucketed_kl_rises_with_k_to_the_full_kl(seed: int, temperature: float) -> None:
    student, teacher, _, _ = draw(seed, rows=2)
    log_q = torch.tensor(student / temperature).log_softmax(-1)
    log_p = torch.tensor(teacher / temperature).log_softmax(-1)
    full = (log_p.exp() * (log_p - log_q)).sum(-1)
    previous = torch.zeros(2, dtype=torch.float64)
    for top_k in range(1, VOCABULARY + 1):
        target = sparse_target(teacher, top_k)
        bucketed = forward_kl_with_tail(
            torch.tensor(student / temperature), target.support_NK, *target.at_temperature(temperature)
        )
        assert (bucketed >= previous - 1e-12).all()
        assert (bucketed <= full + 1e-12).all()
        previous = bucketed
    torch.testing.assert_close(previous, full)


def test_cross_entropy_alone_reads_no_target() -> None:
    student, _, labels, is_answer = draw(seed=7)
    sums, gradient = evaluate(DistillationLoss(temperature=3.0), student, labels, is_answer, None)
    value, expected, _ = reference(student, student, labels, is_answer, 1, 0.0, 1.0, (1.0, 1.0))
    assert sums.total.item() == pytest.approx(value)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    assert not [name for name in sums.parts if name.startswith("kl")]


def test_a_temperature_that_was_not_stored_is_refused() -> None:
    student, teacher, labels, is_answer = draw(seed=8)
    target = sparse_target(teacher, 5, (1.0, 2.0))
    loss = DistillationLoss(kl_weight=0.5, temperature=1.5)
    with pytest.raises(ValueError, match=r"temperature 1\.5 is not in the logit cache, which has \[1\.0, 2\.0\]"):
        evaluate(loss, student, labels, is_answer, target)
    evaluate(replace(loss, temperature=2.0), student, labels, is_answer, target)


@pytest.mark.parametrize(
    "arg",
    [
        "--loss.kl_weight=-0.1",
        "--loss.kl_weight=1.1",
        "--loss.kl_weight=nan",
        "--loss.temperature=0",
        "--loss.temperature=-1",
        "--loss.temperature=nan",
        "--loss.rationale_weight=-1",
        "--loss.rationale_weight=nan",
        "--loss.answer_weight=-0.5",
        "--loss.answer_weight=.nan",
        "--loss.answer_wieght=1",
    ],
)
def test_wrong_settings_are_refused_when_the_config_is_parsed(arg: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DistillationLoss, "loss")
    right = parser.parse_args(["--loss.kl_weight=1", "--loss.answer_weight=0", "--loss.temperature=0.5"])
    assert parser.instantiate_classes(right).loss == DistillationLoss(kl_weight=1, answer_weight=0, temperature=0.5)
    with pytest.raises(ArgumentError, match=arg.split("=")[0].removeprefix("--")):
        parser.parse_args([arg])

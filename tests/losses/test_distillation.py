"""The loss as an experiment sets it: segments, weights, schedules, what is logged, and wrong settings."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from losses.distillation import DistillationLoss, LossSums
from losses.fused_head import OutputHead
from losses.schedules import Schedule
from losses.targets import FullTarget, SampledTarget
from tests.losses.conftest import VOCABULARY, draw, make_sparse_target
from tests.losses.reference import value_and_gradient

Road = Callable[..., tuple[LossSums, np.ndarray]]


def from_logits(
    loss: DistillationLoss, student, labels, is_answer, target, progress=0.0
) -> tuple[LossSums, np.ndarray]:
    """Returns (sums, gradient) by the dense road."""
    logits = torch.tensor(student, requires_grad=True)
    sums = loss.at(progress)(logits, torch.from_numpy(labels), torch.from_numpy(is_answer), target)
    return sums, torch.autograd.grad(sums.total, logits)[0].numpy()


def from_hidden(
    loss: DistillationLoss, student, labels, is_answer, target, progress=0.0
) -> tuple[LossSums, np.ndarray]:
    """Returns (sums, gradient) by the fused road, whose hidden states are the logits here."""
    hidden = torch.tensor(student, requires_grad=True)
    head = OutputHead(torch.eye(VOCABULARY, dtype=hidden.dtype))
    sums = loss.at(progress).from_hidden(hidden, head, torch.from_numpy(labels), torch.from_numpy(is_answer), target)
    return sums, torch.autograd.grad(sums.total, hidden)[0].numpy()


roads = pytest.mark.parametrize("road", [from_logits, from_hidden])


def reference(student, teacher, labels, is_answer, top_k, kl_weight, temperature, weights) -> tuple:
    """Returns value, gradient and weight of the forward KL mixture; `weights` of (rationale, answer)."""
    value, gradient, weight = 0.0, np.zeros_like(student), 0.0
    for row in range(len(student)):
        w = weights[1 if is_answer[row] else 0]
        settings = (teacher[row], labels[row], "forward_kl", kl_weight, temperature, top_k, "bucket")
        row_value, row_gradient = value_and_gradient(student[row], *settings)
        value, weight = value + w * row_value, weight + w
        gradient[row] = w * row_gradient
    return value, gradient, weight


@roads
@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_segments_weigh_as_set(road: Road, kl_weight: float) -> None:
    student, teacher, labels, is_answer = draw(seed=5)
    loss = DistillationLoss(kl_weight=kl_weight, temperature=2.0, rationale_weight=0.3, answer_weight=1.7)
    sums, gradient = road(loss, student, labels, is_answer, make_sparse_target(teacher, 5))
    value, expected, weight = reference(student, teacher, labels, is_answer, 5, kl_weight, 2.0, (0.3, 1.7))
    assert sums.total.item() == pytest.approx(value, rel=1e-12)
    assert sums.weight.item() == pytest.approx(3 * 0.3 + 3 * 1.7, rel=1e-12) == weight
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@roads
def test_segments_weigh_as_set_where_new_tensors_are_bfloat16(road: Road) -> None:
    """As in Lightning's `bf16-true`."""
    student, _, labels, is_answer = draw(seed=5)
    loss = DistillationLoss(kl_weight=0.0, rationale_weight=0.3, answer_weight=1.7)
    torch.set_default_dtype(torch.bfloat16)
    try:
        sums, _ = road(loss, student.astype(np.float32), labels, is_answer, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert sums.weight.item() == pytest.approx(3 * 0.3 + 3 * 1.7, rel=1e-6)


@roads
@pytest.mark.parametrize("is_answer", [[True], [False]])
def test_one_row_and_a_segment_without_rows(road: Road, is_answer: list[bool]) -> None:
    student, teacher, labels, _ = draw(seed=3, rows=1)
    mask = np.array(is_answer)
    loss = DistillationLoss(kl_weight=0.3, rationale_weight=3.0, answer_weight=5.0)
    sums, gradient = road(loss, student, labels, mask, make_sparse_target(teacher, 5))
    value, expected, weight = reference(student, teacher, labels, mask, 5, 0.3, 1.0, (3.0, 5.0))
    assert (sums.total.item(), sums.weight.item()) == (pytest.approx(value), weight)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    empty, full = ("rationale", "answer") if is_answer[0] else ("answer", "rationale")
    assert [item.item() for item in sums.parts[f"ce_{empty}"]] == [0, 0]
    assert sums.parts[f"ce_{full}"][1].item() == 1


@roads
def test_parts_are_sums_over_each_segment(road: Road) -> None:
    student, teacher, labels, is_answer = draw(seed=4)
    target = make_sparse_target(teacher, 5)
    sums, _ = road(DistillationLoss(kl_weight=0.5, temperature=2.0), student, labels, is_answer, target)
    support = np.argsort(-teacher, axis=-1)[:, :5]

    def softmax(logits: np.ndarray) -> np.ndarray:
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    p, q, q1 = softmax(teacher / 2), softmax(student / 2), softmax(student)
    p_tail = 1 - np.take_along_axis(p, support, -1).sum(-1)
    outcomes = np.concatenate([np.take_along_axis(p, support, -1), p_tail[:, None]], axis=-1)
    expected = {
        "ce": -np.log(q1[np.arange(6), labels]),
        "accuracy": student.argmax(-1) == labels,
        "student_entropy": -(q1 * np.log(q1)).sum(-1),
        "teacher_entropy": -(outcomes * np.log(outcomes)).sum(-1),
        "teacher_tail": p_tail,
        "student_tail": 1 - np.take_along_axis(q, support, -1).sum(-1),
        "agreement": student.argmax(-1) == teacher.argmax(-1),
        "divergence": [reference(*(a[[i]] for a in (student, teacher, labels, is_answer)), 5, 1.0, 2.0, (1, 1))[0] / 4
                       for i in range(6)],
    }  # fmt: skip
    assert set(sums.parts) == {f"{name}_{segment}" for name in expected for segment in ("rationale", "answer")}
    for segment, mask in (("rationale", ~is_answer), ("answer", is_answer)):
        for name, values in expected.items():
            total, number = sums.parts[f"{name}_{segment}"]
            assert not total.requires_grad and number.item() == mask.sum()
            assert total.item() == pytest.approx(np.asarray(values)[mask].sum(), abs=1e-12), name


@roads
def test_t_squared_keeps_the_gradient_by_finite_differences(road: Road) -> None:
    """As T grows, T^2 KL tends to the squared distance of centred logits over 2V, whatever T (Hinton et al. 2015)."""
    student, teacher, labels, is_answer = draw(seed=6, rows=1, scale=0.5)
    gap = (student - student.mean()) - (teacher - teacher.mean())
    step = 1e-5
    for temperature in (100.0, 800.0):
        loss = DistillationLoss(kl_weight=1.0, temperature=temperature)
        target = make_sparse_target(teacher, VOCABULARY, (temperature,))
        slopes = []
        for token in range(VOCABULARY):
            moved = []
            for sign in (1, -1):
                shifted = student.copy()
                shifted[0, token] += sign * step
                moved.append(road(loss, shifted, labels, is_answer, target)[0].total.item())
            slopes.append((moved[0] - moved[1]) / (2 * step))
        np.testing.assert_allclose(slopes, gap[0] / VOCABULARY, atol=0.2 / temperature)
        gradient = road(loss, student, labels, is_answer, target)[1][0]
        np.testing.assert_allclose(gradient, gap[0] / VOCABULARY, atol=0.2 / temperature)


@roads
def test_cross_entropy_alone_reads_no_target(road: Road) -> None:
    student, _, labels, is_answer = draw(seed=7)
    sums, gradient = road(DistillationLoss(temperature=3.0), student, labels, is_answer, None)
    value, expected, _ = reference(student, student, labels, is_answer, 1, 0.0, 1.0, (1.0, 1.0))
    assert sums.total.item() == pytest.approx(value)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    assert {name.rpartition("_")[0] for name in sums.parts} == {"ce", "accuracy", "student_entropy"}


@roads
def test_at_temperature_one_it_is_one_cross_entropy_against_the_soft_target(road: Road) -> None:
    student, teacher, labels, is_answer = draw(seed=8)
    soft = 0.3 * torch.tensor(teacher).softmax(-1)
    soft += 0.7 * torch.nn.functional.one_hot(torch.from_numpy(labels), VOCABULARY).double()
    logits = torch.tensor(student, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(logits, soft, reduction="sum")
    loss = DistillationLoss(kl_weight=0.3, divergence="soft_cross_entropy")
    sums, gradient = road(loss, student, labels, is_answer, make_sparse_target(teacher, VOCABULARY))
    assert sums.total.item() == pytest.approx(expected.item())
    np.testing.assert_allclose(gradient, torch.autograd.grad(expected, logits)[0], atol=1e-12)


@roads
def test_schedules_are_taken_at_the_present_progress(road: Road) -> None:
    student, teacher, labels, is_answer = draw(seed=9)
    target = make_sparse_target(teacher, 5)
    loss = DistillationLoss(
        kl_weight=Schedule(shape="linear", start=0.0, end=1.0),
        temperature=Schedule(shape="step", start=4.0, end=1.0, begin=0.5),
        answer_weight=Schedule(shape="cosine", start=1.0, end=3.0),
    )
    assert loss.needs_teacher
    for progress, kl_weight, temperature, weight in (
        (0.0, 0.0, 4.0, 1.0),
        (0.25, 0.25, 4.0, None),
        (1.0, 1.0, 1.0, 3.0),
    ):
        sums, _ = road(loss, student, labels, is_answer, target, progress)
        if weight is None:
            weight = 1 + 2 * (1 - math.cos(math.pi / 4)) / 2
        value, _, _ = reference(student, teacher, labels, is_answer, 5, kl_weight, temperature, (1.0, weight))
        assert sums.total.item() == pytest.approx(value)


@roads
@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"divergence": "reverse_kl"}, "sampled", "gives only forward_kl and soft_cross_entropy"),
        ({"temperature": 2.0}, "sampled", r"drawn at 1, not at 2\.0"),
        ({"tail": "ignore"}, "sampled", "tail ignore would be ignored"),
        ({"tail": "renormalize"}, "full", "tail renormalize would be ignored"),
        ({"temperature": 1.5}, "sparse", r"temperature 1\.5 is not in the logit cache"),
        ({}, "none", "there are no teacher rows"),
        ({}, "short", r"6 supervised rows, but {'labels': 6, 'is_answer': 6, 'target': 5}"),
    ],
)
def test_a_target_that_cannot_give_the_loss_is_refused(road: Road, settings: dict, kind: str, message: str) -> None:
    student, teacher, labels, is_answer = draw(seed=8)
    target = make_sparse_target(teacher, 5)
    weights = target.log_probs_NK.softmax(-1)
    targets = {
        "sampled": SampledTarget(target.support_NK, weights),
        "full": FullTarget(torch.tensor(teacher), torch.eye(VOCABULARY, dtype=torch.float64)),
        "sparse": target,
        "none": None,
        "short": target.rows(0, 5),
    }
    with pytest.raises(ValueError, match=message):
        road(DistillationLoss(kl_weight=0.5, **settings), student, labels, is_answer, targets[kind])


def parse(*args: str) -> DistillationLoss:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=DistillationLoss, default=DistillationLoss())
    return parser.instantiate(parser.parse_args([f"--loss.{arg}" for arg in args])).loss


def test_settings_of_the_command_line() -> None:
    found = parse("kl_weight=1", "answer_weight=0", "temperature=0.5", "divergence=jsd", "beta=0.1", "tail=ignore")
    expected = {"kl_weight": 1, "answer_weight": 0, "temperature": 0.5, "divergence": "jsd", "beta": 0.1}
    assert found == DistillationLoss(**expected, tail="ignore")
    found = parse('kl_weight={"shape": "linear", "start": 0, "end": 0.5}')
    assert found.kl_weight == Schedule(shape="linear", start=0.0, end=0.5)
    assert parse("kl_weight.shape=cosine", "kl_weight.start=0", "kl_weight.end=1").kl_weight.shape == "cosine"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("kl_weight=-0.1", r"loss\.kl_weight must be between 0 and 1, not -0\.1"),
        ("kl_weight=1.1", r"loss\.kl_weight must be between 0 and 1, not 1\.1"),
        ("kl_weight=.nan", r"loss\.kl_weight must be finite"),
        ("kl_weight=much", r"loss\.kl_weight"),
        ('kl_weight={"shape": "linear", "start": 0, "end": 2}', r"loss\.kl_weight must be between 0 and 1, not 2"),
        ("temperature=0", r"loss\.temperature must be above 0"),
        ("temperature=-1", r"loss\.temperature must be above 0, not -1"),
        ("temperature=.nan", r"loss\.temperature must be finite"),
        ("rationale_weight=-1", r"loss\.rationale_weight must be at least 0"),
        ("rationale_weight=.inf", r"loss\.rationale_weight must be finite"),
        ("answer_weight=-0.5", r"loss\.answer_weight must be at least 0"),
        ("answer_wieght=1", r"loss\.answer_wieght"),
        ("divergence=kl", r"loss\.divergence"),
        ("beta=0.5", "forward_kl has no beta"),
    ],
)
def test_wrong_settings_are_refused(arg: str, message: str) -> None:
    with pytest.raises((ArgumentError, ValueError), match=message):
        parse(arg)


def test_nothing_supervised_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is supervised"):
        DistillationLoss(rationale_weight=0, answer_weight=0)

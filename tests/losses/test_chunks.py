"""The divergence of spans of text."""

import math

import numpy as np
import pytest
import torch

from losses.chunks import log1mexp
from losses.distillation import DistillationLoss
from losses.fused_head import OutputHead
from losses.targets import ChunkTarget, SparseTarget
from tests.losses.reference import DIVERGENCES
from tests.losses.test_fused_head import N, make_inputs

IS_ANSWER = torch.arange(N) >= 4
CHUNKS = ChunkTarget(torch.tensor([0, 0, -1, 1, 2, 2, 2]), torch.tensor([-3.0, -0.2, -6.5], dtype=torch.float64))


def differentiate(settings: dict, target, fused: bool, softcap: float | None = None) -> tuple:
    hidden, weight, bias, labels, _ = make_inputs()
    head = OutputHead(weight, bias, 1.3, softcap)
    step = DistillationLoss(**settings).at(0.0)
    inputs = (labels, IS_ANSWER, target)
    sums = step.from_hidden(hidden, head, *inputs) if fused else step(head.project(hidden), *inputs)
    sums.total.backward()
    return sums, [hidden.grad, weight.grad, bias.grad]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_token_a_span_is_its_label_and_the_rest(divergence: str, fused: bool) -> None:
    labels, log_probs = make_inputs()[3], torch.linspace(-5, -0.01, N, dtype=torch.float64)
    tails = torch.log(-torch.expm1(log_probs))
    zeros = torch.zeros(N, 1, dtype=torch.float64)
    sparse = SparseTarget(labels[:, None], log_probs[:, None], zeros, tails[:, None], (1.0,))
    settings = {"kl_weight": 0.4, "divergence": divergence, "answer_weight": 0.5}
    found, gradients = differentiate(settings, ChunkTarget(torch.arange(N), log_probs), fused)
    expected, wanted = differentiate(settings, sparse, fused)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=1e-12)
    for gradient, one in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, one, rtol=1e-10, atol=1e-12)
    assert found.weight == expected.weight and found.parts.keys() == expected.parts.keys()
    for name in found.parts.keys() - {"agreement_rationale", "agreement_answer"}:
        torch.testing.assert_close(found.parts[name], expected.parts[name])


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_spans_by_the_formula(temperature: float) -> None:
    hidden, weight, bias, labels, _ = make_inputs()
    logits = OutputHead(weight, bias, 1.3).project(hidden).detach().numpy()
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = log_q[np.arange(N), labels.numpy()]
    weights = np.where(IS_ANSWER.numpy(), 0.5, 1.0)
    expected = -(weights * np.where(CHUNKS.chunks_N.numpy() >= 0, 0.6, 1.0) * own).sum()
    for chunk, log_p in enumerate(CHUNKS.log_probs_C.tolist()):
        rows = CHUNKS.chunks_N.numpy() == chunk
        p, q = math.exp(log_p / temperature), math.exp(own[rows].sum() / temperature)
        expected += 0.4 * weights[rows].sum() * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    settings = {"kl_weight": 0.4, "temperature": temperature, "answer_weight": 0.5}
    sums, _ = differentiate(settings, CHUNKS, fused=False)
    assert sums.total.item() == pytest.approx(expected, rel=1e-12)
    assert sums.parts["divergence_rationale"][1] == 3 and sums.parts["ce_rationale"][1] == 4


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 7.0])
@pytest.mark.parametrize("kl_weight", [0.4, 1.0])
def test_the_fused_head_gives_the_same(divergence: str, temperature: float, kl_weight: float) -> None:
    settings = {"kl_weight": kl_weight, "temperature": temperature, "divergence": divergence, "answer_weight": 0.0}
    found, gradients = differentiate(settings, CHUNKS, fused=True, softcap=6.0)
    expected, wanted = differentiate(settings, CHUNKS, fused=False, softcap=6.0)
    torch.testing.assert_close(found.total, expected.total)
    for gradient, one in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, one)
    for name, (value, count) in expected.parts.items():
        torch.testing.assert_close(found.parts[name], (value, count))


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, weight, bias, labels, _ = make_inputs()
    step = DistillationLoss(kl_weight=0.4).at(0.0)
    with torch.no_grad():
        total = step.from_hidden(hidden, OutputHead(weight, bias, 1.3), labels, IS_ANSWER, CHUNKS).total
    assert not total.requires_grad
    assert torch.equal(total, differentiate({"kl_weight": 0.4}, CHUNKS, fused=True)[0].total.detach())


@pytest.mark.parametrize("fused", [True, False])
def test_certain_models_have_a_finite_loss(fused: bool) -> None:
    """In float32 a sure student's log-probability is 0, and a sure teacher's is stored so."""
    hidden = torch.full((2, 1), 50.0, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    target = ChunkTarget(torch.tensor([0, 1]), torch.tensor([0.0, -0.5]))
    step = DistillationLoss(kl_weight=0.5).at(0.0)
    inputs = (torch.zeros(2).long(), torch.zeros(2, dtype=torch.bool), target)
    head = OutputHead(weight)
    sums = step.from_hidden(hidden, head, *inputs) if fused else step(head.project(hidden), *inputs)
    sums.total.backward()
    assert torch.isfinite(sums.total) and torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


def test_the_rest_of_a_probability() -> None:
    log_p = -np.logspace(-7, 2, 200)
    expected = np.where(log_p < -1, np.log1p(-np.exp(log_p)), np.log(-np.expm1(log_p)))
    found = log1mexp(torch.tensor(log_p, dtype=torch.float32))
    np.testing.assert_allclose(found.numpy(), expected, rtol=3e-6, atol=1e-30)
    x = torch.tensor([-1e-6, -0.6931, -0.6932, -3.0, -90.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log1mexp, x[1:4].detach().requires_grad_())
    (gradient,) = torch.autograd.grad(log1mexp(x).sum(), x)
    torch.testing.assert_close(gradient, (x.exp() / torch.expm1(x)).detach())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (CHUNKS._replace(chunks_N=torch.tensor([0, 3])), "outside the teacher's 3"),
        (CHUNKS._replace(chunks_N=torch.tensor([0, -2])), "outside the teacher's 3"),
        (CHUNKS._replace(log_probs_C=torch.tensor([0.1, 0.0, 0.0])), "above 0, or NaN"),
        (CHUNKS._replace(log_probs_C=torch.tensor([math.nan, 0.0, 0.0])), "above 0, or NaN"),
    ],
)
def test_wrong_planes_are_refused(target: ChunkTarget, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target.check(5)


def test_a_tail_would_be_ignored() -> None:
    CHUNKS.check(5)
    with pytest.raises(ValueError, match="tail renormalize would be ignored"):
        differentiate({"kl_weight": 0.4, "tail": "renormalize"}, CHUNKS, fused=False)

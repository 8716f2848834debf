"""Other systems as oracles, in their pinned versions, where their formula is ours (extra `peers`).

TRL and Liger agree with us on forward KL (their beta = 0), reverse KL (beta = 1) and the generalised JSD, whose
beta weighs the teacher in all three. Neither multiplies by T^2, value or gradient: the tests do it for them. Liger
averages over tokens, and mixes with the cross-entropy by two weights.
"""

import pytest
import torch

from losses.divergences import get_divergence
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import Mixture, mix_rows
from losses.targets import FullTarget

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
N, D, V, WIDTH = 64, 16, 500, 24


def make_inputs() -> tuple:
    """Returns the student's (hidden, weight), with gradients, the teacher's, and labels, in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, D), (V, D), (N, WIDTH), (V, WIDTH))
    student_hidden, student_weight, hidden, weight = (torch.randn(shape, generator=generator) for shape in shapes)
    labels = torch.randint(V, (N,), generator=generator)
    return student_hidden.requires_grad_(), (student_weight / 2).requires_grad_(), hidden, weight / 2, labels


def mixture_of(beta: float, kl_weight: float, temperature: float) -> Mixture:
    if beta in (0.0, 1.0):
        return Mixture(kl_weight, temperature, get_divergence("reverse_kl" if beta else "forward_kl"))
    return Mixture(kl_weight, temperature, get_divergence("jsd", beta=beta))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trls_generalised_jsd(beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="needs the extra `peers`")
    hidden, weight, teacher_hidden, teacher_weight, labels = make_inputs()
    student = (hidden @ weight.T).detach().requires_grad_()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student, teacher_hidden @ teacher_weight.T, beta=beta, temperature=temperature, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(temperature**2 * theirs, student)
    target = FullTarget(teacher_hidden, teacher_weight)
    loss = mix_rows(student, labels, target, mixture_of(beta, 1.0, temperature)).loss_N.sum()
    torch.testing.assert_close(loss, temperature**2 * theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_ligers_fused_jsd(beta: float, temperature: float) -> None:
    chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="needs the extra `peers`")
    hidden, weight, teacher_hidden, teacher_weight, labels = make_inputs()
    # Theirs weighs the divergence by 0.3 alone: 0.3 T^2 of ours.
    their_loss = chunked.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.7, weight_soft_loss=0.3 * temperature**2, beta=beta, temperature=temperature, compiled=False
    )
    theirs = N * their_loss(hidden, weight, teacher_hidden, teacher_weight, labels)
    expected = torch.autograd.grad(theirs, (hidden, weight))
    target = FullTarget(teacher_hidden, teacher_weight)
    head, ones = OutputHead(weight), torch.ones(N)
    loss, _ = mix_fused(hidden, head, labels, ones, target, mixture_of(beta, 0.3, temperature), chunk_bytes=4 * V * 20)
    torch.testing.assert_close(loss, theirs, rtol=1e-4, atol=1e-4)
    for found, gradient in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)


def test_torchs_and_apples_cross_entropy() -> None:
    cce = pytest.importorskip("cut_cross_entropy", reason="needs the extra `peers`")
    hidden, weight, _, _, labels = make_inputs()
    loss, _ = mix_fused(hidden, OutputHead(weight), labels, torch.ones(N), None, mixture_of(0.0, 0.0, 1.0))
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for theirs in (
        torch.nn.functional.linear_cross_entropy(hidden, weight, labels, reduction="sum"),
        cce.linear_cross_entropy(hidden, weight, labels, reduction="sum", impl="torch_compile"),
    ):
        torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-4)
        for found, gradient in zip(gradients, torch.autograd.grad(theirs, (hidden, weight)), strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)

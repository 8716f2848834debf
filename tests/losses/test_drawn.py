"""The reverse KL from drawn tokens alone, against the reverse KL of whole distributions."""

import math

import pytest
import torch

from losses.distillation import DistillationLoss
from losses.divergences import LOG_ZERO, reverse_kl
from losses.drawn import DRAWN_STATISTICS, sum_drawn, weigh_draws
from losses.fused_head import OutputHead
from losses.mixture import Mixture
from losses.targets import DrawnTarget, FullTarget
from tests.losses.test_fused_head import N, V, make_inputs

REVERSE = {"kl_weight": 1.0, "divergence": "reverse_kl"}
NOTHING = torch.zeros(0)


def differentiate(logits: torch.Tensor, labels: torch.Tensor, target: DrawnTarget | FullTarget, **settings) -> tuple:
    """Returns the loss, and each row's gradient."""
    logits = logits.clone().requires_grad_()
    loss = DistillationLoss(**{**REVERSE, **settings}).at(0.0)
    sums = loss(logits, labels, torch.zeros(len(labels), dtype=torch.bool), target)
    sums.total.backward()
    return sums, logits.grad


@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradients_mean_over_draws_is_the_reverse_kls(drift: float, seed: int) -> None:
    draws, vocabulary = 10_000, 11
    generator = torch.Generator().manual_seed(seed)
    now, teacher, moved = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64)
    log_now, log_p, log_then = ((now + own).log_softmax(-1) for own in (0, teacher, drift * moved))
    labels = torch.multinomial(log_then.exp(), draws, replacement=True, generator=generator)
    target = DrawnTarget(log_p[labels], log_then[labels])
    assert (log_now - log_then).max() < math.log(5)
    sums, gradients = differentiate(log_now.expand(draws, -1), labels, target, max_weight=5.0)
    full = FullTarget(log_p[None], torch.eye(vocabulary, dtype=torch.float64))
    exact, [wanted] = differentiate(log_now[None], labels[:1], full)
    values = (sums.total, gradients.mean(0)), (exact.total, wanted)
    assert ((values[0][1] - values[1][1]).abs() < 4 * gradients.std(0) / draws**0.5).all()
    ratios = (log_now - log_then)[labels].exp() * (log_now - log_p)[labels]
    torch.testing.assert_close(sums.total, ratios.sum())
    assert abs(sums.total / draws - exact.total) < 4 * ratios.std() / draws**0.5


def test_a_weight_is_1_where_nothing_has_changed_and_cut_off_at_its_bound() -> None:
    then = -torch.linspace(0.1, 9, 50)
    weights, is_clipped = weigh_draws(then, then, 1.0)
    assert (weights == 1).all() and not is_clipped.any()
    weights, is_clipped = weigh_draws(torch.log(torch.tensor([0.9, 0.9])), torch.log(torch.tensor([0.1, 0.6])), 2.0)
    assert weights.tolist() == [2, pytest.approx(1.5)] and is_clipped.tolist() == [True, False]


@pytest.mark.parametrize(("bound", "weights"), [(None, [2.0, 0.5, 2.0]), (3.0, [2.5, 0.5, 3.0])])
def test_the_mixture_by_hand(bound: float | None, weights: list[float]) -> None:
    """The student gives each token 1 / V, and gave them 2.5, 0.5 and 4 times less when it drew them."""
    log_q, log_p = -math.log(V), torch.tensor([-1.0, -2.0, -3.0])
    target = DrawnTarget(log_p, log_q - torch.tensor([2.5, 0.5, 4.0]).log())
    sums, _ = differentiate(torch.zeros(3, V), torch.arange(3), target, kl_weight=0.25, max_weight=bound)
    divergences = [weight * (log_q - own) for weight, own in zip(weights, log_p.tolist(), strict=True)]
    assert sums.total.item() == pytest.approx(3 * 0.75 * -log_q + 0.25 * sum(divergences))
    assert sums.parts["importance_weight_rationale"][0].item() == pytest.approx(sum(weights))


def test_a_token_without_weight_does_not_count_even_where_its_loss_is_infinite() -> None:
    target = DrawnTarget(torch.tensor([-3.0, -3.0]), torch.tensor([-1.0, -1.0]))
    mixture = Mixture(kl_weight=1.0, temperature=1.0, divergence=reverse_kl)
    total, statistics = sum_drawn(torch.tensor([1.0, math.inf]), torch.tensor([0.5, 0.0]), target, mixture)
    assert total.item() == 0.5 * 2
    assert statistics.keys() == {"divergence", *DRAWN_STATISTICS}


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_the_fused_head_gives_the_same(softcap: float | None) -> None:
    log_p, log_then = -torch.linspace(0.2, 6, N, dtype=torch.float64), -torch.linspace(7, 1, N, dtype=torch.float64)
    found = []
    for fused in (True, False):
        hidden, weight, bias, labels, _ = make_inputs()
        head, is_answer = OutputHead(weight, bias, 1.3, softcap), torch.arange(N) >= 4
        loss = DistillationLoss(**REVERSE | {"kl_weight": 0.7, "answer_weight": 0.5}).at(0.0)
        inputs = (labels, is_answer, DrawnTarget(log_p, log_then))
        sums = loss.from_hidden(hidden, head, *inputs) if fused else loss(head.project(hidden), *inputs)
        sums.total.backward()
        found.append((sums.total.detach(), sums.weight, sums.parts, hidden.grad, weight.grad, bias.grad))
    torch.testing.assert_close(*found)
    parts = found[0][2]
    assert 0 < parts["clipped_rationale"][0] < 4 and parts["importance_weight_rationale"][0] > 0
    assert not any(name.startswith(("agreement", "teacher")) for name in parts)


def test_a_teachers_zero_leaves_a_finite_loss() -> None:
    labels = torch.tensor([1, 2])
    target = DrawnTarget(torch.tensor([-math.inf, -1.0]), torch.tensor([-math.log(V)] * 2))
    sums, gradients = differentiate(torch.zeros(2, V), labels, target)
    assert sums.total.item() == pytest.approx(-LOG_ZERO - math.log(V) + 1 - math.log(V)) and gradients.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "target", "message"),
    [
        ({"divergence": "forward_kl"}, DrawnTarget(NOTHING, NOTHING), "kind labels, give only reverse_kl without bias"),
        ({"temperature": 2.0}, DrawnTarget(NOTHING, NOTHING), "tokens were drawn at 1, not at 2.0"),
        ({"tail": "ignore"}, DrawnTarget(NOTHING, NOTHING), "loss.tail ignore would be ignored"),
        ({"max_weight": 3.0}, FullTarget(torch.zeros(0, V), torch.eye(V)), "loss.max_weight would be ignored: only"),
        ({"max_weight": 0.5}, None, "loss.max_weight must be finite and at least 1, not 0.5"),
        ({"max_weight": math.nan}, None, "loss.max_weight must be finite and at least 1, not nan"),
    ],
)
def test_what_drawn_tokens_cannot_give_is_refused(settings: dict, target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        differentiate(torch.zeros(0, V), torch.zeros(0, dtype=torch.int64), target, **settings)


def test_wrong_planes_are_refused() -> None:
    DrawnTarget(torch.tensor([-1.0]), torch.tensor([-2.0])).check(V)
    for own, then, message in (([-1.0, -1.0], [-1.0], "has 2 tokens, but 1"), ([0.5], [-1.0], "above 0, or NaN")):
        with pytest.raises(ValueError, match=message):
            DrawnTarget(torch.tensor(own), torch.tensor(then)).check(V)

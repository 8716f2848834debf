"""Rows of which a teacher says nothing, and a teacher of another vocabulary, in the dense loss and the fused one."""

import math

import pytest
import torch

from losses.distillation import DistillationLoss
from losses.divergences import get_divergence
from losses.fused_head import OutputHead, mix_fused
from losses.mixture import CROSS_ENTROPY, Mixture, mix_rows
from losses.targets import FullTarget, SampledTarget, SoftenedTarget
from tests.losses.reference import DIVERGENCES
from tests.losses.test_fused_head import N, V, dense, make_inputs, make_target

HAS_TARGET = torch.tensor([True, False, True, True, False, False, True])
KINDS = ["sparse", "padded", "softened", "sampled", "full", "mapped"]


def make_masked(kind: str):
    """Returns a target of this kind without a mask."""
    if kind == "mapped":
        target = make_target("full")
        generator = torch.Generator().manual_seed(2)
        return target._replace(ids_V=torch.randint(-1, V - 5, (len(target.weight_VD),), generator=generator))
    target = make_target("sparse" if kind == "softened" else kind)
    if kind != "softened":
        return target
    softened = [target.at_temperature(temperature) for temperature in target.temperatures]
    log_probs, log_tails = (torch.stack(parts, -1) for parts in zip(*softened, strict=True))
    return SoftenedTarget(target.support_NK, log_probs, log_tails, target.temperatures)


CASES = [
    (kind, name, temperature)
    for kind in KINDS
    for name in (DIVERGENCES if kind != "sampled" else ["forward_kl", "soft_cross_entropy"])
    for temperature in ((1.0,) if kind == "sampled" else (1.0, 2.0))
]


def differentiate(road, target, mixture: Mixture, weights: torch.Tensor) -> tuple[torch.Tensor, list, dict]:
    hidden, weight, bias, labels, _ = make_inputs()
    total, statistics = road(hidden, OutputHead(weight, bias, 1.3, 6.0), labels, weights, target, mixture)
    total.backward()
    return total.detach(), [hidden.grad, weight.grad, bias.grad], statistics


@pytest.mark.parametrize("road", [dense, mix_fused])
@pytest.mark.parametrize(("kind", "name", "temperature"), CASES)
def test_a_row_without_target_has_its_whole_cross_entropy(kind: str, name: str, temperature: float, road) -> None:
    weights = make_inputs()[-1]
    mixture = Mixture(0.3, temperature, get_divergence(name, **DIVERGENCES[name]))
    target = make_masked(kind)
    found, gradients, statistics = differentiate(road, target._replace(has_target_N=HAS_TARGET), mixture, weights)
    taught, wanted, whole = differentiate(road, target, mixture, torch.where(HAS_TARGET, weights, 0.0))
    rest, others, _ = differentiate(road, None, CROSS_ENTROPY, torch.where(HAS_TARGET, 0.0, weights))
    torch.testing.assert_close(found, taught + rest)
    for gradient, first, second in zip(gradients, wanted, others, strict=True):
        torch.testing.assert_close(gradient, first + second)
    torch.testing.assert_close(statistics["divergence"], torch.where(HAS_TARGET, whole["divergence"], 0.0))


@pytest.mark.parametrize("road", [dense, mix_fused])
@pytest.mark.parametrize(("kind", "name", "temperature"), CASES)
def test_where_all_rows_have_a_target_no_bit_changes(kind: str, name: str, temperature: float, road) -> None:
    mixture = Mixture(0.3, temperature, get_divergence(name, **DIVERGENCES[name]))
    target, weights = make_masked(kind), make_inputs()[-1]
    masked = target._replace(has_target_N=torch.ones(N, dtype=torch.bool))
    found, expected = (differentiate(road, one, mixture, weights) for one in (masked, target))
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))
    assert all(torch.equal(found[2][name], expected[2][name]) for name in expected[2])


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("road", [dense, mix_fused])
def test_a_row_without_target_is_not_read(name: str, road) -> None:
    """Not even where its divergence or its gradient would be infinite."""
    mixture = Mixture(0.3, 1.0, get_divergence(name, **DIVERGENCES[name]))
    target = make_masked("softened")
    log_probs = target.log_probs_NKT.clone()
    log_probs[~HAS_TARGET] = -math.inf
    log_probs[~HAS_TARGET, 0] = 0.0
    emptied = target._replace(log_probs_NKT=log_probs, has_target_N=HAS_TARGET)
    found = differentiate(road, emptied, mixture, make_inputs()[-1])
    expected = differentiate(road, target._replace(has_target_N=HAS_TARGET), mixture, make_inputs()[-1])
    assert torch.equal(found[0], expected[0]) and torch.isfinite(found[0])
    assert all(map(torch.equal, found[1], expected[1]))


def test_statistics_of_the_teacher_count_rows_with_a_target() -> None:
    hidden, weight, bias, labels, _ = make_inputs()
    step = DistillationLoss(kl_weight=0.5).at(0.0)
    is_answer = torch.arange(N) >= 4
    target = make_masked("softened")._replace(has_target_N=HAS_TARGET)
    for sums in (
        step.from_hidden(hidden, OutputHead(weight, bias), labels, is_answer, target),
        step(OutputHead(weight, bias).project(hidden), labels, is_answer, target),
    ):
        assert {name: int(count) for name, (_, count) in sums.parts.items() if name.startswith("divergence")} == {
            "divergence_rationale": 3,
            "divergence_answer": 1,
        }
        assert sums.parts["ce_rationale"][1] == 4 and sums.parts["ce_answer"][1] == 3
        assert sums.weight == N
    without = step(OutputHead(weight, bias).project(hidden), labels, is_answer, target._replace(has_target_N=None))
    torch.testing.assert_close(
        sums.parts["teacher_tail_answer"][0], without.parts["teacher_tail_answer"][0] - row_tail(target, [4, 5])
    )


def row_tail(target: SoftenedTarget, rows: list[int]) -> torch.Tensor:
    return target.at_temperature(1.0)[1][rows].exp().sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_mapped_teacher_is_the_sum_over_its_tokens(name: str, temperature: float) -> None:
    """What maps to one id adds up, what maps to none is the tail, and so is what no token maps to on the student's."""
    target = make_masked("mapped")
    p = target._replace(ids_V=None).log_probs(temperature, len(target.weight_VD)).exp()
    reached = sorted(set(target.ids_V.tolist()) - {-1})
    cells = torch.stack([p[:, target.ids_V == number].sum(1) for number in reached], 1)
    tail = p[:, target.ids_V < 0].sum(1)
    support = torch.tensor(reached).expand(N, -1)
    sparse = SoftenedTarget(support, cells.log()[:, :, None], tail.log()[:, None], (temperature,))
    mixture = Mixture(0.7, temperature, get_divergence(name, **DIVERGENCES[name]))
    hidden, weight, bias, labels, _ = make_inputs()
    found, expected = (
        mix_rows(OutputHead(weight, bias).project(hidden), labels, one, mixture) for one in (target, sparse)
    )
    torch.testing.assert_close(found.loss_N, expected.loss_N)
    for statistic in expected.statistics:
        torch.testing.assert_close(found.statistics[statistic], expected.statistics[statistic])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_map_to_the_same_ids_is_no_map(name: str) -> None:
    target = make_target("full")
    own = target._replace(weight_VD=target.weight_VD, ids_V=torch.arange(len(target.weight_VD)))
    # Ids of the student that the teacher's head does not have are outcomes of their own without a map.
    mixture = Mixture(0.7, 2.0, get_divergence(name, **DIVERGENCES[name]))
    logits = torch.randn(N, len(target.weight_VD), generator=torch.Generator().manual_seed(3)).double()
    labels = torch.zeros(N, dtype=torch.long)
    found, expected = (mix_rows(logits, labels, one, mixture) for one in (own, target))
    torch.testing.assert_close(found.loss_N, expected.loss_N, rtol=1e-12, atol=1e-12)


def test_a_support_may_begin_with_an_unused_place() -> None:
    target, mixture = make_masked("softened"), Mixture(0.5, 1.0, get_divergence("jsd"))
    front = SoftenedTarget(
        torch.nn.functional.pad(target.support_NK, (2, 0), value=-1),
        torch.nn.functional.pad(target.log_probs_NKT, (0, 0, 2, 0), value=-math.inf),
        *target[2:],
    )
    front.check(V)
    for road in (dense, mix_fused):
        found, expected = (differentiate(road, one, mixture, make_inputs()[-1]) for one in (front, target))
        torch.testing.assert_close(found[0], expected[0])
        for gradient, wanted in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (FullTarget(torch.zeros(2, 3), torch.zeros(5, 3), ids_V=torch.zeros(4).long()), "ids of the teacher's tokens"),
        (FullTarget(torch.zeros(2, 3), torch.zeros(2, 3), ids_V=torch.tensor([0, V])), "ids of the teacher's tokens"),
        (
            SampledTarget(torch.zeros(2, 1).long(), torch.full((2, 1), 1.5), torch.ones(2, dtype=torch.bool)),
            "do not add up to 1",
        ),
    ],
)
def test_wrong_planes_are_refused(target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target.check(V)


def test_right_planes_pass() -> None:
    make_masked("mapped").check(V)
    # What the student has no token for is missing.
    SampledTarget(torch.zeros(2, 1).long(), torch.full((2, 1), 0.5), torch.ones(2, dtype=torch.bool)).check(V)

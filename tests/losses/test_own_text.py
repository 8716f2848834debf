import torch

from losses.own_text import OWN_STATISTICS, describe_own_rows, estimate_staleness, select_rows, sum_teacher_mass
from losses.targets import ChunkTarget, FullTarget, SampledTarget, SparseTarget

V = 30


def make_log_probs(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, V, generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_staleness_is_the_divergence_of_now_from_then_and_0_where_nothing_has_changed() -> None:
    now, then = make_log_probs(1, 0)[0], make_log_probs(1, 1)[0]
    drawn = torch.multinomial(then.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(2))
    estimates = estimate_staleness(now[drawn], then[drawn])
    exact = (now.exp() * (now - then)).sum()
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / len(drawn) ** 0.5
    assert (estimates >= 0).all() and (estimate_staleness(now[drawn], now[drawn]) == 0).all()


def test_the_teachers_mass_is_that_of_the_tokens_named_as_far_as_it_is_known() -> None:
    log_p = make_log_probs(3, 3)
    ids = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(row))[:7] for row in range(3)])
    exact = log_p.exp().gather(-1, ids).sum(-1)
    full = FullTarget(log_p, torch.eye(V, dtype=torch.float64))
    torch.testing.assert_close(sum_teacher_mass(full, ids, V), exact)
    values, support = log_p.topk(V)
    zeros = torch.zeros(3, 1, dtype=torch.float64)
    sparse = SparseTarget(support, values, zeros, zeros - torch.inf, (1.0,))
    torch.testing.assert_close(sum_teacher_mass(sparse, ids, V), exact)
    sampled = SampledTarget(torch.cat([ids[:, :1], support.new_full((3, 1), -1)], 1), torch.tensor([[1.0, 0.0]] * 3))
    assert sum_teacher_mass(sampled, ids, V).tolist() == [1, 1, 1]
    assert sum_teacher_mass(ChunkTarget(ids[:, 0], log_p[0]), ids, V) is None


def test_a_batch_is_described_by_rows_that_are_evenly_spread() -> None:
    log_q = make_log_probs(600, 4)
    labels = torch.arange(600) % V
    target = FullTarget(log_q, torch.eye(V, dtype=torch.float64))
    then = log_q.gather(-1, labels[:, None])[:, 0].float()
    found = describe_own_rows(log_q, lambda logits: logits, labels, then, target)
    assert tuple(found) == OWN_STATISTICS
    for total, count in found.values():
        assert count == 200
        assert total < count
    assert abs(found["staleness"][0]) < 1e-4
    assert found["teacher_mass_on_top_16"][0] / 200 > 0.8


def test_every_field_of_a_row_is_selected_and_no_other() -> None:
    values, support = make_log_probs(4, 5).topk(3)
    tails = torch.arange(4.0)[:, None]
    target = SparseTarget(
        support, values, tails + 10, tails, (1.0,), has_target_N=torch.tensor([True, False, True, True])
    )
    found = select_rows(target, torch.tensor([3, 1]))
    assert isinstance(found, SparseTarget) and found.has_target_N is not None
    torch.testing.assert_close(found.support_NK, support[[3, 1]])
    torch.testing.assert_close(found.log_probs_NK, values[[3, 1]])
    assert (found.log_normalizers_NT[:, 0].tolist(), found.log_tails_NT[:, 0].tolist()) == ([13, 11], [3, 1])
    assert (found.has_target_N.tolist(), found.temperatures) == ([True, False], (1.0,))

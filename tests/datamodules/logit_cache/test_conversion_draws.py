"""Converted rows of caches of draws and of hidden states, which have targets on exact rows alone."""

import numpy as np
import pytest
import torch

from losses.targets import SampledTarget
from tests.datamodules.logit_cache.toy_models import ToyModel, align_toys, make_converter, to_dense


@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_draws_are_unbiased_in_the_students_vocabulary(kind: str) -> None:
    generator = np.random.default_rng(0)
    teacher, student = [b"a", b"b", b"ab", b"abb", b"ba", b"c"], [b"a", b"b", b"ab"]
    model, ids, student_ids, num_draws = ToyModel(teacher, 2), [2, 0, 6], [2, 0, 3], 10_000
    alignment = align_toys(student, student_ids, teacher, ids)
    dense = model.rows(ids, [1.0])
    expected = to_dense(make_converter(teacher, student).convert(dense, [alignment], np.array(student_ids)), 4)
    p = np.exp(dense["log_probs"])
    converter = make_converter(teacher, student, kind=kind)
    head = np.argsort(-p, axis=1)[:, :2] if kind == "hybrid" else np.zeros((3, 0), np.int64)
    tails = p.copy()
    np.put_along_axis(tails, head, 0, 1)
    counts = np.stack([generator.multinomial(4, tail / tail.sum(), num_draws) for tail in tails], 1)
    # The rows of all draws in one batch, text after text.
    weights = counts / 4 * tails.sum(1, keepdims=True)
    head_p = np.broadcast_to(np.take_along_axis(p, head, 1), (num_draws, *head.shape))
    drawn = np.where(counts > 0, np.arange(7), -1)
    support = np.concatenate([np.broadcast_to(head, (num_draws, *head.shape)), drawn], 2)
    rows = {
        "token_ids": np.tile(dense["token_ids"], num_draws),
        "label_log_prob": np.tile(dense["label_log_prob"], num_draws),
        "support": support.reshape(3 * num_draws, -1).astype(np.int32),
        "weights": np.concatenate([head_p, weights], 2).reshape(3 * num_draws, -1),
    }
    planes = converter.convert(rows, [alignment] * num_draws, np.tile(student_ids, num_draws))
    assert planes["has_target"].all()
    found = np.zeros((3 * num_draws, 5))
    np.put_along_axis(found, planes["support"], planes["weights"], 1)
    found = found[:, :4].reshape(num_draws, 3, 4)
    error = found.std(0) / num_draws**0.5
    assert (np.abs(found.mean(0) - expected[:, :4]) <= 4 * error + 1e-12).all()
    assert error.max() > 1e-4


def test_draws_have_targets_on_exact_rows_alone() -> None:
    teacher, student = [b"ab", b"a", b"b"], [b"a", b"b", b"ab"]
    ids, student_ids = [0, 1, 2, 3], [0, 1, 2, 3]
    alignment = align_toys(student, student_ids, teacher, ids)
    rows = {
        "token_ids": np.array(ids, np.int32),
        "label_log_prob": np.full(4, -0.5, np.float32),
        "support": np.array([[0, 1]] * 4, np.int32),
        "weights": np.full((4, 2), 0.5, np.float32),
        "hidden": np.arange(8, dtype=np.float32).reshape(4, 2),
    }
    sampled = make_converter(teacher, student, kind="sampled")
    planes = sampled.convert(rows, [alignment], np.array(student_ids))
    assert planes["has_target"].tolist() == [True, False, False, True]
    # Both of the teacher's tokens are one of this student's, or two.
    assert planes["weights"][0].tolist() == [0.5, 0.5] and planes["support"][0].tolist() == [2, 0]
    SampledTarget(*(torch.from_numpy(planes[name]) for name in ("support", "weights", "has_target"))).check(4)
    hidden = make_converter(teacher, student, kind="hidden").convert(rows, [alignment], np.array(student_ids))
    assert hidden["hidden"].tolist() == [[0, 1], [0, 1], [0, 1], [6, 7]]
    assert hidden["has_target"].tolist() == [True, False, False, True]

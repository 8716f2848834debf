"""Tests of mixtures of teachers' rows, against the mixture of their whole distributions."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.format import DTYPES, list_planes
from datamodules.logit_cache.mixture import mix_rows
from lightning_modules.teacher.sparsify import sparsify
from tests.logit_rows import describe

TEMPERATURES = (0.5, 1.0, 2.0)
WEIGHTS = np.array([0.5, 0.3, 0.2])
NUM_TOKENS = 12
Rows = dict[str, np.ndarray]


def draw_logits(seed: int, rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Returns three teachers' logits, float64 [3, N, V], and labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (3, rows, NUM_TOKENS)), rng.integers(0, NUM_TOKENS, rows)


def reduce(logits: np.ndarray, labels: np.ndarray, top_k: int) -> Rows:
    """Returns exact rows, float64, as `decode_rows` names them."""
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    support = np.argsort(-log_p, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    inside = np.zeros(log_p.shape, bool)
    np.put_along_axis(inside, support, True, axis=1)
    powers = [log_p / temperature for temperature in TEMPERATURES]
    normalizers = np.stack([np.logaddexp.reduce(power, axis=1) for power in powers], axis=1)
    outside = [np.logaddexp.reduce(np.where(inside, -np.inf, power), axis=1) for power in powers]
    return {
        "support": support,
        "log_probs": np.take_along_axis(log_p, support, axis=1),
        "log_normalizers": normalizers,
        "log_tails": np.stack(outside, axis=1) - normalizers,
        "label_log_prob": log_p[np.arange(len(labels)), labels],
    }


def soften(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits / temperature - (logits / temperature).max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def mix_dense(logits: np.ndarray, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    """Returns the softened distributions' mixture, [N, V, T]."""
    softened = [np.stack([soften(teacher, temperature) for temperature in TEMPERATURES], -1) for teacher in logits]
    return np.einsum("m,mnvt->nvt", weights, np.array(softened))


def spread(mixed: Rows) -> np.ndarray:
    """Returns the probabilities of a mixture's support over the vocabulary, [N, V + 1, T]; the last is of no token."""
    dense = np.zeros((len(mixed["support"]), NUM_TOKENS + 1, len(TEMPERATURES)))
    np.add.at(dense, (np.arange(len(dense))[:, None], mixed["support"]), np.exp(mixed["log_probs"]))
    return dense


def test_whole_vocabularies_give_the_mixture_of_the_softened_distributions_exactly() -> None:
    logits, labels = draw_logits(0)
    mixed = mix_rows([reduce(teacher, labels, NUM_TOKENS) for teacher in logits], WEIGHTS, TEMPERATURES, labels)
    np.testing.assert_array_equal(mixed["support"], np.tile(np.arange(NUM_TOKENS), (len(labels), 1)))
    np.testing.assert_allclose(np.exp(mixed["log_probs"]), mix_dense(logits), rtol=0, atol=1e-15)
    assert np.isneginf(mixed["log_tails"]).all()


@pytest.mark.parametrize("sizes", [(3, 3, 3), (1, 4, 12), (5, 2, 1)])
def test_a_token_is_never_above_the_mixture_and_below_it_by_the_bound_at_most(sizes: Sequence[int]) -> None:
    logits, labels = draw_logits(1)
    parts = [reduce(teacher, labels, size) for teacher, size in zip(logits, sizes, strict=True)]
    mixed = mix_rows(parts, WEIGHTS, TEMPERATURES, labels)
    dense, found = mix_dense(logits), spread(mixed)
    used = mixed["support"] >= 0
    total = found.sum(1) + np.exp(mixed["log_tails"])
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    in_union = np.zeros((len(labels), NUM_TOKENS), bool)
    for part in parts:
        np.put_along_axis(in_union, part["support"], True, axis=1)
    assert (in_union.sum(1) == used.sum(1)).all()
    missing, bound = (dense - found[:, :-1])[in_union], np.zeros_like(dense)
    for weight, part in zip(WEIGHTS, parts, strict=True):
        own = part["log_probs"][..., None] / np.array(TEMPERATURES) - part["log_normalizers"][:, None]
        unknown = np.minimum(np.exp(own).min(1), np.exp(part["log_tails"]))[:, None]
        holds = (part["support"][:, :, None] == np.arange(NUM_TOKENS)).any(1)
        bound += weight * np.where(holds[..., None], 0, unknown)
    assert missing.min() > -1e-12
    assert (missing <= bound[in_union] + 1e-12).all()
    # Somewhere something is unknown, or the test says nothing.
    assert missing.max() > 1e-3
    has_label = in_union[np.arange(len(labels)), labels]
    exact = (dense - found[:, :-1])[np.arange(len(labels)), labels][has_label]
    np.testing.assert_allclose(exact, 0, rtol=0, atol=1e-6)


def test_a_teacher_mixed_with_itself_is_itself() -> None:
    logits, labels = draw_logits(2)
    part = reduce(logits[0], labels, 4)
    mixed = mix_rows([part] * 3, WEIGHTS, TEMPERATURES, labels)
    order = np.argsort(part["support"], axis=1)
    np.testing.assert_array_equal(mixed["support"], np.take_along_axis(part["support"], order, 1))
    log_p = part["log_probs"][..., None] / np.array(TEMPERATURES) - part["log_normalizers"][:, None]
    np.testing.assert_allclose(mixed["log_probs"], np.take_along_axis(log_p, order[..., None], 1), atol=1e-12)
    np.testing.assert_allclose(mixed["log_tails"], part["log_tails"], atol=1e-12)


def test_a_teacher_without_a_target_leaves_its_weight_to_the_others() -> None:
    logits, labels = draw_logits(3)
    parts = [reduce(teacher, labels, NUM_TOKENS) for teacher in logits]
    for index, part in enumerate(parts):
        part["has_target"] = np.arange(len(labels)) % 3 <= index
    parts[2]["has_target"][2] = False
    mixed = mix_rows(parts, WEIGHTS, TEMPERATURES, labels)
    np.testing.assert_array_equal(mixed["has_target"], np.arange(len(labels)) != 2)
    # A loss looks at every row, and so does its check.
    np.testing.assert_allclose(np.exp(mixed["log_probs"]).sum(1), 1, atol=1e-12)
    for row, known in ((0, [0, 1, 2]), (1, [1, 2]), (5, [2])):
        shares = np.where(np.isin(np.arange(3), known), WEIGHTS, 0)
        expected = mix_dense(logits[:, row : row + 1], shares / shares.sum())
        np.testing.assert_allclose(spread(mixed)[row, :-1], expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_mixed_samples_are_unbiased(kind: str) -> None:
    logits = torch.from_numpy(draw_logits(4, rows=1)[0][:, 0]).float()
    made = describe(kind, vocabulary=NUM_TOKENS, **({"top_k": 3} if kind == "hybrid" else {}))
    number = 3000
    labels = torch.zeros(number, dtype=torch.int64)
    parts = []
    for seed, teacher in enumerate(logits):
        stream = (torch.Generator().manual_seed(seed), number)
        rows = sparsify(teacher.repeat(number, 1), labels, made, [stream])
        planes = encode_rows(made, {name: rows[name].numpy() for name in rows} | {"token_ids": labels.numpy()})
        assert all(planes[name].dtype == DTYPES[plane.dtype] for name, plane in list_planes(made).items())
        parts.append(decode_rows(made, planes))
    mixed = mix_rows(parts, WEIGHTS, (1.0,), labels.numpy())
    np.testing.assert_allclose(mixed["weights"].sum(1), 1, atol=1e-5)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in mixed["support"])
    dense = np.zeros((number, NUM_TOKENS + 1))
    np.add.at(dense, (np.arange(number)[:, None], mixed["support"]), mixed["weights"])
    expected = np.einsum("m,mv->v", WEIGHTS, logits.double().softmax(-1).numpy())
    errors = np.abs(dense.mean(0)[:-1] - expected) / (dense.std(0)[:-1] / np.sqrt(number) + 1e-4)
    assert errors.max() < 4

"""Tests of the reduction of logits, against numpy in float64."""

import numpy as np
import pytest
import torch

from lightning_modules.teacher.sparsify import reduce_rows, sparsify
from tests.logit_rows import describe

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
LABELS = torch.arange(7)


@pytest.mark.parametrize("top_k", [1, 5, 20, 64])
@pytest.mark.parametrize("vocabulary", [20, 17])
def test_mass_adds_up_at_each_temperature(vocabulary: int, top_k: int) -> None:
    logits = np.random.default_rng(top_k).normal(0, 4, (7, 20)).astype(np.float32)
    logits[0, 3] = 1e4
    made = describe(vocabulary=vocabulary, top_k=top_k, temperatures=TEMPERATURES)
    rows = {
        name: plane.double().numpy() for name, plane in sparsify(torch.from_numpy(logits.copy()), LABELS, made).items()
    }
    support = rows["support"].astype(int)
    assert support.shape == (7, min(top_k, vocabulary))
    # A padded head's ids mean nothing to a tokenizer.
    assert support.max() < vocabulary
    exact = logits.astype(np.float64)
    exact -= np.logaddexp.reduce(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(rows["label_log_prob"], exact[LABELS, LABELS], rtol=1e-5)
    for row in range(7):
        order = np.argsort(-exact[row, :vocabulary], kind="stable")[:top_k]
        np.testing.assert_array_equal(support[row], order)
        np.testing.assert_allclose(rows["log_probs"][row], exact[row, order], atol=1e-5, rtol=1e-6)
        for index, temperature in enumerate(TEMPERATURES):
            p = np.exp(exact[row] / temperature - np.logaddexp.reduce(exact[row] / temperature))
            assert np.exp(rows["log_tails"][row, index]) == pytest.approx(1 - p[order].sum(), abs=1e-6)
    if support.shape[1] == 20:
        assert np.isneginf(rows["log_tails"]).all()


def test_draws_depend_on_their_generator_alone() -> None:
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    for kind in ("sampled", "hybrid"):
        made = describe(kind, 290)
        first, again, other = (
            sparsify(logits.clone(), LABELS, made, [(torch.Generator().manual_seed(seed), 7)]) for seed in (1, 1, 2)
        )
        assert first["drawn"].equal(again["drawn"]) and first["drawn_counts"].equal(again["drawn_counts"])
        assert not first["drawn"].equal(other["drawn"])
        assert first["drawn"].max() < 290 and (first["drawn_counts"].sum(1) == made.sparsity.draws).all()
        assert ((first["drawn"] >= 0) == (first["drawn_counts"] > 0)).all()
        for row in first["drawn"]:
            assert len(row[row >= 0].unique()) == (row >= 0).sum()
        if kind == "hybrid":
            for head, drawn in zip(first["support"], first["drawn"], strict=True):
                assert not set(head.tolist()) & set(drawn.tolist())


@pytest.mark.parametrize("kind", ["top_k", "adaptive", "sampled", "hybrid"])
def test_rows_do_not_depend_on_chunks_and_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    made = describe(kind, 290)
    whole = reduce_rows([logits.clone()], LABELS, made, ["a", "b"], [4, 3])
    monkeypatch.setattr("lightning_modules.teacher.sparsify.CPU_BLOCK_ELEMENTS", 600)
    parts = reduce_rows(logits.clone().split(3), LABELS, made, ["a", "b"], [4, 3])
    alone = reduce_rows([logits[4:].clone()], LABELS[4:], made, ["b"], [3])
    assert [len(rows["token_ids"]) for rows in whole] == [4, 3]
    for first, second in [*zip(whole, parts, strict=True), (whole[1], alone[0])]:
        assert first.keys() == second.keys()
        for name, plane in first.items():
            np.testing.assert_allclose(plane, second[name], rtol=1e-5, atol=1e-6)

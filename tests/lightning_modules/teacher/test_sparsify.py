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


@pytest.mark.parametrize("min_k", [1, 3])
def test_an_adaptive_support_is_the_smallest_that_has_the_mass(min_k: int) -> None:
    probabilities = np.array([[0.96, 0.01, 0.01, 0.01, 0.01], [0.5, 0.3, 0.15, 0.04, 0.01], [0.2] * 5])
    made = describe("adaptive", 5, top_k=4, mass=0.9, min_k=min_k)
    rows = sparsify(torch.from_numpy(np.log(probabilities)), torch.tensor([0, 4, 2]), made)
    sizes = [max(min_k, 1), 3, 4]
    assert (rows["support"] >= 0).sum(1).tolist() == sizes
    for row, size in enumerate(sizes):
        assert (rows["support"][row, size:] == -1).all() and rows["log_probs"][row, size:].isneginf().all()
        kept = rows["support"][row, :size].numpy()
        np.testing.assert_allclose(rows["log_probs"][row, :size].exp(), probabilities[row, kept])
        for index, temperature in enumerate(made.temperatures):
            softened = probabilities[row] ** (1 / temperature)
            left = 1 - softened[kept].sum() / softened.sum()
            assert rows["log_tails"][row, index].exp() == pytest.approx(left)
    assert rows["label_log_prob"].exp().tolist() == pytest.approx([0.96, 0.01, 0.2])


def test_draws_are_of_the_distribution_and_none_of_a_row_without_mass() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0], [0.1, 0.0, 0.9, 0.0]])
    made = describe("sampled", 3, draws=4000)  # the head's fourth id is no token's
    streams = [(torch.Generator().manual_seed(number), size) for number, size in ((0, 1), (1, 2))]
    rows = sparsify(probabilities.log(), torch.tensor([1, 3, 2]), made, streams)
    assert rows["drawn"][0, :3].tolist() == [0, 1, 2] and rows["drawn"][2, :2].tolist() == [0, 2]
    assert (rows["drawn"][1] == -1).all() and rows["drawn_counts"].sum(1).tolist() == [4000, 0, 4000]
    np.testing.assert_allclose(rows["drawn_counts"][0, :3] / 4000, [0.7, 0.2, 0.1], atol=0.03)
    np.testing.assert_allclose(rows["drawn_counts"][2, :2] / 4000, [0.1, 0.9], atol=0.03)
    assert rows["label_log_prob"].exp().tolist() == pytest.approx([0.2, 1.0, 0.9])


def test_each_example_has_a_stream_of_its_own_which_its_seed_changes() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)).repeat(2, 1)

    def draw(*example_ids: str, seed: int = 0) -> list[list[int]]:
        made = describe("sampled", 300, draw_seed=seed)
        rows = reduce_rows([logits.clone()], torch.tensor([0, 0]), made, example_ids, [1, 1])
        return [part["drawn"].tolist() for part in rows]

    first, second = draw("a", "b")
    assert first != second and draw("b", "a") == [second, first]
    assert not {str(first), str(second)} & set(map(str, draw("a", "b", seed=1)))


def test_blocks_on_a_processor_fit_its_cache_and_hold_a_row_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def record(logits_NV: torch.Tensor, *arguments) -> dict[str, torch.Tensor]:
        sizes.append(len(logits_NV))
        return sparsify(logits_NV, *arguments)

    monkeypatch.setattr("lightning_modules.teacher.sparsify.sparsify", record)
    for elements, expected in ((60, [3, 3, 1]), (59, [2, 2, 2, 1]), (10, [1] * 7)):
        monkeypatch.setattr("lightning_modules.teacher.sparsify.CPU_BLOCK_ELEMENTS", elements)
        reduce_rows([torch.zeros(7, 20)], LABELS, describe(vocabulary=20), ["a"], [7])
        assert sizes == expected
        sizes.clear()

"""Gradient diagnostics against whole gradients and dense matrices."""

from typing import Any

import numpy as np
import pytest
import torch

from studies.diagnostics.gradients import GradientSketch, compute_grace, compute_loss, compute_vendi
from studies.diagnostics.reader import StudentReader
from tests.studies.diagnostics.conftest import make_pairs
from tests.tiny import build_llama

PROMPT, COMPLETIONS = [3, 4, 5, 6], [[7, 8, 9], [10, 11, 12, 13, 14], [7, 8, 9, 9]]


def compute_gradient(model: Any, completion: list[int]) -> torch.Tensor:
    """Returns the whole gradient of the mean surprisal, float64."""
    logits_SV = model(torch.tensor([[*PROMPT, *completion]])).logits[0]
    log_p_SV = logits_SV.log_softmax(-1)
    terms = [-log_p_SV[len(PROMPT) - 1 + index, token] for index, token in enumerate(completion)]
    loss = torch.stack(terms).mean()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def test_norms_are_exact_and_inner_products_are_kept_on_average() -> None:
    gradients = torch.stack([compute_gradient(build_llama(40).double(), completion) for completion in COMPLETIONS])
    exact = (gradients @ gradients.T).detach().numpy()
    products = []
    for seed in range(30):
        model = build_llama(40)
        sketch = GradientSketch(model, 64, seed)
        found = [sketch.take(compute_loss(model, PROMPT, completion)) for completion in COMPLETIONS]
        assert [square for square, _ in found] == pytest.approx(np.diag(exact).tolist(), rel=1e-4)
        assert all(parameter.grad is None for parameter in model.parameters())
        sketches_ND = np.stack([sketch_D for _, sketch_D in found])
        products.append(sketches_ND @ sketches_ND.T)
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    # One sketch's inner products are off by about 1/sqrt(64), the mean of 30 by a fifth of that.
    assert (np.abs(np.mean(products, 0) - exact) / scale).max() < 0.1
    assert (np.std(products, 0) / scale).max() < 0.4


def test_the_sketch_of_a_matrix_is_its_signed_sums() -> None:
    """Against a loop over all entries, with the signs and places that the generator draws."""
    linear = torch.nn.Linear(5, 3, bias=False)
    sketch = GradientSketch(linear, 4, seed=2)
    generator = torch.Generator().manual_seed(2)
    draws = [
        (torch.randint(4, (size,), generator=generator), 2 * torch.randint(2, (size,), generator=generator) - 1)
        for size in (3, 5)
    ]
    weights = torch.arange(15.0).reshape(3, 5)
    _, found = sketch.take((linear.weight * weights).sum())
    expected = [0.0] * 4
    for row in range(3):
        for column in range(5):
            place = int(draws[0][0][row] + draws[1][0][column]) % 4
            expected[place] += float(draws[0][1][row] * draws[1][1][column] * weights[row, column])
    assert found.tolist() == pytest.approx(expected)


def compute_dense_grace(h_ND: np.ndarray) -> float:
    """1/C sum_i Tr((S~(D_-i) + v/d I)^-1 S(D_i)) with matrices of d x d, inverted."""
    number, dimension = h_ND.shape
    total = 0.0
    for split in range(10):
        order = np.random.default_rng(split).permutation(number)
        size = max(1, int(number * 0.1))
        train, held_out = h_ND[order[:-size]], h_ND[order[-size:]]
        moment = np.zeros((dimension, dimension))
        for h in train:
            moment += np.outer(h, h) / (h @ h) / len(train)
        inverse = np.linalg.inv(moment + 1e-3 / dimension * np.eye(dimension))
        total += np.trace(inverse @ (held_out.T @ held_out / size))
    return total / 10


@pytest.mark.parametrize("shape", [(12, 40), (60, 20)])
def test_grace_is_the_dense_formula(shape: tuple[int, int]) -> None:
    h_ND = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1])
    assert compute_grace(h_ND) == pytest.approx(compute_dense_grace(h_ND), rel=1e-6)


def test_grace_prefers_small_gradients_in_supported_directions() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=30)
    aligned = shared + 0.1 * rng.normal(size=(20, 30))
    spread = np.linalg.norm(shared) / np.sqrt(30) * rng.normal(size=(20, 30))
    assert compute_grace(aligned) < compute_grace(spread)
    assert compute_grace(2 * aligned) == pytest.approx(4 * compute_grace(aligned))


def test_vendi_counts_directions() -> None:
    assert compute_vendi(np.eye(6)[[0, 1, 2, 3]] * 7) == pytest.approx(4)
    assert compute_vendi(np.ones((5, 3))) == pytest.approx(1)
    h_ND = np.random.default_rng(0).normal(size=(9, 4))
    unit = h_ND / np.linalg.norm(h_ND, axis=1)[:, None]
    eigenvalues = np.linalg.eigvalsh(sum(np.outer(u, u) for u in unit) / 9)
    assert compute_vendi(h_ND) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def test_gradients_are_computed_once(reader: StudentReader) -> None:
    texts = reader.prepare(make_pairs())[:3]
    first = reader.differentiate(texts[:2], 8, 0)
    again = reader.differentiate(texts, 8, 0)
    assert set(again) == {text.key for text in texts}
    for text in texts[:2]:
        assert first[text.key][0] == again[text.key][0]
    with pytest.raises(ValueError, match=r"s-t-gradients\.parquet: computed with another configuration"):
        reader.differentiate(texts, 8, 1)

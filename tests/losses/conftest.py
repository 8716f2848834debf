"""Targets and inputs for the loss tests, made in numpy."""

import math

import numpy as np
import torch

from losses.targets import SparseTarget
from tests.losses.reference import log_sum_exp

VOCABULARY = 11
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


def make_sparse_target(
    teacher: np.ndarray, top_k: int, temperatures: tuple[float, ...] = TEMPERATURES, dtype: torch.dtype = torch.float64
) -> SparseTarget:
    """Builds a target from the teacher's logits, [rows, V]."""
    support = np.argsort(-teacher, axis=-1, kind="stable")[:, :top_k]
    normalizers, tails = np.zeros((len(teacher), len(temperatures))), np.zeros((len(teacher), len(temperatures)))
    log_p = np.array([row - log_sum_exp(row) for row in teacher]).reshape(teacher.shape)
    for row in range(len(teacher)):
        outside = [token for token in range(teacher.shape[1]) if token not in support[row]]
        for index, temperature in enumerate(temperatures):
            normalizers[row, index] = log_sum_exp(log_p[row] / temperature)
            tails[row, index] = log_sum_exp(log_p[row][outside] / temperature) - normalizers[row, index]
    return SparseTarget(
        torch.from_numpy(support),
        torch.from_numpy(np.take_along_axis(log_p, support, -1)).to(dtype),
        torch.from_numpy(normalizers).to(dtype),
        torch.from_numpy(tails).to(dtype),
        temperatures,
    )


def pad_support(target: SparseTarget, width: int) -> SparseTarget:
    """Adds unused places to the support, as rows of unequal k have them."""
    fill = (0, width)
    return target._replace(
        support_NK=torch.nn.functional.pad(target.support_NK, fill, value=-1),
        log_probs_NK=torch.nn.functional.pad(target.log_probs_NK, fill, value=-math.inf),
    )


def draw(seed: int, rows: int = 6, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws (student's logits, teacher's logits, labels, is_answer)."""
    generator = np.random.default_rng(seed)
    student, teacher = generator.normal(0, scale, (2, rows, VOCABULARY))
    labels = generator.integers(0, VOCABULARY, rows)
    return student, teacher, labels, np.arange(rows) >= rows // 2

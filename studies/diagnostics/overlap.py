"""A diagnostic of the student's own text: whether a teacher would go on there as the student does."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from datamodules.examples.alignment import align
from datamodules.logit_cache.token_map import TokenMap
from datamodules.text.token_bytes import VocabularyBytes
from studies.diagnostics.gradients import compute_logits
from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values
from studies.diagnostics.texts import Overlap

TOP = 16


@torch.inference_mode()
def find_tops(
    model: PreTrainedModel, vocabulary: VocabularyBytes, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> np.ndarray:
    """Returns the 16 most probable tokens at each place of a completion, int64 [N, 16]; of fewer tokens, all."""
    # Beyond the tokenizer's there may be logits that stand for no token.
    logits_NV = compute_logits(model, prompt_ids, token_ids)[:, : len(vocabulary)]
    return logits_NV.topk(min(TOP, len(vocabulary))).indices.cpu().numpy()


def count_overlap(
    student: tuple[Sequence[int], np.ndarray], teacher: tuple[Sequence[int], np.ndarray], tokens: TokenMap
) -> Overlap:
    """Counts what two models' most probable tokens have in common where tokens of both begin.

    Args:
        student: The text in its tokens, and its most probable ones at each of them, see `find_tops`.
        teacher: Likewise.
        tokens: What the teacher's tokens are in the student's vocabulary.
    """
    found = align(student[0], teacher[0], tokens.student, tokens.teacher)
    if found is None:
        return Overlap(0, 0)
    rows = np.flatnonzero((found.out == 0) & (found.governing >= 0))
    translated = tokens.equal_tokens[teacher[1][found.governing[rows]]]
    shared = sum(
        len(set(own) & set(other)) for own, other in zip(student[1][rows].tolist(), translated.tolist(), strict=True)
    )
    return Overlap(shared, len(rows))


def top_overlap_own(fit: Fit) -> Values:
    """Share of the teacher's 16 most probable tokens among the student's, by bytes, along the student's own answers."""
    found = [fit.overlaps.get(reading.text.question.id, Overlap(0, 0)) for reading in fit.readings]
    return np.array([own.shared / TOP for own in found]), np.array([float(own.states) for own in found])


METRICS: list[Diagnostic] = [
    Mean(top_overlap_own, "higher", "top-k overlap: this project, after GKD, arXiv 2306.13649")
]

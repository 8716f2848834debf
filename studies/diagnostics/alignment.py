"""Diagnostics of what a teacher's cached distributions can say in the student's tokens; none needs a model."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from datamodules.examples.alignment import CLASSES, align, count_classes
from datamodules.logit_cache.conversion import RowConverter
from datamodules.logit_cache.reader import LogitCache
from datamodules.text.token_bytes import SPECIAL, VocabularyBytes
from lightning_modules.student.cached_targets import build_target
from losses.targets import SoftenedTarget
from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values
from studies.diagnostics.texts import AlignedText, CommonRows, Reading


def find_shared(teacher: VocabularyBytes, student: VocabularyBytes) -> np.ndarray:
    """Returns of each of the teacher's tokens whether one of the student's has its bytes, bool [V].

    An end of turn is the student's end of turn, whatever either is called; another special token the one of its name.
    """
    known = {token for token, flag in zip(student.tokens, student.flags, strict=True) if not flag & SPECIAL}
    shared: np.ndarray = np.array([token in known for token in teacher.tokens]) & ((teacher.flags & SPECIAL) == 0)
    shared[[number for name, number in teacher.controls.items() if name in student.controls]] = True
    shared[teacher.ends] = bool(student.ends)
    return shared


def _find_probabilities(rows: dict[str, np.ndarray]) -> np.ndarray | None:
    """Returns the probabilities of each row's support, [N, k]; None where the cache has none."""
    if "log_probs" in rows:
        return np.exp(rows["log_probs"].astype(np.float64))
    return rows["weights"].astype(np.float64) if "weights" in rows else None


class CacheAligner:
    """Compares a teacher's cache with a student's tokens.

    Args:
        cache: The teacher's.
        student: The student's vocabulary.

    Raises:
        ValueError: The cache's vocabulary is damaged.
    """

    def __init__(self, cache: LogitCache, student: VocabularyBytes):
        self.cache, self.student = cache, student
        self.teacher = cache.read_vocabulary()
        self.shared = find_shared(self.teacher, student)

    def align(self, identifier: str, token_ids: Sequence[int]) -> AlignedText:
        """Returns how a completion's rows follow from its cached ones.

        Args:
            identifier: Of the cached example.
            token_ids: The completion in the student's tokens, its end included.
        """
        teacher_ids = self.cache.read_tokens(identifier)
        found = align(token_ids, teacher_ids, self.student, self.teacher)
        counts = dict.fromkeys(CLASSES, 0) | {CLASSES[0]: len(token_ids)} if found is None else count_classes([found])
        rows = self.cache.read_foreign([identifier])
        probs_NK = _find_probabilities(rows)
        if probs_NK is None:
            return AlignedText(counts, np.nan, np.nan, None)
        support_NK = rows["support"]
        # What fills a narrower row has no probability.
        shared = float(probs_NK[self.shared[support_NK.clip(min=0)]].sum())
        ends = int(support_NK[-1, probs_NK[-1].argmax()]) in self.teacher.ends
        return AlignedText(counts, shared, float(probs_NK.sum()), ends)

    @cached_property
    def _converter(self) -> RowConverter:
        kind, temperatures = self.cache.description.sparsity.kind, self.cache.description.temperatures
        return RowConverter(self.teacher, self.student, self.student.ends[0], kind=kind, temperatures=temperatures)

    def read_common(self, identifier: str, token_ids: Sequence[int]) -> CommonRows | None:
        """Returns what the teacher says where both sides' tokens meet; None where they nowhere do.

        Args:
            identifier: Of the cached example; the cache is of the kind top_k or adaptive.
            token_ids: The completion in the student's tokens, its end included.
        """
        found = align(token_ids, self.cache.read_tokens(identifier), self.student, self.teacher)
        if found is None:
            return None
        rows = self.cache.read_foreign([identifier])
        converted = self._converter.convert(rows, [found], np.array(token_ids, np.int32))
        has_target = converted.pop("has_target")
        if not has_target.any():
            return None
        planes = {name: torch.from_numpy(plane[has_target]) for name, plane in converted.items()}
        target = build_target(planes, self._converter.temperatures, None)
        assert isinstance(target, SoftenedTarget)
        best_T = np.take_along_axis(rows["support"], rows["log_probs"].argmax(1)[:, None], 1)[:, 0]
        meet = (found.out == 0) & (found.governing >= 0)
        best = np.where(meet, self._converter.table[best_T[found.governing]], -2)
        return CommonRows(target, has_target, best.astype(np.int64))


def _share(fit: Fit, name: str) -> Values:
    """Returns how many rows have a class, and how many there are."""
    rows = [fit.aligned.get(reading.text.key) for reading in fit.readings]
    return (
        np.array([np.nan if row is None else row.counts[name] for row in rows]),
        np.array([np.nan if row is None else sum(row.counts.values()) for row in rows]),
    )


def aligned_strict(fit: Fit) -> Values:
    """Share of the student's tokens that are one teacher's token of the same bytes, or both's end of turn."""
    return _share(fit, "strict")


def aligned_exact(fit: Fit) -> Values:
    """Share of the student's tokens that begin with a teacher's token and end inside it."""
    return _share(fit, "exact")


def aligned_conditional(fit: Fit) -> Values:
    """Share of the student's tokens that begin inside a teacher's token and end no later."""
    return _share(fit, "conditional")


def aligned_spanning(fit: Fit) -> Values:
    """Share of the student's tokens that begin with a teacher's token and end after it."""
    return _share(fit, "spanning")


def aligned_none(fit: Fit) -> Values:
    """Share of the student's tokens of which the teacher's distributions say nothing."""
    return _share(fit, "none")


def shared_mass(fit: Fit) -> Values:
    """Share of the teacher's cached mass on tokens whose bytes are a token of the student's, too."""
    rows = [fit.aligned.get(reading.text.key) for reading in fit.readings]
    return (
        np.array([np.nan if row is None else row.shared_mass for row in rows]),
        np.array([np.nan if row is None else row.cached_mass for row in rows]),
    )


def end_agreement(fit: Fit) -> Values:
    """Share of completions at whose end teacher and student both find the end of turn most probable, or neither."""

    def compare(reading: Reading) -> float:
        row = fit.aligned.get(reading.text.key)
        return np.nan if row is None or row.ends is None else float(row.ends == (reading.rank[-1] == 1))

    return fit.collect(compare)


METRICS: list[Diagnostic] = [
    Mean(aligned_strict, "higher", "arXiv 2610.08448"),
    Mean(aligned_exact, None, "arXiv 2607.22334"),
    Mean(aligned_conditional, None, "arXiv 2607.22334"),
    Mean(aligned_spanning, "lower", "arXiv 2607.22334"),
    Mean(aligned_none, "lower", "arXiv 2607.22334"),
    Mean(shared_mass, "higher", "arXiv 2610.08448"),
    Mean(end_agreement, "higher", "this project"),
]

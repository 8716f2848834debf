"""What a diagnostic is, and its value with an interval over questions."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse

from studies.diagnostics.texts import AlignedText, Direction, Overlap, Reading

Better = Literal["lower", "higher"] | None
Values = np.ndarray | tuple[np.ndarray, np.ndarray]
OnSet = tuple[Callable[[np.ndarray], float], int]


@dataclass(frozen=True)
class Fit:
    """One teacher's rationales on one task, as one student read them, and what they are compared with.

    Attributes:
        readings: Of the questions that all teachers answered.
        pool: Of all teachers, these among them.
        own: The student's own answers to these questions, by id; empty if it was not asked.
        counts: For n = 1, 2 the words' n-grams, [questions, features], by teacher; the student's own by the empty name.
        teacher: The teacher's name.
        teacher_accuracy: Share of right answers of all rationales in the teacher's files; None where gold is unknown.
        vocabularies: Texts of the teacher's and of the student's tokens; None if the teacher's tokenizer is unknown.
        rewards: By rationale id, from a reward model; empty without.
        gradients: Squared norm and projection of the student's gradient on a sample of the readings, by text key.
        reward_weight: How much the loss weighs in CAR.
        aligned: How the readings' rows follow from the teacher's cached ones, by text key; empty without a cache.
        directions: What teachers' distributions would change, by text key; of a sample of the readings with a cache.
        overlaps: What the teacher has in common with the student along its own answers, by question id; of a sample.
    """

    teacher: str
    readings: Sequence[Reading]
    pool: Sequence[Reading]
    own: dict[str, str] = field(default_factory=dict)
    counts: dict[int, dict[str, sparse.csr_matrix]] = field(default_factory=dict)
    teacher_accuracy: float | None = None
    vocabularies: tuple[set[str], set[str]] | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)
    reward_weight: float = 1.0
    aligned: dict[str, AlignedText] = field(default_factory=dict)
    directions: dict[str, Direction] = field(default_factory=dict)
    overlaps: dict[str, Overlap] = field(default_factory=dict)

    def collect(self, function: Callable[[Reading], float]) -> np.ndarray:
        """Returns a value for each reading, float64 [N]."""
        return np.array([function(reading) for reading in self.readings], dtype=np.float64)


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Diagnostic(ABC):
    """A diagnostic; its name and description are its function's.

    Attributes:
        compute: What the subclass says; None where the diagnostic cannot be had.
        better: What is said to make a better teacher; None where nobody says.
        source: Who proposed it.
    """

    compute: Callable[[Fit], Any]
    better: Better
    source: str

    @property
    def name(self) -> str:
        """The function's name."""
        return self.compute.__name__

    @property
    def description(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.compute) or "").split("\n")[0]

    @abstractmethod
    def estimate(self, fit: Fit, weights_RQ: np.ndarray, questions_N: np.ndarray) -> Estimate | None:
        """Returns the value with its interval over questions.

        Args:
            fit: What is measured.
            weights_RQ: How often each resample has each question; the same for all teachers, so that their
                differences are paired.
            questions_N: The number of each reading's question.
        """


class Mean(Diagnostic):
    """`compute` returns a number for each reading, of which the mean counts; or numerators and denominators.

    The sums of numerators and denominators are divided. A reading that has none is nan. The interval is a bootstrap's
    percentiles.
    """

    def estimate(self, fit: Fit, weights_RQ: np.ndarray, questions_N: np.ndarray) -> Estimate | None:
        """See `Diagnostic`."""
        values = self.compute(fit)
        if values is None:
            return None
        numerators, denominators = values if isinstance(values, tuple) else (values, np.ones(len(values)))
        known = np.isfinite(numerators) & np.isfinite(denominators)
        if not denominators[known].any():
            return None
        sums = [
            np.bincount(questions_N[known], part[known], minlength=weights_RQ.shape[1])
            for part in (numerators, denominators)
        ]
        draws = [weights_RQ @ part for part in sums]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = draws[0] / draws[1]
            value = sums[0].sum() / sums[1].sum()
        low, high = np.nanquantile(ratios, [0.025, 0.975])
        return Estimate(float(value), float(low), float(high))


class OfSet(Diagnostic):
    """`compute` returns a function of the questions that are kept, bool [Q], and Q; it is no mean over rationales.

    The interval is the jackknife's: a resample, which holds questions twice, looks less diverse than the set it is
    drawn from.
    """

    def estimate(self, fit: Fit, weights_RQ: np.ndarray, questions_N: np.ndarray) -> Estimate | None:
        """See `Diagnostic`."""
        found = self.compute(fit)
        if found is None:
            return None
        function, number = found
        with np.errstate(divide="ignore", invalid="ignore"):
            value = function(np.ones(number, bool))
            left_out = np.array([function(np.arange(number) != question) for question in range(number)])
        if not np.isfinite([value, *left_out]).all():
            return None
        half = 1.96 * np.sqrt((number - 1) / number * ((left_out - left_out.mean()) ** 2).sum())
        return Estimate(float(value), float(value - half), float(value + half))

"""Numbers that change while a student trains."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number as a function of training progress: `start` before `begin`, `end` after `until`.

    A constant is written as a plain number instead.

    Attributes:
        shape: linear; cosine, half a period, flat at both ends; or step, which jumps to `end` at `begin`.
        start: The first value.
        end: The last value.
        begin: Share of all optimizer steps at which the change begins.
        until: Share of all optimizer steps at which it ends; not for a step. Null is 1.
    """

    shape: Literal["linear", "cosine", "step"]
    start: float
    end: float
    begin: float = 0.0
    until: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"a schedule's start and end must be finite, not {self.start} and {self.end}")
        if self.shape == "step" and self.until is not None:
            raise ValueError("a step schedule jumps at `begin`; its `until` would be ignored")
        if self.shape == "step" and not 0 < self.begin < 1:
            raise ValueError(
                f"a step schedule jumps at `begin`, a share of the steps between 0 and 1, not {self.begin}"
            )
        if not 0 <= self.begin < self._until <= 1:
            raise ValueError(f"a schedule needs 0 <= begin < until <= 1, not {self.begin} and {self._until}")

    @property
    def _until(self) -> float:
        return 1.0 if self.until is None else self.until

    def at(self, progress: float) -> float:
        """Returns the value at a share of all steps, 0 at the first and 1 after the last."""
        if self.shape == "step":
            return self.start if progress < self.begin else self.end
        share = min(max((progress - self.begin) / (self._until - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + share * (self.end - self.start)


def value_at(number: "float | Schedule", progress: float) -> float:
    """Returns a number, or a schedule's value at a share of all steps."""
    return number.at(progress) if isinstance(number, Schedule) else number


def bounds(number: "float | Schedule") -> tuple[float, float]:
    """Returns the least and the largest value that a number or a schedule takes."""
    if isinstance(number, Schedule):
        return min(number.start, number.end), max(number.start, number.end)
    return number, number

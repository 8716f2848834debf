"""The benchmark of students' steps runs, small, on a CPU."""

import pytest

from scripts.benchmarks.training import KINDS, measure_steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_students_steps_are_measured(kind: str) -> None:
    speed, mfu = measure_steps("tiny", kind, "cpu", batch=2, length=32, steps=1)
    assert speed > 0 and mfu is None

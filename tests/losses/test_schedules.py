"""Numbers that change while a student trains."""

import math

import pytest

from losses.schedules import Schedule, bounds, value_at


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule(shape="linear", start=0.0, end=1.0), {0.0: 0.0, 0.25: 0.25, 1.0: 1.0}),
        (Schedule(shape="linear", start=2.0, end=1.0, begin=0.5), {0.0: 2.0, 0.5: 2.0, 0.75: 1.5, 1.0: 1.0}),
        (Schedule(shape="linear", start=1.0, end=5.0, begin=0.2, until=0.4), {0.2: 1.0, 0.3: 3.0, 0.4: 5.0, 0.9: 5.0}),
        (Schedule(shape="cosine", start=0.0, end=1.0), {0.0: 0.0, 0.5: 0.5, 0.25: (1 - math.sqrt(0.5)) / 2, 1.0: 1.0}),
        (Schedule(shape="step", start=1.0, end=4.0, begin=0.5), {0.0: 1.0, 0.49: 1.0, 0.5: 4.0, 1.0: 4.0}),
        (0.3, {0.0: 0.3, 1.0: 0.3}),
    ],
)
def test_values(schedule, values: dict[float, float]) -> None:
    assert {progress: value_at(schedule, progress) for progress in values} == pytest.approx(values)
    low, high = bounds(schedule)
    assert all(low <= value_at(schedule, step / 97) <= high for step in range(98))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "step", "begin": 0.5, "until": 0.6}, "`until` would be ignored"),
        ({"shape": "step"}, "between 0 and 1, not 0.0"),
        ({"shape": "step", "begin": 1.0}, "between 0 and 1, not 1.0"),
        ({"shape": "linear", "begin": 0.6, "until": 0.5}, "begin < until"),
        ({"shape": "cosine", "until": 1.5}, "until <= 1"),
        ({"shape": "linear", "end": math.nan}, "must be finite"),
    ],
)
def test_wrong_schedules_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"start": 0.0, "end": 1.0, **settings})

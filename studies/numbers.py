"""How numbers are written, in a terminal as in a report."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any


def percent(share: float | None) -> str:
    """Returns a share as text."""
    return "–" if share is None else f"{100 * share:.1f} %"


def decimal(number: float, digits: int) -> str:
    """Returns a number as text, without a plus."""
    return f"{number:.{digits}f}".replace("-", "−")


def signed(number: float, digits: int) -> str:
    """Returns a number as text, with its sign, a minus as long as the plus."""
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    return f"{number:+.{digits}f}".replace("-", "−")


def points(difference: float | None) -> str:
    """Returns a difference of shares as text, in percentage points."""
    return "–" if difference is None else signed(100 * difference, 1)


def between(low: float | None, high: float | None, form: Callable[[float], str] = points) -> str:
    """Returns an interval as text, in the form of its ends."""
    return "–" if low is None or high is None else f"[{form(low).removesuffix(' %')}, {form(high).removesuffix(' %')}]"


def signed_between(low: float, high: float, digits: int) -> str:
    """Returns an interval of numbers as text, with their signs."""
    return between(low, high, partial(signed, digits=digits))


def estimated(row: dict[str, Any]) -> str:
    """Returns a row's estimate, a difference of shares, as text in percentage points, with its interval."""
    return f"{points(row['estimate'])} points {between(row['low'], row['high'])}"

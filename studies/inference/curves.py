"""The size that a wanted accuracy takes, from a curve of accuracy against size and its band."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NeededSize:
    """The size that a wanted accuracy takes.

    Attributes:
        needed: Where the curve reaches it; None if not at the sizes that were trained.
        low: Lower end of the 95 % interval; None likewise.
        high: Upper end; None if the interval does not end at these sizes.
    """

    needed: float | None
    low: float | None
    high: float | None


def find_needed_size(
    sizes: Sequence[int], bands: Sequence[tuple[float, float, float]], places: Sequence[float], target: float
) -> NeededSize:
    """Returns where a curve and the ends of its band reach an accuracy.

    Args:
        sizes: That the places are counted in: 0 is the first, 1.5 halfway between the second and the third.
        bands: Accuracy with its interval at each place.
        places: Ascending.
        target: The accuracy.
    """

    def locate(reached: np.ndarray) -> float | None:
        if not reached.any():
            return None
        place = places[int(reached.argmax())]
        return float(2 ** np.interp(place, range(len(sizes)), np.log2(sizes)))

    value_P, low_P, high_P = np.array(bands).T
    # From where on the whole interval is above the target.
    is_above = np.logical_and.accumulate((low_P >= target)[::-1])[::-1]
    return NeededSize(locate(value_P >= target), locate(high_P >= target), locate(is_above))

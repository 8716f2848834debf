"""The parts of the conversion."""

import numpy as np
import pytest

from datamodules.logit_cache.converted_rows import find_duplicates


@pytest.mark.parametrize("largest", [5, 1 << 28])
def test_duplicates_follow_the_first(largest: int) -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(-1, 5, (50, 9)).astype(np.int32)
    ids[0, 0] = largest
    place, leader = find_duplicates(ids)
    flat = ids.reshape(-1)
    expected = {
        (row * 9 + column, row * 9 + ids[row].tolist().index(ids[row, column]))
        for row in range(50)
        for column in range(9)
        if ids[row, column] >= 0 and ids[row, column] in ids[row, :column]
    }
    assert set(zip(place.tolist(), leader.tolist(), strict=True)) == expected and len(place) == len(expected)
    assert (flat[place] == flat[leader]).all()

"""Tests of reading captures: texts are parted as they were packed, and prefixes are found."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.logit_cache.captured import PrefixIndex, find_captures, read_captures
from datamodules.logit_cache.distillkit import read_compression
from tests.distillkit import EXACT, make_row, write_capture

CONFIG = {"d": 50, "k": 2, "exact_k": 2, **EXACT}


def make(ids: list[int], **more: list[int]) -> dict:
    """Makes a row whose place p gives most to the token p, and has no distribution after the last token."""
    return make_row(ids, [[(place, -0.5), (49, -2.0)] for place in range(len(ids) - 1)], CONFIG) | more


def read(folder: Path) -> list[tuple[list[int], list[int]]]:
    compression = read_compression(folder / "compression_config.yaml")
    found = []
    for text in read_captures(find_captures([folder]), compression, "teacher", 40):
        best, _ = compression.decode(text.values, text.indices)
        found.append((text.token_ids.tolist(), best[:, 0].tolist()))
    return found


def test_every_row_is_a_text(tmp_path: Path) -> None:
    rows = [make([*range(number, 2 * number)]) for number in range(2, 20)]
    folder = write_capture(tmp_path / "c", rows, CONFIG)
    assert read(folder) == [([*range(number, 2 * number)], [*range(number - 1)]) for number in range(2, 20)]


def test_packed_texts_are_parted(tmp_path: Path) -> None:
    rows = [make([5, 6, 7, 8, 9, 10], attention_mask=[1, 1, 2, 2, 2, 0]), make([1, 2], attention_mask=[1, 1])]
    folder = write_capture(tmp_path / "c", rows, CONFIG)
    # The second text's last place has no distribution, nor has the last row's.
    assert read(folder) == [([5, 6], [0, 1]), ([7, 8, 9], [2, 3, 4]), ([1, 2], [0])]
    write_capture(folder, [make([5, 6], attention_mask=[1])], CONFIG)
    with pytest.raises(ValueError, match=r"row 0: torn: 2 tokens with an attention_mask of 1"):
        read(folder)


def test_a_folder_without_captures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file"):
        find_captures([tmp_path])
    with pytest.raises(ValueError, match="nowhere"):
        find_captures([tmp_path / "nowhere"])


def test_prefixes_are_found_the_shortest_first() -> None:
    index = PrefixIndex(np.array(ids, np.int32) for ids in ([1, 2, 3], [1], [2, 3], [1, 2, 3], [1, 2, 3, 4]))
    assert index.find(np.array([1, 2, 3, 9])) == [[1], [0, 3]]
    assert index.find(np.array([2])) == [] == index.find(np.array([], np.int32))

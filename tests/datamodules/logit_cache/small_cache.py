"""Twenty examples with made-up rows, and what a cache of them must hold."""

from pathlib import Path

import numpy as np

from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.format import CacheDescription
from datamodules.logit_cache.reader import LogitCache
from tests.logit_rows import ADDED, make_example, make_rows

EXAMPLES = [make_example(number) for number in range(20)]
KINDS = tuple(ADDED)


def assert_rows_are(rows: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(rows) == set(expected)
    for name, plane in expected.items():
        assert rows[name].dtype == plane.dtype
        np.testing.assert_array_equal(rows[name], plane)


def assert_holds_all(folder: Path, made: CacheDescription, examples: list = EXAMPLES) -> None:
    cache = LogitCache(folder)
    assert cache.description == made
    assert set(cache) == {example.id for example in examples} and len(cache) == len(examples)
    assert cache.num_rows == sum(len(example.token_ids) - 2 for example in examples)
    for example in reversed(examples):
        assert_rows_are(cache.read(example), decode_rows(made, encode_rows(made, make_rows(made, example))))
    assert [identifier for identifier, _ in cache.read_all()] == [*cache]
    cache.verify()

"""Tests of a batch's teacher rows: in the examples' order, whichever caches they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batches.teacher_rows import collate_targets
from datamodules.logit_cache.reader import LogitCache
from tests.logit_rows import describe, make_example, write_cache

EXAMPLES = [make_example(number) for number in range(8)]
ORDER = [EXAMPLES[number] for number in (5, 0, 7, 2, 6, 1)]
NAMES = {
    "top_k": {"support", "log_probs", "log_normalizers", "log_tails"},
    "adaptive": {"support", "log_probs", "log_normalizers", "log_tails"},
    "sampled": {"support", "weights"},
    "hybrid": {"support", "weights"},
    "hidden": {"hidden"},
}
FILLS = {"support": -1, "log_probs": -np.inf, "weights": 0}


def assert_rows_are_the_examples(target: dict[str, torch.Tensor], caches: dict[str, LogitCache]) -> None:
    start = 0
    for example in ORDER:
        alone = caches[example.id].read(example)
        count = len(alone["token_ids"])
        for name, tensor in target.items():
            part = tensor[start : start + count]
            width = alone[name].shape[1]
            assert (part[:, width:] == FILLS.get(name, 0)).all()
            np.testing.assert_array_equal(part[:, :width], alone[name])
        start += count
    assert all(len(tensor) == start for tensor in target.values())


@pytest.mark.parametrize("kind", NAMES)
def test_rows_are_in_the_examples_order(tmp_path: Path, kind: str) -> None:
    write_cache(tmp_path / "cache", EXAMPLES, describe(kind))
    cache = LogitCache(tmp_path / "cache")
    target = collate_targets(ORDER, dict.fromkeys(cache, cache))
    assert set(target) == NAMES[kind]
    kinds = {"support": torch.int32}
    assert all(tensor.dtype == kinds.get(name, torch.float32) for name, tensor in target.items())
    assert_rows_are_the_examples(target, dict.fromkeys(cache, cache))


@pytest.mark.parametrize(("first", "second"), [("top_k", "adaptive"), ("sampled", "hybrid")])
def test_a_batch_may_mix_caches(tmp_path: Path, first: str, second: str) -> None:
    made = write_cache(tmp_path / "first", EXAMPLES[::2], describe(first))
    other = write_cache(tmp_path / "second", EXAMPLES, describe(second, top_k=None if second == "sampled" else 12))
    assert made.row_type == other.row_type
    caches = dict.fromkeys([example.id for example in EXAMPLES], LogitCache(tmp_path / "second"))
    caches |= dict.fromkeys([example.id for example in EXAMPLES[::2]], LogitCache(tmp_path / "first"))
    assert_rows_are_the_examples(collate_targets(ORDER, caches), caches)


def test_kinds_whose_rows_mean_something_else_do_not_mix() -> None:
    types = [describe(kind).row_type for kind in (*NAMES, "labels")] + [describe(temperatures=(1.0,)).row_type]
    assert len(set(types)) == 5


def test_rows_add_up_in_float32(tmp_path: Path) -> None:
    for kind in ("top_k", "adaptive"):
        write_cache(tmp_path / kind, EXAMPLES, describe(kind))
        cache = LogitCache(tmp_path / kind)
        target = collate_targets(ORDER, dict.fromkeys(cache, cache))
        for index, temperature in enumerate(cache.description.temperatures):
            log_p = target["log_probs"] / temperature - target["log_normalizers"][:, index, None]
            total = log_p.exp().sum(1) + target["log_tails"][:, index].exp()
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-6)

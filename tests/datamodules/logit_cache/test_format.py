"""Tests of a logit cache's format: the planes of a shard, and the schema of a manifest."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter
from tests.datamodules.logit_cache.small_cache import EXAMPLES, KINDS
from tests.logit_rows import VOCABULARY, describe, make_rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 100_000])
def test_a_shard_is_a_safetensors_file_of_the_documented_planes(tmp_path: Path, kind: str, vocabulary: int) -> None:
    made = describe(kind, vocabulary)
    writer = LogitCacheWriter(tmp_path / "cache", made)
    writer.add([(example, make_rows(made, example)) for example in EXAMPLES])
    writer.flush()
    [path] = (tmp_path / "cache").iterdir()
    high = {"tokens_high"} if vocabulary > 65_536 else set()
    planes = {"tokens_low", "label_log_prob", "index.examples", "index.text_hash", "index.rows", "index.checksum"}
    planes |= {"index.completion_hash", "index.check"} | high
    if kind in ("top_k", "adaptive", "hybrid"):
        planes |= {"support_low", "values", "log_tail", "log_normalizers"} | ({"support_high"} if high else set())
    if kind == "adaptive":
        planes |= {"support_size", "index.entries"}
    if kind in ("sampled", "hybrid"):
        planes |= {"drawn_size", "drawn_low", "drawn_counts", "index.drawn"} | ({"drawn_high"} if high else set())
    if kind == "hidden":
        planes |= {"hidden"}
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == planes
        tokens = file.get_tensor("tokens_low").astype(int)
        tokens += file.get_tensor("tokens_high").astype(int) << 16 if high else 0
        np.testing.assert_array_equal(tokens, np.concatenate([example.token_ids[2:] for example in EXAMPLES]))
        assert json.loads(file.get_tensor("index.examples").tobytes()) == [example.id for example in EXAMPLES]


def test_another_schema_is_refused(cache: Path) -> None:
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(ValueError, match="schema 1, but this version reads 3; capture again"):
        LogitCache(cache)

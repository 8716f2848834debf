"""Tests of what is written into a logit cache: whose shards are one cache, and what does not go into it."""

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.logit_cache.writer import LogitCacheWriter, refuse_other_folder
from tests.datamodules.logit_cache.small_cache import EXAMPLES, assert_holds_all
from tests.logit_rows import describe, make_example, write_cache


def test_shards_of_several_processes_are_one_cache(tmp_path: Path) -> None:
    made = describe()
    write_cache(tmp_path / "cache", EXAMPLES[1::2], made, rank=1)
    write_cache(tmp_path / "cache", EXAMPLES, made)
    assert {path.name[:10] for path in (tmp_path / "cache").glob("shard-*")} == {"shard-0000", "shard-0001"}
    assert_holds_all(tmp_path / "cache", made)


def test_later_examples_add_shards_and_leave_the_others(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.glob("shard-*")}
    more = [*EXAMPLES, *(make_example(number) for number in range(20, 25))]
    made = write_cache(cache, more)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(cache.glob("shard-*"))) > len(before)
    assert_holds_all(cache, made, more)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher", "other"),
        ("revision", "x"),
        ("tokenizer_fingerprint", "x"),
        ("prompt_id", "x"),
        ("vocabulary", 70_000),
        ("sparsity", describe(top_k=4).sparsity),
        ("sparsity", describe(values="float16").sparsity),
        ("temperatures", (1.0,)),
        ("dtype", "bfloat16"),
    ],
)
def test_captures_of_anything_else_do_not_mix(cache: Path, field: str, value: object) -> None:
    writer = LogitCacheWriter(cache, replace(describe(), **{field: value}))
    with pytest.raises(
        ValueError, match=r"shard-0000-00000.* written by another teacher, tokenizer, prompt or setting"
    ):
        writer.find_done()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, cache: Path) -> None:
    refuse_other_folder(cache)
    refuse_other_folder(tmp_path / "nothing")
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no logit cache \(it holds notes\.txt\); choose another output"):
        refuse_other_folder(cache)
    with pytest.raises(ValueError, match=r"is no logit cache \(it is no folder\); choose another output"):
        refuse_other_folder(cache / "notes.txt")

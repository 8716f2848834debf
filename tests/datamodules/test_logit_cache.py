"""Tests of the logit cache: what is written is read, a killed capture continues, and nothing foreign is accepted."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.logit_cache import PLANES, CacheDescription, LogitCache, LogitCacheWriter, is_finished
from datamodules.tokenization import ANSWER, PROMPT, RATIONALE, Example

ROOT = Path(__file__).parents[2]
DESCRIPTION = CacheDescription("owner/teacher", "abc", "fingerprint", "cot-1", 3, (1.0, 2.0), "float32")


def make_example(number: int) -> Example:
    segments = [PROMPT] * 2 + [RATIONALE] * (number % 4) + [ANSWER] * 2
    ids = np.random.default_rng(number).integers(0, 50, len(segments))
    return Example(
        f"q{number}/owner/teacher/0", f"q{number}", ids.astype(np.int32), np.array(segments, np.int8), f"h{number}"
    )


def make_planes(example: Example) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(len(example.id) + int(example.token_ids.sum()))
    tokens = example.token_ids[example.segments != PROMPT]
    return {
        "token_ids": tokens,
        "support": generator.integers(0, 50, (len(tokens), 3)).astype(np.int32),
        "log_probs": generator.normal(size=(len(tokens), 3)).astype(np.float32),
        "log_normalizers": generator.normal(size=(len(tokens), 2)).astype(np.float32),
        "log_tails": np.full((len(tokens), 2), -np.inf, np.float32),
    }


EXAMPLES = [make_example(number) for number in range(20)]


def write(folder: Path, examples: list[Example] = EXAMPLES, kill_after: int | None = None, rank: int = 0) -> None:
    """Captures what is not there yet; kills the process without warning after so many examples."""
    writer = LogitCacheWriter(folder, DESCRIPTION, rank=rank, rows_per_shard=10)
    done = writer.find_done()
    for number, example in enumerate(example for example in examples if example.id not in done):
        if number == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        writer.add(example, make_planes(example))
    writer.flush()
    writer.write_manifest({"config_hash": "x"})


def check(folder: Path, examples: list[Example] = EXAMPLES, **options: str) -> None:
    options = {"student": "owner/student", "fingerprint": "fingerprint", "prompt_id": "cot-1", **options}
    LogitCache(folder).check(**options, examples=examples)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "cache")
    return tmp_path / "cache"


def assert_holds_all(folder: Path) -> None:
    cache = LogitCache(folder)
    assert set(cache) == {example.id for example in EXAMPLES} and len(cache) == 20
    for example in reversed(EXAMPLES):
        planes = cache.read(example)
        assert set(planes) == set(PLANES)
        for name, expected in make_planes(example).items():
            assert planes[name].dtype == expected.dtype
            np.testing.assert_array_equal(planes[name], expected)


def test_what_is_written_is_read(cache: Path) -> None:
    assert_holds_all(cache)
    assert LogitCache(cache).description == DESCRIPTION
    assert len(list(cache.glob("shard-*"))) > 3
    assert "q99/owner/teacher/0" not in LogitCache(cache)
    check(cache)


def test_a_killed_capture_continues(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    code = f"from tests.datamodules.test_logit_cache import *; write(Path({str(folder)!r}), kill_after=12)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment)
    assert done.returncode == -signal.SIGKILL
    left = LogitCacheWriter(folder, DESCRIPTION).find_done()
    assert 0 < len(left) < 13
    assert not is_finished(folder)
    with pytest.raises(
        ValueError, match=r"no finished logit cache \(no manifest\.json\); run scripts/cache_logits\.py"
    ):
        LogitCache(folder)
    shards = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    write(folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in shards} == shards
    assert is_finished(folder)
    assert_holds_all(folder)


def test_shards_of_several_processes_are_one_cache(tmp_path: Path) -> None:
    write(tmp_path / "cache", EXAMPLES[1::2], rank=1)
    write(tmp_path / "cache", EXAMPLES)
    assert {path.name[:10] for path in (tmp_path / "cache").glob("shard-*")} == {"shard-0000", "shard-0001"}
    assert_holds_all(tmp_path / "cache")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher", "other"),
        ("revision", "x"),
        ("tokenizer_fingerprint", "x"),
        ("prompt_id", "x"),
        ("top_k", 4),
        ("temperatures", (1.0,)),
        ("dtype", "bfloat16"),
    ],
)
def test_captures_of_anything_else_do_not_mix(cache: Path, field: str, value: object) -> None:
    writer = LogitCacheWriter(cache, replace(DESCRIPTION, **{field: value}))
    with pytest.raises(
        ValueError, match=r"shard-0000-00000.* written by another teacher, tokenizer, prompt or setting"
    ):
        writer.find_done()


def test_another_tokenizer_is_refused_by_both_names(cache: Path) -> None:
    message = r"teacher 'owner/teacher' \(tokenizer fingerprint\) and student 'owner/student' \(tokenizer other\)"
    with pytest.raises(ValueError, match=message):
        check(cache, fingerprint="other")


def test_another_prompt_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="captured with prompt cot-1, but the data uses plain-2"):
        check(cache, prompt_id="plain-2")


def test_missing_examples_are_counted(cache: Path) -> None:
    extra = [*EXAMPLES, make_example(30), make_example(31)]
    with pytest.raises(ValueError, match="2 of 22 examples are not cached, the first is 'q30/owner/teacher/0'; run"):
        check(cache, extra)
    check(cache, EXAMPLES[3:5])


def test_a_changed_text_is_refused(cache: Path) -> None:
    changed = [*EXAMPLES[:4], replace(EXAMPLES[4], text_hash="other")]
    with pytest.raises(ValueError, match="the text of 'q4/owner/teacher/0' was changed after its logits were cached"):
        check(cache, changed)


def test_other_tokens_are_refused_when_read(cache: Path) -> None:
    other = EXAMPLES[5].token_ids.copy()
    other[-1] += 1
    with pytest.raises(ValueError, match="the cached tokens of 'q5/owner/teacher/0' are not those of the completion"):
        LogitCache(cache).read(replace(EXAMPLES[5], token_ids=other))
    # The prompt's tokens are the text hash's business.
    other = EXAMPLES[5].token_ids.copy()
    other[0] += 1
    LogitCache(cache).read(replace(EXAMPLES[5], token_ids=other))


def test_a_flipped_byte_or_a_missing_shard_is_refused(cache: Path) -> None:
    shard = sorted(cache.glob("shard-*"))[1]
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name}: missing, or not the file that manifest.json lists"):
        LogitCache(cache)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: missing"):
        LogitCache(cache)


def test_another_schema_is_refused(cache: Path) -> None:
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps({**manifest, "schema": 2}))
    with pytest.raises(ValueError, match="schema 2, but this version reads 1"):
        LogitCache(cache)


def test_an_example_in_two_shards_is_refused(tmp_path: Path) -> None:
    for rank in range(2):
        writer = LogitCacheWriter(tmp_path / "cache", DESCRIPTION, rank=rank)
        writer.add(EXAMPLES[0], make_planes(EXAMPLES[0]))
        writer.flush()
    writer.write_manifest({})
    with pytest.raises(ValueError, match="example 'q0/owner/teacher/0' is in two shards"):
        LogitCache(tmp_path / "cache")


def test_a_folder_of_something_else_is_refused(tmp_path: Path, cache: Path) -> None:
    assert is_finished(cache) and not is_finished(tmp_path / "nothing")
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no logit cache \(it holds notes\.txt\); choose another output"):
        is_finished(cache)

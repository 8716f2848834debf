"""Tests of what can go wrong with a logit cache: kills, damage, two writers, full and read-only disks."""

import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter
from tests.conftest import LockedFolder
from tests.logit_rows import TOKENIZER, describe, make_example, make_rows, write_cache

EXAMPLES = [make_example(number) for number in range(20)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """A forked process cannot use its parent's threads."""
    torch.set_num_threads(1)


def fork(function: Callable[[], object]) -> int:
    """Runs a function in a process of its own, which ends with it; returns the process's id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return child


def wait_for(path: Path) -> None:
    """Waits until a process has made a file."""
    while not path.exists():
        time.sleep(0.01)


def locate_plane(shard: Path, name: str) -> int:
    """Returns where a plane begins in a shard."""
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length + json.loads(content[8 : 8 + length])[name]["data_offsets"][0]


def read_content(folder: Path) -> dict[str, dict[str, bytes]]:
    """Returns every example's rows, to the bit."""
    return {i: {name: plane.tobytes() for name, plane in rows.items()} for i, rows in LogitCache(folder).read_all()}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", EXAMPLES)
    return tmp_path / "cache"


KILLED = [make_example(number) for number in range(100)]


def test_twenty_kills_and_a_rerun_give_the_content_of_an_undisturbed_capture(tmp_path: Path) -> None:
    write_cache(tmp_path / "whole", KILLED, rows_per_shard=12)
    expected = read_content(tmp_path / "whole")

    def capture(folder: Path, moment: float) -> int:
        """Captures until so many calls are made or left; returns how many there were."""
        done = 0

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            if done >= moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        write_cache(folder, KILLED, rows_per_shard=12)
        sys.setprofile(None)
        return done

    number_of_calls = tmp_path / "calls"
    child = fork(lambda: number_of_calls.write_text(str(capture(tmp_path / "counted", math.inf))))
    assert os.waitpid(child, 0)[1] == 0
    # By progress, not by time, so that each is killed before its end.
    moments = random.Random(0)
    for number in range(20):
        folder, moment = tmp_path / f"cache-{number}", moments.randrange(int(number_of_calls.read_text()))
        child = fork(lambda folder=folder, moment=moment: capture(folder, moment))
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        before = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
        write_cache(folder, KILLED, rows_per_shard=12)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert read_content(folder) == expected
        names = {path.name for path in folder.iterdir()}
        assert names == {path.name for path in (tmp_path / "whole").iterdir()}, names


FEW: dict[str, dict] = {"top_k": {"top_k": 2}, "hybrid": {"top_k": 2, "draws": 3}, "hidden": {}}


@pytest.mark.parametrize(
    "kind", ["top_k", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("hybrid", "hidden"))]
)
def test_every_flipped_byte_is_noticed(tmp_path: Path, kind: str) -> None:
    """Of a small cache, one at a time, and without the shards' sha256, when they are opened and read."""
    folder = tmp_path / "cache"
    write_cache(folder, EXAMPLES[:2], describe(kind, **FEW[kind]))
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        # A file that one hash covers is tried here and there.
        for place in range(0, len(whole), 1 if path.stem.startswith(("shard", "manifest")) else 97):
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=path.name):
                cache = LogitCache(folder)
                for _ in cache.read_all():
                    pass
                if path.stem == "head":
                    cache.read_head()
                if path.stem == "vocabulary":
                    cache.read_vocabulary()
            flipped[place] = whole[place]
        path.write_bytes(whole)
    LogitCache(folder).verify()


@pytest.mark.parametrize("cut", [1, 8, 100, 10_000])
def test_a_truncated_shard_is_refused(cache: Path, cut: int) -> None:
    shard = sorted(cache.glob("shard-*"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: max(0, len(content) - cut)])
    with pytest.raises(ValueError, match=f"{shard.name}: missing, or not the file that manifest.json lists"):
        LogitCache(cache)
    # The writer does not build on it either, manifest or not.
    with pytest.raises(
        ValueError, match=f"{shard.name}: damaged; delete it and run python -m scripts.cache_logits again"
    ):
        LogitCacheWriter(cache, describe()).find_done()


def test_a_deleted_or_damaged_shard_is_captured_again(cache: Path) -> None:
    expected = read_content(cache)
    shard = sorted(cache.glob("shard-*"))[1]
    content = shard.read_bytes()
    place = locate_plane(shard, "values")
    shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    opened = LogitCache(cache)
    message = (
        f"{shard.name}: the rows of 'q.*' are damaged; delete this file and run python -m scripts.cache_logits again"
    )
    with pytest.raises(ValueError, match=message):
        opened.verify()
    with pytest.raises(ValueError, match=message):
        opened.read(*EXAMPLES)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: missing"):
        LogitCache(cache)
    write_cache(cache, EXAMPLES)
    assert read_content(cache) == expected


def test_an_example_in_two_shards_is_refused_and_the_old_content_stays(cache: Path) -> None:
    made = describe()
    expected = read_content(cache)
    writer = LogitCacheWriter(cache, made, rank=1)
    writer.open()
    writer.add([(EXAMPLES[0], make_rows(made, EXAMPLES[0]))])
    writer.flush()
    with pytest.raises(ValueError, match="example 'q0/owner/teacher/0' is in two shards, also in shard-0000-00000"):
        writer.finish(TOKENIZER, {})
    writer.close()
    assert read_content(cache) == expected
    with pytest.raises(ValueError, match="is in two shards"):
        LogitCacheWriter(cache, made).find_done()


def test_two_writers_of_one_folder_are_refused(cache: Path) -> None:
    expected = read_content(cache)

    def hold() -> None:
        holder = LogitCacheWriter(cache, describe())
        holder.find_done()
        holder.open()
        (cache.parent / "held").touch()
        time.sleep(600)

    holder = fork(hold)
    wait_for(cache.parent / "held")
    writer = LogitCacheWriter(cache, describe())
    writer.find_done()
    with pytest.raises(ValueError, match=rf"cache: another process writes this cache \(process {holder} on "):
        writer.open()
    other = LogitCacheWriter(cache, describe(), rank=1)
    other.find_done()
    other.open()
    with pytest.raises(ValueError, match=rf"another process writes this cache \(process {holder} on "):
        other.finish(TOKENIZER, {})
    other.close()
    other.clear()
    assert read_content(cache) == expected and [path.name for path in cache.glob(".*")] == [".lock-0000"]
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    # A killed writer holds nothing.
    assert writer.is_complete() and list(cache.glob(".*"))
    writer.clear()
    assert writer.is_complete() and not list(cache.glob(".*"))


def test_a_writer_that_comes_late_is_refused(cache: Path) -> None:
    late = LogitCacheWriter(cache, describe())
    late.find_done()
    write_cache(cache, [*EXAMPLES, make_example(50)])
    with pytest.raises(ValueError, match="another process has just written here; run the same command again"):
        late.open()


def test_a_full_disk_is_refused_and_the_old_content_stays(cache: Path) -> None:
    made, expected = describe(), read_content(cache)
    names = sorted(path.name for path in cache.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, message in (
        (300, r"shard-0000-0000\d\.safetensors: cannot be written: File too large"),
        (0, "cannot be"),
    ):
        writer = LogitCacheWriter(cache, made)
        writer.find_done()
        writer.open()
        writer.add([(make_example(60), make_rows(made, make_example(60)))])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(ValueError, match=message):
                writer.flush()
            if size == 0:
                with pytest.raises(ValueError, match=r"vocabulary\.safetensors: cannot be written: File too large"):
                    writer.finish(TOKENIZER, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.close()
    assert sorted(path.name for path in cache.iterdir()) == names
    assert read_content(cache) == expected


def test_a_read_only_folder_is_read_and_not_written(cache: Path, locked_folder: LockedFolder) -> None:
    read_only = shutil.copytree(cache, locked_folder.path, dirs_exist_ok=True)
    locked_folder.lock()
    expected = read_content(read_only)
    writer = LogitCacheWriter(read_only, describe())
    assert len(writer.find_done()) == 20 and writer.is_complete()
    with pytest.raises(ValueError, match="locked: cannot be written: Permission denied; choose another output"):
        writer.open()
    with pytest.raises(ValueError, match="1 of 1 examples are not cached, the first is 'q70/owner/teacher/0'; run"):
        LogitCache(read_only).check("student", TOKENIZER, "cot-1", [make_example(70)])
    assert read_content(read_only) == expected


def test_processes_read_while_one_appends(cache: Path) -> None:
    expected = read_content(cache)

    def read() -> None:
        rounds = 0
        while rounds < 3 or not (cache.parent / "stop").exists():
            opened = LogitCache(cache)
            for example in EXAMPLES:
                rows = opened.read(example)
                assert expected[example.id] == {name: plane.tobytes() for name, plane in rows.items()}
            rounds += 1
            (cache.parent / f"reading-{os.getpid()}").touch()

    readers = [fork(read) for _ in range(2)]
    for reader in readers:
        wait_for(cache.parent / f"reading-{reader}")
    for end in range(25, 60, 5):
        write_cache(cache, [make_example(number) for number in range(end)])
    (cache.parent / "stop").touch()
    assert [os.waitpid(reader, 0)[1] for reader in readers] == [0, 0]
    assert len(LogitCache(cache)) == 55


def test_the_manifest_is_checked_to_the_byte(cache: Path) -> None:
    path = cache / "manifest.json"
    text = path.read_text()
    for changed in (text + " ", text.replace("  ", "\t", 1), json.dumps(json.loads(text)), text[:-2], "[]", ""):
        path.write_text(changed)
        with pytest.raises(ValueError, match=r"manifest\.json: (damaged; delete it and run|schema None)"):
            LogitCache(cache)
    path.unlink()
    assert not LogitCacheWriter(cache, describe()).is_complete()
    write_cache(cache, EXAMPLES)
    assert path.read_text() == text

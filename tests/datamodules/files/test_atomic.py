"""Tests of reading records and of atomic writing, also when the writer is killed."""

import gzip
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from datamodules.files.atomic import (
    atomic_path,
    check_name,
    hash_json,
    hash_path,
    read_records,
    refuse_foreign,
    require_file,
    write_json,
    write_jsonl,
    write_text,
)
from datamodules.files.tables import write_table
from tests.conftest import LockedFolder

ROOT = Path(__file__).parents[3]


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "x.txt"
    write_text(target, "old")
    with target.open() as reader:
        write_text(target, "né")
        # Replaced, not overwritten: who is reading goes on with what was there.
        assert reader.read() == "old"
    assert target.read_text(encoding="utf-8") == "né"
    assert list_names(target.parent) == ["x.txt"]


def test_a_writer_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="midway"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert list_names(tmp_path) == ["x.txt"]


def test_a_writer_that_raises_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"), atomic_path(tmp_path / "cache") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "shard").write_text("half")
        raise RuntimeError("midway")
    assert list_names(tmp_path) == []


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "cache"
    with atomic_path(target) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "shard").write_text("whole")
        assert not target.exists()
    assert (target / "deep" / "shard").read_text() == "whole"
    assert list_names(tmp_path) == ["cache"]


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750),
    (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])  # fmt: skip
def test_what_is_written_has_the_umasks_mode(tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a" / "student") as temporary:
            (temporary / "deep").mkdir(parents=True, mode=0o700)
            # As safetensors does, since it writes and renames a file of its own.
            (temporary / "deep" / "model").touch(0o600)
            (temporary / "config").touch()
        with atomic_path(tmp_path / "a" / "table") as temporary:
            temporary.touch(0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*")}
    files = dict.fromkeys(("model", "config", "table"), file_mode)
    assert modes == files | dict.fromkeys(("student", "deep"), folder_mode)


def test_a_folder_does_not_replace_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "cache"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(OSError, match="not empty"), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert list_names(target) == ["old"]
    assert list_names(tmp_path) == ["cache"]


@pytest.mark.parametrize("name", ["x.json", "x.parquet"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, full_disk: Callable, name: str) -> None:
    target = tmp_path / name
    target.write_text("old")
    message = rf"{name}: cannot be written: File too large; the same command continues once that is mended$"
    with full_disk(10), pytest.raises(ValueError, match=message):
        if target.suffix == ".parquet":
            write_table(target, [{"text": "new"}], {})
        else:
            write_json(target, {"text": "new"})
    assert list_names(tmp_path) == [name] and target.read_text() == "old"


def test_a_full_disk_under_a_model_names_its_folder(tmp_path: Path, full_disk: Callable) -> None:
    weights, tokenizer = {"a": torch.zeros(1000)}, Tokenizer(BPE({str(n): n for n in range(1000)}, []))
    for save in (lambda folder: save_file(weights, folder / "w"), lambda folder: tokenizer.save(str(folder / "t"))):
        with (
            full_disk(1000),
            pytest.raises(ValueError, match="student: cannot be written: File too large; the same command continues"),
            atomic_path(tmp_path / "student") as folder,
        ):
            folder.mkdir()
            save(folder)
    assert list_names(tmp_path) == []
    # A corrupt file is another matter.
    with pytest.raises(SafetensorError), atomic_path(tmp_path / "student"):
        load(b"x" * 100)


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), atomic_path(tmp_path / "x"):
        (tmp_path / "missing").read_text()


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_killed_writer_leaves_no_half_file_and_does_not_disturb_the_next(tmp_path: Path, is_folder: bool) -> None:
    target = tmp_path / "x"
    if not is_folder:
        write_text(target, "old")
    code = f"""
import time
from pathlib import Path
from datamodules.files.atomic import atomic_path
with atomic_path(Path({str(target)!r})) as path:
    if {is_folder}:
        path.mkdir()
        path = path / "shard"
    with path.open("w") as file:
        file.write("half")
        file.flush()
        print("writing", flush=True)
        time.sleep(600)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    if is_folder:
        assert not target.exists()
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / "shard").write_text("new")
        assert (target / "shard").read_text() == "new"
    else:
        assert target.read_text() == "old"
        write_text(target, "new")
        assert target.read_text() == "new"


def test_two_writers_of_one_target_do_not_share_a_temporary_path(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert list_names(tmp_path) == ["x.txt"]


def test_a_read_only_folder_is_named_in_one_line(locked_folder: LockedFolder) -> None:
    locked_folder.lock()
    with pytest.raises(ValueError, match=r"locked/x\.txt: its folder is read-only; choose another place$"):
        write_text(locked_folder.path / "x.txt", "new")
    with pytest.raises(ValueError, match=r"locked/sub/x\.txt: its folder cannot be made: Permission denied$"):
        write_text(locked_folder.path / "sub" / "x.txt", "new")
    assert list_names(locked_folder.path) == []


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/x\.txt: its folder cannot be made: "):
        write_text(tmp_path / "file" / "x.txt", "new")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_records_round_trip(tmp_path: Path, ending: str) -> None:
    records = [{"id": f"q{number}", "text": "né\u2028\n", "n": number} for number in range(3)]
    path = tmp_path / f"x.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        write_jsonl(tmp_path / "x.jsonl", records)
        if ending == "jsonl.gz":
            path.write_bytes(gzip.compress((tmp_path / "x.jsonl").read_bytes()))
    assert [record for _, record in read_records(path)] == records
    wheres = [where for where, _ in read_records(path)]
    assert wheres == [f"{path}:row {n}" if ending == "parquet" else f"{path}:{n + 1}" for n in range(3)]


def test_blank_lines_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_records(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": \n', r"x\.jsonl:2: cannot be read as JSON: "),
        ('{"a": 1}\n[1]\n', r"x\.jsonl:2: expected a JSON object, found list$"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_records(path))


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
        list(read_records(path))


def test_a_truncated_download_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 9999)[:-20])
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz: cannot be read: "):
        list(read_records(path))
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl: cannot be read: "):
        list(read_records(tmp_path / "x.jsonl"))


def test_other_endings_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n")
    with pytest.raises(ValueError, match=r"x\.csv: not a \.jsonl, \.jsonl\.gz, \.json or \.parquet file"):
        list(read_records(tmp_path / "x.csv"))
    with pytest.raises(ValueError, match=r"input: no such file or folder: .*none\.jsonl"):
        list(read_records(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"cache: no such file or folder: "):
        require_file(tmp_path / "none", "cache")


def test_hash_path_depends_on_names_and_content_only(tmp_path: Path) -> None:
    for place in ("one", "elsewhere/two"):
        write_json(tmp_path / place / "config.json", {"a": 1})
        write_text(tmp_path / place / "deep" / "weights", "w")
    one, two = tmp_path / "one", tmp_path / "elsewhere" / "two"
    assert hash_path(one) == hash_path(two)
    assert hash_path(one / "config.json") == hash_path(two / "config.json") != hash_path(one)
    write_text(two / ".hidden", "not content")
    assert hash_path(one) == hash_path(two)
    write_text(two / "deep" / "weights", "v")
    assert hash_path(one) != hash_path(two)
    write_text(two / "deep" / "weights", "w")
    (two / "deep" / "weights").rename(two / "deep" / "other")
    assert hash_path(one) != hash_path(two)


def test_hash_json_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json(json.loads('{"b": [1, 2], "a": 1}'))
    assert len({hash_json(value) for value in ([1, 2], [2, 1], ["1", 2], {"a": 1}, {"a": "1"}, None, "é")}) == 7


OUTSIDE = ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\nb", "a\n", "a\0b", "-rf", ".hidden", "~", "a b", "$(x)"]
OUTSIDE.append("x" * 101)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^run\.id: .* would be the name of a file") as refused:
        check_name("run.id", name)
    assert "\n" not in str(refused.value)


@settings(derandomize=True)
@given(st.text(max_size=12))
def test_a_name_that_is_allowed_is_a_single_component_of_a_path(name: str) -> None:
    try:
        check_name("run.id", name)
    except ValueError:
        return
    path = Path("/root") / name
    assert path.parent == Path("/root") and path.name == name and path.resolve() == path
    assert shlex.quote(f"x{name}") == f"x{name}" or not name.isascii()


@pytest.mark.parametrize("name", ["b-rationale+logits-a-seed0", "0a1b2c3d4e", "_x", "Ünïcode", "lr=1e-3,kl=0.5", "a@b"])
def test_usual_names_are_allowed(name: str) -> None:
    check_name("run.id", name)


def test_a_folder_is_own_empty_or_refused(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "missing")
    folder = tmp_path / "folder"
    folder.mkdir()
    for left in (".lock", ".lock-0000", ".meta.json.tmp-0123abcd"):
        (folder / left).touch()
    # What a killed process of Kindred's may have left at most.
    refuse_foreign(folder)
    for content in ("{", "[]", "{}", '{"config_hash": "x"}'):
        (folder / "meta.json").write_text(content)
        with pytest.raises(ValueError, match=r"folder: holds meta\.json, but no meta\.json of Kindred's"):
            refuse_foreign(folder)
    write_json(folder / "meta.json", {"config_hash": "x", "config": {}})
    (folder / "thesis.txt").touch()
    refuse_foreign(folder)
    # A group of runs.
    refuse_foreign(tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(ValueError, match=r"holds \.git, but no meta"):
        refuse_foreign(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        refuse_foreign(folder / "thesis.txt")

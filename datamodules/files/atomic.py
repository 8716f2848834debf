"""Reading records with file and line in every error, and writing files so that a reader never sees half of one."""

import errno
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datamodules.files.parsing import parse_json, parse_json_object, read_json, reading_parquet
from datamodules.files.seals import check_table, seal_record, warn_unsealed
from datamodules.text.plain_text import describe_error, shorten


def sync_path(path: Path) -> None:
    """Forces a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# How safetensors and tokenizers, whose exceptions are no OSErrors, end what the system said of a full or failing disk.
_OF_RUST = re.compile(rf"\(os error ({'|'.join(map(str, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)))})\)$")


@contextmanager
def name_unwritten(path: Path) -> Iterator[None]:
    """Turns what the system says of a file that cannot be written, as on a full disk, into an error that names it.

    Raises:
        ValueError: Something within could not be written.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            # One that opens or renames has a name already; one without a number is a library's own.
            number = error.errno if error.filename is None else None
        else:
            number = int(found[1]) if (found := _OF_RUST.search(str(error))) else None
        if number is None:
            raise
        raise ValueError(
            f"{path}: cannot be written: {os.strerror(number)}; the same command continues once that is mended"
        ) from None


def give_modes(path: Path) -> None:
    """Gives a file, or a folder and all in it, at least the permissions that a new file beside it gets.

    Those are the umask's, or the folder's default ACL's. Some libraries write files that only their owner may read.
    """
    probe = path.with_name(f"{path.name}-mode")
    probe.touch(0o666, exist_ok=False)
    try:
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()
    for own in (*path.rglob("*"), path):
        # Who may read a folder may enter it.
        wanted = mode | (mode & 0o444) >> 2 if own.is_dir() else mode
        held = stat.S_IMODE(own.stat().st_mode)
        if held | wanted != held:
            own.chmod(held | wanted)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside `target`; on success it is synced and renamed onto it, else removed.

    It has the permissions of other new files, whatever library wrote it. Works for a file and for a folder that the
    caller makes at the yielded path. A file replaces an older one; a folder needs a target that is not there yet, or is
    an empty folder.

    Raises:
        ValueError: The target's folder cannot be made or written to, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{target}: its folder cannot be made: {error.strerror}") from None
    if not os.access(target.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"{target}: its folder is read-only; choose another place")
    # Random, not the process id: nodes of a cluster that share a file system may have equal ids.
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        with name_unwritten(target):
            yield temporary
            give_modes(temporary)
            for path in (*temporary.rglob("*"), temporary):
                sync_path(path)
            os.replace(temporary, target)
            sync_path(target.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def remove_torn(folder: Path, name: str = "*") -> None:
    """Removes what killed writers have left half written; call where no other process can be writing it.

    Args:
        folder: Where they wrote; it need not exist.
        name: Of the file or folder that was to be made, as a pattern; everything by default.
    """
    # Several processes of a checkpoint write into one folder, whose name has nothing random.
    for path in folder.glob(f".{name}.tmp*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_too_long(path: Path) -> bool:
    """Says whether a path, or a name in it with what is put around it for a moment, is longer than systems take."""
    return len(os.fsencode(path.absolute())) > 4000 or any(len(os.fsencode(part)) > 200 for part in path.parts)


def check_place(target: Path, ending: str | None = None) -> None:
    """Raises a ValueError if nothing can be written at `target`, or its name has another ending.

    It is no name, or above it is no writable folder.
    """
    # What is written beside it has a longer name.
    if target.name in ("", "..") or "\0" in str(target) or _is_too_long(target):
        raise ValueError(f"{shorten(str(target), 60)}: names no file that could be written; choose another place")
    # Some of what writes takes ~ for the home folder, checkpoints say, and some for a folder of this name.
    if (home := os.path.expanduser(target)) != str(target):
        raise ValueError(f"{target}: ~ stays as it is here; write {home}")
    # Once the folder before it is made, `..` leads where nothing was checked.
    if any(parent.name == ".." and not parent.exists() for parent in target.parents):
        raise ValueError(f"{target}: goes up from a folder that is not there; write the path without ..")
    place = next(parent for parent in target.absolute().parents if parent.exists())
    if not place.is_dir():
        raise ValueError(f"{target}: cannot be written, since {place} is no folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"{target}: cannot be written, since {place} is read-only; choose another place")
    if ending is not None and target.suffix != ending:
        raise ValueError(f"{target}: name an output that ends in {ending}")


_NAME = re.compile(r"\w[\w.+=@,-]{0,99}")


def check_name(what: str, name: str) -> None:
    """Raises a ValueError if a name that becomes part of a path could lead elsewhere, or is no name for a file."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what}: {name!r} would be the name of a file: use 1 to 100 letters, digits and any of _ . + = @ , - (not "
            "first, but for _)"
        )


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Returns Kindred's own `meta.json` of a folder, None if there is none or it is another program's."""
    try:
        meta = read_json(folder / "meta.json")
    except (FileNotFoundError, ValueError):
        return None
    return meta if isinstance(meta, dict) and "config_hash" in meta and isinstance(meta.get("config"), dict) else None


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds something, but was not made by Kindred.

    Raises:
        ValueError: It has no `meta.json` of Kindred's, nor are its entries folders that have; or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is no folder; choose another place")
    if read_meta(folder) is not None or not folder.exists():
        return
    # What a killed process may have left, before anything else, begins with a dot.
    held = sorted(path for path in folder.iterdir() if not re.match(r"\.lock|\..*\.tmp", path.name))
    if strange := [path for path in held if not path.is_dir() or read_meta(path) is None]:
        raise ValueError(
            f"{folder}: holds {strange[0].name}, but no meta.json of Kindred's; it is not touched: choose another place"
        )


def write_text(target: Path, text: str) -> None:
    """Writes a small text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_sealed(target: Path, value: dict[str, Any]) -> None:
    """Writes an object as indented JSON with a hash of all it says, atomically."""
    write_json(target, seal_record(value))


def write_jsonl(target: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line, atomically."""
    write_text(target, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def hash_text(text: str | bytes) -> str:
    """Returns the first 16 hex digits of the sha256 of a text, or of the bytes of one."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()[:16]


def hash_json(value: Any) -> str:
    """Returns the first 16 hex digits of the sha256 of the value's canonical JSON."""
    return hash_text(json.dumps(value, sort_keys=True, ensure_ascii=False))


def hash_path(path: Path) -> str:
    """Returns the sha256 of a file, or of the names and hashes of a folder's files; where it lies plays no part."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return hash_json([[str(file.relative_to(path)), hash_path(file)] for file in files])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_language(source: str) -> tuple[str, str | None]:
    """Returns the file of a source `FILE:LANGUAGE` and the language's tag; of another source itself, and None."""
    path, _, language = source.rpartition(":")
    return (path, language) if Path(path).is_file() else (source, None)


def hash_source(source: str) -> str | None:
    """Returns the hash of what a setting names, None where no file is there: for a hub's name, or what is not yet made.

    A logit cache's manifest, which has its shards' hashes, stands for its folder.
    """
    own, language = part_language(source)
    path = Path(own)
    if path.is_dir():
        path = path / "manifest.json"
    return "".join((hash_path(path), f":{language}" if language else "")) if path.is_file() else None


def require_file(path: Path, what: str) -> Path:
    """Returns `path`, or raises a ValueError that names it if nothing is there."""
    if not path.exists():
        raise ValueError(f"{what}: no such file or folder: {path}")
    return path


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a jsonl file that is appended to, without a last line that a kill tore.

    Raises:
        ValueError: Another line is no JSON.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        records.append(parse_json_object(line, f"{path}:{number}"))
    return records


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`file:line`, `file:row` or `file:record`, record) from a jsonl, jsonl.gz, json or parquet file.

    A .json file is a list of objects, or has one on each line, as a jsonl file does. `FILE:LANGUAGE` is the records of
    a file that have this `language`.

    Raises:
        ValueError: The file is missing, damaged or has another ending, or a line is no JSON object.
    """
    own, language = part_language(str(path))
    path = require_file(Path(own), "input")
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".parquet")):
        raise ValueError(f"{path}: not a .jsonl, .jsonl.gz, .json or .parquet file")
    try:
        read = {".parquet": _read_rows, ".json": _read_list}.get(path.suffix, _read_lines)
        for where, record in read(path):
            if language is None or record.get("language") == language:
                yield where, record
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {describe_error(error)}") from None


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    is_sealed, row = check_table(path), 0
    with reading_parquet(path), pq.ParquetFile(path) as file:
        if not is_sealed:
            warn_unsealed(path, file.schema_arrow)
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                yield f"{path}:row {row}", record
                row += 1


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    open_text = gzip.open if path.suffix == ".gz" else open
    # Some programs begin a file with a byte order mark.
    with open_text(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield f"{path}:{number}", parse_json_object(line, f"{path}:{number}")


def _read_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _read_lines(path)
        return
    for number, record in enumerate(parse_json(text, path), start=1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}:record {number}: expected a JSON object, found {type(record).__name__}")
        yield f"{path}:record {number}", record

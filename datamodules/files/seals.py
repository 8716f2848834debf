"""Seals: hashes of an artefact's content that it carries and that every reader checks.

A flipped byte may leave a file that can be read and says something else. A table carries the sha256 of its bytes; an
exported student's folder those of its files, in `kindred.json`; a JSON object that of all it says; a run's DONE those
of the run's files. What others wrote, or Kindred before it had seals, carries none and is read as it is, with a warning
if it is a table of ours. `python -m scripts.seal` seals what was edited on purpose.
"""

import hashlib
import json
import mmap
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamodules.files.parsing import parse_json

METADATA_KEY = b"kindred"
MANIFEST = "kindred.json"
DONE = "DONE"
# What an artefact that was sealed again says of that.
PROVENANCE = "sealed_again"
_PREFIX = "sha256:"
_MARK = b"kindred-seal-sha256:"


def hash_value(value: Any) -> str:
    """Returns the sha256 of a value's canonical JSON, with what it is written before it."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return _PREFIX + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def refuse(what: str, path: Path, target: Path | None = None) -> ValueError:
    """Returns the error for content that is not what was sealed."""
    return ValueError(
        f"{path}: {what} not what was written: it is damaged; make it anew, or, if it was edited on purpose, "
        f"seal it with: python -m scripts.seal {target or path}"
    )


def seal_table(path: Path) -> None:
    """Puts a hash of all its bytes into a parquet file that has none: before the footer, where readers skip it.

    Whoever writes the table anew, with whatever tool, so leaves the seal out.
    """
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    seal = _MARK + hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:footer] + seal + content[footer:])


def check_table(path: Path) -> bool:
    """Returns whether a parquet file has a seal; raises a ValueError if the file is not what was sealed."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if (start := content.rfind(_MARK)) < 0:
            return False
        end = start + len(_MARK) + 64
        with memoryview(content) as view:
            digest = hashlib.sha256(view[:start])
            digest.update(view[end:])
        if content[end - 64 : end] != digest.hexdigest().encode():
            raise refuse("it is", path)
    return True


def warn_unsealed(path: Path, schema: pa.Schema) -> None:
    """Warns of a table that Kindred made and that has no seal: made by an earlier version, or edited since."""
    if METADATA_KEY in (schema.metadata or {}):
        warnings.warn(f"{path}: is not sealed, so damage would not be found (python -m scripts.seal)", stacklevel=3)


def seal_record(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with a hash of all it says."""
    own = {key: value for key, value in record.items() if key != "seal"}
    return {**own, "seal": hash_value(own)}


def is_sealed(record: dict[str, Any]) -> bool:
    """Says whether a JSON object has a seal, or the hash of one whose key is damaged."""
    return "seal" in record or any(isinstance(value, str) and value.startswith(_PREFIX) for value in record.values())


def open_record(record: Any, path: Path) -> dict[str, Any]:
    """Returns a JSON object without its seal; one that has none as it is.

    Raises:
        ValueError: It is no object, or not what was sealed.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{path}: must hold a JSON object, found {type(record).__name__}")
    own = {key: value for key, value in record.items() if key != "seal"}
    if is_sealed(record) and record.get("seal") != hash_value(own):
        raise refuse("it is", path)
    return own


def read_sealed(path: Path) -> dict[str, Any]:
    """Returns what a JSON file says, without its seal; nothing of an empty file, which marks that something is there.

    Raises:
        ValueError: It cannot be read, or is not what was sealed.
    """
    text = path.read_bytes()
    if not text.strip():
        return {}
    return open_record(parse_json(text, path), path)


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return _PREFIX + hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, str]:
    """Returns the sha256 of each file of a folder, by its name in it; its manifest, card and hidden files apart.

    A card (README.md) is for readers, who may write more into it.
    """
    apart = (folder / MANIFEST, folder / "README.md")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
    names = [file.relative_to(folder) for file in files]
    return {str(name): hash_file(folder / name) for name in names if not any(p.startswith(".") for p in name.parts)}


def hash_run_files(run: Path) -> dict[str, str]:
    """Returns the sha256 of what others read of a run, by name in its folder."""
    names = ("config.yaml", "meta.json", "axes.json", "metrics.jsonl", f"student/{MANIFEST}")
    return {name: hash_file(run / name) for name in names if (run / name).is_file()}


def check_run_file(run: Path, name: str) -> None:
    """Raises a ValueError if a file of a finished run is missing or not the one that its DONE knows.

    Args:
        run: A run's folder; nothing is known of the files of one that is not done.
        name: Of the file in it.
    """
    known = read_sealed(run / DONE).get("sha256", {}) if (run / DONE).is_file() else {}
    if name not in known:
        return
    if not (run / name).is_file():
        raise ValueError(f"{run / name}: is missing, though the run is done; take the whole folder")
    if hash_file(run / name) != known[name]:
        raise refuse("it is", run / name)


def check_folder(folder: Path, weights: bool = True) -> None:
    """Raises a ValueError if a file of a sealed folder is missing or not what was sealed; others may have been added.

    Args:
        folder: A model's; without a manifest nothing is known of it.
        weights: Also read the files of weights, which takes a while.
    """
    check_run_file(folder.parent, f"{folder.name}/{MANIFEST}")
    if not (folder / MANIFEST).is_file():
        return
    files = read_sealed(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise refuse("it is", folder / MANIFEST, folder)
    for name, sha256 in files.items():
        if not weights and name.endswith(".safetensors"):
            continue
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name}: is missing, though {MANIFEST} beside it lists it; take the whole folder"
            )
        if hash_file(folder / name) != sha256:
            raise refuse("it is", folder / name, folder)

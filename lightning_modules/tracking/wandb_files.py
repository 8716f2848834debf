"""W&B's offline files: what is in one, and the upload of those that are pending."""

import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wandb.proto import wandb_internal_pb2 as protocol

_BLOCK = 32768
_FULL, _LAST = 1, 4
UPLOAD = (sys.executable, "-m", "wandb", "sync", "--yes")


def read_records(path: Path) -> Iterator[Any]:
    """Yields a file's `wandb_internal.Record` messages; a killed run's file may end within one, which is left out.

    The file is a LevelDB log: a header, then chunks of (checksum, length, kind), none of which crosses a block's end.
    """
    data = path.read_bytes()
    if not b":W&B\xe1\xbe\0".startswith(data[:7]):
        raise ValueError(f"{path}: not a file of W&B")
    place, message = 7, b""
    while place + 7 <= len(data):
        if (left := _BLOCK - place % _BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += 7 + length
        if place > len(data):
            return
        message += data[place - length : place]
        if kind in (_FULL, _LAST):
            record = protocol.Record()  # type: ignore[attr-defined]
            record.ParseFromString(message)
            yield record
            message = b""


@dataclass(frozen=True)
class Fragment:
    """One attempt of a run, as it lies on the disk.

    Attributes:
        folder: `.../wandb/offline-run-TIME-ID`.
        state: `synced`; `empty`, killed before W&B wrote anything; `open`, the last attempt of a run that has not
            ended, which may still be written to; or `pending`.
    """

    folder: Path
    state: Literal["synced", "empty", "open", "pending"]


def find_fragments(root: Path) -> list[Fragment]:
    """Returns the fragments below a folder in the order in which they began.

    Raises:
        ValueError: There is no such folder, or there are none.
    """
    folders = sorted(root.rglob("offline-run-*"), key=lambda folder: (folder.name, folder))
    if not folders:
        raise ValueError(f"{root}: holds no offline runs of W&B; name the folder that the runs are in")
    attempts = defaultdict(list)
    for folder in folders:
        attempts[folder.parent, _get_run_id(folder)].append(folder)
    last = {folders[-1] for folders in attempts.values()}
    return [Fragment(folder, _find_state(folder, folder in last)) for folder in folders]


def _get_run_id(folder: Path) -> str:
    return folder.name.removeprefix("offline-run-").split("-", 1)[1]


def _find_state(folder: Path, is_last: bool) -> Literal["synced", "empty", "open", "pending"]:
    file = folder / f"run-{_get_run_id(folder)}.wandb"
    # W&B's own mark, so that `wandb sync` and this command know of each other.
    if file.with_suffix(".wandb.synced").exists():
        return "synced"
    if not file.exists() or not (kinds := {record.WhichOneof("record_type") for record in read_records(file)}):
        return "empty"
    return "open" if is_last and "exit" not in kinds else "pending"


def sync(root: Path, dry_run: bool, include_open: bool, command: tuple[str, ...] = UPLOAD) -> str:
    """Uploads what is pending below a folder, each fragment once, and returns what became of them.

    W&B itself keeps the fragments of one run in order.

    Args:
        root: Where the runs are.
        dry_run: Upload nothing.
        include_open: Also what may still be written to; for runs that were killed and will not continue.
        command: Uploads the folders that are appended to it.

    Raises:
        ValueError: The upload failed.
    """
    fragments = find_fragments(root)
    wanted = {"pending", "open"} if include_open else {"pending"}
    pending = [fragment.folder for fragment in fragments if fragment.state in wanted]
    lines = [f"{fragment.state:8} {fragment.folder}" for fragment in fragments]
    if any(fragment.state == "open" for fragment in fragments) and not include_open:
        lines.append("open: may still be written to; --include-open uploads these, too")
    if not dry_run and pending and (code := subprocess.run([*command, *map(str, pending)]).returncode):
        raise ValueError(
            f"wandb sync ended with exit code {code}; `wandb login` if this is not done, then the same command again"
        )
    return "\n".join([*lines, f"{len(pending)} {'to upload' if dry_run else 'uploaded'}"])

"""One process at a time writes an output, also where several machines share its file system.

The lock is POSIX's (`lockf`): it ends with its process, however that ends, and no child inherits it. It holds on local
file systems, on NFS 4, on NFS 3 with its lock service, and on Lustre mounted with `flock`; mounted with `localflock` it
holds within one machine only. Where a file system has no locks, a warning says so, and nothing keeps two writers apart;
what they then merge is refused unless each item is there once.
"""

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from datamodules.files.atomic import name_unwritten

# How often a folder that is being made is gone again, before it is no other process's doing.
_MOST_MISSED = 100
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def take(file: TextIO, wait: bool = False) -> bool:
    """Locks an open file for this process until it is closed; returns whether no other process has it.

    Args:
        file: Opened for writing.
        wait: Until no other process has it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # some systems say the one, some the other
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"{file.name}: its file system has no locks; let no other process write here", stacklevel=2)
    return True


def _is_at(path: Path, file: TextIO) -> bool:
    """Says whether an open file is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def hold(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Keeps an output for this process; ends with the process, however it ends.

    Args:
        path: The lock's file, beside the output; made with its folder, and removed at the end, with the folders that
            were made for it and are empty.
        what: Names the output, and says what another process does to it, for the message.
        wait: Until the other process has ended, in place of an error.

    Raises:
        ValueError: Another process has it, or the disk is full.
    """
    made, missed = list[Path](), 0
    while True:
        made += [folder for folder in path.parents if not folder.exists() and folder not in made]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except FileNotFoundError:
            missed += 1
            if missed == _MOST_MISSED:
                raise
            continue  # who had it has removed the folder that was made for it meanwhile
        with file:
            if not take(file, wait):
                file.seek(0)
                raise ValueError(f"{what} ({file.read().strip()}); wait for it, or end it")
            if not _is_at(path, file):
                continue  # who had it has removed it meanwhile
            try:
                with name_unwritten(path):
                    # Not through the buffer, which closing the file would try to write again.
                    os.ftruncate(file.fileno(), 0)
                    os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
                yield
            finally:
                # Whoever removed the folder let others make one of their own there.
                if _is_at(path, file):
                    path.unlink()
                for folder in made:
                    with suppress(OSError):
                        folder.rmdir()
            return

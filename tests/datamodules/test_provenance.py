import os
import subprocess
from pathlib import Path

import pytest

from datamodules import provenance
from datamodules.provenance import find_git_commit

AUTHOR = ["-c", "user.name=a", "-c", "user.email=a@example.org"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    (tmp_path / "code.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "code.py"], [*AUTHOR, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_commit_is_named_and_an_edit_is_seen(repository: Path) -> None:
    commit = find_git_commit()
    assert len(commit) == 40
    (repository / "code.py").write_text("x = 2\n")
    assert find_git_commit() == f"{commit}+dirty"
    (repository / "other.py").write_text("")
    subprocess.run(["git", "checkout", "-q", "code.py"], cwd=repository, check=True)
    assert find_git_commit() == commit


def test_the_users_index_is_not_locked_since_a_kill_would_leave_it_so(repository: Path) -> None:
    index = repository / ".git" / "index"
    # Git would note the new times in the index, under its lock.
    os.utime(repository / "code.py", (1e9, 1e9))
    before = index.read_bytes()
    find_git_commit()
    assert index.read_bytes() == before

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REASONS, follow, is_slow, read_blocks

WITH_COMMANDS = [page for page in PAGES if read_blocks(page)]


def name(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * is_slow(page)) for page in WITH_COMMANDS], ids=name
)
def test_a_pages_commands_run_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    follow(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_not_run_says_why(page: Path) -> None:
    marks = re.findall(r"<!-- not run: (.+) -->", page.read_text())
    reasons = [block.reason for block in read_blocks(page) if block.reason]
    # A mark above anything else than a block would be forgotten there.
    assert marks == reasons
    assert set(reasons) <= REASONS


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_commands_hide_in_another_kind_of_block(page: Path) -> None:
    fences = re.findall(r"^\s*```(\S+)", page.read_text(), re.MULTILINE)
    assert not {"sh", "shell", "console", "zsh"} & set(fences)

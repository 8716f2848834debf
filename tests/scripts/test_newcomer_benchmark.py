"""Tests of the newcomer's benchmark: the commands of a clone, as the pages have them, print what they are to."""

import json
from pathlib import Path

import pytest

from scripts.benchmark import main
from scripts.benchmarks.newcomer import run_block
from scripts.benchmarks.newcomer_steps import STEPS


def test_a_command_that_ends_or_prints_otherwise_is_an_error(tmp_path: Path) -> None:
    assert run_block("echo found; exit 2", tmp_path, 2, ("found",)) > 0
    with pytest.raises(RuntimeError, match="ended with 0, not 2"):
        run_block("echo found", tmp_path, 2)
    with pytest.raises(RuntimeError, match="and 'lost'"):
        run_block("echo found", tmp_path, prints=("found", "lost"))


@pytest.mark.slow
def test_what_a_newcomer_asks_is_answered(capsys: pytest.CaptureFixture) -> None:
    main(["newcomer", "--smoke", "--json"])
    found = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {f"newcomer_{step.name}" for step in STEPS} < set(found)
    assert found["newcomer_commands"]["value"] <= 5

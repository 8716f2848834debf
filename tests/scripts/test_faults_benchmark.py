"""Tests of the benchmark of kills, races, flipped bits and full disks."""

import json
import os
import subprocess
import sys

import pytest

from scripts.benchmark import main
from scripts.benchmarks.reliability.bench import ROOT


@pytest.mark.slow
def test_a_round_and_five_flips_of_each_leave_nothing_wrong(tmp_path):
    # In a process of its own, since it forks, which a process with threads does not survive unharmed.
    command = [
        sys.executable,
        "-m",
        "scripts.benchmark",
        "faults",
        "--smoke",
        "--json",
        f"--page={tmp_path / 'page.md'}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    counts = [record for record in measured if record["baseline"] == 0]
    assert len(counts) == 30 and not [record for record in counts if record["value"]], done.stderr
    assert all(f"| {record['name']} | 0 |" in (tmp_path / "page.md").read_text() for record in counts)


def test_help_after_a_name_is_the_benchmarks_own(capsys):
    with pytest.raises(SystemExit):
        main(["faults", "--help"])
    assert "--smoke" in capsys.readouterr().out

"""Tests of the benchmark of what only a GPU can show: every part, at toy sizes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from losses.kernel_trial import can_have_kernels
from scripts.benchmarks import gpu
from scripts.benchmarks.device.exactness import measure_exactness
from scripts.benchmarks.device.page import write_page
from scripts.benchmarks.device.parts import PARTS, Failure, run_part
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.measure import Measurement

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_runs_at_toy_sizes(tmp_path):
    # In a process of its own, since its parts fork.
    command = [sys.executable, "-m", "scripts.benchmark", "gpu", "--cpu", "--json", f"--page={tmp_path / 'gpu.md'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert {f"part {part}" for part in PARTS} <= set(measured)
    assert measured["gpu_tests_failed"]["value"] == 0
    assert measured["generate_equal static"]["value"] == measured["generate_equal compiled"]["value"] == 1
    assert max(measured[f"ranks {strategy}"]["value"] for strategy in ("ddp", "fsdp2")) < 1e-3
    assert (tmp_path / "gpu.jsonl").read_text().splitlines() == done.stdout.splitlines()
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} |" in page for name in measured) and "no number on it means anything" in page


@pytest.mark.slow
def test_every_loss_is_as_exact_as_on_logits_that_exist():
    measured = list(measure_exactness(Place("cpu")))
    names = {one.name for one in measured}
    by_kernels = {name for name in names if name.endswith("triton")}
    # Of a whole distribution's eight divergences the kernels have three, at two temperatures, in two precisions.
    assert len(names) == len(measured) and len(names - by_kernels) == 70
    assert len(by_kernels) == (70 - 5 * 2 * 2) * can_have_kernels()
    for one in measured:
        assert one.value < (1e-5 if "float32" in one.name else 2e-2), one


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_is_said():
    [failure] = run_part("exactness", Place("nowhere"))
    assert isinstance(failure, Failure) and "nowhere" in failure.reason
    [late] = run_part("exactness", Place("cpu"), patience=0.0)
    assert late == Failure("exactness", "not done after 0 s")


def test_the_page_names_what_failed(tmp_path):
    measured = {"head": [Measurement.against("head ce", 3.0, 2.0, "s")], "exactness": []}
    write_page(tmp_path / "gpu.md", Place("cpu"), measured, [Failure("exactness", "not done after 0 s")])
    page = (tmp_path / "gpu.md").read_text()
    assert "- **exactness failed**: not done after 0 s" in page and "| head ce | 3 | s | 2 | 1.5 |" in page
    assert json.loads((tmp_path / "gpu.jsonl").read_text())["ratio"] == 1.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_so():
    with pytest.raises(ValueError, match="there is no CUDA GPU here; --cpu runs every part"):
        list(gpu.run([]))

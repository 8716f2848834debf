"""Test of the benchmark of rows in another vocabulary, on the microworld."""

import json

import pytest

from scripts.benchmark import main


@pytest.mark.slow
def test_alignment_benchmark_measures_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    main(["alignment", "--json", "--smoke"])
    lines = capsys.readouterr().out.splitlines()
    measured = {
        record["name"]: record["value"] for record in map(json.loads, (line for line in lines if line[0] == "{"))
    }
    pairs = [measured[f"alignment_rows_per_s a-teacher b {kind}"] for kind in ("strict", "bytes")]
    assert measured["alignment_rows_per_s"] == min(pairs) > 0
    # Nearly all of the small vocabulary is among the top 64.
    steps = [measured[f"cross_step_vs_same_step {kind}"] for kind in ("strict", "bytes", "chunks")]
    assert measured["cross_step_vs_same_step"] == max(steps) > 0
    assert 0 <= measured["alignment_scatter_kl"] == measured["alignment_scatter_kl a-teacher b"] < 1e-5

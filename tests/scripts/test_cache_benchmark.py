"""Test of the logit cache's benchmark, on the microworld."""

import json
import re

import pytest

from scripts.benchmark import main


@pytest.mark.slow
def test_cache_benchmark_measures_what_it_says(capsys, tmp_path):
    main(["cache", "--json", "--questions=8", f"--png={tmp_path / 'curve.png'}"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    measured = {record["name"]: record for record in map(json.loads, (line for line in lines if line[0] == "{"))}
    assert measured["reader_vs_list_column"]["ratio"] > 0
    assert 200 < measured["bytes_per_token_top64_v151936"]["value"] < 220
    assert 0 < measured["decode_kl_mean"]["value"] < 2e-5
    assert measured["capture_overhead"]["ratio"] > 0
    assert re.search(r"\n\| top_k 64 +\|", printed.err) and not any(line.startswith("|") for line in lines)
    assert (tmp_path / "curve.png").stat().st_size > 10_000

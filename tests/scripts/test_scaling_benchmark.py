"""Test of the benchmark of saves and preemptions, on the microworld's student."""

import json

import pytest

from scripts.benchmark import main


@pytest.mark.slow
def test_scaling_benchmark_measures_what_it_says(capsys):
    main(["scaling", "--json", "--steps=2", "--rounds=1", "--tokens-per-batch=512"])
    lines = capsys.readouterr().out.splitlines()
    measured = {record["name"]: record for record in map(json.loads, (line for line in lines if line[0] == "{"))}
    assert measured["checkpoint_overhead"]["ratio"] > 0
    assert measured["preempt_latency_s"]["value"] > 0
    assert 0 < measured["scaling_efficiency_2"]["ratio"] < 2

"""Tests of the benchmark of on-policy rounds: what it says of its trainings, and that it runs and goes on."""

import json
from pathlib import Path

import pytest

from scripts.benchmark import main
from scripts.benchmarks.rounds.staleness import measure


def make_record(rounds: int, seed: int, correct: list[int], staleness: float) -> dict:
    return {"rounds": rounds, "seed": seed, "correct": correct, "staleness": staleness, "tokens": 1000.0 * rounds}


def test_rounds_are_compared_with_the_most_question_by_question() -> None:
    records = [make_record(1, 0, [1, 0, 0, 0], 0.2), make_record(1, 1, [1, 1, 0, 0], 0.4)]
    records += [make_record(4, 0, [1, 1, 1, 0], 0.1), make_record(4, 1, [1, 1, 1, 1], 0.1)]
    found = {line.name: line for line in measure(records)}
    assert (found["staleness_accuracy rounds=1"].value, found["staleness_accuracy rounds=1"].baseline) == (0.375, 0.875)
    assert (found["staleness_tokens rounds=1"].value, found["staleness_tokens rounds=1"].ratio) == (1000, 0.25)
    assert found["staleness_cost rounds=1"].value == -0.5 and "staleness_cost rounds=4" not in found
    assert found["staleness_cost rounds=1 low"].value < -0.5 < found["staleness_cost rounds=1 high"].value
    assert found["staleness_kl rounds=1"].value == pytest.approx(0.3)


@pytest.mark.slow
def test_it_trains_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl", reason="needs the extra `peers`")
    main(["on_policy", "--smoke", "--json", f"--folder={tmp_path}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    first = {line["name"]: line["value"] for line in lines}
    assert first.keys() >= {"on_policy", "on_policy_vs_trl", "on_policy_vs_trl_cpu", "on_policy_vs_trl_memory"}
    assert first.keys() >= {"staleness_accuracy rounds=1 low", "staleness_cost rounds=1", "staleness_kl rounds=2"}
    # A round of one step learns from what the student as it is has written.
    assert abs(first["staleness_kl rounds=2"]) < 1e-6 < first["staleness_kl rounds=1"]
    cells = tmp_path / "cells.jsonl"
    whole = cells.read_text()
    cells.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    main(["on_policy", "--smoke", "--part=staleness", f"--folder={tmp_path}"])
    assert cells.read_text() == whole
    with pytest.raises(ValueError, match=r"cells\.jsonl: has trainings of another scale"):
        main(["on_policy", "--part=staleness", f"--folder={tmp_path}"])

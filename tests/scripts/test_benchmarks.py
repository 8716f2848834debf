"""Every benchmark runs by its name alone; here at the toy sizes of `--smoke`, where no number means anything."""

import json
import time
from pathlib import Path

import pytest

from scripts.benchmark import NAMES, main
from scripts.benchmarks.measure import Costs, compare, find_doubts
from scripts.benchmarks.records import DOCS, Recorder, format_page
from scripts.benchmarks.turns import Turn, race_apart

# These have tests of their own; what `newcomer` runs is tested with the pages.
ELSEWHERE = {"alignment", "faults", "gpu", "newcomer", "on_policy", "tokenizers"}
LINES = {
    "annotate": {"annotate_vs_naive", "annotate_vs_naive_median", "annotate_vs_naive_cpu", "annotate_equal_texts"},
    "cache": {"reader_tokens_per_s", "reader_vs_list_column_cpu", "capture_overhead", "capture_overhead_cpu"},
    "calibration": {"parts of 4 families: tokenizer", "the size that an accuracy takes"},
    "data": {"padding_share", "data_vs_student", "kd_step_vs_sft_step", "kd_step_vs_sft_step_cpu"},
    "diagnose": {"diagnose_vs_one_by_one", "diagnose_vs_one_by_one_cpu", "diagnose_greatest_difference"},
    "evaluate": {"evaluate_vs_naive", "evaluate_vs_naive_cpu", "evaluate_likelihood_difference"},
    "export": {
        "gguf_tokens_equal",
        "q8_kl",
        "q4km_kl_calibrated_vs_plain_seed0",
        "llama_vs_transformers_tokens_per_s_cpu",
    },
    "losses": {"head_memory_vs_dense", "head_time_vs_dense", "head_time_vs_dense_cpu", "head_time_vs_ce_only"},
    "scaling": {"checkpoint_overhead", "preempt_latency_s", "scaling_efficiency_2"},
    "training": {"tiny_sft", "tiny_kd_dense", "tiny_kd_cached_cpu"},
}
# What does not depend on the machine: the same work was done.
EXACT = {"annotate_equal_texts": 1, "evaluate_equal_texts": 1, "gguf_tokens_equal": 1, "gguf_f16_greedy_equal": 1}
SMALL = {"evaluate_likelihood_difference": 1e-3, "diagnose_greatest_difference": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - ELSEWHERE))
def test_a_benchmark_runs_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--smoke", "--json"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    measured = {record["name"]: record for record in map(json.loads, lines)}
    assert measured.keys() >= LINES[name]
    for record in measured.values():
        assert list(record) == ["name", "value", "unit", "baseline", "ratio"]
        if record["ratio"] is not None:
            assert record["ratio"] == record["value"] / record["baseline"]
    assert all(measured[key]["value"] == value for key, value in EXACT.items() if key in measured)
    assert all(0 <= measured[key]["value"] < bound for key, bound in SMALL.items() if key in measured)


def test_a_ratio_that_other_work_disturbed_is_doubted(tmp_path: Path) -> None:
    ours, baseline = Costs(), Costs()
    for wall, cpu in ((1.0, 1.0), (3.0, 1.1), (9.0, 1.2)):
        ours.add(wall, cpu)
        baseline.add(2.0, 2.0)
    quiet = list(compare("quiet", ours, baseline))
    assert [(one.name, one.ratio) for one in quiet] == [("quiet", 0.5), ("quiet_median", 1.5), ("quiet_cpu", 0.5)]
    assert find_doubts(quiet).keys() == {"quiet_median"}
    disturbed = list(compare("disturbed", ours.leave_out(1), baseline.leave_out(1)))
    assert find_doubts([*quiet, *disturbed]).keys() == {"quiet_median", "disturbed", "disturbed_median"}
    recorder = Recorder.start("losses", ["--repeats=3"])
    recorder.measured += [*quiet, *disturbed]
    recorder.write(tmp_path)
    main(["page", f"--records={tmp_path}", f"--output={tmp_path / 'page.md'}"])
    page = (tmp_path / "page.md").read_text()
    assert "`python -m scripts.benchmark losses --repeats=3`" in page
    [quiet_line, disturbed_line] = [
        line for line in page.split("\n") if line.startswith(("| quiet |", "| disturbed |"))
    ]
    assert quiet_line == "| quiet | 1 | s | 2 | 0.5 |  |" and "1.500 by the wall's time, 0.550" in disturbed_line


def test_amounts_a_second_are_compared_where_calls_differ_in_size() -> None:
    costs = Costs()
    costs.add(2.0, 1.0, amount=10)
    costs.add(1.0, 1.0, amount=20)
    wall, median, cpu = compare("speed", costs, costs, "tokens/s")
    assert (wall.value, median.value, cpu.value) == (20, 12.5, 20)


def test_the_page_is_of_what_is_recorded() -> None:
    """`python -m scripts.benchmark page` writes it anew."""
    assert (DOCS / "benchmarks.md").read_text() == format_page(DOCS / "benchmarks")


def take_turns(turn: Turn, log: Path, name: str, number: int) -> str:
    """Notes when it is at work; a number below 0 fails."""
    if number < 0:
        raise ValueError("as told")
    for position in range(number):
        turn.start()
        with log.open("a") as file:
            file.write(f"{name} begins\n")
        time.sleep(0.01)
        with log.open("a") as file:
            file.write(f"{name} ends\n")
        turn.stop(position)
    return name


def test_processes_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = race_apart({"a": (take_turns, log, "a", 3), "b": (take_turns, log, "b", 2)})
    assert {name: (costs.amounts, value) for name, (costs, value) in found.items()} == {
        "a": ([0, 1, 2], "a"),
        "b": ([0, 1], "b"),
    }
    assert all(second >= 0.01 for costs, _ in found.values() for second in costs.wall)
    assert log.read_text().split("\n")[:-1] == [f"{name} {what}" for name in "ababa" for what in ("begins", "ends")]
    with pytest.raises(RuntimeError, match="the process that measured a failed"):
        race_apart({"a": (take_turns, log, "a", -1)})

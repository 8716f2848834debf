"""The evaluation benchmark compares two roads to the same answers."""

from scripts.benchmarks.evaluate import run


def test_both_roads_answer_alike(bench):
    options = ["--smollm2=models/student", "--questions=colours_train.jsonl", "--max-new-tokens=6", "--repeats=1"]
    speed, equal, difference = run(options)
    assert speed.name == "evaluate_vs_naive" and speed.ratio == speed.value / speed.baseline
    assert equal.value == 1 and difference.value < 1e-3

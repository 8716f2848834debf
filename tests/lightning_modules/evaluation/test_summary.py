"""Tests of the six lines that an evaluation prints."""

from typing import Any

import pytest

from lightning_modules.evaluation.summary import find_chance, format_summary, summarize


def record(number: int, right: bool, found: bool = True, options: int = 4, **changes: Any) -> dict:
    answer = "A" if right else "B" if found else None
    own = {
        "task": "t", "split": "test", "question_id": f"q{number}", "group": None, "gold": "A", "completion": "So A.",
        "finish_reason": "stop", "exact_match": False, "rationale_length": 0, "rationale_answer": None,
        "sentence_answer": answer, "option_log_likelihoods": [-1.0 - n for n in range(options)], "samples": None,
        "num_prompt_tokens": 3, "num_completion_tokens": 3, "num_votes": None, "references": None,
    }  # fmt: skip
    own |= {f"answer_{name}": answer for name in ("neutral", "paper")}
    own |= {f"correct_{name}": right for name in ("neutral", "paper", "likelihood", "likelihood_norm")}
    return own | {"correct_likelihood_bytes": right} | changes


def test_six_lines_say_what_matters() -> None:
    lines = dict(summarize([record(n, right=n < 8) for n in range(10)]))
    assert list(lines) == ["accuracy", "chance", "likeliest option", "extraction rate", "truncated", "cite"]
    assert lines["accuracy"] == "80.0% [49.0%, 94.3%] (n=10)"
    assert lines["chance"] == "25.0%, a guess among the options"
    assert lines["extraction rate"].startswith("100.0% [") and lines["truncated"].startswith("0.0% [")
    assert lines["cite"] == "neutral-6, which reads every style alike"


def test_an_accuracy_that_a_guess_explains_is_told() -> None:
    assert "not told from it" in dict(summarize([record(n, right=n < 3) for n in range(10)]))["chance"]


def test_chance_is_the_mean_over_the_questions_options() -> None:
    assert find_chance([record(0, True, options=2), record(1, True, options=4)]) == pytest.approx(0.375)
    assert find_chance([record(0, True, option_log_likelihoods=None)]) is None
    assert find_chance([record(0, True, gold=None)]) is None


def test_few_answers_found_and_many_cut_off_are_told() -> None:
    records = [record(n, right=False, found=n < 4, finish_reason="length") for n in range(10)]
    lines = dict(summarize(records))
    assert "60.0% state no answer that it finds" in lines["cite"]
    assert lines["truncated"].endswith("; raise --model.max_new_tokens")


def test_an_extractor_that_disagrees_is_named() -> None:
    records = [record(n, right=n < 8, correct_paper=n < 4) for n in range(10)]
    assert dict(summarize(records))["cite"].endswith("; not paper-2 (40.0%, reads 100.0%), which disagrees")


def test_each_task_has_its_lines_under_a_name_that_is_only_text() -> None:
    records = [record(0, True), record(1, True, task="\x1b[31mred")]
    lines = format_summary(records).splitlines()
    assert len(lines) == 14 and lines[0] == "t" and lines[7] == "\ufffd[31mred"


def test_questions_without_gold_have_no_accuracy() -> None:
    lines = dict(summarize([record(n, right=False, gold=None) for n in range(3)]))
    assert lines["accuracy"] == "– (no gold answers)" and lines["chance"] == "–"

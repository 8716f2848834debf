"""Tests of the benchmark of trainings across tokenizers: its baseline, its third student, its tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.examples.alignment import align, count_classes
from datamodules.examples.tokenization import load_tokenizer
from datamodules.text.token_bytes import read_vocabulary
from scripts.benchmark import main
from scripts.benchmarks.across.retokenized import SPLIT_WORDS, retokenize
from scripts.benchmarks.across.sorted_logits import sum_sorted
from scripts.benchmarks.across.tables import format_table, group_records, measure_groups
from studies.inputs.cache_runs import MICROWORLD


def test_sorted_logits_are_compared_by_rank() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.3, 0.0]])
    q = torch.tensor([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [0.25, 0.25, 0.5]])
    labels, has_target = torch.tensor([1, 0, 2]), torch.tensor([True, True, False])
    ce = -float(np.log([0.7, 0.4, 0.5]).sum())
    # The same in another order is no distance; a row beyond the teacher's has none.
    expected = ce + 1.5 * (0 + (0.1 + 0.1 + 0.0))
    assert sum_sorted(q.log(), labels, p, has_target).item() == pytest.approx(expected, abs=1e-6)
    # What is not in the cache's support is one more outcome.
    expected = ce + 1.5 * (0 + 0 + (0.1 + 0.1) + 0.0)
    assert sum_sorted(q.log(), labels, p[:, :2], has_target).item() == pytest.approx(expected, abs=1e-6)


def test_the_third_student_cuts_texts_elsewhere() -> None:
    source, teacher = (load_tokenizer(str(MICROWORLD / name)) for name in ("b-student", "a-teacher"))
    made, parts = retokenize(source)
    assert len(parts) == len(made)
    text = f"The {SPLIT_WORDS[0]} leads to the cup. So cup points to {SPLIT_WORDS[-1]}.\nThe answer is melt."
    own, other = (read_vocabulary(tokenizer, [tokenizer.eos_token_id]) for tokenizer in (made, teacher))
    ids, teacher_ids = ([*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for tokenizer in (made, teacher))
    found = align(ids, teacher_ids, own, other)
    assert found is not None
    counts = count_classes([found])
    assert counts["exact"] == counts["conditional"] >= 2 and counts["spanning"] >= 2 and counts["none"] == 0
    old = read_vocabulary(source, [source.eos_token_id])
    assert [old.join(part) for part in parts] == own.tokens


def make_record(arm: str, seed: int, correct: list[int], nll: list[float]) -> dict:
    place = {"student": "b", "teacher": "a", "n": 32, "arm": arm, "seed": seed, "coverage": {}}
    return place | {"correct": correct, "nll": nll}


def test_arms_are_compared_seed_by_seed() -> None:
    records = [make_record("text", seed, [0, 1, seed, 1], [1.0 + seed, 2.0, 3.0, 4.0]) for seed in range(3)]
    records += [make_record("bytes", seed, [0, 1, seed, 1], [0.5 + seed, 1.5, 2.5, 3.5]) for seed in range(2)]
    groups = group_records(records)
    # The seed that one arm lacks counts for none.
    assert all(group.nll_SQ.shape == (2, 4) for group in groups["b", "a", 32].values())
    table = format_table(groups, has_answers=True).splitlines()
    assert table[-1].startswith("| b ← a, 32 | bytes | 2 | 62.5% [")
    assert table[-1].endswith("| 2.12 | -0.50 [-0.50, -0.50] |")
    measured = {line.name: (line.value, line.baseline) for line in measure_groups(groups)}
    assert measured["tokenizers_nll b<-a bytes n=32"] == (2.125, 2.625)
    assert measured["tokenizers_accuracy b<-a text n=32"] == (0.625, None)


@pytest.mark.slow
def test_the_benchmark_trains_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tokenizers", "--json", f"--folder={tmp_path}", "--smoke"]
    main(command)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert len(lines) == 2 * (5 + 5 + 1 + 5 + 1) and all(np.isfinite(line["value"]) for line in lines)
    cells = tmp_path / "cells.jsonl"
    whole = cells.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    [aligned] = [one for one in records if (one["student"], one["arm"], one["seed"]) == ("c", "bytes", 0)]
    assert aligned["coverage"]["spanning"] > 0.05 and aligned["coverage"]["conditional"] > 0.02
    # The same trainings in a later process are the same, and the others are not run again.
    kept = [line for line in whole.splitlines(keepends=True) if '"chunks"' not in line]
    cells.write_text("".join(kept))
    main(command)
    again = cells.read_text().splitlines(keepends=True)
    assert again[: len(kept)] == kept and sorted(again) == sorted(whole.splitlines(keepends=True))
    with pytest.raises(ValueError, match=r"cells\.jsonl: has trainings of another scale"):
        main(["tokenizers", f"--folder={tmp_path}"])
    with pytest.raises(ValueError, match="give --smollm2 with --rationales"):
        main(["tokenizers", f"--folder={tmp_path}", "--smollm2=x.gguf"])

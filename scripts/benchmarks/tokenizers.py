"""Text alone against another family's distributions by each alignment, and against sorted logits: what each adds.

    python -m scripts.benchmark tokenizers --folder FOLDER      # under an hour on one core; continues where it was
    python -m scripts.benchmark tokenizers --folder FOLDER --smoke      # its smallest kind, a minute

Students a and b of the microworld learn from the other family's teacher, and b with another tokenizer, c, from a's:
from its texts alone, with its distributions by strict, bytes and chunks, and with sorted logits (ULD); a and b learn
from their own family's, too. Every training takes as many optimizer steps; a seed draws the training questions and
their order. `cells.jsonl` in the folder keeps each training's answers and the likelihood that the student gives to the
teacher's rationales of the test questions. Lines, each with the text's number beside it:

    tokenizers_accuracy STUDENT<-TEACHER ARM n=N    share of the test questions
    tokenizers_nll STUDENT<-TEACHER ARM n=N         nats a held-out rationale, end of turn included

`--table` prints the same as Markdown, with 95 % intervals over seeds and test questions.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from scripts.benchmarks.across.runs import Arm, Bench, Cell, Scale
from scripts.benchmarks.measure import Measurement

SIZES, SEEDS = (32, 128, 512), 5
# First what says most.
GROUPS = ((("b", "a"), ("c", "a"), ("b", "b")), (("a", "b"), ("a", "a")))
ARMS = get_args(Arm)


def list_cells(sizes: tuple[int, ...], seeds: int) -> list[Cell]:
    """Returns all trainings: the logits of a family's own tokenizer, and every way across tokenizers."""
    return [
        Cell(student, teacher, arm, n, seed)
        for group in GROUPS
        for seed in range(seeds)
        for student, teacher in group
        for n in sizes
        for arm in (("logits",) if student == teacher else ARMS[:-1])
    ]


def run_missing(bench: Bench, cells: list[Cell], path: Path) -> list[dict[str, Any]]:
    """Runs the cells that a file lacks, appends each, and returns the records of all."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = {Cell(*(record[name] for name in vars(cells[0]))): record for record in map(json.loads, lines)}
    if missing := [cell for cell in cells if cell not in found]:
        bench.prepare()
        with path.open("a", encoding="utf-8") as file:
            for cell in missing:
                found[cell] = bench.run(cell)
                file.write(json.dumps(found[cell]) + "\n")
                file.flush()
    return [found[cell] for cell in cells]


def run(args: list[str]) -> Iterator[Measurement]:
    """Measures every pair; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark tokenizers")
    parser.add_argument("--folder", required=True, type=Path, help="where texts, caches and results are kept")
    parser.add_argument("--smoke", action="store_true", help="few questions, steps and seeds")
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    scale, sizes, seeds = (Scale(32, 8, 2, 2), (8,), 2) if given.smoke else (Scale(), SIZES, SEEDS)
    records = run_missing(Bench(given.folder, scale), list_cells(sizes, seeds), given.folder / "cells.jsonl")
    yield Measurement("tokenizers", len(records), "trainings")

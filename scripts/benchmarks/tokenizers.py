"""Text alone against another tokenizer's distributions by each alignment, and against sorted logits: what each adds.

    python -m scripts.benchmark tokenizers              # half an hour on one core; continues where it was
    python -m scripts.benchmark tokenizers --smollm2 FILE.gguf --rationales obqa_train.jsonl.gz
    python -m scripts.benchmark tokenizers --table      # of what is there, and trains nothing

Students a and b of the microworld learn from the other family's teacher, and b with another tokenizer, c, from a's:
from its texts alone, with its distributions by strict, bytes and chunks, and with sorted logits (ULD); a and b learn
from their own family's, too. With `--smollm2` a tiny untrained student learns from published rationales, and from
SmolLM2's distributions of them. Every training takes as many optimizer steps; a seed draws the training questions and
their order. `cells.jsonl` in the folder keeps each training's answers and the likelihood that the student gives to the
rationales of the test questions. Lines, each with the text's number beside it:

    tokenizers_accuracy STUDENT<-TEACHER ARM n=N    share of the test questions
    tokenizers_nll STUDENT<-TEACHER ARM n=N         nats a held-out rationale, end of turn included
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from scripts.benchmarks.across.published import PublishedBench
from scripts.benchmarks.across.runs import Arm, Bench, Cell, Scale
from scripts.benchmarks.across.tables import format_table, group_records, measure_groups
from scripts.benchmarks.cells import read_cells, run_missing
from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Measurement

SIZES, PUBLISHED_SIZES, SEEDS = (32, 128, 512), (32, 128), 5
# First what says most.
GROUPS = ((("c", "a"), ("b", "a"), ("b", "b")), (("a", "b"), ("a", "a")))
PUBLISHED_GROUPS = ((("tiny", "smollm2"),),)
ARMS = get_args(Arm)
Groups = tuple[tuple[tuple[str, str], ...], ...]


def list_cells(groups: Groups, sizes: tuple[int, ...], seeds: int) -> list[Cell]:
    """Returns all trainings: the logits of a family's own tokenizer, and every way across tokenizers."""
    return [
        Cell(student, teacher, arm, n, seed)
        for group in groups
        for n in sizes
        for seed in range(seeds)
        for student, teacher in group
        for arm in (("logits",) if student == teacher else ARMS[:-1])
    ]


def name_cell(record: dict[str, Any]) -> Cell:
    """Returns which training a record is."""
    return Cell(*(record[field.name] for field in fields(Cell)))


def run_cells(bench: Bench, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yields the record of each training."""
    bench.prepare()
    yield from map(bench.run, cells)


def run(args: list[str]) -> Iterator[Measurement]:
    """Measures every pair; see the module's docstring."""
    parser = make_parser("tokenizers", __doc__)
    parser.add_argument("--folder", type=Path, help="where texts, caches and results are kept; one in data/ by default")
    parser.add_argument("--smollm2", help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--rationales", help="published rationales, jsonl.gz, which gpt-4o wrote some of")
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown, and train nothing")
    given = parser.parse_args(args)
    if bool(given.smollm2) != bool(given.rationales):
        raise ValueError("give --smollm2 with --rationales")
    torch.set_num_threads(1)
    name = f"tokenizers{'-smollm2' if given.smollm2 else ''}{'-smoke' if given.smoke else ''}"
    folder, small = given.folder or Path("data") / name, Scale(16, 4, 2, 2)
    path = folder / "cells.jsonl"
    sizes, seeds = ((8,), 2) if given.smoke else (PUBLISHED_SIZES if given.smollm2 else SIZES, SEEDS)
    if given.table:
        records = list(read_cells(path, name_cell).values())
        print(format_table(group_records(records), any(any(record["correct"]) for record in records)))
        return
    if given.smollm2:
        scale = small if given.smoke else Scale(128, 64, 192)
        bench: Bench = PublishedBench(folder, scale, gguf=given.smollm2, source=given.rationales)
        cells = list_cells(PUBLISHED_GROUPS, sizes, seeds)
    else:
        bench, cells = Bench(folder, small if given.smoke else Scale()), list_cells(GROUPS, sizes, seeds)
    records = run_missing(path, cells, name_cell, asdict(bench.scale), partial(run_cells, bench))
    yield from measure_groups(group_records(records))

"""Stage 5: runs all stages as a small study, and prints one table of arms x students and the family interaction.

    python scripts/demo.py --config configs/experiments/microworld.yaml --seeds 2

Everything is kept in `runs/<name>/`; interrupted, it continues with what is missing.
"""

import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

from datamodules.files import write_json, write_text
from scripts import annotate, cache_logits, evaluate, fit
from scripts.stage_cli import run_main, select_sections
from studies.comparison import compare, format_comparison
from studies.grid import Study
from studies.plan import Job, StudyPlan

STAGES: dict[str, Any] = {"annotate": annotate, "cache_logits": cache_logits, "fit": fit, "evaluate": evaluate}


def start_worker(num_threads: int) -> None:
    """Shares the machine's cores between the workers."""
    torch.set_num_threads(num_threads)


def run_job(job: Job, log: Path) -> None:
    """Runs a job's commands, with their output in a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for stage, command in job[1]:
            print(f"$ python scripts/{stage}.py {' '.join(command)}", flush=True)
            STAGES[stage].main(command)


def check_sections(phases: list[list[Job]]) -> None:
    """Refuses a mistake in a stage's section before any stage runs; the arms differ in little else than names."""
    commands: dict[str, list[str]] = {}
    for job in chain.from_iterable(phases):
        commands = dict(job[1]) | commands
    for stage, command in commands.items():
        STAGES[stage].parse(command)


def run_study(study: Study, config: str) -> str:
    """Runs what is missing of a study, and returns its table."""
    plan = StudyPlan(study, config)
    threads = max(1, torch.get_num_threads() // study.workers)
    context = multiprocessing.get_context("spawn")
    phases = plan.phases()
    check_sections(phases)
    progress = tqdm(total=sum(map(len, phases)), unit="job", desc=study.name)
    with ProcessPoolExecutor(study.workers, context, start_worker, (threads,)) as pool, progress:
        for phase in phases:
            futures = {}
            for job in phase:
                log = plan.folder / "logs" / f"{job[0]}.log"
                futures[pool.submit(run_job, job, log)] = log
            try:
                for future in as_completed(futures):
                    if error := future.exception():
                        raise ValueError(f"{futures[future].stem} failed, see {futures[future]}: {error}") from error
                    progress.set_postfix_str(futures[future].stem)
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    comparison = compare(study)
    table = format_comparison(study, comparison)
    write_text(plan.folder / "table.md", table + "\n")
    cells = {f"{condition}/{student}": cell for (condition, student), cell in comparison.cells.items()}
    summary = {
        key: {
            "accuracy": cell.accuracy,
            "low": cell.low,
            "high": cell.high,
            "extracted": cell.extracted,
            "train_examples": cell.num_examples,
        }
        for key, cell in cells.items()
    }
    gamma = vars(comparison.interaction) if comparison.interaction else None
    write_json(plan.folder / "results.json", {"cells": summary, "gamma": gamma, "questions": comparison.num_questions})
    return table


def parse(args: list[str] | None = None) -> tuple[Study, str]:
    """Returns the study and its experiment's file."""
    args = sys.argv[1:] if args is None else args
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=__doc__)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Study)
    configs = [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
    configs += [following for arg, following in pairwise(args) if arg == "--config"]
    if len(configs) != 1 and not {"-h", "--help"} & set(args):
        raise ValueError("name exactly one experiment with --config, e.g. configs/experiments/microworld.yaml")
    parsed = parser.parse_args(select_sections(args, "study"))
    parsed.pop("config")
    return Study(**parser.instantiate(parsed).as_dict()), configs[0]


def main(args: list[str] | None = None) -> None:
    """Runs the study."""
    study, config = parse(args)
    print(run_study(study, config))
    print(f"\nEverything is in {Path(study.root) / study.name}/")


if __name__ == "__main__":
    run_main(main)

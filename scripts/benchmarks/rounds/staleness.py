"""What staleness costs: the same tokens of a student, drawn in fewer or more rounds."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files.tables import read_table
from lightning_modules.run.folder import read_metrics
from scripts.benchmarks.cells import run_missing
from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.rounds.experiment import QUIET, describe_stages, plan_rounds, run_job
from studies.inference.statistics import estimate_accuracy, measure_uncertainty
from studies.inputs.cache_runs import MICROWORLD
from studies.jobs.job import Job, drop_spent, format_settings


@dataclass(frozen=True)
class Scale:
    """How large the comparison is.

    Attributes:
        questions: That the student answers in all rounds together, and that its teacher has answered.
        steps: Optimizer steps of all rounds together.
        cold_steps: Of the training on the teacher's text before them.
        tests: Questions that are asked at the end.
        new_tokens: At most, of an answer.
    """

    questions: int = 512
    steps: int = 16
    cold_steps: int = 36
    tests: int = 200
    new_tokens: int = 96


def run_rounds(folder: Path, scale: Scale, rounds: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Runs what the folder's `cells.jsonl` lacks, keeps each training, and returns the records of all.

    Raises:
        ValueError: The file's trainings are of another scale.
    """
    return run_missing(
        folder / "cells.jsonl",
        [(number, seed) for seed in range(seeds) for number in rounds],
        lambda record: (record["rounds"], record["seed"]),
        asdict(scale),
        lambda missing: (_run(folder, scale, number, seed) for number, seed in missing),
    )


def _run(folder: Path, scale: Scale, rounds: int, seed: int) -> dict[str, Any]:
    """Trains a student in so many rounds; returns what it answered, and how stale its own text became."""
    folder.mkdir(parents=True, exist_ok=True)
    models = str(MICROWORLD / "b-student"), str(MICROWORLD / "b-teacher")
    stages = describe_stages(folder, models, "plain", f"microworld:train:{scale.questions}:0", 400)
    stages["annotate"]["model"]["max_new_tokens"] = 96
    stages["annotate"]["data"]["encoding"]["max_length"] = 320
    stages["fit"]["model"]["learning_rate"] = 1e-3
    # Fewer than a round of one step draws, so that every step learns from as many.
    batches = {"tokens_per_step": 2048, "tokens_per_batch": 2048, "order_seed": seed}
    stages["fit"]["data"] = {**stages["fit"]["data"], "supervision": "rationale", "batches": batches}
    stages["fit"] |= {"seed_everything": seed, "trainer": {**QUIET, "max_steps": scale.steps}}
    stages["evaluate"] = {
        "model": {"student": models[0], "max_new_tokens": scale.new_tokens},
        "data": {
            "questions": f"microworld:test:{scale.tests}:0",
            "prompt": "plain",
            "encoding": {"max_length": 320},
            "batches": {"tokens_per_batch": 16384},
        },
        "trainer": QUIET,
        "output": str(folder / "predictions.parquet"),
        "wandb": {"enabled": False},
    }
    cold = folder / "runs" / "cold" / f"seed{seed}"
    settings = {
        "name": f"rounds{rounds}-seed{seed}", "rounds": rounds, "questions": scale.questions // rounds,
        "max_new_tokens": scale.new_tokens, "seed": seed, "max_lost": 1.0, "min_distinct": 0.0,
    }  # fmt: skip
    path = folder / f"{settings['name']}.yaml"
    # The file says how the student is trained before the rounds, too.
    plan = plan_rounds(path, stages, settings)
    for job in plan.teach():
        run_job(job)
    run = {"run.group": "cold", "run.id": cold.name, "trainer.max_steps": scale.cold_steps}
    run_job(Job("cold", "fit", [f"--config={path}", *format_settings(run)], str(cold / "DONE"), []))
    plan = plan_rounds(path, stages, {**settings, "name": f"{settings['name']}-warm", "start": str(cold)})
    for job in (jobs := plan.jobs()):
        run_job(job)
        drop_spent(jobs)
    answers = sorted(read_table(Path(jobs[-1].done)).to_pylist(), key=lambda record: record["question_id"])
    logged = [read_metrics(plan.run(number)) for number in range(1, rounds + 1)]
    return {
        "rounds": rounds,
        "seed": seed,
        "correct": [int(record["correct_neutral"]) for record in answers],
        "staleness": float(np.mean([own[-1]["train/own_staleness"] for own in logged])),
        "tokens": logged[-1][-1]["speed/tokens_seen"],
    }


def measure(records: Sequence[dict[str, Any]]) -> Iterator[Measurement]:
    """Yields accuracy by number of rounds, with its interval, and how it differs from that of the most rounds."""
    by_rounds: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        by_rounds.setdefault(record["rounds"], []).append(record)
    correct = {number: np.array([own["correct"] for own in found], float) for number, found in by_rounds.items()}
    most = max(correct)
    for number, correct_SQ in correct.items():
        share, low, high = estimate_accuracy(correct_SQ)
        name = f"staleness_accuracy rounds={number}"
        yield Measurement.against(name, share, float(correct[most].mean()), "share")
        yield Measurement(f"{name} low", low, "share")
        yield Measurement(f"{name} high", high, "share")
        stale = float(np.mean([own["staleness"] for own in by_rounds[number]]))
        yield Measurement(f"staleness_kl rounds={number}", stale, "nats")
        tokens, of_most = (float(np.mean([own["tokens"] for own in by_rounds[each]])) for each in (number, most))
        yield Measurement.against(f"staleness_tokens rounds={number}", tokens, of_most, "tokens")
        if number == most:
            continue
        # A seed draws the same questions in the same order, whatever the number of rounds.
        difference_SQ = correct_SQ - correct[most]
        found = measure_uncertainty([difference_SQ], [1.0], 1.0).estimate(float(difference_SQ.mean()))
        name = f"staleness_cost rounds={number}"
        for end, value in (("", found.estimate), (" low", found.low), (" high", found.high)):
            yield Measurement(name + end, value, "share")

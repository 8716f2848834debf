"""Rounds of on-policy distillation as a benchmark runs them: an experiment's file in a folder, and its jobs."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from datamodules.files.atomic import write_text
from scripts import on_policy
from scripts.common.stages import MAINS
from studies.jobs.job import Job
from studies.jobs.rounds import RoundsPlan

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def describe_stages(folder: Path, models: tuple[str, str], prompt: str, questions: str, longest: int) -> dict[str, Any]:
    """Returns an experiment's sections of the stages, all files in the folder.

    Args:
        folder: Of the benchmark.
        models: The student and the teacher.
        prompt: What the student reads.
        questions: Of the training.
        longest: How many tokens an example may have.
    """
    (student, teacher), texts = models, str(folder / "rationales.parquet")
    # One machine's cores compute all, in batches that fit.
    data = {"questions": questions, "prompt": prompt, "batches": {"tokens_per_batch": 4096}}
    encoding = {"max_length": longest, "cache_dir": str(folder / "tokenized")}
    return {
        "annotate": {
            "model": {"teacher": teacher},
            "data": {**data, "encoding": {"max_length": longest}},
            "trainer": QUIET,
            "output": texts,
        },
        "cache_logits": {
            "model": {"teacher": teacher},
            "data": {**data, "rationales": [texts], "encoding": encoding},
            "trainer": QUIET,
            "output": str(folder / "logits"),
        },
        "fit": {
            "model": {"student": student},
            "data": {**data, "rationales": [texts], "encoding": encoding},
            "trainer": QUIET,
            "run": {"root": str(folder / "runs"), "wandb": False},
        },
    }


def plan_rounds(path: Path, stages: dict[str, Any], settings: dict[str, Any]) -> RoundsPlan:
    """Writes the experiment, and returns its rounds, whose folder it begins.

    Args:
        path: Of the file.
        stages: Its sections of the stages.
        settings: Of the rounds, `OnPolicy`.
    """
    write_text(path, json.dumps({**stages, "on_policy": {**settings, "root": stages["fit"]["run"]["root"]}}))
    plan = on_policy.parse([f"--config={path}"])
    plan.claim()
    return plan


def run_job(job: Job) -> None:
    """Runs a job in this process; what it says goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        MAINS[job.stage](job.args)

"""The stages' scripts, by name, for those that run them as jobs."""

from pathlib import Path
from typing import Any

from scripts import annotate, cache_logits, evaluate, export, fit, pivot
from studies.jobs.job import Job

STAGES: dict[str, Any] = {"annotate": annotate, "cache_logits": cache_logits, "fit": fit, "evaluate": evaluate}
MAINS = {name: script.main for name, script in STAGES.items()}
# With what a study runs beside its stages, which has no section of an experiment's file.
JOBS = {**MAINS, "pivot": pivot.main, "export": export.main}


def parse_job(job: Job) -> Any:
    """Checks a job's whole command line; a training that it goes on from may be yet to come."""
    start = "--run.continues="
    missing = [arg for arg in job.args if arg.startswith(start) and not Path(arg.removeprefix(start), "DONE").is_file()]
    return STAGES[job.stage].parse([arg for arg in job.args if arg not in missing])

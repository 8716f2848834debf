"""Submits a list of jobs to SLURM: an array for each stage, which waits for the arrays that leave what it needs."""

import getpass
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from datamodules.files.atomic import check_place, hash_json, write_json, write_jsonl
from datamodules.files.parsing import read_json_object
from datamodules.provenance import claim_folder
from studies.jobs.job import Job

# The other stages, which one process runs, share report.sbatch.
STAGES = ("annotate", "cache_logits", "fit", "evaluate")
# What sums up: out of date wherever something is missing.
SUMS = ("study", "sweep")


def read_submissions(folder: Path) -> dict[str, dict[str, str]]:
    """Returns what was last submitted of a group: `{"job": id, "log": path, "done": path}` by a job's name."""
    path = folder / "submitted.json"
    return read_json_object(path) if path.is_file() else {}


@dataclass(frozen=True)
class QueuedJob:
    """A job that SLURM has not finished with.

    Attributes:
        state: As SLURM calls it: PENDING, RUNNING, COMPLETING ...
        reason: What a pending job waits for.
    """

    state: str
    reason: str


def read_queue() -> dict[str, QueuedJob]:
    """Returns this user's jobs by their ids, such as `17_3`; none where there is no SLURM.

    Raises:
        ValueError: SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return {}
    shown = _run(["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r"])
    fields = (line.split("|") for line in shown.splitlines())
    return {identifier: QueuedJob(state, reason) for identifier, state, reason in fields}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise ValueError(f"{' '.join(done.stderr.split())} (from: {shlex.join(command)})")
    return done.stdout.strip()


def submit_jobs(jobs: list[Job], folder: Path, at_most: int | None = None) -> str:
    """Submits what is neither done nor in the queue, and returns what a user wants to know of it.

    An array begins when those before it have ended, well or not; each of its tasks then looks for what it needs itself,
    so that a failed arm stops what follows from it and nothing else.

    Args:
        jobs: Each after what it needs.
        folder: Of the group; gets the lists that the arrays read, their logs, and `submitted.json`.
        at_most: So many tasks of an array run at a time; None leaves that to the cluster.

    Raises:
        ValueError: There is no SLURM, `slurm/site.env` is not loaded, or sbatch refuses.
    """
    if shutil.which("sbatch") is None:
        raise ValueError("there is no sbatch here: submit on a cluster's login node, or run on this machine")
    if not os.environ.get("KINDRED_SITE"):
        raise ValueError("slurm/site.env is not loaded: source it first (slurm/site.env.example says what it holds)")
    check_place(folder / "submitted.json")
    claim_folder(folder)
    queue, submitted = read_queue(), read_submissions(folder)
    # The array in which a job waits or runs.
    arrays = {name: entry["job"].split("_")[0] for name, entry in submitted.items() if entry["job"] in queue}
    missing = [job for job in jobs if job.name not in arrays and not Path(job.done).exists()]
    if missing:
        missing += [job for job in jobs if job.stage in SUMS and job.name not in arrays and job not in missing]
    lines = [f"{folder}: {len(missing)} of {len(jobs)} jobs are neither done nor in the queue"]
    depths = count_depths(jobs)
    groups: dict[tuple[int, str], list[Job]] = {}
    for job in missing:
        # What a job needs is in an array that comes before.
        groups.setdefault((depths[job.name], job.stage), []).append(job)
    for _, group in sorted(groups.items()):
        stage, after = group[0].stage, sorted({arrays[name] for job in group for name in job.needs if name in arrays})
        array = _submit_array(group, jobs, folder, at_most, after)
        for index, job in enumerate(group):
            arrays[job.name] = array
            log = f"{folder}/logs/{folder.name}-{stage}-{array}_{index}.log"
            submitted[job.name] = {"job": f"{array}_{index}", "log": log, "done": job.done}
        write_json(folder / "submitted.json", submitted)
        lines.append(f"{array}: {len(group)} x {stage}" + (f", after {', '.join(after)}" if after else ""))
    if waiting := sorted({arrays[job.name] for job in jobs if job.name in arrays}):
        lines.append(f"watch: python -m scripts.status {folder}    cancel: scancel {' '.join(waiting)}")
    return "\n".join(lines)


def count_depths(jobs: list[Job]) -> dict[str, int]:
    """Returns, by name, how many jobs come before each where one waits for another."""
    depths: dict[str, int] = {}
    for job in jobs:
        depths[job.name] = 1 + max((depths[name] for name in job.needs), default=-1)
    return depths


def _submit_array(group: list[Job], jobs: list[Job], folder: Path, at_most: int | None, after: list[str]) -> str:
    """Submits the jobs of one stage; returns the array's id."""
    # They come first, so that tasks count from 0; the others tell what `needs` means. A task reads the list when it
    # starts, whatever was submitted meanwhile: hence the name by content.
    records = [vars(job) for job in [*group, *(job for job in jobs if job not in group)]]
    path = folder / "logs" / f"jobs-{hash_json(records)}.jsonl"
    write_jsonl(path, records)
    stage = group[0].stage
    file = stage if stage in STAGES else "report"
    return _run([
        "sbatch",
        "--parsable",
        f"--array=0-{len(group) - 1}" + (f"%{at_most}" if at_most else ""),
        f"--job-name={folder.name}-{stage}",
        f"--output={folder}/logs/%x-%A_%a.log",
        *([f"--dependency=afterany:{':'.join(after)}"] if after else []),
        *shlex.split(os.environ.get(f"KINDRED_{file.upper()}_OPTIONS", "")),
        f"slurm/{file}.sbatch",
        str(path),
    ]).split(";")[0]  # fmt: skip

"""Where jobs stand: from the files that they leave, and the logs that they lock while they run."""

from pathlib import Path
from typing import Literal

from datamodules.files.locks import take
from datamodules.text.plain_text import clean_line
from lightning_modules.run.folder import read_early_end
from studies.jobs.job import Job

State = Literal["done", "running", "pending", "stopped", "failed"]


def log_path(folder: Path, job: Job) -> Path:
    """Returns where a job's log is."""
    return folder / "logs" / f"{job.name}.log"


def describe_done(done: Path) -> str:
    """Returns what is to be said of a finished job: that its training ended early, if it did."""
    early = read_early_end(done.parent) if done.name == "DONE" else None
    return f"ended early, {early}" if early else ""


def find_state(folder: Path, job: Job) -> tuple[State, str]:
    """Returns a job's state and why: what `describe_done` says, or the last line of its log."""
    log = log_path(folder, job)
    if Path(job.done).exists():
        return "done", describe_done(Path(job.done))
    if not log.is_file():
        return "pending", ""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("$ ")), "")
    with log.open("a") as file:
        if not take(file):
            return "running", clean_line(last)
    return "failed" if last.startswith("error:") else "stopped", clean_line(last)


def format_status(jobs: list[Job], folder: Path) -> str:
    """Returns a table of all jobs, and how many are in which state."""
    rows, counts = [], dict.fromkeys(("done", "running", "pending", "stopped", "failed"), 0)
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        state, last = find_state(folder, job)
        counts[state] += 1
        rows.append(f"{state:8} {job.name:{width}}  {last}".rstrip())
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*rows, f"{folder}: {len(jobs)} jobs: {summary}"])

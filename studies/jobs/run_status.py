"""Where the runs of a group stand: from the files that they leave, and from SLURM's queue where there is one."""

import re
from pathlib import Path

from lightning_modules.run.folder import read_metrics
from studies.jobs.job import Job
from studies.jobs.states import describe_done, find_state
from studies.jobs.submission import QueuedJob, read_queue, read_submissions

_FAILURE = re.compile(r"error: |\w*(Error|Exception): ")
_KILL = re.compile("CANCELLED|oom-kill|Killed")


def find_reason(log: Path) -> tuple[str, str]:
    """Returns how a job that is neither done nor in the queue ended, and the line of its log that says best why."""
    if not log.is_file():
        return "stopped", "it left no log"
    last = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").rsplit("\nattempt ", 1)[-1]
    # What srun adds, that a task left with some code, is never the reason.
    lines = [line.strip() for line in last.split("\n") if line.strip() and not line.startswith("srun: ")]
    if failures := [line for line in lines if _FAILURE.match(line)]:
        return "failed", failures[-1]
    return "stopped", ([line for line in lines if _KILL.search(line)] or lines or [""])[-1]


def count_restarts(log: Path) -> int:
    """Returns how often a job was requeued: each attempt begins its part of the log with its number."""
    attempts = re.findall(r"^attempt (\d+): ", log.read_text(errors="replace"), re.MULTILINE) if log.is_file() else []
    return int(attempts[-1]) - 1 if attempts else 0


def read_progress(run: Path) -> tuple[str, str]:
    """Returns a run's last step and its last validation or training loss; empty where it has none."""
    step, loss = "", ""
    for record in read_metrics(run):
        step = str(record["step"])
        for name in ("train/loss", "val/loss"):
            if name in record:
                loss = f"{name} {record[name]:.4g}"
    return step, loss


def describe_group(folder: Path) -> list[dict[str, str]]:
    """Returns a row for each job that was submitted, and for each run that was not.

    Args:
        folder: `runs/<group>`.

    Raises:
        ValueError: There is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one of runs/, for example {folder.parent}/GROUP")
    submitted = read_submissions(folder)
    queue = read_queue() if submitted else {}
    runs = {f"fit-{path.parent.name}": path.parent for path in sorted(folder.glob("*/meta.json"))}
    rows = []
    for name in dict.fromkeys([*submitted, *runs]):
        run = runs.get(name, folder / name.removeprefix("fit-"))
        if name in submitted:
            state, restarts, why = _find_submitted_state(submitted[name], queue)
        else:
            state, why = find_state(folder, Job(name, "fit", [], str(run / "DONE"), []))
            restarts = 0
        step, loss = read_progress(run)
        shown = {"step": step, "last loss": loss, "restarts": str(restarts or ""), "why": why}
        rows.append({"job": name, "state": state, **shown})
    return rows


def _find_submitted_state(entry: dict[str, str], queue: dict[str, QueuedJob]) -> tuple[str, int, str]:
    log = Path(entry["log"])
    restarts = count_restarts(log)
    if Path(entry["done"]).exists():
        return "done", restarts, describe_done(Path(entry["done"]))
    if entry["job"] in queue:
        queued = queue[entry["job"]]
        if queued.state == "PENDING":
            return ("preempted" if restarts else "queued"), restarts, queued.reason
        return queued.state.lower(), restarts, ""
    state, reason = find_reason(log)
    return state, restarts, reason

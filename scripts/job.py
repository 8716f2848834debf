"""Runs one job of a list, such as `python -m scripts.study jobs` prints: a task of a SLURM array takes its line.

    python -m scripts.job JOBS.jsonl 3 [overrides]

It refuses to start on what an unfinished job should have left, and then removes checkpoints that no job of the list
needs any more. Its exit codes are the stages'.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

TYPES = {"name": str, "stage": str, "args": list, "done": str, "needs": list}


def refuse(message: str) -> NoReturn:
    """Ends with a line and the exit code of a user's error, before anything heavy is loaded."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_jobs(path: Path) -> list[dict[str, Any]]:
    """Returns a list's jobs; ends the process where the file is no such list."""
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        refuse(f"{path}: cannot be read: {error}")
    jobs = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            job = json.loads(text)
        except (ValueError, RecursionError) as error:
            refuse(f"{path}:{number}: cannot be read as JSON: {error}")
        if not isinstance(job, dict) or any(not isinstance(job.get(key), kind) for key, kind in TYPES.items()):
            refuse(f"{path}:{number}: is no job: it needs name, stage and done (texts), args and needs (lists)")
        if any(not isinstance(text, str) for text in (*job["args"], *job["needs"])):
            refuse(f"{path}:{number}: is no job: args and needs are lists of texts")
        jobs.append(job)
    return jobs


def main() -> None:
    """Runs the job in this process, as if its own command had been given."""
    if {"-h", "--help"} & set(sys.argv[1:3]):
        print(__doc__)
        return
    if len(sys.argv) < 3 or not sys.argv[2].isdigit():
        refuse("usage: python -m scripts.job JOBS.jsonl LINE [overrides]")
    path, line, overrides = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    jobs = read_jobs(path)
    if line >= len(jobs):
        refuse(f"{path} has {len(jobs)} jobs, counted from 0; there is no {line}")
    job, done = jobs[line], {job["name"]: job["done"] for job in jobs}
    for name in job["needs"]:
        if name not in done:
            refuse(f"{path}: {job['name']} needs {name}, which is none of the jobs")
        if not Path(done[name]).exists():
            refuse(f"{job['name']} needs {name}, which is not finished: there is no {done[name]}")
    module = f"scripts.{job['stage']}"
    if not job["stage"].isidentifier() or not (Path(__file__).parent / f"{job['stage']}.py").is_file():
        refuse(f"{path}: {job['name']} is of the stage {job['stage']!r}, which is no script")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or Path(found.origin).resolve().parent != Path(__file__).resolve().parent:
        refuse(f"{__file__} would run {module} of another checkout; run `python -m scripts.job` in its own")
    sys.argv[1:] = [*job["args"], *overrides]
    # Not imported: which stage it is decides what is loaded.
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    # What was refused above did not wait for it.
    from studies.jobs.job import Job, drop_spent

    drop_spent([Job(*(own[key] for key in TYPES)) for own in jobs])


if __name__ == "__main__":
    main()

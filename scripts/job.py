"""Runs one job of a list, such as `python -m scripts.study jobs` prints: a task of a SLURM array takes its line.

    python -m scripts.job JOBS.jsonl 3 [overrides]

It refuses to start on what an unfinished job should have left.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import NoReturn


def refuse(message: str) -> NoReturn:
    """Ends with a line and the exit code of a user's error, before anything heavy is loaded."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Runs the job in this process, as if its own command had been given."""
    if len(sys.argv) < 3 or not sys.argv[2].isdigit():
        refuse("usage: python -m scripts.job JOBS.jsonl LINE [overrides]")
    path, line, overrides = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    jobs = [json.loads(text) for text in path.read_text(encoding="utf-8").split("\n") if text.strip()]
    if line >= len(jobs):
        refuse(f"{path} has {len(jobs)} jobs, counted from 0; there is no {line}")
    job, done = jobs[line], {job["name"]: job["done"] for job in jobs}
    for name in job["needs"]:
        if not Path(done[name]).exists():
            refuse(f"{job['name']} needs {name}, which is not finished: there is no {done[name]}")
    module = f"scripts.{job['stage']}"
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or Path(found.origin).resolve().parent != Path(__file__).resolve().parent:
        refuse(f"{__file__} would run {module} of another checkout; run `python -m scripts.job` in its own")
    sys.argv[1:] = [*job["args"], *overrides]
    # Not imported: which stage it is decides what is loaded.
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""A job: one stage's command, what it needs, and what it leaves behind; and the texts that some jobs make."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# What a section says of the commit and layers of the student that it names is of no other model.
WHOLE: dict[str, Any] = {"model.revision": None, "model.keep_layers": None}
_CONTINUES = "--run.continues="


@dataclass(frozen=True)
class Job:
    """One command: `python -m scripts.{stage} {args}`.

    Attributes:
        name: Names the job, for example `fit-b-rationale-a-seed0`.
        stage: The script.
        args: Its command line.
        done: The file that exists when the job is finished.
        needs: Names of the jobs that must be finished first; they come before it in the list.
    """

    name: str
    stage: str
    args: list[str]
    done: str
    needs: list[str]


def drop_spent(jobs: list[Job]) -> None:
    """Removes the checkpoints of the jobs' runs that others of them went on from, once all of those are done.

    Whoever has ended a job may call it, several at a time.

    Args:
        jobs: All of a plan; a run that none of them makes is let alone.
    """
    heirs: dict[Path, list[Path]] = {}
    for job in jobs:
        for arg in job.args:
            if arg.startswith(_CONTINUES):
                heirs.setdefault(Path(arg.removeprefix(_CONTINUES)), []).append(Path(job.done))
    own = {Path(job.done) for job in jobs}
    for run, ends in heirs.items():
        if run / "DONE" in own and all(end.exists() for end in ends):
            shutil.rmtree(run / "checkpoints", ignore_errors=True)


class Text(NamedTuple):
    """Rationales: their file, their writer's name in it, and the job that makes it; None if they are published."""

    path: str
    writer: str
    job: str | None


def format_settings(settings: Mapping[str, object]) -> list[str]:
    """Returns settings by dotted name as a stage's command line has them."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]

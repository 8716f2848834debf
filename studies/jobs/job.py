"""A job: one stage's command, what it needs, and what it leaves behind; and the texts that some jobs make."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# What a section says of the commit and layers of the student that it names is of no other model.
WHOLE: dict[str, Any] = {"model.revision": None, "model.keep_layers": None}


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


class Text(NamedTuple):
    """Rationales: their file, their writer's name in it, and the job that makes it; None if they are published."""

    path: str
    writer: str
    job: str | None


def format_settings(settings: Mapping[str, object]) -> list[str]:
    """Returns settings by dotted name as a stage's command line has them."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]

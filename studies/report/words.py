"""How arms and numbers of things are named in a report."""

from typing import Any

# What a table or a heat map says where nothing was measured.
NOT_RUN = "not run"


def plural(number: int, noun: str) -> str:
    """Returns a number of things as text."""
    return f"{number} {noun if number == 1 else f'{noun}s'.replace('ys', 'ies')}"


def name_arm(supervision: str, teacher: str | None, control: str | None = None, size: int | None = None) -> str:
    """Returns an arm's name as people say it."""
    name = supervision if teacher is None else f"{supervision} from {teacher}"
    return ", ".join(filter(None, (name, control, f"{size} questions" if size else None)))


def is_plain(row: dict[str, Any]) -> bool:
    """Whether a row of the results is of plain rationales: no logits, no control."""
    return row["supervision"] == "rationale" and row["control"] is None


def name_place(trained_on: str | None, task: str) -> str:
    """Names the task that is answered, and the one that was learned if it is another."""
    return task if trained_on in (None, task) else f"{task} after {trained_on}"


def name_file(trained_on: str | None, task: str) -> str:
    """Returns the same for the name of a file."""
    return name_place(trained_on, task).replace(" ", "-")

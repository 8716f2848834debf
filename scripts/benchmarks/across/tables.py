"""What the trainings of the comparison came to: means over seeds and test questions, against text alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.benchmarks.measure import Measurement
from studies.inference.statistics import Estimate, estimate_accuracy, measure_uncertainty

Place = tuple[str, str, int]  # student, teacher, number of training questions
HEADER = "| student ← teacher, n | arm | seeds | accuracy | against text | nats a rationale | against text |"


@dataclass(frozen=True)
class Group:
    """The trainings of one arm that some seeds have.

    Attributes:
        correct_SQ: 0 or 1 for each seed and test question.
        nll_SQ: Nats of the question's rationale.
        coverage: Share of the training's rows in each class of alignment, over seeds.
    """

    correct_SQ: np.ndarray
    nll_SQ: np.ndarray
    coverage: dict[str, float]


def group_records(records: Sequence[dict[str, Any]]) -> dict[Place, dict[str, Group]]:
    """Returns the arms of each place, of those seeds that all its arms have."""
    by_place: dict[Place, dict[str, dict[int, dict[str, Any]]]] = {}
    for record in records:
        arms = by_place.setdefault((record["student"], record["teacher"], record["n"]), {})
        arms.setdefault(record["arm"], {})[record["seed"]] = record
    found: dict[Place, dict[str, Group]] = {}
    for place, arms in by_place.items():
        seeds = sorted(set.intersection(*(set(own) for own in arms.values())))
        for arm, own in arms.items():
            chosen = [own[seed] for seed in seeds]
            names = chosen[0]["coverage"] if chosen else {}
            found.setdefault(place, {})[arm] = Group(
                np.array([record["correct"] for record in chosen], float),
                np.array([record["nll"] for record in chosen], float),
                {name: float(np.mean([record["coverage"][name] for record in chosen])) for name in names},
            )
    return found


def compare(arm_SQ: np.ndarray, text_SQ: np.ndarray, pseudo: float) -> Estimate:
    """Returns the mean difference: a seed draws the same questions, in the same order, for all arms.

    Args:
        arm_SQ: Of each seed and test question.
        text_SQ: Likewise, of text alone.
        pseudo: Discordant questions to be added, so that arms that answer alike are not said to differ by nothing.
    """
    difference_SQ = arm_SQ - text_SQ
    return measure_uncertainty([difference_SQ], [1.0], pseudo).estimate(float(difference_SQ.mean()))


def measure_groups(groups: dict[Place, dict[str, Group]]) -> Iterator[Measurement]:
    """Yields accuracy and likelihood of each arm, the text's beside it."""
    for (student, teacher, n), arms in groups.items():
        for arm, group in arms.items():
            for name, unit in (("accuracy", "share"), ("nll", "nats")):
                values = {
                    one: getattr(own, "correct_SQ" if name == "accuracy" else "nll_SQ") for one, own in arms.items()
                }
                title, value = f"tokenizers_{name} {student}<-{teacher} {arm} n={n}", float(values[arm].mean())
                if not len(group.nll_SQ) or arm == "text" or "text" not in arms or not values["text"].mean():
                    yield Measurement(title, value, unit)
                else:
                    yield Measurement.against(title, value, float(values["text"].mean()), unit)


def format_table(groups: dict[Place, dict[str, Group]], has_answers: bool) -> str:
    """Returns the same as Markdown, with 95 % intervals over seeds and test questions.

    Args:
        groups: Of `group_records`.
        has_answers: Whether the students answer questions at all.
    """
    lines = [HEADER, "| --- " * 7 + "|"]
    for (student, teacher, n), arms in groups.items():
        for arm, group in arms.items():
            cells = [f"{student} ← {teacher}, {n}", arm, str(len(group.nll_SQ)), "–", "–", "–", "–"]
            text = arms.get("text")
            if has_answers:
                value, low, high = estimate_accuracy(group.correct_SQ)
                cells[3] = f"{value:.1%} [{low:.1%}, {high:.1%}]"
                if text is not None and arm != "text":
                    cells[4] = _format(compare(group.correct_SQ, text.correct_SQ, 1.0), 100, 1)
            cells[5] = f"{group.nll_SQ.mean():.2f}"
            if text is not None and arm != "text":
                cells[6] = _format(compare(group.nll_SQ, text.nll_SQ, 0.0), 1, 2)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format(estimate: Estimate, factor: int, digits: int) -> str:
    value, low, high = (factor * number for number in (estimate.estimate, estimate.low, estimate.high))
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"

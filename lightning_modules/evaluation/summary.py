"""What matters of a student's answers, in six lines a task."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from datamodules.answers.extractors import EXTRACTORS, MORE_EXTRACTORS
from datamodules.text.plain_text import clean_line
from lightning_modules.evaluation.groups import group_by_task
from lightning_modules.evaluation.metrics import Metrics, format_estimate, measure_answers
from lightning_modules.evaluation.metrics import measure_rationales as measure_texts

# What studies compare arms by: it reads every style alike.
CITED = "neutral"
# Below this share of answers found, accuracy says more of the form than of the student.
FEW = 0.9


def find_chance(records: Sequence[dict[str, Any]]) -> float | None:
    """Returns the accuracy of a guess among each question's options; None unless all have options."""
    numbers = [len(record["option_log_likelihoods"] or ()) for record in records if record["gold"] is not None]
    return fmean(1 / number for number in numbers) if numbers and all(numbers) else None


def _judge_extraction(metrics: Metrics) -> str:
    """Returns which extractor to cite, and what speaks against it."""
    cited = EXTRACTORS[CITED]
    found = metrics[f"extraction_rate_{CITED}"]
    verdict = f"{cited.id}, which reads every style alike"
    if found.value < FEW:
        return f"{verdict}, with its extraction rate: {1 - found.value:.1%} state no answer that it finds"
    others = [
        f"{extractor.id} ({metrics[f'accuracy_{name}'].value:.1%}, reads {rate:.1%})"
        for name, extractor in {**EXTRACTORS, **MORE_EXTRACTORS}.items()
        if name != CITED
        and f"accuracy_{name}" in metrics
        and abs(metrics[f"accuracy_{name}"].value - metrics[f"accuracy_{CITED}"].value) > 0.02
        and (rate := metrics[f"extraction_rate_{name}"].value) > 0
    ]
    return f"{verdict}; not {', '.join(others)}, which disagrees" if others else verdict


def summarize(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns the six lines of one task, as (what, value).

    Args:
        records: Of PREDICTION_SCHEMA, of one task.
    """
    metrics = {**measure_answers(records), **measure_texts(records)}
    accuracy, chance = metrics.get(f"accuracy_{CITED}"), find_chance(records)
    told = "–"
    if chance is not None and accuracy is not None and accuracy.low is not None and accuracy.high is not None:
        within = "not told from it" if accuracy.low <= chance <= accuracy.high else ""
        told = f"{chance:.1%}, a guess among the options" + (f"; the accuracy is {within}" if within else "")
    truncated = metrics["truncated"]
    more = "; raise --model.max_new_tokens" if truncated.value > 1 - FEW else ""
    return [
        ("accuracy", format_estimate(accuracy) if accuracy else "– (no gold answers)"),
        ("chance", told),
        ("likeliest option", format_estimate(metrics["acc"]) if "acc" in metrics else "–"),
        ("extraction rate", format_estimate(metrics[f"extraction_rate_{CITED}"])),
        ("truncated", f"{format_estimate(truncated)}{more}"),
        ("cite", _judge_extraction(metrics)),
    ]


def format_summary(records: Sequence[dict[str, Any]]) -> str:
    """Returns six lines for each task; with its name before them where there are several.

    Args:
        records: Of PREDICTION_SCHEMA.
    """
    lines = []
    groups = group_by_task(records)
    for task, own in groups.items():
        if len(groups) > 1:
            lines.append(clean_line(task))
        lines += [f"{what:<16}  {value}" for what, value in summarize(own)]
    return "\n".join(lines)

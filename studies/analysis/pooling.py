"""Arms of several languages as one: each language's questions, answered by the arm that learned that language.

So pooled, accuracies and family interactions are of all languages together, and translations of a question are one
cluster of their intervals, as where one arm answers all languages.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lightning_modules.evaluation.groups import find_languages, group_by_task
from studies.design.grid import Arm, Study

Records = dict[str, dict[str, dict[str, Any]]]


def _select(tasks: Records, languages: Iterable[str]) -> list[dict[str, Any]]:
    """Returns an arm's records of questions in these languages."""
    found = {(record["task"], name): record for own in tasks.values() for name, record in own.items()}
    return [record for record in found.values() if (record.get("language") or "en") in languages]


def _group_whole(records: list[dict[str, Any]]) -> Records:
    """Returns those of several languages together, by task and question."""
    groups = group_by_task(records)
    return {name: {record["question_id"]: record for record in groups[name]} for name in find_languages(groups)}


def pool_languages(study: Study, arms: dict[Arm, Records]) -> dict[Arm, list[Arm]]:
    """Adds to a study's arms those of all languages together, and to the untuned ones their answers to all.

    Args:
        study: The grid.
        arms: Each arm's records, by task and question; gets the pooled arms.

    Returns:
        What each pooled arm is made of, a language each; there is none where an arm of a language is missing.
    """
    if not study.pooled:
        return {}
    assert study.languages is not None
    found: dict[Arm, dict[str, Arm]] = defaultdict(dict)
    for name, tasks in study.pooled.items():
        for language, task in tasks.items():
            for arm in arms:
                if arm.task == task:
                    found[replace(arm, task=name)][language] = arm
    pooled = {}
    for arm, own in found.items():
        if len(own) == len(study.languages.questions):
            whole = _group_whole([record for tag, member in own.items() for record in _select(arms[member], [tag])])
            if whole:
                arms[arm], pooled[arm] = whole, [*own.values()]
    for arm, records in arms.items():
        if arm.supervision == "untuned":
            arms[arm] = records | _group_whole(_select(records, study.languages.questions))
    return pooled

"""Records of predictions by the task that they are of."""

from collections import defaultdict
from collections.abc import Sequence


def group_by_task(records: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns the records of each task by its name; of each split, as TASK/SPLIT, where a task has several."""
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        splits[record["task"]].add(record["split"])
    groups: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        task = record["task"]
        groups[task if len(splits[task]) == 1 else f"{task}/{record['split']}"].append(record)
    return dict(groups)

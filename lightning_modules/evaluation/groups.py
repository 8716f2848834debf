"""Records of predictions by the task that they are of."""

from collections import defaultdict
from collections.abc import Sequence


def group_by_task(records: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns the records of each task by its name.

    Of each split, as TASK/SPLIT, where a task has several. Of each language, as TASK/LANGUAGE, or TASK/SPLIT/LANGUAGE,
    but of English alone: whatever other languages there are, a language's name is the same.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        splits[record["task"]].add(record["split"])
    groups: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        parts = [record["task"]]
        if len(splits[record["task"]]) > 1:
            parts.append(record["split"])
        if (language := record.get("language", "en")) != "en":
            parts.append(language)
        groups["/".join(parts)].append(record)
    return dict(groups)

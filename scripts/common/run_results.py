"""What evaluations have found of a run's student: the metrics beside its predictions."""

from pathlib import Path
from typing import Any

from datamodules.files.seals import PROVENANCE, read_sealed


def read_results(run: Path) -> dict[str, Any]:
    """Returns metrics by task: of predictions that lie in the run's folder, and of those that its study made.

    Raises:
        ValueError: A file is not what was written, or holds no metrics by task.
    """
    results: dict[str, Any] = {}
    of_study = run.parent / "predictions" / f"{run.name}.parquet.metrics.json"
    for path in (*sorted(run.glob("*.metrics.json")), of_study):
        if path.is_file():
            found = {task: own for task, own in read_sealed(path).items() if task != PROVENANCE}
            if not all(isinstance(own, dict) for own in found.values()):
                raise ValueError(f"{path}: holds no metrics by task, as evaluate writes them")
            results |= found
    return results

"""What each round of on-policy distillation has logged, as a table's row."""

from pathlib import Path

from lightning_modules.evaluation.metrics import read_accuracy
from lightning_modules.run.folder import read_metrics

# What a round's table shows of its training's log, by column.
COLUMNS = {
    "loss": "own_loss",
    "length": "own_length",
    "truncated": "own_truncated",
    "distinct": "own_distinct_4",
    "accuracy": "own_accuracy",
    "staleness": "own_staleness",
    "agreement": "own_agreement",
    "teacher on top 16": "own_teacher_mass_on_top_16",
    "entropy": "own_student_entropy",
}


def describe_round(run: Path, predictions: Path) -> dict[str, str]:
    """Returns a row of the table of rounds.

    Args:
        run: The folder of the round's training, which may be yet to come.
        predictions: The file of its answers to the test questions, likewise.
    """
    logged = read_metrics(run) if run.is_dir() else []
    row = {"steps": str(sum("train/loss" in record for record in logged))}
    for column, name in COLUMNS.items():
        values = [record[f"train/{name}"] for record in logged if f"train/{name}" in record]
        # How stale the samples have become is seen at the end.
        value = values[-1] if column == "staleness" and values else sum(values) / max(1, len(values))
        row[column] = f"{value:.3g}" if values else "–"
    share = read_accuracy(predictions)
    return {**row, "test accuracy": "–" if share is None else f"{share.value:.1%}"}

from pathlib import Path

from datamodules.files.atomic import write_text
from studies.jobs.rounds_table import COLUMNS, describe_round


def test_a_round_is_told_by_its_means_and_how_stale_it_has_become(tmp_path: Path) -> None:
    nothing = describe_round(tmp_path / "run", tmp_path / "p.parquet")
    assert nothing == {"steps": "0", **dict.fromkeys(COLUMNS, "–"), "test accuracy": "–"}
    (tmp_path / "run").mkdir()
    logged = [
        '{"step": 0, "train/loss": 2.0, "train/own_loss": 0.5, "train/own_staleness": 0.0}',
        '{"step": 1, "train/loss": 1.0, "train/own_loss": 0.25, "train/own_staleness": 0.125}',
        '{"step": 1, "val/loss": 1.0}',
    ]
    write_text(tmp_path / "run" / "metrics.jsonl", "\n".join(logged) + "\n")
    row = describe_round(tmp_path / "run", tmp_path / "p.parquet")
    assert (row["steps"], row["loss"], row["staleness"], row["entropy"]) == ("2", "0.375", "0.125", "–")

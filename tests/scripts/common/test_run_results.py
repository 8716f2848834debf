"""What was found of a run's student is read as it was written, or refused."""

from pathlib import Path

import pytest

from datamodules.files.atomic import write_sealed
from scripts import seal
from scripts.common.run_results import read_results


def test_results_are_those_that_were_written(tmp_path: Path) -> None:
    run, path = tmp_path / "group" / "run", tmp_path / "group" / "run" / "p.parquet.metrics.json"
    run.mkdir(parents=True)
    (tmp_path / "group" / "predictions").mkdir()
    write_sealed(path, {"colours": {"accuracy": {"value": 0.75}}})
    write_sealed(tmp_path / "group" / "predictions" / "run.parquet.metrics.json", {"shades": {}})
    assert read_results(run) == {"colours": {"accuracy": {"value": 0.75}}, "shades": {}}
    path.write_text(path.read_text().replace("0.75", "0.95"))
    with pytest.raises(ValueError, match="it is not what was written"):
        read_results(run)
    seal.main([str(path)])
    assert read_results(run)["colours"] == {"accuracy": {"value": 0.95}}
    write_sealed(path, {"colours": [1]})
    with pytest.raises(ValueError, match="holds no metrics by task"):
        read_results(run)

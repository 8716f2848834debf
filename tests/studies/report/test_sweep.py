"""A sweep's report without a study."""

import json
import shutil
from pathlib import Path

import pytest

from scripts.report import main
from studies.report.document import Figure, HeatMap, Table
from studies.report.sweep import build_sweep_report, is_sweep
from tests.studies.report.report_study import write_study


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    _, folder = write_study(tmp_path)
    for run in folder.glob("w*"):
        weight, temperature = run.name.removeprefix("w").split("-t")
        loss = {"kl_weight": float(weight), "temperature": float(temperature), "same": 1}
        (run / "meta.json").write_text(json.dumps({"config": {"model": {"loss": loss}, "run": {"id": run.name}}}))
    (folder / "table.md").write_text("| arm | kl_weight | val/loss | test accuracy |\n")
    return folder


def test_a_sweep_alone_is_reported(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    (sweep / "predictions" / "w0.25-t2.0.parquet").unlink()
    sections = {section.title: section.blocks for section in build_sweep_report(sweep).sections}
    assert [*sections] == ["Arms", "Loss weights", "Learning curves", "Questions"]
    figure, table = sections["Arms"]
    assert isinstance(figure, Figure) and isinstance(table, Table)
    assert table.columns[:3] == ["arm", "model.loss.kl_weight", "model.loss.temperature"]
    assert len(table.rows) == 6 and len(figure.panels[0].marks) == 5
    [row] = [row for row in table.rows if row[0].text == "w0.25-t2.0"]
    assert [cell.text for cell in row[1:]] == ["0.25", "2.0", *["not run"] * 4]
    heat_map = sections["Loss weights"][0]
    assert isinstance(heat_map, HeatMap) and heat_map.values[1][0] is None
    assert len(sections["Learning curves"][0].panels[0].series) == 5  # one logged nothing
    main(["html", str(sweep)])
    page = Path(capsys.readouterr().out.strip())
    assert page == sweep / "report.html" and "kl_weight" in page.read_text()


def test_a_study_without_results_is_no_sweep(sweep: Path) -> None:
    assert is_sweep(sweep)
    (sweep / "table.md").write_text("| arm | student s-a (a) |\n")
    assert not is_sweep(sweep)


def test_a_sweep_of_no_arms_is_refused(sweep: Path) -> None:
    for run in sweep.glob("w*"):
        shutil.rmtree(run)
    with pytest.raises(ValueError, match="no arm of this sweep has ended"):
        build_sweep_report(sweep)

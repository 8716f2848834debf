"""A study's report: what it found, as one page, as Markdown with pictures, and in Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.files.atomic import write_json, write_text
from studies.report.content import build_report
from studies.report.document import Report
from studies.report.html import render_html
from studies.report.markdown import render_markdown
from studies.report.records import read_study
from studies.report.sweep import build_sweep_report, is_sweep

# Each of these reads a study's folder, or a sweep's, and the folders `sweeps` of further runs, which differ in their
# loss weights.
# They raise a ValueError if the study is not finished; see `read_study`.


def _build(folder: Path, sweeps: Sequence[Path]) -> Report:
    return build_sweep_report(folder) if is_sweep(folder) else build_report(read_study(folder, sweeps))


def write_html(folder: Path, sweeps: Sequence[Path] = ()) -> Path:
    """Writes `report.html`, one page that needs no network, and returns its path."""
    path = folder / "report.html"
    write_text(path, render_html(_build(folder, sweeps)))
    return path


def write_markdown(folder: Path, sweeps: Sequence[Path] = ()) -> Path:
    """Writes `report.md` and its pictures in `report/`, and returns the former's path."""
    path = folder / "report.md"
    write_text(path, render_markdown(_build(folder, sweeps), folder / "report"))
    return path


def write_wandb(folder: Path, sweeps: Sequence[Path], entity: str, project: str, publish: bool) -> str:
    """Writes `wandb_report.json`, or sends the report to Weights & Biases; returns its path or its address.

    Args:
        folder: Of the study, whose name is the W&B group of its runs.
        sweeps: Likewise.
        entity: Whose project it is.
        project: Where the runs are.
        publish: Send it.
    """
    try:
        from studies.report.wandb_report import WandbReport
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: install the extra `reports`, or use `report.py html`") from None
    report = _build(folder, sweeps)
    shown = WandbReport(report, folder.name, [sweep.name for sweep in sweeps], entity, project)
    if publish:
        return shown.publish(folder)
    write_json(folder / "wandb_report.json", shown.dump())
    return str(folder / "wandb_report.json")

"""A study's report: what it found, as one page, as Markdown with pictures, and in Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.files import write_text
from studies.report.content import build_report
from studies.report.html import render_html
from studies.report.records import read_study


def write_html(folder: Path, sweeps: Sequence[Path] = ()) -> Path:
    """Writes a study's report as one file, `report.html`, and returns its path.

    Args:
        folder: `runs/<study>`.
        sweeps: Folders of further runs, which differ in their loss weights.

    Raises:
        ValueError: The study is not finished; see `read_study`.
    """
    path = folder / "report.html"
    write_text(path, render_html(build_report(read_study(folder, sweeps))))
    return path

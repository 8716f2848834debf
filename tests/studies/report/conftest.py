from pathlib import Path

import pytest

from studies.report.content import build_report
from studies.report.document import Report
from studies.report.records import read_study
from tests.studies.report.report_study import write_study


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study and a sweep."""
    return write_study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(folders: tuple[Path, Path]) -> Report:
    return build_report(read_study(folders[0], [folders[1]]))

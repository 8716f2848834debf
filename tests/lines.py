"""A plugin of pytest that says which lines of the packages the tests run: `PYTEST_PLUGINS=tests.lines`.

SlipCover counts them, at a few per cent of the time. Each of xdist's workers counts its own and hands them over when it
ends; what a test starts as a process of its own is not counted.
"""

import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import slipcover

PACKAGES = ("datamodules", "lightning_modules", "losses", "scripts", "studies")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option of a list of lines."""
    parser.addoption("--missing", action="store_true", help="also list the lines that no test runs, by file")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begins before any conftest.py imports a package."""
    early_config.pluginmanager.register(LineCounter(early_config.rootpath))
    # A worker's tests may run pytest themselves, whose lines are none of this run's.
    if "PYTEST_XDIST_WORKER" in os.environ:
        del os.environ["PYTEST_PLUGINS"]


class LineCounter:
    """Counts the lines that this process runs, and adds up what workers counted."""

    def __init__(self, root: Path) -> None:
        self._folders = [str(root / name) for name in PACKAGES]
        self._counted = slipcover.Slipcover()
        self._of_workers: list[dict[str, Any]] = []
        slipcover.ImportManager(self._counted, slipcover.FileMatcher(sources=self._folders)).__enter__()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Takes what a worker counted; one that was killed has nothing to hand over."""
        if found := getattr(node, "workeroutput", {}).get("lines"):
            self._of_workers.append(json.loads(found))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hands over what this worker counted."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["lines"] = json.dumps(self._counted.get_coverage())

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        """Prints the shares."""
        self._counted.source = self._folders  # what was never imported counts, too
        found = self._counted.get_coverage()
        for other in self._of_workers:
            slipcover.merge_coverage(found, other)
        terminalreporter.section("lines that tests run")
        for line in format_shares(found["files"]):
            terminalreporter.write_line(line)
        if config.option.missing:
            listed = io.StringIO()
            slipcover.print_coverage(found, outfile=listed, skip_covered=True)
            terminalreporter.write_line(listed.getvalue())


def format_shares(files: dict[str, Any]) -> list[str]:
    """Returns a line for each package, and one for all, of SlipCover's lines by the file's path from the root."""
    run, all_lines = Counter[str](), Counter[str]()
    for name, found in files.items():
        for key in (Path(name).parts[0], "all"):
            run[key] += len(found["executed_lines"])
            all_lines[key] += len(found["executed_lines"]) + len(found["missing_lines"])
    return [f"{key:20}{run[key] / all_lines[key]:7.1%} of {all_lines[key]:6}" for key in (*PACKAGES, "all")]

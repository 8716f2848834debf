"""The report's page, in a real browser too."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from studies.report import write_html
from studies.report.document import Figure, Mark, Panel, Report, Section
from studies.report.html import render_html
from tests.browser import CHROMIUM
from tests.studies.report.report_study import make_results


@pytest.fixture(scope="module")
def page(folders: tuple[Path, Path]) -> str:
    return write_html(folders[0], [folders[1]]).read_text()


def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    assert not re.search(r'(src|href)="(?!#|data:,)', page)
    assert "default-src 'none'" in page
    assert "&lt;unequal&gt;" in page and "<unequal>" not in page
    assert len(page) < 2.5e6


def test_text_cannot_leave_its_place() -> None:
    mark = Mark("</script><script>alert(1)</script>", 1.0)
    figure = Figure("intervals", "x", "y", [Panel("", [mark])], "z")
    hostile = Report("t", "l", [], [], [Section("s", [figure])], "f")
    assert "</script><script>alert" not in render_html(hostile)


# Clicks a numeric column's head twice, and tells what the page looks like then.
_PROBE = """<script>
addEventListener("load", async () => {
  while (!("drawn" in document.documentElement.dataset)) await new Promise(resolve => setTimeout(resolve, 20));
  const table = document.querySelectorAll("#accuracy table")[0];
  const head = [...table.querySelectorAll("th")].find(th => th.textContent === "gain");
  const column = [...head.parentNode.children].indexOf(head);
  const read = () => [...table.tBodies[0].rows].map(row => row.children[column].dataset.value ?? null);
  const orders = [];
  for (let clicks = 0; clicks < 2; clicks++) { head.firstChild.click(); orders.push(read()); }
  const saved = [];
  HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href.split(":")[0]]); };
  for (const button of document.querySelectorAll(".download[data-name]")) button.click();
  const plots = [...document.querySelectorAll(".plot")];
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify({
    orders, sort: head.getAttribute("aria-sort"),
    drawn: plots.filter(plot => plot.querySelector(".main-svg")).length, plots: plots.length,
    marks: document.querySelectorAll("#plot-accuracy-microworld .point").length,
    page: document.documentElement.scrollWidth, width: innerWidth,
    saved, tables: document.querySelectorAll("table").length,
    colour: getComputedStyle(document.body).backgroundColor,
  });
  document.body.append(result);
});
</script></body>"""


def browse(page: Path, *options: str) -> tuple[dict, str]:
    """Opens a page in headless Chromium; returns what the probe saw, and the browser's log."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        "--virtual-time-budget=30000", f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = re.search(r'<pre id="probe">(.*?)</pre>', run.stdout)
    assert found, run.stderr[-2000:]
    return json.loads(html.unescape(found[1])), run.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(("size", "scheme"), [("1280,900", "light"), ("500,900", "dark")])
def test_the_page_in_a_browser(page: str, report: Report, tmp_path: Path, size: str, scheme: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", _PROBE))
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    seen, log = browse(path, f"--window-size={size}", *dark)
    assert "CONSOLE" not in log
    assert seen["drawn"] == seen["plots"] > 6
    cells = make_results()["cells"]
    assert seen["marks"] == sum(1 + (cell["num_seeds"] if cell["num_seeds"] > 1 else 0) for cell in cells)
    assert len(seen["saved"]) == seen["plots"] + seen["tables"]
    assert all(name.endswith(".csv") and address == "blob" for name, address in seen["saved"])
    # Both are rounded, so that a fraction of a pixel may count as one.
    assert seen["page"] <= seen["width"] + 1
    assert seen["colour"] == {"light": "rgb(253, 252, 249)", "dark": "rgb(21, 24, 27)"}[scheme]
    rising, falling = seen["orders"]
    numbers = [float(value) for value in rising if value is not None]
    assert numbers == sorted(numbers) and rising[len(numbers) :] == [None] * 2
    assert [float(value) for value in falling if value is not None] == sorted(numbers, reverse=True)
    assert falling[len(numbers) :] == [None] * 2
    assert seen["sort"] == "descending"

"""Tests of what a report says of a task in several languages, and of texts in scripts of their own."""

import copy
import json
from pathlib import Path

import pytest

from studies.report.content import _list_facts, _show_accuracy
from studies.report.document import Figure, Report, Sample, Section, Table, Writing
from studies.report.html import render_html
from studies.report.languages import show_languages
from studies.report.markdown import render_markdown
from tests.browser import CHROMIUM
from tests.studies.report.report_study import make_results
from tests.studies.report.test_html import browse

TASKS = {"mgsm/ar": 8, "mgsm": 8, "mgsm/th": 6, "mgsm/ar+en+th": 22}
ARABIC = "يسير القطار 60 كم في الساعة. كم يسير في 3 ساعات؟"
THAI, HINDI, CHINESE = "คำตอบคือ 180", "उत्तर 180 है।", "答案是 180。"


def in_languages(results: dict) -> dict:
    """The same numbers for each of TASKS, a little higher in each."""
    changed = copy.deepcopy(results)
    for kind in ("cells", "gamma", "effects", "contrasts"):
        changed[kind] = [
            {**row, "task": task, **({"accuracy": row["accuracy"] + n / 100} if kind == "cells" else {})}
            for n, task in enumerate(TASKS)
            for row in results[kind]
        ]
    changed["num_questions"] = TASKS
    return changed


def test_a_table_and_a_figure_have_each_arm_in_each_language() -> None:
    results = in_languages(make_results())
    text, table, *figures, gammas = show_languages(results)
    assert "drawn as one" in text.text
    assert isinstance(table, Table) and table.columns == ["student", "arm", "ar", "en", "th", "all"]
    arms = {(cell["student"], cell["condition"]) for cell in results["cells"]}
    assert len(table.rows) == len(arms) and {len(row) for row in table.rows} == {6}
    cell = next(cell for cell in results["cells"] if cell["condition"] == "rationale-t-b" and cell["task"] == "mgsm/th")
    row = next(row for row in table.rows if [own.text for own in row[:2]] == ["s-a", "rationale from t-b"])
    assert row[4].value == cell["accuracy"] and row[4].text.startswith(f"{100 * cell['accuracy']:.1f} [")
    assert [figure.name for figure in figures] == [
        f"languages-{student}-mgsm/ar+en+th-after-microworld" for student in ("s-a", "s-b")
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        assert [panel.title.split()[0] for panel in figure.panels] == ["ar", "en", "th", "all"]
        assert "th (6 questions)" in [panel.title for panel in figure.panels]
        assert all(len(panel.marks) == len(figure.panels[0].marks) > 4 for panel in figure.panels)
    assert isinstance(gammas, Table) and [row[0].text for row in gammas.rows] == ["ar"] * 2 + ["en"] * 2 + [
        "th"] * 2 + ["all"] * 2  # fmt: skip


def test_an_arm_that_was_not_asked_in_a_language_is_not_run() -> None:
    results = in_languages(make_results())
    results["cells"] = [cell for cell in results["cells"] if (cell["task"], cell["condition"]) != ("mgsm/th", "label")]
    table = show_languages(results)[1]
    assert isinstance(table, Table)
    assert {row[4].text for row in table.rows if row[1].text == "label"} == {"not run"}


def test_where_each_language_has_arms_of_its_own_a_column_is_of_those() -> None:
    results = in_languages(make_results())
    homes = {"mgsm/ar": "m-ar-same", "mgsm": "m-en-same", "mgsm/th": "m-th-same", "mgsm/ar+en+th": "m-same"}
    for kind in ("cells", "gamma"):
        for row in results[kind]:
            row["trained_on"] = row["trained_on"] and homes[row["task"]]
    # An arm that answers another language's questions has no place in that language's column.
    results["cells"] += [
        {**cell, "trained_on": "m-ar-same", "accuracy": 0.0} for cell in results["cells"] if cell["task"] == "mgsm/th"
    ]
    results["pooled"] = {"m-same": {"ar": "m-ar-same", "en": "m-en-same", "th": "m-th-same"}}
    table, gammas = (block for block in show_languages(results) if isinstance(block, Table))
    assert table.caption.startswith("**mgsm/ar+en+th after m-same**")
    assert all(own.value for row in table.rows for own in row[2:]) and len(table.rows) == 11
    assert [row[0].text for row in gammas.rows] == ["ar"] * 2 + ["en"] * 2 + ["th"] * 2 + ["all"] * 2


def test_what_languages_say_alone_is_not_said_twice() -> None:
    results = in_languages(make_results())
    figures = [block for block in _show_accuracy(results) if isinstance(block, Figure)]
    assert [figure.name for figure in figures] == ["accuracy-mgsm/ar+en+th-after-microworld"]
    facts = {fact.name: fact for fact in _list_facts(results)}
    assert facts["Measured on"].value == "22 questions"
    assert len([fact for fact in _list_facts(results) if fact.name.startswith("Family interaction")]) == 1


def test_one_language_has_no_section() -> None:
    assert show_languages(make_results()) == []
    alone = in_languages(make_results()) | {"num_questions": {"mgsm/th": 6, "c++/a": 2}}
    assert show_languages(alone) == []


def make_page() -> Report:
    sample = Sample(
        f"{ARABIC}\nA) 120\nB) 180", "B", [Writing("t-a", f"{ARABIC}\nSo 3 * 60 = 180.", "B", True),
                                           Writing("t-b", f"{THAI}\n{HINDI}\n{CHINESE}", "B", True)],
    )  # fmt: skip
    return Report("t", "l", [], [], [Section("Samples", [sample])], "f")


def test_texts_of_any_script_are_in_the_page_as_they_are(tmp_path: Path) -> None:
    for rendered in (render_html(make_page()), render_markdown(make_page(), tmp_path)):
        assert all(text in rendered for text in (ARABIC, THAI, HINDI, CHINESE))


_PROBE = """<script>
const places = text => {
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const at = node.data.indexOf(text);
    if (at < 0) continue;
    const range = document.createRange();
    range.setStart(node, at); range.setEnd(node, at + text.length);
    const box = range.getBoundingClientRect(), frame = node.parentElement.getBoundingClientRect();
    return [box.left - frame.left, frame.right - box.right, range.getClientRects().length];
  }
};
const pre = document.createElement("pre");
pre.id = "probe";
pre.textContent = JSON.stringify(
  {arabic: places("يسير القطار"), option: places("B) 180"), english: places("So 3 * 60")});
document.body.append(pre);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_line_runs_as_its_script_does(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_html(make_page()).replace("</body>", _PROBE))
    seen, log = browse(path, "--window-size=1280,900")
    assert "CONSOLE" not in log
    left, right, _ = seen["arabic"]
    assert right < left, json.dumps(seen)
    for line in ("option", "english"):
        left, right, _ = seen[line]
        assert left < right, json.dumps(seen)

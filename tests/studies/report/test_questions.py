"""The browser of questions: what it holds, what it leaves out and says so, and how it behaves in a real browser."""

import base64
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from datamodules.rationales.store import Rationale
from studies.report import questions, write_html
from studies.report.document import Browser, Report, Section
from studies.report.html import render_html
from tests.browser import CHROMIUM
from tests.studies.report.report_study import write_study
from tests.studies.report.test_html import browse


def make_records(number: int, arms: int, text: str = "so it is") -> SimpleNamespace:
    """The first arm is always right, the others on every second question."""
    answers = [
        [
            {"run": f"arm{arm}-seed0", "question_id": f"q{n}", "gold": "A", "completion": f"{text} {n}",
             "answer_neutral": "B" if arm and n % 2 else "A", "correct_neutral": not (arm and n % 2)}
            for n in range(number)
        ]
        for arm in range(arms)
    ]  # fmt: skip
    written = [Rationale("q1", "t", "train", "t-a", "a", 0, "A teacher's words.", "A", True, "stop", "plain"),
               Rationale("learned", "t", "train", "t-a", "a", 0, "Others.", "A", True, "stop", "plain")]  # fmt: skip
    return SimpleNamespace(answers=answers, written=written, questions={})


def unpack(page: str) -> dict:
    packed = re.search('id="questions-data">(.*?)</script>', page)
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_every_question_is_there_with_every_arm_and_the_teacher_beside() -> None:
    [browser] = questions.browse_questions(make_records(50, 2))
    assert browser.authors == ["arm0", "arm1", "teacher t-a"]
    assert [(asked.id, asked.is_held_out) for asked in browser.questions] == [
        *((f"q{n}", True) for n in range(50)), ("learned", False),
    ]  # fmt: skip
    assert {author: writing.correct for author, writing in browser.questions[1].writings.items()} == {
        "arm0": True, "arm1": False, "teacher t-a": True,
    }  # fmt: skip
    data = unpack(render_html(Report("t", "l", [], [], [Section("Questions", [browser])], "f")))
    assert data["questions"][1]["writings"] == [
        ["so it is 1", "A", True], ["so it is 1", "B", False], ["A teacher's words.", "A", True],
    ]  # fmt: skip
    assert data["questions"][0]["writings"][2] is None


def test_what_is_cut_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(10, 2, "word " * 200)
    assert len(questions.browse_questions(records)) == 1
    monkeypatch.setattr(questions, "MAX_CHARACTERS", 15_000)
    browser, warning = questions.browse_questions(records)
    assert isinstance(browser, Browser) and warning.is_warning and "cut after 500 characters" in warning.text
    assert {len(asked.writings["arm0"].text) for asked in browser.questions[:10]} == {500}


_PROBE = """<script>
addEventListener("load", async () => {
  const root = document.querySelector(".browser");
  while (!("ready" in root.dataset)) await new Promise(resolve => setTimeout(resolve, 20));
  const control = name => root.querySelector(`[data-control=${name}]`);
  const seen = { counts: [control("count").textContent], rendered: control("list").children.length };
  const note = () => seen.counts.push(control("count").textContent);
  control("next").click(); note();
  control("differ").click(); note();
  control("wrong").click(); note();
  control("authors").querySelectorAll("input")[1].click(); note();
  control("authors").querySelectorAll("input")[1].click();
  control("search").value = "TEACHER'S words";
  control("search").dispatchEvent(new Event("input"));
  await new Promise(resolve => setTimeout(resolve, 400));
  note();
  const details = control("list").firstChild;
  details.open = true;
  await new Promise(resolve => setTimeout(resolve, 100));
  seen.writings = [...details.querySelectorAll(".writings > div")].map(block => block.textContent);
  seen.reached = [...root.querySelectorAll("input, select, summary, button")].every(item => item.tabIndex === 0);
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_thousand_questions_of_twenty_arms_are_searched_and_filtered_a_screenful_at_a_time(tmp_path: Path) -> None:
    blocks = questions.browse_questions(make_records(1000, 20))
    page = render_html(Report("t", "l", [], [], [Section("Questions", blocks)], "f"))
    assert len(page) < 3e6
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", _PROBE))
    seen, log = browse(path)
    assert "CONSOLE" not in log
    assert seen["rendered"] == 20
    assert seen["counts"] == [
        "1 to 20 of 1000 questions", "21 to 40 of 1000 questions", "1 to 20 of 500 questions",
        "1 to 20 of 500 questions", "1 to 20 of 500 questions", "1 to 1 of 1 questions",
    ]  # fmt: skip
    assert len(seen["writings"]) == 21
    assert seen["writings"][1] == "arm1 · answer B ✗ wrongso it is 1"
    assert seen["writings"][-1] == "teacher t-a · answer A ✓ rightA teacher's words."
    assert seen["reached"]


def test_a_study_s_page_has_all_its_questions(tmp_path: Path) -> None:
    folder, _ = write_study(tmp_path)
    data = unpack(write_html(folder).read_text())
    assert len(data["questions"]) == 16 and sum(asked["held_out"] for asked in data["questions"]) == 8
    assert len(data["authors"]) == 10 + 2 and all("What" in asked["question"] for asked in data["questions"])

"""Hostile names and texts in every field of a study, in every form of its report: they are shown, and do nothing."""

import base64
import csv
import gzip
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.tasks.questions import load_questions
from datamodules.text.plain_text import clean, clean_line
from studies.analysis.comparison import format_results
from studies.report import write_html, write_markdown, write_wandb
from studies.report.escaping import for_html, for_markdown, for_script, markup_html, markup_markdown
from studies.text_table import format_table
from tests.browser import CHROMIUM
from tests.studies.report import report_study
from tests.studies.report.test_html import browse

markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py, which reads Markdown, is not installed")

RUN = "document.documentElement.setAttribute('data-pwned','1')"
PAYLOADS = {
    "script": f"<script>{RUN}</script>",
    "image": f'<img src=x onerror="{RUN}">',
    "closed script": f"</script><script>{RUN}</script>",
    "comment": "<!--<script>",
    "attribute": f'" onmouseover="{RUN}" autofocus onfocus="{RUN}" x="',
    "svg": f"<svg/onload={RUN}>",
    "markup": f"`<img src=x onerror={RUN}>` **<b onclick=x>**",
    "anchor": f'<a href="javascript:{RUN}">x</a><b>bold</b>',
    "variable": 'var(--x");alert(1);//) var(--muted) "var(--muted)"',
    "terminal": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "lines": "a\nb\r\nc\n</p>\n<details>\n# heading\n- item",
    "nul": "a\x00b",
    "direction": "\u202eevil\u202c\u2066x",
    "surrogate": "a\ud800b",
    "long": "A" * 20_000,
    "formula": r"$\frac{$ \undefined $x^",
    "path": "../../../../tmp/escaped",
    "separators": "\u2028\u2029",
    "link": "![](https://example.org/x.png) [x](javascript:alert(1)) <https://example.org> https://example.org a@b.org",
    "reference": "[x]: https://example.org\n[x]",
    "sheet": '=HYPERLINK("https://example.org","x")',
    "table": "a | b \\| c \\",
}
FIELDS = (
    "teacher", "student", "family", "task", "control", "metric", "study", "model", "warning", "note", "method",
    "methods", "description", "divergence", "question", "completion", "rationale", "part", "reason", "outcome",
    "meaning", "coverage", "languages", "trait", "condition",
)  # fmt: skip


def rename(value, old: str, new: str):
    if isinstance(value, dict):
        return {rename(key, old, new): rename(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [rename(item, old, new) for item in value]
    return new if value == old else value


# What the made-up study lacks, by field.
MORE = {
    "part": "tokenizer", "reason": "its reason", "outcome": "an outcome", "meaning": "its meaning",
    "coverage": "strict", "languages": "each", "trait": "a trait", "condition": "rationale-t-a",
}  # fmt: skip


def make_more(results: dict, names: dict[str, str]) -> dict:
    """Returns results with further outcomes, sizes, parts, languages and traits, each named in MORE or by a text."""
    place = {"trained_on": "microworld", "task": "microworld"}
    results = {
        **results,
        "study": {**results["study"], "sizes": [4, 8]},
        "num_groups": {},
        "traits": [
            {**place, "trait": names["trait"], "student": "s-a", "teacher": "t-a", "control": "shuffled", "size": 4,
             "supervision": "rationale", "against": "untuned", "ratio": 0.5, "low": 0.2, "high": 0.8,
             "num_questions": 8, "num_seeds": 2,
             **{name: {"estimate": 1.0, "low": 0.5, "high": 1.5} for name in ("student_shift", "teacher_shift")}}
        ],
        "needed_sizes": [
            {**place, "student": "s-a", "supervision": "rationale", "teacher": "t-a", "control": None, "target": 0.5,
             "condition": names["condition"], "needed": 6.0, "low": None, "high": None}
        ],
        "cells": [
            {**cell, "size": size, "seed_variance": "own",
             "condition": rename(cell["condition"], MORE["condition"], names["condition"]),
             "coverage": {names["coverage"] if name == "strict" else name: x for name, x in cell["coverage"].items()}}
            for cell in results["cells"] for size in ((4, 8) if cell["trained_on"] else (None,))
        ],
        "parts": rename(results["parts"], MORE["part"], names["part"]),
        "parts_refused": [{**row, "reason": names["reason"]} for row in results["parts_refused"]],
    }  # fmt: skip
    for kind in ("gamma", "gamma_differences", "contrasts", "parts"):
        results[kind] = [{"seed_variance": "own", **row} for row in results[kind]]
    results["outcomes"] = [
        {"outcome": names["outcome"], "meaning": names["meaning"],
         "contrasts": [{**row, "size": None} for row in results["contrasts"]],
         "cells": [
             {**cell, "mean": cell["accuracy"],
              "gain": {"estimate": 0.1, "low": 0.0, "high": 0.2} if cell["trained_on"] else None}
             for cell in results["cells"]
         ],
         **{kind: results[kind] for kind in ("gamma", "gamma_differences", "parts", "parts_refused")}}
    ]  # fmt: skip
    losses = {"p_holm": 0.1, "models": {"p": 0.2, "left_only": 1, "right_only": 2}, "estimate": -0.1, "p": 0.1}
    losses |= {"bytes": 1e5, "bytes_before": 2e5, "tokens_per_s": 9.0, "accuracy_before": 0.5}
    results["quantization"] = [
        {"kind": "Q8_0", "cells": [{**cell, **losses} for cell in results["cells"] if cell["trained_on"]],
         "contrasts": [{**row, "kind": "control", "size": None} for row in results["contrasts"]],
         "gamma": results["gamma"], "gamma_changes": results["gamma"]}
    ]  # fmt: skip
    for task in (f"{names['languages']} q/th", f"{names['languages']} q", f"{names['languages']} q/en+th"):
        results["num_questions"] = {**results["num_questions"], task: 8}
        for kind in ("cells", "gamma"):
            own = [row for row in results[kind] if row["task"] == "microworld" and row["size"] in (None, 4)]
            results[kind] = [*results[kind], *({**row, "task": task} for row in own)]
    return results


def write_study(root: Path, text: str, fields: tuple[str, ...]) -> tuple[Path, Path]:
    """Writes the made-up study with a text in these fields."""
    folder, sweep = report_study.write_study(root)
    results = make_more(report_study.make_results(), MORE | {name: text for name in fields if name in MORE})
    diagnostics = json.loads((folder / "diagnostics.json").read_text())
    names = {
        "teacher": "t-a",
        "student": "s-a",
        "family": "a",
        "task": "microworld",
        "control": "shuffled",
        "metric": "nll",
    }
    for field in fields:
        if field in names:
            results, diagnostics = (rename(value, names[field], text) for value in (results, diagnostics))
            for path in [*folder.glob("*/axes.json"), *sweep.glob("*/axes.json")]:
                path.write_text(json.dumps(rename(json.loads(path.read_text()), names[field], text)))
    study = results["study"]
    places = {
        "study": (study, "name"),
        "model": (next(iter(study["students"].values())), "model"),
        "note": (results["gamma"][1], "note"),
        "method": (results["gamma"][0], "method"),
        "methods": (results["methods"], "z"),
        "description": (next(iter(diagnostics["metrics"].values())), "description"),
    }
    for field in fields:
        if field in places:
            place, key = places[field]
            place[key] = text
    if "warning" in fields:
        results["warnings"] = [text]
    if "divergence" in fields:
        for path in sweep.glob("*/axes.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "divergence": text}))
    # What no parquet or UTF-8 file holds never comes from one.
    written = text.encode("utf-8", "replace").decode()
    if "question" in fields:
        path = root / "q.jsonl"
        asked = [vars(question) for question in load_questions(report_study.QUESTIONS)]
        hostile = [
            {
                **question,
                "question": f"{written} {question['question']}",
                "choices": [f"{written}{n}" for n in range(len(question["choices"]))],
            }
            for question in asked
        ]
        path.write_text("".join(json.dumps(question) + "\n" for question in hostile))
        for task in study["tasks"].values():
            task["test"] = [str(path)]
    if "completion" in fields:
        change(
            folder.glob("predictions/*.parquet"), {name: written for name in ("completion", "answer_neutral", "gold")}
        )
    if "rationale" in fields:
        # A store refuses a teacher whose name is not one line.
        teacher = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", written)
        change(folder.glob("teachers/*/*.parquet"), {"text": written, "answer": written, "teacher": teacher})
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "diagnostics.json").write_text(json.dumps(diagnostics))
    return folder, sweep


def change(paths, values: dict[str, str]) -> None:
    for path in paths:
        table = pq.read_table(path)
        rows = [{**row, **values} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


class Outline(HTMLParser):
    """The elements and attributes of a page; its scripts' texts."""

    def __init__(self, page: str):
        super().__init__()
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.update([(tag, ""), *((tag, name) for name, _ in attrs)])
        assert not any("javascript:" in (value or "") for name, value in attrs if name in ("href", "src"))
        self._in_script = tag == "script"
        self.scripts += [""] * self._in_script

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    folder, sweep = write_study(tmp_path_factory.mktemp("plain"), "", ())
    return Outline(write_html(folder, [sweep]).read_text())


def check_page(page: str, plain: Outline) -> None:
    """Checks that a page has no element or attribute that a harmless one lacks, and its figures."""
    outline = Outline(page)
    assert set(outline.kinds) <= {*plain.kinds, ("code", ""), ("strong", "")}
    assert len(outline.scripts) == len(plain.scripts)
    figures, known = (json.loads(scripts[0]) for scripts in (outline.scripts, plain.scripts))
    assert len(figures) == len(known)
    downloads, known = (json.loads(scripts[1]) for scripts in (outline.scripts, plain.scripts))
    assert len(downloads) == len(known) and downloads.keys() >= figures.keys() and len(downloads) > len(figures)
    for row in [row for text in downloads.values() for row in csv.reader(io.StringIO(text, newline=""))]:
        assert not any(re.match(r"[=+@]|-(?!\d)", field) for field in row), row
    # Nothing of the packed questions is markup; what the page makes of them is text nodes.
    assert re.fullmatch(r"[\w+/=]+", outline.scripts[2])
    questions = json.loads(gzip.decompress(base64.b64decode(outline.scripts[2])))
    assert len(questions["questions"]) == 16
    for text in [*questions["authors"], *(asked["question"] for asked in questions["questions"])]:
        assert clean(text) == text
    for trace in [trace for figure in figures.values() for trace in figure["traces"]]:
        for label in [trace.get("name", ""), *(trace.get("hovertext") or [])]:
            assert not re.search(r"<(?!/?b>|br>)", label), label


def check_markdown(text: str, pictures: int) -> None:
    """Checks that Markdown holds no HTML, no link and no picture but the report's own."""
    assert clean(text) == text
    tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inside = [child for token in tokens for child in [token, *(token.children or [])]]
    kinds = Counter(token.type for token in inside)
    assert not kinds["html_block"] and not kinds["html_inline"] and not kinds["link_open"]
    found = [token.attrs["src"] for token in inside if token.type == "image"]
    assert all(re.fullmatch(r"report/[\w-]+\.png", source) for source in found)
    assert len(found) == pictures
    # Addresses become links by themselves, but not in code.
    assert not re.search(r"https://|a@b\.org", re.sub(r"`[^`]*`", "", text))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_texts_everywhere_do_nothing_in_a_page_and_in_weights_and_biases(payload, tmp_path, plain) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra `reports`")
    folder, sweep = write_study(tmp_path, PAYLOADS[payload], FIELDS)
    check_page(write_html(folder, [sweep]).read_text(), plain)
    spec = json.loads(Path(write_wandb(folder, [sweep], "team", "kindred", False)).read_text())
    texts = [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"]
    assert len(texts) > 20
    for text in texts:
        check_markdown(text, 0)
    assert clean(json.dumps(spec, ensure_ascii=False)) == json.dumps(spec, ensure_ascii=False)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_texts_do_nothing_in_a_studys_table(payload: str) -> None:
    text = PAYLOADS[payload]
    results = make_more(report_study.make_results(), dict.fromkeys(MORE, text))
    for name in ("microworld", "a", "s-a", "nll"):
        results = rename(results, name, text)
    table = format_results({**results, "warnings": [text]})
    check_markdown(table, 0)
    assert table.count("\n\n") == format_results({**results, "warnings": ["w"]}).count("\n\n")
    assert "Trait " in table and "Mind: " in table


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_texts_everywhere_do_nothing_in_markdown(payload: str, tmp_path: Path) -> None:
    folder, sweep = write_study(tmp_path, PAYLOADS[payload], FIELDS)
    text = write_markdown(folder, [sweep]).read_text()
    pictures = {path.name for path in (folder / "report").iterdir()}
    check_markdown(text, len(pictures))
    assert len(pictures) > 6 and not [*tmp_path.rglob("escaped*")] and not Path("/tmp/escaped").exists()


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("payload", ["closed script", "attribute"])
def test_a_hostile_text_in_one_field(payload: str, field: str, tmp_path: Path, plain: Outline) -> None:
    folder, sweep = write_study(tmp_path, PAYLOADS[payload], (field,))
    check_page(write_html(folder, [sweep]).read_text(), plain)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(
    "payload", ["comment", *(pytest.param(name, marks=pytest.mark.slow) for name in ("closed script", "variable"))]
)
def test_a_page_of_hostile_names_has_its_figures_in_a_browser(payload: str, tmp_path: Path) -> None:
    folder, sweep = write_study(
        tmp_path, PAYLOADS[payload], ("teacher", "student", "family", "control", "rationale", "question", "completion")
    )
    path = tmp_path / "report.html"
    probe = """<script>
addEventListener("load", async () => {
  while (!("drawn" in document.documentElement.dataset)) await new Promise(resolve => setTimeout(resolve, 20));
  const root = document.querySelector(".browser");
  while (!("ready" in root.dataset)) await new Promise(resolve => setTimeout(resolve, 20));
  for (const kind of ["training", "held-out"]) {
    root.querySelector("[data-control=kind]").value = kind;
    root.querySelector("[data-control=kind]").dispatchEvent(new Event("change"));
    for (const details of root.querySelectorAll("details")) details.open = true;
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  const plots = [...document.querySelectorAll(".plot")];
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify({
    drawn: plots.filter(plot => plot.querySelector(".main-svg")).length, plots: plots.length,
    opened: root.querySelectorAll(".writings").length,
    made: [...new Set([...root.querySelectorAll("[data-control=list] *")].map(item => item.localName))].sort(),
    pwned: document.documentElement.dataset.pwned ?? null,
    links: [...document.querySelectorAll("a")].filter(a => /^javascript/.test(a.href?.baseVal ?? a.href)).length,
  });
  document.body.append(result);
});
</script></body>"""
    path.write_text(write_html(folder, [sweep]).read_text().replace("</body>", probe))
    seen, log = browse(path)
    assert seen["drawn"] == seen["plots"] > 6 and seen["pwned"] is None and seen["links"] == 0
    assert seen["opened"] == 8 and seen["made"] == ["details", "div", "h3", "p", "span", "summary"]
    assert "CONSOLE" not in log


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_table_in_a_terminal_is_text_on_one_line_a_row(payload: str) -> None:
    text = format_table(["teacher", PAYLOADS[payload]], [[PAYLOADS[payload], "1"]])
    assert len(text.split("\n")) == 3 and clean(text) == text


@given(st.text(st.characters()), st.text("`*a<>[]()!| "))
def test_any_text_is_only_text(text: str, marks: str) -> None:
    for hostile in (text, marks, text + marks):
        assert Outline(f"<p>{for_html(hostile)}</p>").kinds == {("p", ""): 1}
        assert set(Outline(f"<p>{markup_html(hostile)}</p>").kinds) <= {("p", ""), ("code", ""), ("strong", "")}
        assert json.loads(for_script(hostile)) == hostile and "<" not in for_script(hostile)
        for line in (for_markdown(hostile), markup_markdown(hostile)):
            [token] = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parseInline(line)
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special", "code_inline", "strong_open", "strong_close", "softbreak"}
        assert "\n" not in clean_line(hostile)

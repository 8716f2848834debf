"""The report: what it says, Markdown with pictures, and Weights & Biases."""

import html
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

from scripts.common.entry import run_main
from scripts.report import main
from studies.report import write_html, write_markdown
from studies.report.content import _list_facts, _show_accuracy, build_report
from studies.report.document import Figure, HeatMap, Parallel, Report, Table, Text
from studies.report.exhibits import show_coverage
from studies.report.gamma import show_formula
from studies.report.markdown import render_markdown
from studies.report.plots import plot
from studies.report.records import read_study
from tests.studies.report.report_study import TEACHERS, make_results


def find(report: Report, title: str, kind: type) -> list:
    [section] = [section for section in report.sections if section.title == title]
    return [block for block in section.blocks if isinstance(block, kind)]


def test_every_cell_is_a_mark_and_a_row(report: Report) -> None:
    cells = make_results()["cells"]
    [figure] = find(report, "Accuracy", Figure)
    marks = {(panel.title, mark.label): mark for panel in figure.panels for mark in panel.marks}
    assert len(marks) == len(cells)
    shuffled = next(cell for cell in cells if cell["control"] == "shuffled" and cell["student"] == "s-b")
    mark = marks["student s-b (b)", "rationale from t-b, shuffled"]
    assert (mark.estimate, mark.low, mark.family) == (100 * shuffled["accuracy"], 100 * shuffled["low"], "b")
    [table] = find(report, "Accuracy", Table)
    assert len(table.rows) == len(cells)
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_each_seed_is_a_dot_beside_its_mean(report: Report) -> None:
    [figure] = find(report, "Accuracy", Figure)
    marks = {mark.label: mark for mark in figure.panels[0].marks}
    cell = next(cell for cell in make_results()["cells"] if cell["supervision"] == "label")
    assert marks["label"].seeds == tuple(100 * seed for seed in cell["accuracy_by_seed"])
    assert marks["untuned"].seeds == ()  # it has one
    traces = plot(figure, report.families)["traces"]
    dots = [trace for trace in traces if any("seed 1" in text for text in trace["hovertext"])]
    assert sum(len(trace["x"]) for trace in dots) == 2 * sum(len(mark.seeds) > 0 for mark in [
        mark for panel in figure.panels for mark in panel.marks])  # fmt: skip


def test_every_negative_number_has_a_true_minus(report: Report, tmp_path: Path) -> None:
    figures = [block for section in report.sections for block in section.blocks if isinstance(block, Figure)]
    hovered = [trace.get("hovertext", []) for figure in figures for trace in plot(figure, report.families)["traces"]]
    said = [render_markdown(report, tmp_path), *(text for texts in hovered for text in texts)]
    assert any("−" in text for text in said)
    assert not [text for text in said if re.search(r"(?<![\w-])-\d+\.\d", text)]


def test_a_cell_that_another_student_has_is_not_run() -> None:
    results = make_results()
    results["cells"] = [cell for cell in results["cells"] if (cell["student"], cell["condition"]) != ("s-b", "label")]
    table = _show_accuracy(results)[1]
    assert [cell.text for cell in table.rows[-1]] == ["s-b", "label", "–", *["not run"] * 7]


def test_the_formula_of_gamma_names_students_and_teachers() -> None:
    results = make_results()
    [text] = show_formula(results)
    assert text.text.startswith(
        "Here γ = 0.5 · A(`s-a` from `t-a`) − 0.5 · A(`s-a` from `t-b`) − 0.5 · A(`s-b` from `t-a`) "
        "+ 0.5 · A(`s-b` from `t-b`), where"
    )
    for number in range(4):
        results["study"]["teachers"][f"more-{number}"] = {"model": "m", "family": "ab"[number % 2], "name": None}
        results["cells"] += [
            {**cell, "teacher": f"more-{number}"}
            for cell in results["cells"]
            if cell["teacher"] == "t-a" and cell["supervision"] == "rationale"
        ]
    results["study"]["teachers"]["absent"] = {"model": "m", "family": "a", "name": None}
    [table] = show_formula(results)
    first, second = table.rows
    assert table.columns == ["student", "t-a", "t-b", *(f"more-{number}" for number in range(4)), "absent"]
    assert first[-1].text == second[-1].text == "not run"
    assert [cell.value for cell in first[1:-1]] == pytest.approx([1 / 6, -1 / 6] * 3)
    assert [cell.value for cell in second[1:-1]] == pytest.approx([-1 / 6, 1 / 6] * 3)


def test_the_formula_of_gamma_leaves_out_cells_without_weight() -> None:
    results = make_results()
    for name in ("strange", "stranger"):
        results["study"]["teachers"][name] = {"model": "m", "family": name, "name": None}
        results["cells"] += [{**cell, "teacher": name} for cell in results["cells"] if cell["teacher"] == "t-a"]
    [text] = show_formula(results)
    assert text.text.count("A(`") == 4 and "e-1" not in text.text and text.text.endswith("other cells have no weight.")


def test_a_study_without_text_alone_begins_with_its_first_supervision_s_gamma() -> None:
    results = make_results()
    results["gamma"] = [{**row, "supervision": "rationale+logits"} for row in results["gamma"]]
    fact = _list_facts(results)[0]
    assert fact.name == "Family interaction γ" and fact.note.endswith("difference in differences, rationale+logits")


def test_a_heat_map_s_colours_span_the_noise_and_its_cells_say_how_many_runs_they_have() -> None:
    heat_map = HeatMap("n", "c", "x", "y", [1, 2], [1], [[50.0, None]], [[3, 0]], "%", 10.0)
    assert heat_map.colour_range == (40.0, 60.0)
    assert heat_map.texts("\n") == [["50.0 %\n3 runs", "not run"]]
    figure = plot(heat_map, [])
    assert (figure["traces"][0]["zmin"], figure["traces"][0]["zmax"]) == (40.0, 60.0)
    assert [note["text"] for note in figure["wide"]["annotations"]] == ["not run"]


def test_gamma_is_first_read_and_drawn_against_zero(report: Report) -> None:
    assert report.facts[0].value == "+14.9 points"
    assert "[+11.7, +17.9]" in report.facts[0].note
    gamma, effects = find(report, "Interaction", Figure)
    assert gamma.reference == effects.reference == 0
    assert [mark.estimate for mark in gamma.panels[0].marks] == pytest.approx([14.9, 14.9])


def test_a_headline_that_one_cell_makes_says_so_beside_it(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    said = "fragile: without student s-a from teacher t-a it is −0.4 points [−2.0, +1.2], and 1 more of the cells"
    cell = {"student": "s-a", "teacher": "t-a", "estimate": -0.004, "low": -0.02, "high": 0.012}
    results = make_results()
    results["gamma"][0]["fragile"] = [cell, {**cell, "teacher": "t-b"}]
    study = tmp_path / "made-up"
    shutil.copytree(folders[0], study)
    (study / "results.json").write_text(json.dumps(results))
    report = build_report(read_study(study, []))
    assert report.facts[0].note.startswith("[+11.7, +17.9] on microworld, difference in differences; fragile: ")
    [table] = [table for table in find(report, "Interaction", Table) if "method" in table.columns][:1]
    assert said in table.rows[0][-1].text and "fragile" not in table.rows[1][-1].text
    assert said in html.unescape(write_html(study, []).read_text())
    assert said in write_markdown(study, []).read_text().replace("\\", "")
    del results["gamma"][0]["fragile"]
    (study / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"gamma has no fragile; write it again with `study\.py analyze`"):
        read_study(study, [])


def test_what_distributions_add_is_a_sentence_and_a_table(report: Report) -> None:
    [fact] = [fact for fact in report.facts if fact.name == "What distributions add to γ"]
    assert fact.value == "+3.0 points" and "[+1.0, +5.0]" in fact.note
    texts = [text.text for text in find(report, "Interaction", Text)]
    added, held = (text for text in texts if "(rationale+logits)" in text)
    assert "the distributions add +3.0 points [+1.0, +5.0], so a teacher of the family helps more" in added
    assert "whose distributions they are makes +3.0 points [−5.0, +5.0], which other seeds" in held
    table = find(report, "Interaction", Table)[-1]
    assert [cell.text for cell in table.rows[0][3:7]] == ["+18.0", "+15.0", "+3.0", "[+1.0, +5.0]"]
    assert "joint" in table.caption


def test_what_rationales_teach_is_read_first_and_in_its_section(report: Report) -> None:
    assert "What rationales teach" in [fact.name for fact in report.facts]
    assert len(find(report, "Supervision", Table)) == 1


def test_which_part_of_the_family_it_was_is_a_sentence_a_figure_and_a_table(report: Report) -> None:
    said = find(report, "Parts", Text)[1].text
    assert said.startswith("**rationale**: Which part of the family it was: tokenizer + lineage (+14.9 points [+11.7, ")
    for end in (
        "could make nothing of style (+14.9 points [−2.0, +17.9]); that is no proof that there is none.",
        "tokenizer and lineage always go together in this grid: it may be any of them.",
        "Of architecture it says nothing: all students are of the architecture <x>.",
        "Over other pairs of models tokenizer + lineage has [−1.0, +17.9]: beyond these it is not shown.",
    ):
        assert end in said
    [fact] = [fact for fact in report.facts if fact.name == "Part of the family"]
    assert fact.value == "tokenizer + lineage" and fact.note.endswith("; style +14.9 [−2.0, +17.9]")
    [figure] = find(report, "Parts", Figure)
    assert figure.reference == 0 and len(figure.panels[0].marks) == 3
    [table] = find(report, "Parts", Table)
    assert [row[1].text for row in table.rows] == ["tokenizer + lineage", "style", "tokenizer + lineage"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_cell_with_another_familys_logits_is_missed_where_others_have_one() -> None:
    def find_missing(results: dict) -> set[tuple]:
        rows = _show_accuracy(results)[1].rows
        return {tuple(cell.text for cell in row[:3]) for row in rows if row[3].text == "not run"}

    results = make_results()
    assert find_missing(results) == set()
    cell = next(cell for cell in results["cells"] if cell["student"] == "s-a" and "logits" in cell["supervision"])
    results["cells"].append({**cell, "teacher": "t-b", "teacher_family": "b"})
    # Without the first's cell, nothing says that a student learns from the distributions of another family.
    assert find_missing(results) == {("s-b", "rationale+logits", teacher) for teacher in TEACHERS}


def test_coverage_is_a_row_for_each_aligned_arm(report: Report) -> None:
    [table] = find(report, "Alignment", Table)
    assert table.columns == ["arm", "student", "none", "strict", "exact"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["rationale+logits from t-a", "s-a", "5.0 %", "80.0 %", "15.0 %"]
    ]
    results = make_results()
    for cell in results["cells"]:
        cell["coverage"] = {}
    assert show_coverage(results) == []


def test_loss_weights_are_means_over_runs(folders: tuple[Path, Path], report: Report) -> None:
    [heat_map] = find(report, "Loss weights", HeatMap)
    assert (heat_map.xs, heat_map.ys) == ([0.25, 0.5, 1.0], [1.0, 2.0])
    records = read_study(folders[0], [folders[1]])
    same = [
        run.accuracy
        for run in [*records.runs, *records.sweep]
        if (run.axes["kl_weight"], run.axes["temperature"], run.axes["student"]) == (0.5, 1.0, "s-a")
    ]
    assert len(same) == 3  # two seeds of the study, and the sweep's
    assert heat_map.counts == [[1, 3, 1], [1, 1, 1]]
    assert heat_map.values[0][1] == pytest.approx(100 * sum(same) / 3)
    [parallel] = find(report, "Loss weights", Parallel)
    assert len(parallel.rows) == 7  # of eight runs one logged nothing


def test_without_a_sweep_it_says_that_weights_were_not_varied(folders: tuple[Path, Path]) -> None:
    [text] = find(build_report(read_study(folders[0], [])), "Loss weights", Text)
    assert "λ = 0.5, T = 1" in text.text


def test_learning_curves_are_means_of_plain_arms(folders: tuple[Path, Path], report: Report) -> None:
    rationale, _ = find(report, "Learning curves", Figure)
    [line] = [line for line in rationale.panels[0].series if line.label == "rationale from t-b"]
    runs = [run for run in read_study(folders[0], []).runs if re.fullmatch(r"s-a-rationale-t-b-seed\d", run.id)]
    assert line.ys[3] == pytest.approx(sum(run.metrics[3]["train/ce_rationale"] for run in runs) / 2)
    assert (line.family, line.is_dashed) == ("b", False)


def test_diagnostics_stand_against_accuracy(report: Report) -> None:
    [figure] = find(report, "Diagnostics", Figure)
    accuracy = {(cell["student"], cell["teacher"]): cell["accuracy"] for cell in make_results()["cells"]
                if cell["supervision"] == "rationale" and cell["control"] is None}  # fmt: skip
    assert [mark.estimate for mark in figure.panels[0].marks] == pytest.approx(
        [100 * accuracy[student, teacher] for teacher in ("t-a", "t-b") for student in ("s-a", "s-b")]
    )


def test_markdown_has_its_pictures(folders: tuple[Path, Path]) -> None:
    path = write_markdown(folders[0], [folders[1]])
    text = path.read_text()
    links = re.findall(r"\]\((.+?\.png)\)", text)
    assert len(links) > 6
    assert all((path.parent / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert {line.count("|") for line in text.splitlines() if line.startswith("| s-a")} == {11}


class TestWeightsAndBiases:
    @pytest.fixture(autouse=True)
    def extra(self) -> None:
        pytest.importorskip("wandb_workspaces", reason="needs the extra `reports`")

    def test_the_report_as_json(self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
        with mock.patch("socket.socket.connect", side_effect=AssertionError("network")):
            main(["wandb", str(folders[0]), "--sweep", str(folders[1]), "--entity", "team"])
        spec = json.loads(Path(capsys.readouterr().out.strip()).read_text())
        headings = [block["children"][0]["text"] for block in spec["blocks"] if block["type"] == "heading"]
        assert headings == ["Design", "Accuracy", "Supervision", "Interaction", "Parts", "Contrasts", "Alignment",
                            "Loss weights", "Diagnostics", "Learning curves", "Samples", "Questions", "Limits",
                            "Methods"]  # fmt: skip
        grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
        panels = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
        kinds = {panel["viewType"] for panel in panels}
        assert kinds == {"Media Browser", "Bar Chart", "Run History Line Plot", "Parallel Coordinates Plot",
                         "Scatter Plot"}  # fmt: skip
        media = {
            key for panel in panels if panel["viewType"] == "Media Browser" for key in panel["config"]["mediaKeys"]
        }
        assert {"report/gamma", "report/accuracy-microworld", "report/diagnostics-microworld"} <= media
        # Every panel looks at this study's runs only, of one kind.
        for grid in grids:
            group, job = grid["runSets"][0]["filters"]["filters"]
            assert (group["key"]["name"], group["value"]) == ("group", ["made-up", "weights"])
            assert job["value"] in ("fit", "evaluate", "report")

    def test_publishing_sends_pictures_and_report(
        self, folders: tuple[Path, Path], report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import wandb_workspaces.reports.v2.interface as interface

        from studies.report.wandb_report import WandbReport
        from tests.scripts.test_wandb import items, read_file

        sent = []

        def answer(api, query, variables=None):
            if "ProjectInternalId" in query:
                return {"project": {"id": "x", "internalId": "UHJvamVjdDo1"}}
            sent.append(json.loads(variables["spec"]))
            view = {"id": "abc", "type": "runs", "name": "n", "displayName": variables["displayName"],
                    "description": "", "project": {"id": "p", "name": "kindred", "entityName": "team"},
                    "spec": variables["spec"], "updatedAt": None}  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}

        project = mock.Mock()
        project.name = "kindred"
        server = mock.Mock(default_entity="team", **{"projects.return_value": [project]})
        monkeypatch.setattr(interface, "execute_graphql", answer)
        monkeypatch.setattr(interface, "_get_api", lambda: server)
        monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
        monkeypatch.setenv("WANDB_MODE", "offline")
        shown = WandbReport(report, "made-up", [], "team", "kindred")
        assert shown.publish(tmp_path).startswith("https://wandb.example/team/kindred/reports/")
        [spec] = sent
        assert len(spec["blocks"]) == len(shown.dump()["blocks"])
        records = read_file(tmp_path)
        logged = {key.removesuffix("._type") for entry in records["history"] for key in items(entry.item)}
        assert {"report/gamma", "report/diagnostics-microworld"} <= logged
        assert (records["run"][-1].run_group, records["run"][-1].job_type) == ("made-up", "report")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture):
    def refuse(*args: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run_main(lambda: main(list(args)), main.__code__.co_filename)
        [line] = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2
        return line

    return refuse


def test_bad_input_is_one_line(folders: tuple[Path, Path], tmp_path: Path, refused) -> None:
    runs = shutil.copytree(folders[0].parent, tmp_path / "runs")
    line = refused("html", str(runs / "made-upp"))
    assert "there is no such folder" in line and "made-up, weights" in line
    assert "no such folder" in refused("markdown", str(runs / "made-up"), "--sweep", str(runs / "other"))
    assert "--entity" in refused("wandb", str(runs / "made-up"))
    results = runs / "made-up" / "results.json"
    results.write_text('{"cells": []}')
    assert "has no contrasts" in refused("html", str(runs / "made-up"))
    results.unlink()
    (runs / "made-up" / "s-a-label-seed0" / "meta.json").write_text("{}")
    (runs / "made-up" / "s-a-label-seed1" / "meta.json").write_text("{}")
    (runs / "made-up" / "s-a-label-seed1" / "DONE").unlink()
    line = refused("html", str(runs / "made-up"))
    assert "1 of 2 begun runs done" in line and "study.py run" in line

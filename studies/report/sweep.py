"""The report of a sweep alone: its arms' settings, results and learning curves, without a study around them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.files.parsing import read_json_object
from datamodules.files.seals import check_run_file
from lightning_modules.evaluation.metrics import Estimate, read_accuracy
from lightning_modules.run.folder import flatten
from studies.numbers import between, percent
from studies.report.document import Block, Cell, Fact, Figure, Mark, Panel, Report, Section, Series, Table, Text
from studies.report.escaping import name_figures
from studies.report.exhibits import show_loss_weights
from studies.report.questions import browse_questions
from studies.report.records import StudyRecords, read_answers, read_runs
from studies.report.words import NOT_RUN, plural


@dataclass(frozen=True)
class Arm:
    """An arm that ended.

    Attributes:
        name: In the figures: what is its own of its settings.
        id: Names its folder.
        settings: By name, those that differ between the arms.
        metrics: Lines of `metrics.jsonl`.
        accuracy: Of its predictions; None without.
    """

    name: str
    id: str
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    accuracy: Estimate | None


def is_sweep(folder: Path) -> bool:
    """Whether a folder is of a sweep, which has a table of its arms."""
    table = folder / "table.md"
    # A study has a table, too, with other columns.
    return table.is_file() and "| test accuracy" in table.read_text(encoding="utf-8").partition("\n")[0]


def _read_arms(folder: Path, records: StudyRecords) -> list[Arm]:
    configs = {}
    for run in records.runs:
        check_run_file(folder / run.id, "meta.json")
        flat = flatten(read_json_object(folder / run.id / "meta.json")["config"])
        configs[run.id] = {name: value for name, value in flat.items() if not name.startswith("run.")}
    names = dict.fromkeys(name for config in configs.values() for name in config)
    varied = [name for name in names if len({json.dumps(config.get(name)) for config in configs.values()}) > 1]
    arms = []
    for run in records.runs:
        settings = {name: configs[run.id].get(name) for name in varied}
        label = ", ".join(f"{name.rsplit('.', 1)[-1]} {_write(value)}" for name, value in settings.items()) or run.id
        accuracy = read_accuracy(folder / "predictions" / f"{run.id}.parquet")
        arms.append(Arm(label, run.id, settings, run.metrics, accuracy))
    return arms


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def build_sweep_report(folder: Path) -> Report:
    """Returns the report of a sweep.

    Args:
        folder: `runs/<group>`, with the sweep's `table.md`.

    Raises:
        ValueError: No arm has ended.
    """
    answers = read_answers(folder)
    records = StudyRecords(
        folder, {"cells": [], "study": {"sizes": []}}, read_runs(folder, {}), [], answers, [], {}, {}, {}, None
    )
    if not records.runs:
        raise ValueError(f"{folder}: no arm of this sweep has ended; `python -m scripts.sweep` runs what is missing")
    arms = _read_arms(folder, records)
    sections = [
        Section("Arms", _show_arms(arms)),
        Section("Loss weights", show_loss_weights(records)),
        Section("Learning curves", _show_curves(arms)),
        Section("Questions", browse_questions(records)),
    ]
    known = [arm for arm in arms if arm.accuracy]
    facts = [Fact("Arms that ended", str(len(arms)), f"{plural(len(known), 'arm')} of them evaluated")]
    if known:
        best = max(known, key=lambda arm: arm.accuracy.value if arm.accuracy else 0)
        assert best.accuracy is not None
        interval = between(best.accuracy.low, best.accuracy.high, percent)
        note = f"{best.name}; {interval}, n = {best.accuracy.n}; chosen as the best, it flatters itself"
        facts.append(Fact("Most accurate arm", percent(best.accuracy.value), note))
    return Report(
        title=folder.name,
        lead="How much do the settings of this sweep change what the student learns?",
        facts=facts,
        families=[arm.name for arm in arms],
        sections=name_figures([section for section in sections if section.blocks]),
        footer=f"Made by Kindred from {folder}. Intervals are 95 % intervals over questions.",
    )


def _scale(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _show_arms(arms: list[Arm]) -> list[Block]:
    marks = [
        Mark(arm.name, 100 * arm.accuracy.value, _scale(arm.accuracy.low), _scale(arm.accuracy.high))
        for arm in arms
        if arm.accuracy
    ]
    varied = [*arms[0].settings]
    rows = []
    for arm in arms:
        loss = next((record["val/loss"] for record in reversed(arm.metrics) if "val/loss" in record), None)
        share = arm.accuracy
        rows.append([
            Cell(arm.id, arm.id),
            *(Cell(_write(value), value if isinstance(value, int | float) else _write(value))
              for value in arm.settings.values()),
            Cell(NOT_RUN if loss is None else f"{loss:.4g}", loss),
            Cell(percent(share.value) if share else NOT_RUN, share.value if share else None),
            Cell(between(share.low, share.high, percent) if share else NOT_RUN, share.low if share else None),
            Cell(str(share.n) if share else NOT_RUN, share.n if share else None),
        ])  # fmt: skip
    columns = ["arm", *varied, "val/loss", "accuracy", "95 %", "questions"]
    table = Table(columns, rows, "All arms that ended, with the settings in which they differ.")
    if not marks:
        return [Text("No arm has been evaluated.", is_warning=True), table]
    caption = "Accuracy of each arm with its 95 % interval over questions; one run each, so seeds are not in it."
    return [Figure("intervals", "arms", caption, [Panel("", marks)], "accuracy, %"), table]


def _show_curves(arms: list[Arm]) -> list[Block]:
    blocks: list[Block] = []
    for metric in ("train/ce_rationale", "train/ce_answer", "val/loss"):
        series = []
        for index, arm in enumerate(arms):
            points = [(record["step"], record[metric]) for record in arm.metrics if metric in record]
            if points:
                xs, ys = zip(*points, strict=True)
                series.append(Series(arm.name, [*xs], [*ys], arm.name, is_dashed=index % 16 >= 8))
        if series:
            caption = f"`{metric}` of each arm, in nats a token; point at a line for its settings."
            name = metric.replace("/", "-")
            blocks.append(Figure("lines", name, caption, [Panel("", series=series)], "optimizer step", metric))
    return blocks

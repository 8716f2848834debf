"""What a report shows beyond the study's results: loss weights, diagnostics, learning curves, samples."""

import math
import re
from collections import defaultdict
from statistics import fmean
from typing import Any

from datamodules.tasks.questions import format_question
from studies.numbers import percent, signed, signed_between
from studies.report.document import (
    Block,
    Cell,
    Figure,
    HeatMap,
    Mark,
    Panel,
    Parallel,
    Sample,
    Series,
    Table,
    Text,
    Writing,
)
from studies.report.records import Run, StudyRecords
from studies.report.words import NOT_RUN, is_plain, name_arm, name_file, name_place, plural

NUM_SCATTERS = 6


def show_loss_weights(records: StudyRecords) -> list[Block]:
    """Returns accuracy over the divergence's weight and temperature, where a student's runs differ in them."""
    groups: dict[tuple[str, str, str], list[tuple[Run, float]]] = defaultdict(list)
    for run in [*_find_plain(records), *records.sweep]:
        if run.accuracy is not None and run.axes["supervision"] == "rationale+logits":
            place = (run.axes["student"], run.axes["teacher"], run.axes["divergence"])
            groups[place].append((run, 100 * run.accuracy))
    blocks: list[Block] = []
    seen = set()
    for (student, teacher, divergence), group in groups.items():
        settings = defaultdict(list)
        for run, accuracy in group:
            settings[run.axes["kl_weight"], run.axes["temperature"]].append(accuracy)
        seen |= set(settings)
        if len(settings) < 2:
            continue
        weights, temperatures = (sorted(values) for values in map(set, zip(*settings, strict=True)))
        means = [
            [fmean(found) if (found := settings.get((weight, t))) else None for weight in weights] for t in temperatures
        ]
        counts = [[len(settings.get((weight, t), [])) for weight in weights] for t in temperatures]
        number, mean = min(run.num_questions for run, _ in group), fmean(accuracy for _, accuracy in group)
        half = 1.96 * math.sqrt(mean * (100 - mean) / number)
        caption = (
            f"Student {student}, teacher {teacher}, `{divergence}`: mean accuracy of {plural(len(group), 'run')} on "
            f"{number} questions, by the divergence's weight λ and temperature T. One run's 95 % interval is about "
            f"± {half:.1f} points: smaller differences say little, and the colours go so far beyond the values."
        )
        name = f"{student}-{teacher}-{divergence}"
        title = f"loss-weights-{name}"
        blocks.append(HeatMap(title, caption, "λ", "T", weights, temperatures, means, counts, "%", half))
        caption = (
            "The same runs, a line each, the most accurate one in colour. Cross-entropy is the rationale's at the end "
            "of training, in nats a token."
        )
        rows = [
            [run.axes["kl_weight"], run.axes["temperature"], loss, accuracy]
            for run, accuracy in group
            if (loss := _last(run, "train/ce_rationale")) is not None
        ]
        if rows:
            blocks.append(Parallel(f"loss-runs-{name}", caption, ["λ", "T", "cross-entropy", "accuracy, %"], rows))
    if not blocks:
        text = "; ".join(f"λ = {weight:g}, T = {temperature:g}" for weight, temperature in sorted(seen)) or "no logits"
        blocks.append(Text(f"Not varied here ({text}). `--sweep runs/GROUP` adds the runs of another folder."))
    return blocks


def _find_plain(records: StudyRecords) -> list[Run]:
    """Returns the study's runs of arms without a control, whose name would be at the end; of the largest size alone."""
    controls = tuple(f"-{cell['control']}" for cell in records.results["cells"] if cell["control"])
    sizes = records.results["study"]["sizes"]
    end = f"-n{sizes[-1]}" if sizes else ""
    found = [run for run in records.runs if _name_condition(run).endswith(end)]
    return [run for run in found if not _name_condition(run).removesuffix(end).endswith(controls)]


def _name_condition(run: Run) -> str:
    return re.sub(r"-seed\d+$", "", run.id)


def _last(run: Run, name: str) -> float | None:
    return next((record[name] for record in reversed(run.metrics) if name in record), None)


def show_diagnostics(records: StudyRecords) -> list[Block]:
    """Returns what was known of teacher and student before training, against what the student then learned."""
    if records.diagnostics is None:
        return []
    rows, metrics = records.diagnostics["rows"], records.diagnostics["metrics"]
    blocks: list[Block] = []
    for prediction in records.diagnostics.get("predictions", []):
        if prediction["correlations"]:
            blocks += [_scatter(records, prediction), _tabulate_correlations(prediction), *_tabulate_parts(prediction)]
    if not blocks:
        blocks.append(Text("Not compared with accuracy: `study.py diagnose`, once there are results, does so."))
    columns = ["task", "student", "teacher", "rationales", "gold shown", *metrics]
    cells = [
        [
            Cell(row["task"], row["task"]),
            Cell(row["student"], row["student"]),
            Cell(row["teacher"], row["teacher"], row["teacher_family"]),
            Cell(str(row["num_rationales"]), row["num_rationales"]),
            Cell({True: "yes", False: "no", None: "?"}[row["gold_conditioned"]], str(row["gold_conditioned"])),
            *(_number_cell(row.get(metric)) for metric in metrics),
        ]
        for row in rows
    ]
    meaning = "; ".join(f"`{name}`: {metric['description']}" for name, metric in metrics.items())
    return [*blocks, Table(columns, cells, f"All diagnostics. {meaning}.")]


def _scatter(records: StudyRecords, prediction: dict[str, Any]) -> Figure:
    place = (prediction["trained_on"], prediction["task"])
    found = defaultdict[tuple[str, str], list[float]](list)
    for cell in records.results["cells"]:
        if is_plain(cell) and (cell["trained_on"], cell["task"]) == place:
            found[cell["teacher"], cell["student"]].append(100 * cell["accuracy"])
    # Of several training sizes the mean, as the correlations have it.
    outcomes = {pair: fmean(values) for pair, values in found.items()}
    assert records.diagnostics is not None
    panels = []
    for correlation in prediction["correlations"][:NUM_SCATTERS]:
        metric = correlation["metric"]
        marks = [
            Mark(f"{row['teacher']} → {row['student']}", outcomes[key], family=row["teacher_family"], x=row[metric])
            for row in records.diagnostics["rows"]
            if row["task"] == prediction["trained_on"] and (key := (row["teacher"], row["student"])) in outcomes
            if row.get(metric) is not None
        ]
        panels.append(Panel(f"{metric}, ρ = {signed(correlation['estimate'], 2)}", marks))
    caption = (
        f"**{name_place(*place)}**: what could be known before training against what was learned; a point is a teacher "
        f"and a student (n = {prediction['num_cells']}). Of {len(prediction['correlations'])} diagnostics these follow "
        "accuracy most closely: chosen so, they flatter themselves. ρ is Spearman's over teachers, averaged "
        "over students."
    )
    return Figure("scatter", f"diagnostics-{name_file(*place)}", caption, panels, "", "accuracy, %")


def _tabulate_correlations(prediction: dict[str, Any]) -> Table:
    left = {item["metric"]: item for item in prediction["mediations"]}
    nothing = {"gamma": None, "low": None, "high": None}
    rows = [
        [
            Cell(item["metric"], item["metric"]),
            *_interval_cells(item, "estimate", 2),
            _range_cell(item["lowest"], item["highest"]),
            *_interval_cells(left.get(item["metric"], nothing), "gamma", 1),
            Cell(f"{item['num_students']} × {item['num_teachers']}", item["num_teachers"]),
            Cell(item["note"] or "", item["note"]),
        ]
        for item in prediction["correlations"]
    ]
    plain = left[None]
    gamma = "not identified" if plain["gamma"] is None else f"{signed(plain['gamma'], 1)} points"
    caption = (
        f"ρ with accuracy, 95 % by a bootstrap over teachers; and the family interaction (of these cells: {gamma}) "
        "that is left, in points, once the diagnostic is a covariate, 95 % by Student's t. n is students × teachers."
    )
    columns = ["diagnostic", "ρ", "95 %", "ρ without one family", "γ left", "95 % of γ", "n", "note"]
    return Table(columns, rows, caption)


def _tabulate_parts(prediction: dict[str, Any]) -> list[Table]:
    """Returns what is left of each part's effect beside each diagnostic; nothing without parts."""
    rows = [
        [
            Cell(row["part"], row["part"]),
            Cell(row["metric"] or "nothing", row["metric"]),
            *_interval_cells(row, "gamma", 1),
            Cell(str(row["num_cells"]), row["num_cells"]),
        ]
        for row in prediction["parts"]
    ]
    caption = (
        "What is left of γ of each part, in points, once a diagnostic is a covariate; 95 % by Student's t over pairs."
    )
    return [Table(["part", "beside", "γ left", "95 %", "cells"], rows, caption)] if rows else []


def _range_cell(low: float | None, high: float | None) -> Cell:
    return Cell("–") if low is None or high is None else Cell(f"{signed(low, 2)} to {signed(high, 2)}", low)


def _interval_cells(item: dict[str, Any], name: str, digits: int) -> list[Cell]:
    value, low, high = item[name], item["low"], item["high"]
    interval = "–" if low is None else signed_between(low, high, digits)
    return [Cell("–" if value is None else signed(value, digits), value), Cell(interval, low)]


def _number_cell(value: float | None) -> Cell:
    return Cell(NOT_RUN if value is None else f"{value:.3g}", value)


def show_coverage(results: dict[str, Any]) -> list[Block]:
    """Returns how much of what arms learned from another tokenizer's distributions had any.

    Args:
        results: Of the study.
    """
    aligned = [cell for cell in results["cells"] if cell["coverage"]]
    if not aligned:
        return []
    names = list(aligned[0]["coverage"])
    several = len({(cell["trained_on"], cell["task"]) for cell in aligned}) > 1
    rows = [
        [
            Cell(name_arm(cell["supervision"], cell["teacher"], cell["control"], cell["size"]), cell["condition"]),
            Cell(cell["student"], cell["student"], cell["student_family"]),
            *([Cell(place := name_place(cell["trained_on"], cell["task"]), place)] if several else []),
            *(Cell(percent(cell["coverage"][name]), cell["coverage"][name]) for name in names),
        ]
        for cell in aligned
    ]
    caption = (
        "Share of the completions' tokens by how the teacher's tokens lie to them. `strict`: one token of each has the "
        "same bytes. `exact`: the student's begins with the teacher's and ends inside it. `conditional`: it begins "
        "inside one and ends no later. `spanning`: it begins with one and reaches beyond it. `none`: nothing says what "
        "comes next; such rows have the text alone. Which of these have a target is the alignment's choice: `strict` "
        "takes the first alone."
    )
    return [Table(["arm", "student", *(["task"] if several else []), *names], rows, caption)]


def show_learning_curves(records: StudyRecords) -> list[Block]:
    """Returns the training losses of the plain arms, a panel for each student."""
    arms = defaultdict(list)
    for run in _find_plain(records):
        arms[_name_condition(run)].append(run)
    blocks: list[Block] = []
    for segment in ("rationale", "answer"):
        panels = defaultdict(list)
        for runs in arms.values():
            axes = runs[0].axes
            curve = _average(f"train/ce_{segment}", runs)
            if curve:
                label = name_arm(axes["supervision"], axes["teacher"])
                dashed = axes["supervision"] != "rationale"
                series = Series(label, list(curve), list(curve.values()), axes["teacher_family"], dashed)
                panels[f"student {axes['student']} ({axes['student_family'] or 'family unknown'})"].append(series)
        if panels:
            caption = (
                f"Cross-entropy of the {segment}'s tokens in training, in nats a token, mean of "
                f"{plural(max(map(len, arms.values())), 'seed')}; colour: the teacher's family; dashed: `label` and "
                "`rationale+logits`."
            )
            figures = [Panel(title, series=series) for title, series in panels.items()]
            blocks.append(Figure("lines", f"learning-{segment}", caption, figures, "optimizer step",
                                 "cross-entropy, nats", log_y=True))  # fmt: skip
    return blocks


def _average(metric: str, runs: list[Run]) -> dict[int, float]:
    """Returns the mean over runs at each step that all of them logged."""
    curves = [{record["step"]: record[metric] for record in run.metrics if metric in record} for run in runs]
    shared = set.intersection(*map(set, curves))
    return {step: fmean(curve[step] for curve in curves) for step in sorted(shared)}


def show_samples(records: StudyRecords) -> list[Block]:
    """Returns what teachers and students wrote about a few questions."""
    blocks: list[Block] = []

    def ask(question_id: str) -> str:
        question = records.questions.get(question_id)
        return format_question(question) if question else question_id

    if records.rationales:
        blocks.append(Text("**Teachers**, on the same training questions."))
    for question_id, rationales in records.rationales.items():
        writings = [Writing(item.teacher, item.text, item.answer, item.correct, item.family) for item in rationales]
        question = records.questions.get(question_id)
        blocks.append(Sample(ask(question_id), question.gold if question else None, writings))
    if records.predictions:
        blocks.append(Text("**Students**, on the same held-out questions, first seed. Chosen by a hash, not by eye."))
    for question_id, predictions in records.predictions.items():
        writings = [
            Writing(row["run"].removesuffix("-seed0"), row["completion"], row["answer_neutral"], row["correct_neutral"])
            for row in predictions
        ]
        blocks.append(Sample(ask(question_id), predictions[0]["gold"], writings))
    return blocks

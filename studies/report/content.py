"""What a study's report says: a pure function from the study's records to text, tables and figures."""

from collections import defaultdict
from typing import Any

from lightning_modules.evaluation.groups import find_languages
from studies.analysis.interactions import explain_fragile
from studies.analysis.sizes import name_size
from studies.design.controls import ON_POLICY
from studies.numbers import between, percent, points
from studies.report.document import Block, Cell, Fact, Figure, Mark, Panel, Report, Section, Symbol, Table, Text
from studies.report.escaping import name_figures
from studies.report.exhibits import (
    show_coverage,
    show_diagnostics,
    show_learning_curves,
    show_loss_weights,
    show_samples,
)
from studies.report.gamma import p_cell, show_differences, show_formula
from studies.report.languages import show_languages
from studies.report.outcomes import show_outcomes
from studies.report.parts import name_part, show_parts
from studies.report.quantization import show_quantization
from studies.report.questions import browse_questions
from studies.report.records import StudyRecords
from studies.report.sizes import show_sizes
from studies.report.supervisions import name_gains, show_supervisions
from studies.report.traits import show_traits
from studies.report.words import NOT_RUN, is_plain, name_arm, name_file, name_place, plural

SYMBOLS: dict[str, Symbol] = {
    "untuned": "circle-open", "label": "square-open", "rationale": "circle", "rationale+logits": "diamond",
    "on-policy": "star",
}  # fmt: skip


def _label(cell: dict[str, Any]) -> str:
    return name_arm(cell["supervision"], cell["teacher"], cell["control"], cell["size"])


def build_report(records: StudyRecords) -> Report:
    """Returns the report of a study.

    Args:
        records: What the study left behind.
    """
    results = records.results
    study = results["study"]
    specs = [*study["students"].values(), *study["teachers"].values()]
    sections = [
        Section("Design", _describe_design(results)),
        Section("Accuracy", _show_accuracy(results)),
        Section("Supervision", show_supervisions(results)),
        Section("Languages", show_languages(results)),
        Section("Interaction", _show_interaction(results)),
        Section("Parts", show_parts(results)),
        Section("Training size", show_sizes(results)),
        Section("Other outcomes", show_outcomes(results)),
        Section("Traits", show_traits(results)),
        Section("Quantisation", show_quantization(results)),
        Section("Contrasts", _show_contrasts(results)),
        Section("Alignment", show_coverage(results)),
        Section("Loss weights", show_loss_weights(records)),
        Section("Diagnostics", show_diagnostics(records)),
        Section("Learning curves", show_learning_curves(records)),
        Section("Samples", show_samples(records)),
        Section("Questions", browse_questions(records)),
        Section("Limits", _list_limits(results)),
        Section("Methods", _list_methods(results)),
    ]
    return Report(
        title=study["name"],
        lead="Does a teacher of the student's own family teach better, once it is accounted for how good each teacher "
        "and each student is anyway?",
        facts=_list_facts(results),
        families=list(dict.fromkeys(spec["family"] for spec in specs)),
        sections=name_figures([section for section in sections if section.blocks]),
        footer=f"Made by Kindred from {records.folder}. Intervals are 95 % intervals.",
    )


def _list_facts(results: dict[str, Any]) -> list[Fact]:
    facts, study = list[Fact](), results["study"]
    in_languages = _list_single_languages(results)
    uncontrolled = [row for row in results["gamma"] if row["control"] is None and row["task"] not in in_languages]
    # A study without arms of text alone has its first supervision's.
    gammas = [row for row in uncontrolled if is_plain(row)] or [
        row for row in uncontrolled if row["supervision"] == uncontrolled[0]["supervision"]
    ]
    for (_, task), rows in _by_place(gammas).items():
        row = rows[0]
        note = f"{between(row['low'], row['high'])} on {task}, {row['method']}"
        note += "" if is_plain(row) else f", {row['supervision']}"
        note += f"; {said}" if (said := explain_fragile(row)) else ""
        facts.append(Fact("Family interaction γ", f"{points(row['estimate'])} points", note))
    facts += name_part(results["parts"])
    for row in [row for row in results["gamma_differences"] if not row["holds_text"]][:1]:
        both = f"γ {points(row['left_gamma'])} with them, {points(row['right_gamma'])} without"
        note = f"{between(row['low'], row['high'])} ({row['left']}); {both}"
        facts.append(Fact("What distributions add to γ", f"{points(row['estimate'])} points", note))
    facts += name_gains([row for row in results["supervisions"] if row["task"] not in in_languages], study["sizes"])
    seeds = max(cell["num_seeds"] for cell in results["cells"])
    size = f"{plural(len(study['students']), 'student')}, {plural(len(study['teachers']), 'teacher')}"
    numbers = {task: number for task, number in results["num_questions"].items() if task not in in_languages}
    facts.append(Fact("Measured on", f"{sum(numbers.values())} questions",
                      f"of {', '.join(numbers)}; {size}, {plural(seeds, 'training seed')}"))  # fmt: skip
    return facts


def _list_single_languages(results: dict[str, Any]) -> set[str]:
    """Returns the tasks in one language that are also there in several together, which are shown by themselves."""
    return {name for names in find_languages(results["num_questions"]).values() for name in names.values()}


def _describe_design(results: dict[str, Any]) -> list[Block]:
    study = results["study"]
    rows = []
    for role in ("student", "teacher"):
        for name, spec in study[f"{role}s"].items():
            source = spec["model"] or f"published rationales of {spec['name']}"
            rows.append([Cell(role, role), Cell(name, name, spec["family"]), Cell(spec["family"], spec["family"]),
                         Cell(source, source)])  # fmt: skip
    controls = sorted({cell["control"] for cell in results["cells"] if cell["control"]})
    text = (
        f"Every student learns from {', '.join(f'`{name}`' for name in study['supervisions'])}, with every teacher "
        "that fits, and answers the same held-out questions. `label` is the answer alone; `rationale+logits` adds the "
        "teacher's next-token distributions, which need the student's own tokenizer or an alignment; `untuned` is the "
        "student's zero-shot answer to the same prompt."
    )
    if ON_POLICY in study["supervisions"]:
        text += (
            " `on-policy` learns from what the student wrote itself, round by round, with those distributions on it."
        )
    if controls:
        text += f" Controls: {', '.join(f'`{name}`' for name in controls)}."
    caption = "Models of one family share tokenizer and lineage; a family has one colour in all figures."
    return [Text(text), Table(["role", "name", "family", "model"], rows, caption)]


def _by_place(rows: list[dict[str, Any]]) -> dict[tuple[str | None, str], list[dict[str, Any]]]:
    """Returns rows by the task that was learned and the task that is answered."""
    places = defaultdict(list)
    for row in rows:
        places[row["trained_on"], row["task"]].append(row)
    return places


def _show_accuracy(results: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    places = _by_place([cell for cell in results["cells"] if cell["trained_on"]])
    in_languages = _list_single_languages(results)
    for (trained_on, task), trained in places.items():
        if task in in_languages:
            continue
        untuned = [cell for cell in results["cells"] if not cell["trained_on"] and cell["task"] == task]
        panels = [
            Panel(
                f"student {name} ({spec['family']})",
                [_mark(cell) for cell in [*untuned, *trained] if cell["student"] == name],
            )
            for name, spec in results["study"]["students"].items()
        ]
        seeds = plural(max(cell["num_seeds"] for cell in trained), "training seed")
        caption = (
            f"**{name_place(trained_on, task)}**: accuracy on {results['num_questions'][task]} held-out questions, "
            f"mean of {seeds}, with 95 % intervals (`wilson`, see Methods); small dots: each seed alone; answers "
            f"read by the `{results['extractor']}` extractor. Colour: the teacher's family; open marks had no teacher; "
            "diamonds also learned from its distributions, stars from these on what they wrote themselves."
        )
        blocks.append(Figure("intervals", f"accuracy-{name_file(trained_on, task)}", caption, panels, "accuracy, %"))
    several = len(places) > 1
    columns = ["student", "supervision", "teacher", "accuracy", "95 %", "gain", "95 % of gain", "answers read",
               "seeds", "examples", *(["task"] if several else [])]  # fmt: skip
    rows = [
        [
            Cell(cell["student"], cell["student"], cell["student_family"]),
            Cell(name_arm(cell["supervision"], None, cell["control"], cell["size"]), cell["supervision"]),
            Cell(cell["teacher"] or "–", cell["teacher"], cell["teacher_family"]),
            Cell(percent(cell["accuracy"]), cell["accuracy"]),
            Cell(between(cell["low"], cell["high"], percent), cell["low"]),
            Cell(points(cell["gain"]), cell["gain"]),
            Cell(between(cell["gain_low"], cell["gain_high"]), cell["gain_low"]),
            Cell(percent(cell["extraction_rate"]), cell["extraction_rate"]),
            *(Cell(str(cell[name]), cell[name]) for name in ("num_seeds", "num_examples")),
            *([Cell(place := name_place(cell["trained_on"], cell["task"]), place)] if several else []),
        ]
        for cell in results["cells"]
    ]
    rows += [
        [
            Cell(student, student, results["study"]["students"][student]["family"]),
            Cell(name_arm(supervision, None, control, size), supervision),
            Cell(teacher or "–", teacher, results["study"]["teachers"][teacher]["family"] if teacher else None),
            *[Cell(NOT_RUN)] * 7,
            *([Cell(place := name_place(trained_on, task), place)] if several else []),
        ]
        for student, supervision, teacher, control, trained_on, task, size in _find_missing(results)
    ]
    caption = "All cells. Gain: points above the untuned student on the same questions (`seeds and questions`)."
    warnings = [Text(warning, is_warning=True) for warning in results["warnings"]]
    return [*blocks, Table(columns, rows, caption), *warnings]


def _find_missing(
    results: dict[str, Any],
) -> list[tuple[str, str, str | None, str | None, str | None, str, int | None]]:
    """Returns the cells that other students have and a student lacks; logits only of teachers that others have them of.

    These are of the student's own family, or of others, or both, whether there is an alignment.
    """
    names = ("supervision", "teacher", "control", "trained_on", "task", "size")
    conditions = dict.fromkeys(tuple(cell[name] for name in names) for cell in results["cells"])
    found = {(cell["student"], *(cell[name] for name in names)) for cell in results["cells"]}
    students, teachers = results["study"]["students"], results["study"]["teachers"]

    def describe_kind(
        student: str, supervision: str, teacher: str | None, control: str | None, *_: object
    ) -> tuple[str | bool | None, ...]:
        if supervision not in ("rationale+logits", ON_POLICY) or teacher is None:
            return supervision, control
        return supervision, control, teachers[teacher]["family"] == students[student]["family"]

    kinds = {describe_kind(*cell) for cell in found}
    return [
        (student, *condition)
        for student in students
        for condition in conditions
        if (student, *condition) not in found and describe_kind(student, *condition) in kinds
    ]


def _mark(cell: dict[str, Any]) -> Mark:
    return Mark(
        _label(cell), 100 * cell["accuracy"], 100 * cell["low"], 100 * cell["high"], cell["teacher_family"],
        SYMBOLS[cell["supervision"]],
        seeds=tuple(100 * seed for seed in cell["accuracy_by_seed"]) if cell["num_seeds"] > 1 else (),
    )  # fmt: skip


def _show_interaction(results: dict[str, Any]) -> list[Block]:
    rows = results["gamma"]
    if not rows:
        return [Text("Not identified: it takes at least two families that both teach and learn.", is_warning=True)]
    marks = [
        Mark(
            f"{_name_group(results, row)}: {row['method']}", 100 * row["estimate"], 100 * row["low"], 100 * row["high"]
        )
        for row in rows
    ]
    sizes = dict.fromkeys(
        f"{plural(row['num_students'], 'student')} and {plural(row['num_teachers'], 'teacher')} of "
        f"{', '.join(row['families'])}, {plural(row['num_seeds'], 'seed')}, {row['num_questions']} questions"
        for row in rows
    )
    caption = f"γ with its 95 % interval: {'; '.join(sizes)}. The line is no interaction."
    blocks: list[Block] = [
        Text("γ is what is left of the in-family gain when the teachers' and the students' main effects are removed."),
        *show_formula(results),
        Figure("intervals", "gamma", caption, [Panel("", marks)], "γ, percentage points", reference=0),
    ]
    cells = [
        [
            Cell(_name_group(results, row), _name_group(results, row)),
            Cell(row["method"], row["method"]),
            Cell(points(row["estimate"]), row["estimate"]),
            Cell(between(row["low"], row["high"]), row["low"]),
            p_cell(row["p"]),
            Cell(note := "; ".join(filter(None, (explain_fragile(row), row["note"]))), note),
        ]
        for row in rows
    ]
    blocks.append(Table(["arms", "method", "γ", "95 %", "p", "note"], cells, "The same, in percentage points."))
    blocks += show_differences(results)
    # Means over sizes come first.
    shown = next((effect["size"] for effect in results["effects"]), None)
    effects = [effect for effect in results["effects"] if is_plain(effect) and effect["size"] == shown]
    for (trained_on, task), found in _by_place(effects).items():
        marks = [
            Mark(
                f"{effect['kind']} {effect['name']}", 100 * effect["estimate"], 100 * effect["low"],
                100 * effect["high"], results["study"][f"{effect['kind']}s"][effect["name"]]["family"],
            )
            for effect in found
        ]  # fmt: skip
        caption = (
            f"**{name_place(trained_on, task)}**: main effects, how far the cells of a teacher or a student lie from "
            f"the mean (`{found[0]['method']}`)."
        )
        name = f"effects-{name_file(trained_on, task)}"
        blocks.append(Figure("intervals", name, caption, [Panel("", marks)], "percentage points", reference=0))
    return blocks


def _name_group(results: dict[str, Any], row: dict[str, Any]) -> str:
    """Names the arms of a family interaction, and the task and the size where the study has several."""
    name = ", ".join(
        filter(None, (name_arm(row["supervision"], None, row["control"]), name_size(row, results["study"]["sizes"])))
    )
    return name if len(results["num_questions"]) == 1 else f"{name_place(row['trained_on'], row['task'])}, {name}"


def _show_contrasts(results: dict[str, Any]) -> list[Block]:
    if not results["contrasts"]:
        return []
    several = len(_by_place(results["contrasts"])) > 1
    rows = [
        [
            Cell(row["kind"], row["kind"]),
            *([Cell(place := name_place(row["trained_on"], row["task"]), place)] if several else []),
            Cell(row["student"], row["student"], results["study"]["students"][row["student"]]["family"]),
            Cell(f"{row['left']} − {row['right']}", row["left"]),
            Cell(points(row["estimate"]), row["estimate"]),
            Cell(between(row["low"], row["high"]), row["low"]),
            p_cell(row["p"]),
            p_cell(row["p_holm"]),
            p_cell(row["models"]["p"]),
        ]
        for row in results["contrasts"]
    ]
    caption = (
        "Differences in percentage points on the same questions (`seeds and questions`); Holm's p is over the "
        "contrasts of one kind and task; the last p is of these trained models only (`questions`)."
    )
    columns = [
        "kind",
        *(["task"] if several else []),
        "student",
        "contrast",
        "difference",
        "95 %",
        "p",
        "p, Holm",
        "p, models",
    ]
    return [Table(columns, rows, caption)]


def _list_methods(results: dict[str, Any]) -> list[Block]:
    return [Text(f"`{name}`: {text}.") for name, text in results["methods"].items()]


def _list_limits(results: dict[str, Any]) -> list[Block]:
    study, cells = results["study"], results["cells"]
    families = {spec["family"] for spec in study["teachers"].values()}
    seeds = min((cell["num_seeds"] for cell in cells if cell["trained_on"]), default=0)
    sources = {row.get("seed_variance") for row in (*cells, *results["contrasts"])}
    seeds_too = "" if "left out" in sources else "other seeds and "
    or_seeds = " or other training seeds" if "left out" in sources else ""
    texts = [
        f"{plural(len(study['teachers']), 'teacher')} of {plural(len(families), 'family')}: intervals cover {seeds_too}"
        f"other questions of these tasks, not other teachers{or_seeds}.",
        f"{plural(seeds, 'training seed')} an arm, and one training budget; an effect can depend on both.",
    ]
    if "pooled" in sources:
        texts.append("Arms of one seed take the variance over seeds from those of several, as if it were the same.")
    texts += [
        f"The questions of {task} come in {number} groups; intervals are over groups."
        for task, number in results.get("num_groups", {}).items()
    ]
    near = [cell for cell in cells if cell["accuracy"] > 0.95]
    if near:
        texts.append(
            f"{len(near)} of {len(cells)} cells are above 95 %: near the ceiling, differences shrink, and an "
            "interaction can come from that alone."
        )
    unread = [cell for cell in cells if cell["extraction_rate"] < 0.9]
    if unread:
        worst = min(unread, key=lambda cell: cell["extraction_rate"])
        texts.append(
            f"In {len(unread)} of {len(cells)} cells fewer than 90 % of the answers could be read (least: "
            f"{percent(worst['extraction_rate'])}, {_label(worst)}, student {worst['student']}); there accuracy also "
            "measures form."
        )
    trained = {cell["num_examples"] for cell in cells if cell["num_examples"]}
    if len(trained) > 1:
        texts.append(f"Arms learned from {min(trained)} to {max(trained)} examples; they are not of one size.")
    notes = [f"γ by {row['method']}: {row['note']}." for row in results["gamma"] if row["note"]]
    return [Text(text) for text in [*texts, *dict.fromkeys(notes)]]

"""What a report says of a task that was asked in several languages: arm by language, and γ by language."""

from typing import Any

from lightning_modules.evaluation.groups import find_languages
from studies.numbers import between, percent, points
from studies.report.document import Block, Cell, Figure, Mark, Panel, Table, Text
from studies.report.words import NOT_RUN, name_arm, name_file, name_place


def show_languages(results: dict[str, Any]) -> list[Block]:
    """Returns, for each task in several languages, tables and figures of its arms, and the family interaction.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    blocks: list[Block] = []
    for together, names in find_languages(results["num_questions"]).items():
        learned = dict.fromkeys(cell["trained_on"] for cell in results["cells"] if cell["task"] == together)
        for trained_on in (task for task in learned if task):
            blocks += _show_task(results, trained_on, together, {**names, "all": together})
    if blocks:
        text = (
            "A language's column is its own questions; `all` is the questions of all languages together, of which a "
            "question and its translations are drawn as one: its interval is no narrower for their number alone. Where "
            "each language has arms of its own, a column is of those that learned that language."
        )
        blocks.insert(0, Text(text))
    return blocks


def _show_task(results: dict[str, Any], trained_on: str, together: str, names: dict[str, str]) -> list[Block]:
    place = name_place(trained_on, together)
    # Where each language has arms of its own, they stand for the pooled arm in their language.
    homes = dict.fromkeys(names.values(), trained_on)
    homes |= {names[tag]: task for tag, task in results["pooled"].get(trained_on, {}).items() if tag in names}
    cells = {
        (
            cell["student"],
            name_arm(cell["supervision"], cell["teacher"], cell["control"], cell["size"]),
            cell["task"],
        ): cell
        for cell in results["cells"]
        if cell["task"] in homes and cell["trained_on"] in (None, homes[cell["task"]])
    }
    arms = {(student, arm): cell for (student, arm, _), cell in cells.items()}
    rows = [
        [
            Cell(student, student, first["student_family"]),
            Cell(arm, arm, first["teacher_family"]),
            *(_accuracy(cells.get((student, arm, task))) for task in names.values()),
        ]
        for (student, arm), first in arms.items()
    ]
    blocks: list[Block] = [Table(["student", "arm", *names], rows, f"**{place}**: accuracy in %, with 95 % intervals.")]
    for student, spec in results["study"]["students"].items():
        panels = [
            Panel(
                f"{tag} ({results['num_questions'][task]} questions)",
                [_mark(arm, cell) for (own, arm, asked), cell in cells.items() if (own, asked) == (student, task)],
            )
            for tag, task in names.items()
        ]
        caption = (
            f"**{place}**, student {student} ({spec['family']}): accuracy by language; colour: the teacher's family."
        )
        figure = f"languages-{student}-{name_file(trained_on, together)}"
        blocks.append(Figure("intervals", figure, caption, panels, "accuracy, %"))
    tags = {task: tag for tag, task in names.items()}
    gammas = [
        [
            Cell(tags[row["task"]], tags[row["task"]]),
            Cell(group := name_arm(row["supervision"], None, row["control"], row["size"]), group),
            Cell(row["method"], row["method"]),
            Cell(points(row["estimate"]), row["estimate"]),
            Cell(between(row["low"], row["high"]), row["low"]),
        ]
        for row in results["gamma"]
        if row["trained_on"] == homes.get(row["task"])
    ]
    if gammas:
        caption = f"**{place}**: the family interaction γ by language, in percentage points."
        blocks.append(Table(["language", "arms", "method", "γ", "95 %"], gammas, caption))
    return blocks


def _accuracy(cell: dict[str, Any] | None) -> Cell:
    if cell is None:
        return Cell(NOT_RUN)
    text = f"{percent(cell['accuracy']).removesuffix(' %')} {between(cell['low'], cell['high'], percent)}"
    return Cell(text, cell["accuracy"])


def _mark(arm: str, cell: dict[str, Any]) -> Mark:
    return Mark(arm, 100 * cell["accuracy"], 100 * cell["low"], 100 * cell["high"], cell["teacher_family"])

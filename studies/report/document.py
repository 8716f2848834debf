"""What a report is made of, whatever shows it: text, tables, and figures that hold numbers rather than pictures.

A family stands for its colour; None is drawn in grey. Texts may hold `code` and **bold**, as in Markdown.
"""

from dataclasses import dataclass, field
from typing import Literal

from studies.numbers import decimal
from studies.report.words import NOT_RUN, plural

Symbol = Literal["circle", "circle-open", "square-open", "diamond", "star"]


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning is set apart."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: What is read.
        value: What it is sorted by; None sorts last.
        family: Whose colour marks it.
    """

    text: str
    value: float | str | None = None
    family: str | None = None


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are aligned to the right."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return any(isinstance(row[column].value, int | float) for row in self.rows)


@dataclass(frozen=True)
class Mark:
    """An estimate with its 95 % interval, in a row of an interval plot, or at `x` in a scatter plot.

    Attributes:
        label: Names its row.
        estimate: Where it is drawn.
        low: The interval's lower end.
        high: Its upper end.
        family: Whose colour it has.
        symbol: Its shape.
        x: Of a scatter plot.
        seeds: What each training seed gave, drawn as small dots; empty where there is one.
    """

    label: str
    estimate: float
    low: float | None = None
    high: float | None = None
    family: str | None = None
    symbol: Symbol = "circle"
    x: float = 0.0
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """A line: one value y for each x."""

    label: str
    xs: list[float]
    ys: list[float]
    family: str | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One of a figure's panels, with the marks or the lines that it shows."""

    title: str
    marks: list[Mark] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    y_title: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        kind: `intervals` (a row for each label, estimates along x), `scatter`, or `lines`.
        name: Names its file and its place in the page.
        caption: What is shown, with n and method.
        panels: Side by side where there is room; interval plots share their rows.
        x_title: What x is, with its unit.
        y_title: What y is; a panel's own goes before.
        reference: Where x gets a line in an interval plot, e.g. no effect.
        log_y: Logarithmic y.
        log_x: Logarithmic x, with a tick at each x of the lines.
    """

    kind: Literal["intervals", "scatter", "lines"]
    name: str
    caption: str
    panels: list[Panel]
    x_title: str
    y_title: str = ""
    reference: float | None = None
    log_y: bool = False
    log_x: bool = False

    @property
    def ticks(self) -> list[float]:
        """Every x of the lines, ascending."""
        return sorted({x for panel in self.panels for series in panel.series for x in series.xs})


@dataclass(frozen=True)
class HeatMap:
    """Values over a grid; None where nothing was measured.

    Attributes:
        name: Names its file and its place in the page.
        caption: What is shown.
        x_title: What x is.
        y_title: What y is.
        xs: The columns.
        ys: The rows.
        values: A row for each y: the mean of a cell's runs.
        counts: Likewise how many runs a cell has.
        unit: Of the values.
        half_width: Of one run's 95 % interval; the colours' scale goes so far beyond the values.
    """

    name: str
    caption: str
    x_title: str
    y_title: str
    xs: list[float]
    ys: list[float]
    values: list[list[float | None]]
    counts: list[list[int]]
    unit: str
    half_width: float

    @property
    def colour_range(self) -> tuple[float, float]:
        """What the palest and the darkest colour stand for, so that noise alone never spans the scale."""
        known = [value for row in self.values for value in row if value is not None]
        return min(known) - self.half_width, max(known) + self.half_width

    def texts(self, line_end: str) -> list[list[str]]:
        """Returns what is written in each cell, in two lines."""
        return [
            [
                NOT_RUN if value is None else f"{decimal(value, 1)} {self.unit}{line_end}{plural(count, 'run')}"
                for value, count in zip(values, counts, strict=True)
            ]
            for values, counts in zip(self.values, self.counts, strict=True)
        ]


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: a line for each run through its settings to the result, which is the last axis."""

    name: str
    caption: str
    axes: list[str]
    rows: list[list[float]]


@dataclass(frozen=True)
class Writing:
    """What a teacher or a student wrote, and the answer that was read from it."""

    author: str
    text: str
    answer: str | None
    correct: bool | None
    family: str | None = None


@dataclass(frozen=True)
class Sample:
    """A question and what was written about it."""

    question: str
    gold: str | None
    writings: list[Writing]


@dataclass(frozen=True)
class Asked:
    """A question of the browser.

    Attributes:
        id: Of the question.
        question: Its text.
        gold: Its answer.
        is_held_out: Whether students were asked it; else it was for training.
        writings: By author.
    """

    id: str
    question: str
    gold: str | None
    is_held_out: bool
    writings: dict[str, Writing]


@dataclass(frozen=True)
class Browser:
    """All questions, to be searched in a page; elsewhere only its caption is shown.

    Attributes:
        caption: What there is.
        authors: All arms, and then the teachers.
        questions: All questions.
    """

    caption: str
    authors: list[str]
    questions: list[Asked]


Block = Text | Table | Figure | HeatMap | Parallel | Sample | Browser


@dataclass(frozen=True)
class Section:
    """A titled part."""

    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class Fact:
    """A number that is read first."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Report:
    """The whole.

    Attributes:
        title: Of the study.
        lead: The question in a sentence or two.
        facts: Read first.
        families: In the order of their colours.
        sections: What follows.
        footer: What made it.
    """

    title: str
    lead: str
    facts: list[Fact]
    families: list[str]
    sections: list[Section]
    footer: str

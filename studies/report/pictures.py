"""A report's figures as PNG, for Markdown and for Weights & Biases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodules.files.atomic import atomic_path
from studies.report.document import Figure, HeatMap, Parallel, Symbol
from studies.report.escaping import for_matplotlib, relabel
from studies.report.plots import scale_rows
from studies.report.words import NOT_RUN

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#a8558a", "#b58900", "#3a9bd1", "#6b4fa0", "#8c564b")
TEXT, MUTED, GRID, ACCENT, SCALE = "#1d2126", "#68707a", "#e3e1da", "#8a2f1b", ("#eef3f6", "#4f9ac4")
_MARKERS: dict[Symbol, tuple[str, bool]] = {
    "circle": ("o", True), "circle-open": ("o", False), "square-open": ("s", False), "diamond": ("D", True),
    "star": ("*", True),
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlecolor": TEXT, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": GRID, "xtick.color": MUTED,
    "ytick.color": MUTED, "text.color": TEXT, "legend.frameon": False, "figure.dpi": 150,
}  # fmt: skip


def draw(figure: Figure | HeatMap | Parallel, families: list[str], path: Path) -> None:
    """Draws a figure as PNG."""
    # Heavy, and only this needs it.
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = relabel(figure, for_matplotlib)
    with matplotlib.rc_context(_STYLE):
        if isinstance(figure, HeatMap):
            picture = _draw_heat_map(pyplot, figure)
        elif isinstance(figure, Parallel):
            picture = _draw_parallel(pyplot, figure)
        elif figure.kind == "intervals":
            picture = _draw_intervals(pyplot, figure, families)
        else:
            picture = _draw_axes(pyplot, figure, families)
        with atomic_path(path) as temporary:
            picture.savefig(temporary, format="png", bbox_inches="tight", facecolor="white")
        pyplot.close(picture)


def _colour(family: str | None, families: list[str], other: str = MUTED) -> str:
    return PALETTE[families.index(family) % len(PALETTE)] if family in families else other


def _add_legend(picture: Any, figure: Figure, families: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = {}
    for panel in figure.panels:
        for series in panel.series:
            style: Any = ":" if series.is_dashed else "-"
            handles[series.label] = Line2D([], [], color=_colour(series.family, families), linestyle=style)
        for mark in panel.marks:
            if mark.family is not None:
                colour = _colour(mark.family, families)
                handles[for_matplotlib(f"family {mark.family}")] = Line2D(
                    [], [], color=colour, marker="o", linestyle=""
                )
    if handles:
        picture.legend(handles.values(), handles, loc="outside upper left", ncols=4)


def _place_panels(
    pyplot: Any, figure: Figure, columns: int, measure: Callable[[int], tuple[float, float]], sharex: bool = False
) -> tuple[Any, Any]:
    """Returns a picture and its axes, one for each panel, in rows; `measure` says how large so many rows are."""
    rows = -(-len(figure.panels) // columns)
    picture, axes = pyplot.subplots(
        rows, columns, figsize=measure(rows), sharex=sharex, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(figure.panels) :]:
        axis.remove()
    return picture, axes


def _draw_intervals(pyplot: Any, figure: Figure, families: list[str]) -> Any:
    labels = list(dict.fromkeys(mark.label for panel in figure.panels for mark in panel.marks))
    # More than stand side by side have two columns, which their longer titles fit.
    columns, width = (len(figure.panels), 2.9) if len(figure.panels) <= 4 else (2, 3.4)
    wide, high = 2.2 + width * max(2, columns), 1.1 + 0.27 * len(labels)
    picture, axes = _place_panels(pyplot, figure, columns, lambda rows: (wide, high * rows), sharex=True)
    other = MUTED if figure.reference is None else TEXT
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        for mark in panel.marks:
            row, colour = labels.index(mark.label), _colour(mark.family, families, other)
            marker, is_filled = _MARKERS[mark.symbol]
            if mark.low is not None:
                axis.plot([mark.low, mark.high], [row, row], color=colour, linewidth=1.6)
            axis.plot(mark.seeds, [row + 0.27] * len(mark.seeds), "o", color=colour, markersize=2.5, alpha=0.75)
            axis.plot(mark.estimate, row, marker, color=colour, markerfacecolor=colour if is_filled else "white")
        if figure.reference is not None:
            axis.axvline(figure.reference, color=TEXT, linewidth=1)
        axis.set(title=panel.title)
    for axis in axes[-1]:
        axis.set_xlabel(figure.x_title)
    axes[0, 0].set_yticks(range(len(labels)), labels)
    for axis in axes[:, 0]:
        axis.tick_params("y", labelcolor=TEXT)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    _add_legend(picture, figure, families)
    return picture


def _draw_axes(pyplot: Any, figure: Figure, families: list[str]) -> Any:
    columns = min(len(figure.panels), 3 if figure.kind == "scatter" else 2)
    picture, axes = _place_panels(pyplot, figure, columns, lambda rows: (8, 0.5 + 2.4 * rows))
    for index, (axis, panel) in enumerate(zip(axes.flat, figure.panels, strict=False)):
        for mark in panel.marks:
            axis.plot(mark.x, mark.estimate, "o", color=_colour(mark.family, families))
        for series in panel.series:
            style: Any = ":" if series.is_dashed else "-"
            axis.plot(series.xs, series.ys, style, color=_colour(series.family, families), linewidth=1.5)
        y_title = figure.y_title if index % columns == 0 else ""
        axis.set(title=panel.title, xlabel=figure.x_title, ylabel=y_title)
        axis.set_yscale("log" if figure.log_y else "linear")
        if figure.log_x:
            axis.set_xscale("log")
            axis.set_xticks(figure.ticks, [f"{tick:g}" for tick in figure.ticks], minor=False)
            axis.minorticks_off()
    _add_legend(picture, figure, families)
    return picture


def _draw_heat_map(pyplot: Any, heat_map: HeatMap) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    size = (2 + 0.9 * len(heat_map.xs), 1 + 0.5 * len(heat_map.ys))
    picture, axis = pyplot.subplots(figsize=size, layout="constrained")
    values = [[float("nan") if value is None else value for value in row] for row in heat_map.values]
    low, high = heat_map.colour_range
    scale = LinearSegmentedColormap.from_list("page", SCALE)
    axis.imshow(values, cmap=scale, vmin=low, vmax=high, aspect="auto", origin="lower")
    for y, row in enumerate(heat_map.texts("\n")):
        for x, text in enumerate(row):
            axis.text(x, y, text, ha="center", va="center", color=MUTED if text == NOT_RUN else TEXT)
    axis.set_xticks(range(len(heat_map.xs)), [f"{x:g}" for x in heat_map.xs])
    axis.set_yticks(range(len(heat_map.ys)), [f"{y:g}" for y in heat_map.ys])
    axis.set(xlabel=heat_map.x_title, ylabel=heat_map.y_title)
    axis.grid(False)
    return picture


def _draw_parallel(pyplot: Any, parallel: Parallel) -> Any:
    rows, labels = scale_rows(parallel)
    best = max(range(len(rows)), key=lambda row: parallel.rows[row][-1])
    picture, axis = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
    for row, heights in enumerate(rows):
        is_best = row == best
        axis.plot(heights, color=ACCENT if is_best else MUTED, linewidth=2.2 if is_best else 1,
                  alpha=1 if is_best else 0.45, marker="o", markersize=3, zorder=3 if is_best else 2)  # fmt: skip
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for index, texts in enumerate(labels):
        for height, text in texts.items():
            axis.text(index + 0.04, height, text, color=MUTED, fontsize=8, va="center", bbox=box, zorder=4)
    axis.set_xticks(range(len(labels)), parallel.axes, color=TEXT)
    axis.set(yticks=[], xlim=(-0.2, len(labels) - 0.6))
    axis.spines["left"].set_visible(False)
    return picture

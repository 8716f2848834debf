"""Figures as plotly's JSON: one set of traces, and a layout for wide and one for narrow screens.

Colours are names of the page's CSS variables, so that one file serves light and dark.
"""

from collections import defaultdict
from functools import partial
from typing import Any

from studies.numbers import between, decimal
from studies.report.document import Figure, HeatMap, Mark, Panel, Parallel
from studies.report.words import NOT_RUN

MUTED, TEXT, GRID, ACCENT = "var(--muted)", "var(--text)", "var(--grid)", "var(--accent)"
_GAP = 0.05
_FOOT = 50


def family_colour(family: str | None, families: list[str]) -> str:
    """Returns a family's colour; grey for none, or one of no student and no teacher."""
    return f"var(--family-{families.index(family) % 8})" if family in families else MUTED


def _axis(title: str = "", **options: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 12, "color": MUTED}},
        "gridcolor": GRID, "zeroline": False, "linecolor": GRID, "tickfont": {"size": 12, "color": MUTED},
        "fixedrange": True, **options,
    }  # fmt: skip


def _number(place: int) -> str:
    return "" if place == 0 else str(place + 1)


def _grid(panels: list[str], columns: int, row_height: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a layout with titled panels in rows, and each panel's domains."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    head = 40 if any(panels) else 12
    height = rows * (row_height + head + _FOOT)
    width = (1 - _GAP * (columns - 1)) / columns
    domains, titles = [], []
    for index, title in enumerate(panels):
        left = (index % columns) * (width + _GAP)
        top = 1 - (index // columns) * (row_height + head + _FOOT) / height - head / height
        domains.append({"x": [left, min(1.0, left + width)], "y": [max(0.0, top - row_height / height), top]})
        titles.append({
            "text": f"<b>{title}</b>", "x": left, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left",
            "yanchor": "bottom", "yshift": 10, "showarrow": False, "font": {"size": 13, "color": TEXT},
        })  # fmt: skip
    layout = {
        "height": height, "annotations": titles, "shapes": [], "showlegend": False, "hovermode": "closest",
        "margin": {"l": 8, "r": 8, "t": 0, "b": 0}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--sans)", "color": TEXT}, "dragmode": False,
        "hoverlabel": {"bgcolor": "var(--surface)", "bordercolor": GRID, "font": {"color": TEXT, "size": 12}},
    }  # fmt: skip
    return layout, domains


def _by_family(panel: Panel) -> dict[str | None, list[Mark]]:
    groups = defaultdict(list)
    for mark in panel.marks:
        groups[mark.family].append(mark)
    return groups


def _trace_marks(figure: Figure, families: list[str], ys: dict[str, int] | None) -> list[dict[str, Any]]:
    """Returns a trace for each panel and family: along x with the rows `ys`, or at the marks' own x."""
    traces = []
    for index, panel in enumerate(figure.panels):
        for family, marks in _by_family(panel).items():
            # Where there is a line of no effect, marks of no family are what it is about.
            colour = TEXT if family is None and figure.reference is not None else family_colour(family, families)
            estimates = [mark.estimate for mark in marks]
            bounds = [
                (mark.estimate if mark.low is None else mark.low, mark.estimate if mark.high is None else mark.high)
                for mark in marks
            ]
            error = {
                "type": "data", "symmetric": False, "thickness": 2, "width": 0, "color": colour,
                "array": [high - mark.estimate for mark, (_, high) in zip(marks, bounds, strict=True)],
                "arrayminus": [mark.estimate - low for mark, (low, _) in zip(marks, bounds, strict=True)],
            }  # fmt: skip
            texts = [
                f"<b>{mark.label}</b><br>{decimal(mark.estimate, 1)}"
                + ("" if mark.low is None else f"  {between(low, high, partial(decimal, digits=1))}")
                + ("" if ys else f"<br>at {mark.x:.4g}")
                for mark, (low, high) in zip(marks, bounds, strict=True)
            ]
            number = _number(index)
            trace = {
                "type": "scatter", "mode": "markers", "xaxis": f"x{number}", "yaxis": f"y{number}",
                "marker": {"color": colour, "size": 10, "symbol": [mark.symbol for mark in marks], "opacity": 0.95,
                           "line": {"width": 2, "color": colour}},
                "hovertext": texts, "hoverinfo": "text",
            }  # fmt: skip
            if ys is None:
                traces.append({**trace, "x": [mark.x for mark in marks], "y": estimates, "error_y": error})
            else:
                traces.append({**trace, "x": estimates, "y": [ys[mark.label] for mark in marks], "error_x": error})
                traces += _trace_seeds(trace, marks, ys)
    return traces


def _trace_seeds(trace: dict[str, Any], marks: list[Mark], ys: dict[str, int]) -> list[dict[str, Any]]:
    """Returns a trace of small dots, one for each seed, just below the means that another trace draws."""
    seeds = [(mark, seed, value) for mark in marks for seed, value in enumerate(mark.seeds)]
    if not seeds:
        return []
    dots = {
        "x": [value for _, _, value in seeds], "y": [ys[mark.label] + 0.27 for mark, _, _ in seeds],
        "marker": {"color": trace["marker"]["color"], "size": 5, "symbol": "circle", "opacity": 0.75},
        "hovertext": [f"<b>{mark.label}</b><br>seed {seed}: {decimal(value, 1)}" for mark, seed, value in seeds],
    }  # fmt: skip
    return [{**trace, **dots}]


def _plot_intervals(figure: Figure, families: list[str], wide: bool) -> dict[str, Any]:
    labels = list(dict.fromkeys(mark.label for panel in figure.panels for mark in panel.marks))
    layout, domains = _grid(
        [panel.title for panel in figure.panels], 3 if wide else 1, (30 if wide else 46) * len(labels)
    )
    numbers = [
        end
        for panel in figure.panels
        for mark in panel.marks
        for end in (mark.low, mark.high, mark.estimate, *mark.seeds)
    ]
    known = [number for number in [*numbers, figure.reference] if number is not None]
    pad = 0.04 * (max(known) - min(known) or 1)
    ends = [min(known) - pad, max(known) + pad]
    for index, domain in enumerate(domains):
        number = _number(index)
        layout[f"xaxis{number}"] = _axis(
            figure.x_title,
            domain=domain["x"],
            anchor=f"y{number}",
            range=ends,
            nticks=6,
        )
        layout[f"yaxis{number}"] = _axis(
            domain=domain["y"], anchor=f"x{number}", range=[len(labels) - 0.5, -0.5], tickvals=list(range(len(labels))),
            ticktext=labels, showticklabels=wide and domain["x"][0] == 0, automargin=True, ticks="", showgrid=wide,
        )  # fmt: skip
        layout[f"yaxis{number}"]["tickfont"] = {"size": 13, "color": TEXT}
        if not wide:
            # There is no room beside the marks: the names go above them.
            layout["annotations"] += [
                {"text": label, "x": domain["x"][0], "xref": "paper", "y": row, "yref": f"y{number}", "xanchor": "left",
                 "yshift": 15, "showarrow": False, "font": {"size": 12, "color": MUTED}, "bgcolor": "var(--page)"}
                for row, label in enumerate(labels)
                if label in {mark.label for mark in figure.panels[index].marks}
            ]  # fmt: skip
        if figure.reference is not None:
            layout["shapes"].append({
                "type": "line", "x0": figure.reference, "x1": figure.reference, "xref": f"x{number}", "y0": -0.5,
                "y1": len(labels) - 0.5, "yref": f"y{number}", "line": {"color": TEXT, "width": 1.5}, "layer": "below",
            })  # fmt: skip
    return layout


def _plot_axes(figure: Figure, wide: bool) -> dict[str, Any]:
    """Returns the layout of scatter plots and of lines."""
    is_scatter = figure.kind == "scatter"
    columns = 2 + is_scatter if wide else 1 + is_scatter
    layout, domains = _grid([panel.title for panel in figure.panels], columns, 240 if wide or not is_scatter else 150)
    for index, domain in enumerate(domains):
        number, is_left = _number(index), domain["x"][0] == 0
        matches = {"matches": "y"} if index else {}
        layout[f"xaxis{number}"] = _axis(figure.x_title, domain=domain["x"], anchor=f"y{number}", nticks=6)
        layout[f"yaxis{number}"] = _axis(
            figure.y_title if is_left else "", domain=domain["y"], anchor=f"x{number}", automargin=is_left,
            showticklabels=is_left, type="log" if figure.log_y else "linear", **matches,
        )  # fmt: skip
        if figure.log_x:
            ticks = figure.ticks
            layout[f"xaxis{number}"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
        if figure.log_y:
            layout[f"yaxis{number}"]["dtick"] = 1
    return layout


def _trace_lines(figure: Figure, families: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter", "mode": "lines", "xaxis": f"x{_number(place)}", "yaxis": f"y{_number(place)}",
            "x": series.xs, "y": series.ys, "name": series.label, "hovertemplate": "%{y:.3g} at %{x}",
            "line": {"color": family_colour(series.family, families), "width": 2,
                     "dash": "dot" if series.is_dashed else "solid"},
        }
        for place, panel in enumerate(figure.panels)
        for series in panel.series
    ]  # fmt: skip


def _plot_heat_map(heat_map: HeatMap) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    texts = heat_map.texts("<br>")
    trace = {
        "type": "heatmap", "x": [f"{x:g}" for x in heat_map.xs], "y": [f"{y:g}" for y in heat_map.ys],
        "z": heat_map.values,
        "colorscale": [[0, "var(--scale-low)"], [1, "var(--scale-high)"]], "showscale": False,
        "zmin": heat_map.colour_range[0], "zmax": heat_map.colour_range[1], "xgap": 3, "ygap": 3,
        "text": texts, "texttemplate": "%{text}", "hovertemplate": "%{x}, %{y}: %{text}<extra></extra>",
        "hoverongaps": False,
    }  # fmt: skip
    layout, [domain] = _grid([""], 1, 56 * len(heat_map.ys))
    # The library leaves empty cells without their text.
    layout["annotations"] = [
        {"text": NOT_RUN, "x": x, "y": y, "showarrow": False, "font": {"size": 12, "color": MUTED}}
        for y, row in enumerate(heat_map.values)
        for x, value in enumerate(row)
        if value is None
    ]
    layout["xaxis"] = _axis(heat_map.x_title, domain=domain["x"], type="category", showgrid=False)
    layout["yaxis"] = _axis(heat_map.y_title, domain=domain["y"], type="category", showgrid=False, automargin=True)
    return [trace], layout


def scale_rows(parallel: Parallel) -> tuple[list[list[float]], list[dict[float, str]]]:
    """Returns each row's heights between 0 and 1, and the labels of each axis by height."""
    columns = list(zip(*parallel.rows, strict=True))
    heights, labels = [], []
    for column in columns:
        low, high = min(column), max(column)
        span = high - low or 1
        distinct = sorted(set(column))
        shown = distinct if len(distinct) <= 5 else [low, (low + high) / 2, high]
        heights.append([(value - low) / span for value in column])
        labels.append({(value - low) / span: f"{value:.3g}" for value in shown})
    return [list(row) for row in zip(*heights, strict=True)], labels


def _plot_parallel(parallel: Parallel) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, labels = scale_rows(parallel)
    best = max(range(len(rows)), key=lambda row: parallel.rows[row][-1])
    places = list(range(len(parallel.axes)))
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "x": places, "y": heights,
            "opacity": 1 if row == best else 0.45,
            "line": {"color": ACCENT if row == best else MUTED, "width": 3 if row == best else 1.5},
            "marker": {"size": 6}, "hoverinfo": "text",
            "hovertext": ", ".join(map("{} {:.3g}".format, parallel.axes, parallel.rows[row])),
        }
        for row, heights in sorted(enumerate(rows), key=lambda item: item[0] == best)
    ]  # fmt: skip
    layout, [domain] = _grid([" "], 1, 240)  # the names of the axes stand above
    layout["xaxis"] = _axis(domain=domain["x"], range=[-0.25, places[-1] + 0.35], tickvals=places,
                            ticktext=parallel.axes, side="top", showgrid=True)  # fmt: skip
    layout["xaxis"]["tickfont"] = {"size": 12, "color": TEXT}
    layout["yaxis"] = _axis(domain=domain["y"], range=[-0.08, 1.08], showgrid=False, showticklabels=False)
    layout["annotations"] = [
        {"text": text, "x": index, "y": height, "xanchor": "left", "xshift": 7, "showarrow": False,
         "font": {"size": 11, "color": MUTED}, "bgcolor": "var(--page)", "borderpad": 1}
        for index, axis in enumerate(labels)
        for height, text in axis.items()
    ]  # fmt: skip
    return traces, layout


def plot(figure: Figure | HeatMap | Parallel, families: list[str]) -> dict[str, Any]:
    """Returns a figure's `traces`, and its layouts `wide` and `narrow`."""
    if isinstance(figure, HeatMap | Parallel):
        traces, layout = _plot_heat_map(figure) if isinstance(figure, HeatMap) else _plot_parallel(figure)
        return {"traces": traces, "wide": layout, "narrow": layout}
    if figure.kind == "intervals":
        labels = dict.fromkeys(mark.label for panel in figure.panels for mark in panel.marks)
        traces = _trace_marks(figure, families, {label: row for row, label in enumerate(labels)})
        return {"traces": traces} | {
            name: _plot_intervals(figure, families, name == "wide") for name in ("wide", "narrow")
        }
    traces = _trace_lines(figure, families) if figure.kind == "lines" else _trace_marks(figure, families, None)
    return {"traces": traces} | {name: _plot_axes(figure, name == "wide") for name in ("wide", "narrow")}

"""Pictures of runs, drawn from their records and numbers alone: nothing is trained or tested here.

`curves` shows a fleet. The others show an experiment, 700 pixels wide: a way has the same colour and
marker everywhere; healed ways are drawn solid and unhealed ones dashed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.files import write_whole
from simulations.marks import INK, LOTS, STYLE, WIDTH, label_beside, marked, styled
from simulations.overlap import BINS, Overlaps
from simulations.sentences import axis_of, measured_text, percent, x_text
from simulations.statistics import Line, Result, X

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "vote": "#d1495b",
    "random": "#8d99ae",
    "L1": "#00798c",
    "Taylor": "#edae49",
    "scratch": "#6c757d",
    "dense": "#1d3557",
}


def curves(record: Mapping[str, Any], path: Path) -> None:
    """One panel a device and one for their mean: accuracy against iterations, a line a way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    devices = [device for device in record["devices"] if device["error"] is None]
    panels = [(device["name"], device["accuracies"]) for device in devices]
    columns = min(4, len(panels) + 1)
    rows = -(-(len(panels) + 1) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False, sharex=True, sharey=True
    )
    places = axes.ravel()
    for place, (name, ways) in zip(places, panels, strict=False):
        _panel(place, name, {way: _points(values) for way, values in ways.items()})
    mean = _mean([ways for _, ways in panels])
    last = places[len(panels)]
    _panel(last, f"mean of {len(panels)} devices", mean)
    last.set_facecolor("#f6f4ee")
    for place in places[len(panels) + 1 :]:
        place.axis("off")
    handles, labels = last.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.supxlabel("fine-tuning iterations on the device", y=0.07 if rows == 1 else 0.05)
    figure.supylabel("accuracy, %")
    figure.suptitle(record["title"])
    figure.tight_layout(rect=(0.01, 0.06, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


Points = tuple[Sequence[int], Sequence[float]]


def _points(values: Mapping[str, float]) -> Points:
    ordered = sorted((int(k), 100 * v) for k, v in values.items())
    return [k for k, _ in ordered], [v for _, v in ordered]


def _mean(devices: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Points]:
    ways = [way for way in devices[0] if all(way in device for device in devices)] if devices else []
    mean = {}
    for way in ways:
        lines = [_points(device[way]) for device in devices]
        mean[way] = (lines[0][0], np.mean([line[1] for line in lines], axis=0).tolist())
    return mean


def _panel(place: Any, name: str, ways: Mapping[str, Points]) -> None:
    for way, (iterations, accuracies) in ways.items():
        voted = way not in COLOURS
        place.plot(
            iterations,
            accuracies,
            marker="o",
            markersize=3.5 if voted else 2.5,
            linewidth=2.4 if voted else 1.3,
            linestyle="--" if way == "dense" else "-",
            color=COLOURS.get(way, COLOURS["vote"]),
            zorder=3 if voted else 2,
            label=way,
        )
    place.set_title(name, fontsize=10)
    place.grid(alpha=0.25)
    place.spines[["top", "right"]].set_visible(False)


def figure_of(result: Result) -> Figure:
    """The figure of an experiment, of the kind that its x axis asks for."""
    if result.experiment.x == "way":
        return bars(result)
    if result.experiment.value == "recall":
        return recall(result)
    return lines(result)


@styled
def lines(result: Result, also: str = "") -> Figure:
    """A line for each name over x, with the 95 % interval of the mean over tasks as a band.

    What has a single point where others have several is a reference: it is drawn across. `also` is added
    to what is said below the figure.
    """
    figure, axes = _figure(3.9)
    places = _places(result)
    single = max(len(line.points) for line in result.lines) > 1
    ends = []
    for line, (colour, marker) in marked(result.lines):
        healed = line.points[0].way.healing != "none"
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": "-" if healed else (0, (4, 2)),
            "linewidth": 1.8 if healed else 1.3,
        }
        means = [100 * point.mean for point in line.points]
        if single and len(line.points) == 1 and line.points[0].x not in places:
            axes.axhline(means[0], alpha=0.8, **look)
        else:
            points = sorted(line.points, key=lambda point: places[point.x])
            at = [places[point.x] for point in points]
            means = [100 * point.mean for point in points]
            face = colour if healed else "none"
            axes.plot(at, means, marker=marker, markersize=5, markerfacecolor=face, **look)
            bands = [point.interval or (point.mean, point.mean) for point in points]
            axes.fill_between(at, *(100 * np.array(bands).T), color=colour, alpha=0.08, linewidth=0)
        ends.append((means[-1], _name(line, result), colour))
    label_beside(axes, ends)
    _axis(axes, result, places)
    return _noted(figure, result, f"Bands: 95 % interval of the mean over tasks.{also}")


@styled
def recall(result: Result) -> Figure:
    """Recall of the truly nearest tasks over x, and 90 % of each line without noise, above lots."""
    whole = "the recall without noise" if result.by_lot is None else "no noise, above lots"
    figure = lines(result, f"{_lots_note(result)} Dotted: 90 % of {whole}.")
    axes = figure.axes[0]
    lots = result.by_lot or 0.0
    if result.by_lot is not None:
        axes.axhline(100 * lots, color=LOTS, linewidth=1.6, zorder=0)
    for line, (colour, _) in marked(result.lines):
        free = [point.mean for point in line.points if point.x == 0]
        if free:
            axes.axhline(100 * lots + 90 * (free[0] - lots), color=colour, linewidth=0.8, linestyle=":")
    axes.set_ylabel("recall of the nearest tasks, %")
    return figure


@styled
def bars(result: Result) -> Figure:
    """A bar for each way, the best on top, and beside it how far it is from the way held against.

    Lines on the bars are the 95 % interval of the mean over tasks, which the tasks' own differences
    widen; those beside them are of the paired difference, which they do not.
    """
    ordered = sorted(marked(result.lines), key=lambda line: line[0].points[0].mean)
    figure, axes = _figure(1.1 + 0.24 * len(ordered), columns=(3, 2))
    beside = figure.axes[1]
    compared = {comparison.line: comparison for comparison in result.comparisons}
    against = result.experiment.line(result.experiment.against)
    for row, (line, (colour, _)) in enumerate(ordered):
        point = line.points[0]
        low, high = point.interval or (point.mean, point.mean)
        solid = point.way.healing != "none"
        look: dict[str, Any] = (
            {"facecolor": colour} if solid else {"facecolor": f"{colour}30", "linestyle": (0, (4, 2))}
        )
        axes.barh(row, 100 * point.mean, height=0.66, edgecolor=colour, **look)
        axes.plot([100 * low, 100 * high], [row, row], color=INK, linewidth=1)
        axes.text(100 * high, row, f" {percent(point.mean)}", va="center", fontsize=8)
        if comparison := compared.get(line.name):
            bounds = comparison.interval or (comparison.difference, comparison.difference)
            beside.plot([100 * bound for bound in bounds], [row, row], color=colour, linewidth=1.6)
            told = comparison.verdict in ("above", "below")
            face = colour if told else "none"
            beside.plot(
                100 * comparison.difference, row, "o", color=colour, markersize=5, markerfacecolor=face
            )
    if result.by_lot is not None:
        axes.axvline(100 * result.by_lot, color=LOTS, linewidth=1.6)
    axes.set_yticks(range(len(ordered)), [_name(line, result) for line, _ in ordered])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.13 * 100 * max((p.interval or (0, p.mean))[1] for p in result.points))
    axes.set_xlabel(_value_name(result))
    beside.axvline(0, color=INK, linewidth=0.8)
    beside.set_ylim(axes.get_ylim())
    beside.set_yticks([])
    beside.spines["left"].set_visible(False)
    beside.set_xlabel(f"minus {against}, points")
    note = f"Lines: 95 % intervals. Filled dot: corrected p < 0.05.{_lots_note(result)}"
    return _noted(figure, result, note)


@styled
def overlap(found: Overlaps) -> Figure:
    """Heat: mean overlap of masks, a row a group, a column for how related the tasks are."""
    shown = [k for k, count in enumerate(found.pairs) if count]
    values = 100 * np.array([[group.binned[k] for k in shown] for group in found.groups], dtype=float)
    figure, axes = _figure(1.3 + 0.2 * len(found.groups))
    axes.pcolormesh(values, cmap="cividis", vmin=0, edgecolor="none")
    middle = values.max() / 2
    for row, group in enumerate(found.groups):
        for column in range(len(shown)):
            colour = "#000001" if values[row, column] > middle else "#ffffff"
            text = f"{values[row, column]:.1f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=7.5)
        told = (
            ""
            if group.correlation is None or group.p is None
            else f"{group.correlation:+.2f}   p {group.p:.3f}"
        )
        axes.text(len(shown) + 0.1, row + 0.5, told, va="center", fontsize=8, family="monospace")
    axes.text(len(shown) + 0.1, -0.5, "correlation", va="center", fontsize=8)
    axes.set_yticks(np.arange(len(found.groups)) + 0.5, [_short(group.name) for group in found.groups])
    columns = [f"{BINS[k][2]}\n{found.pairs[k]:,} pairs" for k in shown]
    axes.set_xticks(np.arange(len(shown)) + 0.5, columns)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.set_xlabel("classes in common")
    pairs = sum(found.pairs)
    note = f"Intersection over union in %; {found.tasks} library tasks, {pairs:,} pairs, one seed."
    return _with_note(figure, f"{note} By chance: {percent(found.groups[-1].chance)}.")


def svg(figure: Figure, name: str) -> str:
    """The figure as an `svg` element for a page: text stays text, and nothing is loaded from elsewhere.

    `name` keeps its parts apart from those of other figures on the page.
    """
    from matplotlib import rc_context

    target = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    text = target.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    return re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", text, count=2)


def png(figure: Figure, path: Path) -> None:
    """The figure as a PNG file, for documents. InputError where it cannot be written."""
    from matplotlib import rc_context

    target = BytesIO()
    with rc_context(STYLE):
        figure.savefig(target, format="png", dpi=200, facecolor="white")
    write_whole(path, target.getvalue())


def _figure(height: float, columns: Sequence[int] = (1,)) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, width_ratios=columns)
    return figure, axes[0, 0]


def _places(result: Result) -> dict[X, float]:
    """Where on the axis each x stands: iterations to scale, all else evenly, in the experiment's order.

    Iterations beyond the last point that is evaluated have no place.
    """
    several = [line for line in result.lines if len(line.points) > 1] or result.lines
    found = list(dict.fromkeys(point.x for line in several for point in line.points))
    if result.experiment.x == "iterations":
        return {x: float(x) for x in found if isinstance(x, int | float)}
    if result.experiment.x == "epsilon":
        found.sort(key=lambda x: float(x or np.inf))
    return {x: float(place) for place, x in enumerate(found)}


def _axis(axes: Axes, result: Result, places: Mapping[X, float]) -> None:
    axes.set_xticks(list(places.values()), [x_text(result.experiment.x, x) for x in places])
    axes.set_xlabel(axis_of(result.experiment))
    axes.set_ylabel(_value_name(result))
    axes.margins(x=0.02)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)


def _value_name(result: Result) -> str:
    """What the value axis shows: with when it was measured, where that is the same for most."""
    if result.experiment.value == "recall":
        return "recall of the nearest tasks, %"
    if result.experiment.x == "iterations":
        return "accuracy, %"
    return f"accuracy {_usual(result)}, %"


def _usual(result: Result) -> str:
    told = [measured_text(point) for point in result.points]
    return max(told, key=told.count)


def _name(line: Line, result: Result) -> str:
    """A line's name, with when it was measured where that is another time than the figure's."""
    point, experiment = line.points[-1], result.experiment
    if experiment.value == "recall":
        return line.name
    if experiment.x == "iterations":
        alone = len(line.points) == 1
        return f"{line.name} ({measured_text(point)})" if alone else line.name
    told = measured_text(point)
    notes = [] if told == _usual(result) else [told]
    if point.tasks < max(other.tasks for other in result.points):
        notes.append(f"{point.tasks} tasks alone")
    return f"{line.name} ({', '.join(notes)})" if notes else line.name


def _lots_note(result: Result) -> str:
    return "" if result.by_lot is None else f" Grey: lots, {percent(result.by_lot)} %."


def _noted(figure: Figure, result: Result, note: str) -> Figure:
    return _with_note(figure, f"{result.counted('tasks')}, {result.counted('seeds')}. {note}")


def _with_note(figure: Figure, note: str) -> Figure:
    """What a figure has to say of itself, below it."""
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8)
    return figure


def _short(name: str) -> str:
    """A group's name without what all have."""
    return name.removesuffix(":0").removesuffix(".weight")

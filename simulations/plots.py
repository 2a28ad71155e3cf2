"""Pictures of a run, drawn from its record alone: nothing is trained or computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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

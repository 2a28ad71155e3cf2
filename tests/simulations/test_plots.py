"""Figures: what they show is in their text, and what a way looks like does not depend on the figure."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from simulations.experiments import EXPERIMENTS, Experiment
from simulations.library_records import LibraryMasks
from simulations.marks import INK, LOTS, MARKS, SPARE, label_beside, marked
from simulations.overlap import overlaps
from simulations.plots import bars, figure_of, lines, overlap, png, recall, svg
from simulations.records import Record
from simulations.statistics import Result, result_of
from simulations.tasks import TaskChoice
from simulations.way import Way


def measured(experiment: Experiment, tasks: int = 6) -> Result:
    """The experiment on made-up numbers: every way a little better than the one before."""
    own = []
    for number, way in enumerate(dict.fromkeys((*experiment.ways, experiment.against))):
        for k in range(tasks):
            value = 0.3 + 0.01 * number + 0.02 * k
            points = {f"at {n}" for n in experiment.evaluate_at} | {"after", "recall"}
            record = Record(k % 2, f"{experiment.tasks[0]}0-{k:02d}", way, dict.fromkeys(points, value))
            own.append(record)
    return result_of(experiment, own)


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_figure_that_names_its_lines_tasks_and_seeds(name):
    result = measured(EXPERIMENTS[name])
    text = svg(figure_of(result), name)
    assert "6 tasks, 2 seeds." in text
    assert "95 % interval" in text
    for line in result.lines:
        assert line.name in text


def test_svg_is_one_element_that_loads_nothing_and_takes_the_pages_text_colour():
    text = svg(bars(measured(EXPERIMENTS["criteria"])), "criteria")
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")
    assert "http" not in text
    assert INK not in text
    assert "currentColor" in text

    class Balanced(HTMLParser):
        depth = 0

        def handle_starttag(self, tag, attrs):
            self.depth += 1

        def handle_endtag(self, tag):
            self.depth -= 1

    parser = Balanced()
    parser.feed(text)
    assert parser.depth == 0


@pytest.mark.parametrize("name", ["similarity", "probe-shifted", "privacy-shifted"])
def test_figures_of_recall_show_what_lots_would_find(name):
    result = replace(measured(EXPERIMENTS[name]), by_lot=0.31)
    figure = figure_of(result)
    assert "Grey: lots, 31.0 %." in svg(figure, name)
    drawn = [line for line in figure.axes[0].lines if line.get_color() == LOTS]
    assert [31.0 in (*line.get_xdata(), *line.get_ydata()) for line in drawn] == [True]
    assert "Grey" not in svg(figure_of(measured(EXPERIMENTS[name])), name)


def test_parts_of_two_figures_on_a_page_have_ids_of_their_own():
    result = measured(EXPERIMENTS["keep-ratio"])
    one, other = (svg(lines(result), name) for name in ("one", "other"))
    first, second = (set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other))
    assert first
    assert not first & second
    assert set(re.findall(r"url\(#([^)]+)\)", one)) <= first
    assert one == svg(lines(result), "one")


def test_names_are_text_and_never_markup_or_formulae():
    odd = Experiment("odd", "?", (Way("L1"),), "way", Way("L1"), "after", line=lambda way: "<b> $x_1$ &")
    text = svg(figure_of(measured(odd)), "odd")
    assert "&lt;b&gt; $x_1$ &amp;" in text
    assert "<b>" not in text


def test_healed_ways_are_drawn_solid_and_unhealed_ones_dashed_in_the_same_colour():
    ways = tuple(Way("SMSP", keep_ratio=r, healing=h) for r in (0.5, 0.1) for h in ("none", "library"))
    figure = lines(measured(Experiment("two", "?", ways, "keep_ratio", ways[0])))
    plain, healed = figure.axes[0].lines
    assert plain.get_color() == healed.get_color() == MARKS["SMSP"][0]
    assert (plain.get_linestyle(), healed.get_linestyle()) == ("--", "-")


def test_lines_of_one_mask_are_told_apart():
    drawn = marked(measured(EXPERIMENTS["privacy"]).lines)
    assert len({mark for _, mark in drawn}) == len(drawn) == 3


@pytest.mark.parametrize("colour", sorted({colour for colour, _ in [*MARKS.values(), *SPARE]} - {INK}))
def test_every_colour_stands_out_on_light_and_on_dark_pages(colour):
    own = luminance(colour) + 0.05
    assert (luminance("#ffffff") + 0.05) / own >= 3
    assert own / (luminance("#15181c") + 0.05) >= 3


def test_a_single_point_beyond_the_axis_is_drawn_across():
    ways = (Way("SMSP", iterations=25), Way("iterative", iterations=600))
    own = [
        Record(0, f"new0-{k}", way, dict.fromkeys(values, 0.5 + 0.01 * k))
        for way, values in zip(ways, [("at 0", "after"), ("after",)], strict=True)
        for k in range(3)
    ]
    figure = figure_of(result_of(Experiment("one", "?", ways, "iterations", ways[0], "after"), own))
    across = figure.axes[0].lines[-1]
    assert len(set(across.get_ydata())) == 1
    assert max(figure.axes[0].get_xticks()) == 25
    assert "iterative (after 600 iterations)" in svg(figure, "one")


def test_epsilon_runs_from_the_most_noise_to_none():
    figure = recall(measured(EXPERIMENTS["privacy"]))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "8", "no noise"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 1, 2, 3]


def test_ninety_percent_of_a_recall_are_counted_from_what_lots_would_find():
    result = measured(EXPERIMENTS["privacy"])
    free = [point.mean for line in result.lines for point in line.points if point.x == 0]
    for lots, known in ((0.0, None), (0.31, 0.31)):
        drawn = recall(replace(result, by_lot=known)).axes[0].lines
        dotted = [line.get_ydata()[0] for line in drawn if line.get_linestyle() == ":"]
        assert dotted == pytest.approx([100 * (lots + 0.9 * (mean - lots)) for mean in free])


def test_names_beside_lines_do_not_cover_each_other():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(0, 100)
    label_beside(axes, [(height, str(height), "#000000") for height in (98, 98.5, 99, 50, 50.1)])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(np.diff(heights)) >= 5
    assert heights[-1] <= 100


def test_the_heat_has_every_groups_numbers():
    lot = np.random.default_rng(0)
    tasks = tuple(TaskChoice(str(k), (k % 3, 7)) for k in range(6))
    kept = np.array([lot.permutation(10) < 4 for _ in tasks])
    library = LibraryMasks(tasks, (("layer1.conv1.weight:0", 10),), kept, np.zeros((6, 2)))
    found = overlaps(library, permutations=9)
    text = svg(overlap(found), "heat")
    assert "layer1.conv1<" in text
    assert "15 pairs" in text
    for value in found.groups[0].binned:
        assert value is None or f"{100 * value:.1f}" in text


def test_a_png_is_wide_enough_for_documents(tmp_path):
    png(figure_of(measured(EXPERIMENTS["healing"])), tmp_path / "healing.png")
    with Image.open(tmp_path / "healing.png") as image:
        assert image.width == 1400

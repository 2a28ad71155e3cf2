"""The published results say what their records say."""

from pathlib import Path

import pytest

from simulations.experiments import EXPERIMENTS
from simulations.report import Run, document, read_runs
from simulations.sentences import percent, x_text

REPOSITORY = Path(__file__).parents[2]
RUNS = sorted(path.parent.name for path in (REPOSITORY / "benchmarks/results").glob("*/run.json"))

COLUMNS = {
    "ResNet-18": "resnet18",
    "ResNet-18, 200 tasks": "resnet18-200",
    "ViT-tiny": "vit",
    "MobileNetV3": "mobilenetv3",
}
Numbers = dict[tuple[str, str], str]
"""Way and, where there is one, place of the axis -> the mean as pages have it."""


def tables() -> list[list[list[str]]]:
    """The cells of every table of README and results that has an experiment's name in its corner."""
    found = []
    pages = [(REPOSITORY / name).read_text() for name in ("README.md", "docs/results.md")]
    for block in "\n\n".join(pages).split("\n\n"):
        rows = [
            [cell.strip().strip("*") for cell in line.strip("|").split("|")]
            for line in block.splitlines()
            if line.startswith("|")
        ]
        if rows and rows[0][0].startswith("`"):
            found.append([rows[0], *rows[2:]])
    return found


def numbers(runs: dict[str, Run], column: str, experiment: str) -> Numbers:
    """What a run of these came to in an experiment."""
    result = runs[COLUMNS[column]].results.get(experiment)
    along = EXPERIMENTS[experiment].x
    return {
        (line.name, "" if along == "way" else x_text(along, point.x)): percent(point.mean)
        for line in (result.lines if result else ())
        for point in line.points
    }


def test_every_table_of_the_results_holds_what_was_measured():
    """Rows are ways, by the names that pages have; words in brackets explain. Empty is not measured."""
    runs = {
        r.path.name: r
        for r in read_runs([REPOSITORY / "benchmarks/results" / n for n in RUNS], EXPERIMENTS)
    }
    found = tables()
    assert len(found) > 2
    for (corner, *columns), *rows in found:
        experiment, _, run = corner.partition(", ")
        experiment = experiment.strip("`")
        for row in rows:
            way = row[0].split(" (")[0]
            for column, cell in zip(columns, row[1:], strict=True):
                place = (run, column) if run else (column, "")
                known = numbers(runs, place[0], experiment)
                assert cell == known.get((way, place[1]), ""), (corner, way, column)
            assert any(row[1:]), f"{corner}: {way} is no way's name, or not measured"


@pytest.mark.parametrize("run", RUNS)
def test_every_number_and_sentence_of_the_results_is_computed_from_the_records(
    run, tmp_path, monkeypatch
):
    """As written by maskvote-sim report benchmarks/results/RUN --markdown docs/results/RUN.md."""
    monkeypatch.chdir(REPOSITORY)
    published = Path(f"docs/results/{run}.md")
    text = document(read_runs([Path("benchmarks/results") / run], EXPERIMENTS), tmp_path, run)
    assert text == published.read_text()
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in published.with_suffix("").iterdir()}


@pytest.mark.parametrize("run", RUNS)
def test_what_lots_would_find_is_known_of_every_published_task(run):
    (read,) = read_runs([REPOSITORY / "benchmarks/results" / run], EXPERIMENTS)
    assert {(record.seed, record.task) for record in read.records} <= read.by_lot.keys()


def test_there_are_results():
    assert "resnet18" in RUNS

"""The published results say what their records say."""

from pathlib import Path

import pytest

from simulations.experiments import EXPERIMENTS
from simulations.report import document, read_runs

REPOSITORY = Path(__file__).parents[2]
RUNS = sorted(path.parent.name for path in (REPOSITORY / "benchmarks/results").glob("*/run.json"))


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

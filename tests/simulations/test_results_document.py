"""The published results say what their records say."""

from pathlib import Path

from simulations.experiments import EXPERIMENTS
from simulations.report import document, read_runs

REPOSITORY = Path(__file__).parents[2]
RECORDS = Path("benchmarks/results/resnet18")
DOCUMENT = Path("docs/results/resnet18.md")


def test_every_number_and_sentence_of_the_results_is_computed_from_the_records(tmp_path, monkeypatch):
    """As written by maskvote-sim report RECORDS --markdown DOCUMENT."""
    monkeypatch.chdir(REPOSITORY)
    text = document(read_runs([RECORDS], EXPERIMENTS), tmp_path, "resnet18")
    assert text == DOCUMENT.read_text()
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in DOCUMENT.with_suffix("").iterdir()}

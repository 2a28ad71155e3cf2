"""The report: several runs as one page of HTML that needs nothing else, or as JSON."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from common.errors import InputError
from common.files import read_whole
from simulations import plots
from simulations.claims import Claim, Holds, claims_of
from simulations.experiments.experiment import Experiment
from simulations.library_records import LIBRARY, LibraryMasks, read_library
from simulations.lots import recalls_by_lot
from simulations.overlap import BINS, FEWEST_TASKS, Overlaps, overlaps
from simulations.records import Record, read_records
from simulations.sentences import (
    SEEDS_NOTE,
    claim_sentence,
    claims_note,
    gap_sentence,
    gap_sentences,
    headlines,
    interval_text,
    measured_text,
    p_text,
    percent,
    signed,
    x_text,
)
from simulations.statistics import ALIKE, Comparison, Line, Point, Result, Values, records_of, result_of
from simulations.way import Way

ANSWERS: dict[str, tuple[Holds, ...]] = {
    "What holds": ("yes",),
    "What does not": ("no",),
    "What cannot be said": ("unclear", "not measured"),
}


@dataclass(frozen=True)
class Run:
    """What a run's directory holds, and what it comes to under these experiments."""

    path: Path
    label: str
    info: Mapping[str, Any]
    """run.json: settings, versions, digests, commit, commands."""
    records: tuple[Record, ...]
    experiments: Mapping[str, Experiment]
    overlaps: Overlaps | None
    by_lot: Values
    """Recall that neighbours by lot would have, by seed and task; empty where that is not known."""

    @cached_property
    def results(self) -> dict[str, Result]:
        """Experiment -> its numbers; those of which nothing was tried are left out."""
        return {
            name: result_of(experiment, self.records, self.by_lot)
            for name, experiment in self.experiments.items()
            if records_of(experiment, self.records)
        }

    @cached_property
    def claims(self) -> list[Claim]:
        """The numbers to reach."""
        settings = self.info["settings"]
        return claims_of(self.records, settings.get("library_tasks"), settings.get("images"), self.by_lot)

    @property
    def unmeasured(self) -> list[str]:
        """Experiments that this run has nothing of."""
        return [name for name in self.experiments if name not in self.results]

    @property
    def unknown(self) -> int:
        """Records that belong to none of the experiments."""
        own = {r.key for e in self.experiments.values() for r in records_of(e, self.records)}
        return sum(record.key not in own for record in self.records)

    @property
    def failed(self) -> list[Record]:
        """The cells that failed."""
        return [record for record in self.records if record.error is not None]

    @property
    def commits(self) -> dict[str, int]:
        """Commit of the code that measured -> how many cells, the most first; "" is not known."""
        return dict(Counter(record.commit for record in self.records).most_common())

    def command(self, experiment: str) -> str:
        """The command that measured all of an experiment, as it was given; else the one that does."""
        place = str(self.path)
        for given in reversed(self.info.get("commands", [])):
            words = shlex.split(given)
            if {experiment, "all"} & set(words) and "--only" not in words:
                return given
            if "--run" in words[:-1]:
                place = words[words.index("--run") + 1]  # the records may have been copied since
        return f"maskvote-sim experiment {experiment} --run {shlex.quote(place)}"


def read_runs(paths: Iterable[Path], experiments: Mapping[str, Experiment]) -> list[Run]:
    """The runs in these directories, each with a label of its own.

    InputError for one that is missing, empty or damaged.
    """
    runs = [_read_run(Path(path), experiments) for path in dict.fromkeys(paths)]
    labels = [run.label for run in runs]
    return [
        Run(**{**vars(run), "label": f"{run.label} ({run.path.name})"})
        if labels.count(run.label) > 1
        else run
        for run in runs
    ]


def page(runs: Sequence[Run]) -> str:
    """The page. InputError for no run."""
    return _rendered("report.html", runs, figure=_figure, overlap_figure=_overlap_figure)


def document(runs: Sequence[Run], pictures: Path, place: str) -> str:
    """The same figures, tables and words as Markdown; its PNG files go to the directory `pictures`.

    `place` is what the text calls that directory. InputError for no run, or where nothing can be written.
    """
    pictures.mkdir(parents=True, exist_ok=True)

    def picture(run: Run, name: str) -> str:
        file = f"{run.path.name}-{name}.png"
        drawn = run.overlaps if name == "overlap" else None
        figure = plots.overlap(drawn) if drawn else plots.figure_of(run.results[name])
        plots.png(figure, pictures / file)
        return f"{place}/{file}"

    return _rendered("results.md", runs, autoescape=False, picture=picture)


def _rendered(template: str, runs: Sequence[Run], *, autoescape: bool = True, **more: Any) -> str:
    if not runs:
        raise InputError("a report needs a run; give the directory of one or more")
    environment = Environment(
        loader=PackageLoader("simulations"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "p": p_text,
        "interval": interval_text,
        "claim": claim_sentence,
        "gap": gap_sentence,
        "settings": _flat,
        "measured": measured_text,
    }
    experiments = {name: e for run in runs for name, e in run.experiments.items() if name in run.results}
    return environment.get_template(template).render(
        runs=runs,
        experiments=experiments,
        answers=ANSWERS,
        bins=[name for *_, name in BINS],
        claims_note=claims_note,
        seeds_note=SEEDS_NOTE,
        headlines=headlines,
        gaps=gap_sentences,
        x_text=x_text,
        rows=_rows,
        alike=ALIKE,
        baseline=lambda e: e.line(e.against),
        **more,
    )


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The same as JSON: every number of the page, unrounded."""
    return {"runs": [_summary(run) for run in runs]}


def _read_run(path: Path, experiments: Mapping[str, Experiment]) -> Run:
    if not path.is_dir():
        raise InputError(f"{path} is no directory; give a run's, as maskvote-sim experiment makes them")
    if not (path / "run.json").exists():
        raise InputError(f"{path} is no run: it has no run.json; give the directory that --run named")
    try:
        info = json.loads(bytes(read_whole(path / "run.json")))
        model = str(info["settings"].get("model", path.name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path / 'run.json'} is damaged ({error!r}); begin another run, or restore the file"
        ) from error
    cells = path / "cells.jsonl"
    try:
        records = tuple(read_records(cells))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{cells} is damaged ({error}); remove the lines that are no records, and run it again"
        ) from error
    if not records:
        raise InputError(f"{cells} has no record; measure something first, with maskvote-sim experiment")
    library = read_library(path) if (path / LIBRARY).exists() else None
    found = overlaps(library) if library is not None and len(library.tasks) >= FEWEST_TASKS else None
    return Run(path, model, info, records, experiments, found, _by_lot(library, info["settings"]))


def _by_lot(library: LibraryMasks | None, settings: Mapping[str, Any]) -> Values:
    """What lots would find, where the run says how its new tasks were drawn."""
    tasks_a_seed, seeds = settings.get("tasks_a_seed"), settings.get("seeds")
    if library is None or tasks_a_seed is None or seeds is None:
        return {}
    return recalls_by_lot(library.tasks, tasks_a_seed, seeds, Way("neighbours").neighbours)


def _figure(run: Run, result: Result) -> Markup:
    name = f"{run.path} {result.experiment.name}"
    return Markup(plots.svg(plots.figure_of(result), name)) if result.lines else Markup("")


def _overlap_figure(run: Run) -> Markup:
    return (
        Markup(plots.svg(plots.overlap(run.overlaps), f"{run.path} overlap"))
        if run.overlaps
        else Markup()
    )


def _rows(result: Result) -> list[tuple[Line, Point, Comparison | None]]:
    """The table: every point, with what it was held against."""
    compared = {(c.line, c.point.x): c for c in result.comparisons}
    return [(line, p, compared.get((line.name, p.x))) for line in result.lines for p in line.points]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as names and values."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", "" if value is None else str(value)))
    return found


def _summary(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "label": run.label,
        **{
            name: run.info.get(name) for name in ("settings", "versions", "digests", "commit", "commands")
        },
        "claims": [
            {**asdict(claim), "holds": claim.holds, "words": claim_sentence(claim)}
            for claim in run.claims
        ],
        "experiments": {name: _result_json(run, result) for name, result in run.results.items()},
        "not measured": run.unmeasured,
        "overlap": asdict(run.overlaps) if run.overlaps else None,
        "failed": [
            {"seed": r.seed, "task": r.task, "way": r.way.to_json(), "error": r.error} for r in run.failed
        ],
    }


def _result_json(run: Run, result: Result) -> dict[str, Any]:
    return {
        "question": result.experiment.question,
        "command": run.command(result.experiment.name),
        "x": result.experiment.x,
        "words": headlines(result),
        "by lot": result.by_lot,
        "points": [
            {
                "line": line.name,
                **{k: v for k, v in vars(point).items() if k != "way"},
                "way": point.way.to_json(),
                "compared": None if compared is None else _comparison_json(compared),
            }
            for line, point, compared in _rows(result)
        ],
        "gaps": [asdict(gap) for gap in result.gaps],
    }


def _comparison_json(compared: Comparison) -> dict[str, Any]:
    names = ("against", "interval", "tasks", "seeds", "differing", "test", "p", "corrected", "verdict")
    difference = compared.difference if math.isfinite(compared.difference) else None
    return {
        "difference": difference,
        "at": compared.against_point.x,
        **{name: getattr(compared, name) for name in names},
    }

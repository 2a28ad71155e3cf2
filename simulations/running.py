"""Running: what an experiment lacks is measured, in several processes; a failure is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from functools import cache, partial
from pathlib import Path

from server.founding import task_of
from simulations.cells import Cells, asks_the_library
from simulations.checks import check_inputs, check_keep_ratios, healings_to_come, too_small
from simulations.experiments.experiment import Experiment
from simulations.records import Cell, Record, append, pending, read_records
from simulations.run_directory import RunDirectory
from simulations.stages import Watch
from simulations.tasks import TaskChoice
from simulations.way import Way
from simulations.worker_processes import worker_processes


def cells_of(run: RunDirectory, experiment: Experiment) -> list[Cell]:
    """All cells of an experiment, a way after the other: a run that is stopped has whole ways.

    Ways that the run cannot go are left out: see `left_out`.
    """
    tasks = run.new_choices(experiment.tasks)
    return [Cell(seed, choice, way) for way in ways_of(run, experiment) for seed, choice in tasks]


def ways_of(run: RunDirectory, experiment: Experiment) -> list[Way]:
    """The ways that the run can go: with so many library tasks, a small network, images to heal on."""
    return [way for way in experiment.ways if not _obstacle(run, way)]


def left_out(run: RunDirectory, experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """Why the run cannot go all ways of these, and what to do about it -> the names of those ways."""
    found: dict[str, dict[str, None]] = {}
    for experiment in experiments:
        for way in experiment.ways:
            if why := _obstacle(run, way):
                found.setdefault(why, {})[experiment.line(way)] = None
    return {why: list(names) for why, names in found.items()}


def _obstacle(run: RunDirectory, way: Way) -> str:
    """Why the run cannot go a way; "" where it can."""
    settings = run.settings
    if (way.entries or 0) > settings.library_tasks:
        return (
            f"{way.entries} library tasks are needed, {run.path} has {settings.library_tasks}; begin "
            f"another run with --library-tasks {way.entries}"
        )
    if way.mask == "small network" and not settings.small_model:
        return f"{run.path} has no small network; give it one with --small"
    if way.healing != "none" and not settings.public:
        return f"{run.path} has no public images to heal on; begin another run with --public"
    return "" if way.mask == "neighbours" else too_small(run, way.keep_ratio)


def prepare(
    run: RunDirectory,
    experiments: Sequence[Experiment],
    workers: int,
    watch: Watch,
    tell: Callable[[str], object] = lambda sentence: None,
) -> None:
    """Found the run's library; seed it, let others grow, and heal, as far as these ways want that.

    All that they need is checked before the library is seeded. `tell` is called with what is left out of
    the directories of images, and with ways that turn out to be too small for the backbone. InputError
    where anything is missing, or weights are others than those that the run was measured on.
    """
    known = left_out(run, experiments)
    ways, waiting = _ways(run, experiments)
    for sentence in check_inputs(run, ways, waiting):
        tell(sentence)
    watch("reading images", 0, None)
    run.read_images(partial(watch, "reading images"))
    watch("founding the library", 0, None)
    run.found()
    for why, names in left_out(run, experiments).items():
        if why not in known:
            tell(told_left_out(names, why))
    ways, waiting = _ways(run, experiments)
    check_keep_ratios(run, ways)
    run.note_weights(small=any(way.mask == "small network" for way in ways))
    for healing in healings_to_come(run, ways, waiting):
        run.healed.check_public(healing, partial(watch, f"healing the backbone ({healing})"))
    if any(asks_the_library(way) for way in ways):
        _seed_library(run, workers, watch)
    for kind in sorted({way.library for way in ways} - {"seeded"}):
        run.grow(kind, partial(watch, f"growing the {kind} library"))
    for healing, iterations in dict.fromkeys((way.healing, way.healing_iterations) for way in ways):
        if healing in ("library", "empty", "served"):
            run.healed.prepare(healing, iterations, partial(watch, f"healing the backbone ({healing})"))


def told_left_out(names: Sequence[str], why: str) -> str:
    """That ways are left out, in a sentence."""
    return f"left out: {', '.join(names)}: {why}"


def _ways(run: RunDirectory, experiments: Sequence[Experiment]) -> tuple[list[Way], set[Way]]:
    """The ways that these experiments go, and those of them that are not all measured."""
    ways = [way for experiment in experiments for way in ways_of(run, experiment)]
    cells = [cell for experiment in experiments for cell in cells_of(run, experiment)]
    return ways, {cell.way for cell in pending(cells, read_records(run.cells))}


def _seed_library(run: RunDirectory, workers: int, watch: Watch) -> None:
    seeded = {task_of(entry.contributor) for entry in run.entries}
    missing = [choice for choice in run.library_choices if choice.name not in seeded]
    if missing:
        with worker_processes(workers) as pool:
            futures = [pool.submit(_seed, run.path, choice) for choice in missing]
            watch("seeding the library", 0, len(futures))
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                watch("seeding the library", done, len(futures))
        del run.entries
    run.note_library()


def measure(
    run: RunDirectory, experiments: Sequence[Experiment], workers: int, watch: Watch
) -> list[Record]:
    """Measure the cells that have no record yet, and append theirs; those that failed.

    A cell that several experiments share is measured at the points that any of them asks for.
    """
    points: dict[str, set[int]] = {}
    cells: list[Cell] = []
    for experiment in experiments:
        for cell in cells_of(run, experiment):
            points.setdefault(cell.key, set()).update(experiment.evaluate_at)
            cells.append(cell)
    waiting = pending(cells, read_records(run.cells))
    failed: list[Record] = []
    if not waiting:
        return failed
    watch("measuring", 0, len(waiting))
    with worker_processes(workers) as pool:
        futures = [
            pool.submit(_measure, run.path, cell, tuple(sorted(points[cell.key]))) for cell in waiting
        ]
        for done, future in enumerate(as_completed(futures), start=1):
            record = future.result()
            append(run.cells, record)
            if record.error is not None:
                failed.append(record)
            watch("measuring", done, len(futures))
    return failed


@cache
def _open(path: Path) -> RunDirectory:
    return RunDirectory(path)


@cache
def _cells(path: Path) -> Cells:
    return Cells(_open(path))


def _seed(path: Path, choice: TaskChoice) -> None:
    _open(path).seed(choice)


def _measure(path: Path, cell: Cell, evaluate_at: tuple[int, ...]) -> Record:
    return _cells(path).measure(cell, evaluate_at)

"""Checks: what a run will need, looked at before its library is seeded, which takes half an hour."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from common.budget import Budget, check_feasible
from common.errors import BudgetError
from common.image_folders import LeftOut
from simulations.cells import asks_the_library
from simulations.pools import check_two_sides, public_files
from simulations.run_directory import RunDirectory
from simulations.way import Healing, Way

MOST_CLASSES = 10
"""Of a run's tasks."""


def check_inputs(run: RunDirectory, ways: Sequence[Way], waiting: Collection[Way]) -> list[str]:
    """Raise InputError where these ways lack data, public images or weights.

    `waiting` are those of which something is not measured yet. No image of a directory is opened. What
    is left out of the directories is given, a sentence for each.
    """
    told = []
    if run.folder is not None:
        check_two_sides(run.folder, run.settings.data)
        told.append(run.folder.left_out.sentence(run.settings.data))
    # Raises where there are too few classes to draw tasks from.
    _ = run.library_choices
    if healings_to_come(run, ways, waiting):
        left_out = LeftOut()
        public_files(run.settings.public, left_out=left_out)
        told.append(left_out.sentence(run.settings.public))
    _ = run.weights
    if any(way.mask == "small network" for way in ways):
        _ = run.small
    return [sentence for sentence in told if sentence]


def healings_to_come(run: RunDirectory, ways: Sequence[Way], waiting: Collection[Way]) -> list[Healing]:
    """What is still to be healed for these ways, of which `waiting` are not all measured."""
    alone = {way.healing for way in waiting if way.healing in ("mask", "nearest")}
    backbone = {w.healing for w in ways if run.healed.is_missing(w.healing, w.healing_iterations)}
    return sorted(alone | backbone)


def check_keep_ratios(run: RunDirectory, ways: Sequence[Way]) -> None:
    """Raise BudgetError where no mask of the run's library, or of its healing, can be as small."""
    asked = {}
    if any(asks_the_library(way) or way.library != "seeded" for way in ways):
        asked["the library's masks"] = run.settings.keep_ratio
    if any(way.healing in ("library", "empty", "served") for way in ways):
        asked["the masks to heal through"] = run.settings.heal_ratios.high
    for what, ratio in asked.items():
        if why := too_small(run, ratio):
            raise BudgetError(f"{what} cannot keep {ratio:g} of the units: {why}")


def too_small(run: RunDirectory, keep_ratio: float) -> str:
    """Why no network of the run can be as small, "" where one can or the library is not founded yet."""
    if not (run.path / "library.db").exists():
        return ""
    try:
        check_feasible(run.structure, Budget(keep_ratio=keep_ratio), MOST_CLASSES)
    except BudgetError as error:
        return str(error)
    return ""

"""Image files: those that are named, and those in folders, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import TaskDataError
from common.image_folders import SUFFIXES_IN_WORDS, LeftOut, images_below


def image_files(places: Sequence[Path], left_out: LeftOut | None = None) -> Iterator[Path]:
    """The files among these, whatever they are, and the images anywhere below the folders among them.

    Which files below a folder count, and in which order they come, see `images_below`. TaskDataError
    for a place that is not there.
    """
    for place in places:
        if place.is_dir():
            yield from images_below(place, left_out)
        elif place.exists():
            yield place
        else:
            raise TaskDataError(f"there is no image and no folder {place}; check the path")


def measured(places: Sequence[Path], left_out: LeftOut | None = None) -> tuple[int, int]:
    """How many images there are, and how long the longest of their paths is. TaskDataError for none."""
    left_out = LeftOut() if left_out is None else left_out
    count = longest = 0
    for path in image_files(places, left_out):
        count, longest = count + 1, max(longest, len(str(path)))
    if not count:
        told = left_out.sentence("it" if len(places) == 1 else "these")
        raise TaskDataError(
            f"no image ({SUFFIXES_IN_WORDS}) in {', '.join(map(str, places[:3]))}; give image files, or "
            f"folders with some{told and f' ({told})'}"
        )
    return count, longest

"""Image files: those that are named, and those in folders, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import TaskDataError
from common.image_reading import IMAGE_SUFFIXES


def image_files(places: Sequence[Path]) -> Iterator[Path]:
    """The files among these, and the images anywhere below the folders among them, in order of name.

    At any moment the names of one folder, and of those that it lies in, are in memory. TaskDataError
    for a place that is not there.
    """
    for place in places:
        if place.is_dir():
            yield from _below(place)
        elif place.exists():
            yield place
        else:
            raise TaskDataError(f"there is no image and no folder {place}; check the path")


def _below(folder: Path, within: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Images in a folder, then those of its folders. Links are followed, but not back upwards."""
    own = os.path.realpath(folder)
    if own in within:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise TaskDataError(
            f"{folder} cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    folders = []
    for entry in entries:
        if entry.is_dir():
            folders.append(entry.name)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield Path(folder, entry.name)
    del entries
    for name in folders:
        yield from _below(Path(folder, name), within | {own})


def measured(places: Sequence[Path]) -> tuple[int, int]:
    """How many images there are, and how long the longest of their paths is. TaskDataError for none."""
    count = longest = 0
    for path in image_files(places):
        count, longest = count + 1, max(longest, len(str(path)))
    if not count:
        raise TaskDataError(
            f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, places[:3]))}; "
            "give image files, or folders with some"
        )
    return count, longest

"""Memory limit: how many images may be computed with at once, found by trying, within what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from common.errors import InputError
from common.process_memory import (
    MEGABYTE,
    forget_peak,
    give_back,
    keep_little,
    peak_bytes,
    resident_bytes,
)

PIXEL_BYTES = 256 * 2**20
"""Of decoded images that are kept, unless less is asked for: 21,000 of 64 x 64 pixels, 1,700 of 224."""
PIXELS_SHARE = 1 / 64
"""Of the limit, for decoded images that are kept: at 64 x 64 some 1,600 images of a limit of 1.2 GB."""
SPARE_BYTES = 16_000_000
"""Left free: for code that is yet to be loaded, and for gaps between blocks of memory."""


@dataclass(frozen=True)
class MemoryLimit:
    """What this process may hold at most, in bytes that are resident; see `process_memory`."""

    bytes: float

    @property
    def pixel_bytes(self) -> int:
        """What of it is for decoded images that are kept."""
        return min(PIXEL_BYTES, int(self.bytes * PIXELS_SHARE))

    def check(self, run: Callable[[], object], doing: str) -> None:
        """Raise InputError with what is needed if what `run` does, `doing` in words, does not fit."""
        self._check(_peak_of(run) + self.pixel_bytes + SPARE_BYTES, doing)

    def images_at_once(
        self, run: Callable[[int], object], most: int, doing: str, later_bytes: int = 0
    ) -> int:
        """The most images, up to `most`, that `run` can be called with; it is called with a few of them.

        First with one, then with twice as many while that is sure to fit; the difference tells what an
        image takes. `later_bytes` is what will be held besides, and is not there yet. Raises InputError
        with what would be needed where not even one image fits, `doing` saying what for.
        """
        besides = later_bytes + self.pixel_bytes + SPARE_BYTES
        one_image = f"{doing} one image at a time"
        keep_little()
        give_back()
        self._check(resident_bytes() + besides, one_image)
        run(1)  # what is set up once is no image's
        one = _peak_of(partial(run, 1))
        self._check(one + besides, one_image)
        tried, peak, each = 1, one, float(max(one - resident_bytes(), 1))
        while tried < most:
            fitting = tried + int((self.bytes - besides - peak) / each)
            following = min(2 * tried, most)
            if fitting < following:
                return max(tried, min(fitting, most))
            reached = _peak_of(partial(run, following))
            each = max((reached - peak) / (following - tried), (reached - one) / (following - 1), 1)
            tried, peak = following, max(reached, peak)
        return most

    def _check(self, needed: int, doing: str) -> None:
        if needed > self.bytes:
            raise InputError(
                f"{doing} needs at least {-(-needed // MEGABYTE):,} MB in this process, the "
                f"memory limit is {self.bytes / MEGABYTE:,.0f} MB; allow as much, or ask for a smaller "
                "network"
            )


def _peak_of(run: Callable[[], object]) -> int:
    give_back()
    forget_peak()
    run()
    return peak_bytes()

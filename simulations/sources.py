"""Sources: the words that say where the classes of tasks come from. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from common.errors import TaskDataError

GLYPHS, SEEN_GLYPHS = "glyphs", "glyphs:seen"
"""Glyphs of scripts that no backbone of ours was trained on, and of those that it was."""
TORCHVISION = "torchvision:"


def check_source(source: str) -> None:
    """Raise TaskDataError for a directory that is not there. What is in it is for `open_pool` to say."""
    if source in (GLYPHS, SEEN_GLYPHS) or source.startswith(TORCHVISION) or Path(source).is_dir():
        return
    raise TaskDataError(
        f"{source} is not a directory; give one, or {GLYPHS}, or {TORCHVISION}NAME:DIRECTORY"
    )

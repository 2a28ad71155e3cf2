"""Class names: how they are compared and kept, and which cannot be."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from common.errors import TaskDataError


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which names are compared and kept.

    "é" is one character on most systems and a letter with an accent on macOS; both become the former.
    """
    return unicodedata.normalize("NFC", name)


def check_class_names(classes: Sequence[str]) -> None:
    """Raise TaskDataError for names that no file can hold: empty, of several lines, no text, or twice.

    Names that only differ in their Unicode form are the same.
    """
    wrong = [name for name in classes if not _is_a_line(name)]
    names = [composed(name) for name in classes if isinstance(name, str)]
    twice = sorted({name for name in names if names.count(name) > 1} - {*wrong})
    if wrong or twice or not classes:
        raise TaskDataError(
            f"class names {[*wrong, *twice][:3]} of {len(classes)} cannot be kept with the network; each "
            "is one line of text, and no two are the same: rename those"
        )


def _is_a_line(name: object) -> bool:
    try:
        return isinstance(name, str) and name.encode().count(b"\n") == 0 and name.strip() != ""
    except UnicodeEncodeError:  # a file name that is no text
        return False

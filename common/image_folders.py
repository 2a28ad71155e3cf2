"""Image folders: which files are images, which folders count, and what is left out of both.

Whatever reads images from a directory finds them by this. It opens no file, and needs neither torch nor
Pillow.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import TaskDataError

IMAGE_TYPES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "PNM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""The types of image that every installation of Pillow reads, and the suffixes of their files.

Which images train must not depend on how Pillow was built, so AVIF and JPEG 2000 are not among them. Of
several images in a file, the first counts.
"""
TYPES_IN_WORDS = ", ".join(IMAGE_TYPES)
IMAGE_SUFFIXES = tuple(suffix for suffixes in IMAGE_TYPES.values() for suffix in suffixes)
SUFFIXES_IN_WORDS = ", ".join(IMAGE_SUFFIXES)

SYSTEM_FOLDERS = frozenset(
    {
        "@eadir", "@tmp", "#recycle", "#snapshot",  # Synology
        "@recycle", "@recently-snapshot", "@__thumb",  # QNAP
        "~snapshot",  # NetApp
        "$recycle.bin", "recycler", "system volume information",  # Windows
        "__macosx", "network trash folder", "temporary items",  # macOS
        "lost+found", "lost.dir",  # Linux, Android
        "__pycache__",
    }
)  # fmt: skip
"""Folders that file servers and systems put beside those of users, in small letters."""
SYSTEM_FILES = frozenset(
    {".ds_store", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"}
)
"""Likewise files, which nobody takes for images."""

SHOWN_SUFFIXES, SHOWN_FOLDERS = 5, 3
"""At most so many are named."""
PLAIN_SUFFIX = re.compile(r"\.[a-z0-9_+-]{1,12}")

Reason = tuple[str, str]
"""Why a file is left out, but for its suffix: what it is, in the singular, and what follows that."""
HIDDEN, OUTSIDE = ("hidden file", ""), ("image", "outside the folders")
BROKEN_LINK, NO_FILE = ("broken link", ""), ("file", "without content of its own")


class LeftOut:
    """What walks over directories left out: files by the reason, and folders by their names."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self.folders: Counter[str] = Counter()

    def add(self, other: LeftOut) -> None:
        """Count what another walk left out, too."""
        self.suffixes += other.suffixes
        self.reasons += other.reasons
        self.folders += other.folders

    def sentence(self, place: Path | str) -> str:
        """What was left out of a place, in one sentence; empty if nothing was."""
        parts = []
        shown = self.suffixes.most_common(SHOWN_SUFFIXES)
        for suffix, count in shown:
            of_type = (f"{suffix} file", "") if suffix else ("file", "without a suffix")
            parts.append(_counted(count, *of_type))
        if rest := self.suffixes.total() - sum(count for _, count in shown):
            parts.append(_counted(rest, "file", "of other types"))
        parts += [_counted(count, *reason) for reason, count in self.reasons.items()]
        if self.folders:
            names = [_printable(name) for name, _ in self.folders.most_common(SHOWN_FOLDERS)]
            more = ", ..." if len(self.folders) > SHOWN_FOLDERS else ""
            parts.append(f"{_counted(self.folders.total(), 'folder')} ({', '.join(names)}{more})")
        if not parts:
            return ""
        rule = f"; image files end in {SUFFIXES_IN_WORDS}" if self.suffixes else ""
        return f"left out of {place}: {', '.join(parts)}{rule}"


def is_of_a_system(name: str) -> bool:
    """Whether a file or folder of this name is one that systems put beside those of users."""
    return name.startswith("._") or name.lower() in SYSTEM_FILES | SYSTEM_FOLDERS


def images_below(folder: Path, left_out: LeftOut | None = None) -> Iterator[Path]:
    """The image files in a folder, in order of name, then those of each folder in it, and so on.

    Files and folders whose names begin with a dot are left out, and so are those that systems put there.
    Links are followed, but not back to a folder that they lie in. At any moment the names of one folder,
    and of those that it lies in, are in memory. TaskDataError for a folder that cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    above = frozenset(map(str, Path(os.path.realpath(folder)).parents))
    waiting = [(Path(folder), above)]
    while waiting:
        place, within = waiting.pop()
        own = os.path.realpath(place)
        if own in within:
            continue
        files, folders = _sorted_entries(place, left_out)
        for name in files:
            if _is_image(name):
                yield place / name
            else:
                left_out.suffixes[_suffix(name)] += 1
        waiting += [(place / name, within | {own}) for name in reversed(folders)]


def subfolders(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The folders in a folder, in order of name, but for those that `images_below` leaves out.

    Images beside them are counted as left out. TaskDataError for a folder that cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    files, folders = _sorted_entries(folder, left_out)
    if images := sum(map(_is_image, files)):
        left_out.reasons[OUTSIDE] += images
    return [folder / name for name in folders]


def _sorted_entries(folder: Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """The names of files and of folders that may count; the others are counted as left out."""
    files, folders = [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise TaskDataError(
            f"{folder} cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    for entry in entries:
        passed = entry.name.startswith(".") or is_of_a_system(entry.name)
        if _is(entry.is_dir):
            if passed:
                left_out.folders[entry.name] += 1
            else:
                folders.append(entry.name)
        elif passed:
            # Of .DS_Store, .gitkeep and Thumbs.db there is nothing to tell.
            if _is_image(entry.name):
                left_out.reasons[HIDDEN] += 1
        elif _is(entry.is_file):
            files.append(entry.name)
        else:
            left_out.reasons[BROKEN_LINK if entry.is_symlink() else NO_FILE] += 1
    return files, folders


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself, or to a place that is closed to us
        return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    """The suffix of a file that is no image, "" for none or one that may be no suffix at all."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if PLAIN_SUFFIX.fullmatch(suffix) else ""


def _counted(count: int, what: str, rest: str = "") -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'} {rest}".rstrip()


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)

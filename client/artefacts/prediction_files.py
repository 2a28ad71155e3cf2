"""Predictions as CSV, as JSON, and as a table for the eye, each written as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.cells import cell_len

from client.artefacts.predictions import Failures, Prediction
from common.errors import InputError
from common.files import writing
from common.tables import printable, terminal_width

Write = Callable[[str], object]
"""Takes a text that is complete by itself or follows the one before."""
End = Callable[[Failures], object]
"""Called once all is written: which images could not be read."""
Sink = tuple[Callable[[Prediction], object], End]


def csv_sink(write: Write, top: int) -> Sink:
    """Rows of image, class, probability; with more than one class each, further columns to the right."""

    def row(cells: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        write(line.getvalue())

    def predicted(prediction: Prediction) -> None:
        cells = [
            cell for name, probability in prediction.likeliest for cell in (name, f"{probability:.6f}")
        ]
        row([prediction.image, *cells])

    extra = [word for k in range(2, top + 1) for word in (f"class_{k}", f"probability_{k}")]
    row(["image", "class", "probability", *extra])
    return predicted, lambda failures: None


def json_sink(write: Write) -> Sink:
    """{"predictions": [{"image", "likeliest": [{"class", "probability"}]}], "failed": [...], ...}."""
    separator = "\n"

    def predicted(prediction: Prediction) -> None:
        nonlocal separator
        likeliest = [{"class": name, "probability": share} for name, share in prediction.likeliest]
        write(separator + json.dumps({"image": str(prediction.image), "likeliest": likeliest}))
        separator = ",\n"

    def end(failures: Failures) -> None:
        failed = [{"image": str(image), "reason": reason} for image, reason in failures.reasons]
        write(f'\n], "failed": {json.dumps(failed, indent=1)}, "failed_count": {failures.count}}}\n')

    write('{"predictions": [')
    return predicted, end


def table_sink(write: Write, top: int, widest_image: int, classes: Sequence[str]) -> Sink:
    """Aligned columns; where the terminal is too narrow, a line for each image and each class."""
    widest_class = max(cell_len(printable(name)) for name in classes)
    width = terminal_width()
    fits = width is None or widest_image + top * (2 + widest_class + 1 + 6) <= width

    def line(image: object, cells: Sequence[tuple[str, str]]) -> None:
        words = [_padded(str(image), widest_image if fits else 0)]
        words += [f"{_padded(name, widest_class)} {share:>6}" for name, share in cells]
        write(("  " if fits else "\n  ").join(words).rstrip() + "\n")

    def predicted(prediction: Prediction) -> None:
        line(prediction.image, [(name, f"{share:.1%}") for name, share in prediction.likeliest])

    if fits:
        line("image", [("class" if k == 0 else f"class {k + 1}", "") for k in range(top)])
    return predicted, lambda failures: None


def _padded(text: str, width: int) -> str:
    shown = printable(text).replace("\n", "\\n")
    return shown + " " * (width - cell_len(shown))


@contextmanager
def file_sink(path: Path, top: int) -> Iterator[Sink]:
    """A file of predictions, as its suffix says: there whole once this is left without an error.

    InputError for another suffix, or where it cannot be written.
    """
    kinds: Mapping[str, Callable[[Write], Sink]] = {
        ".csv": lambda write: csv_sink(write, top),
        ".json": json_sink,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"predictions are written as .csv or .json, and {path} is neither; rename it")
    with writing(path) as file:
        # Names of files may be no text: their bytes are kept.
        yield kind(lambda text: file.write(text.encode(errors="surrogateescape")))

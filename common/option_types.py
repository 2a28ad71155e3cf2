"""Options that many commands have, and their types: what a word alone can tell is checked at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from common.files import check_directory, check_readable, check_writable


class Share(click.ParamType):
    """A share of something: 0.1 or 10%. Whether it lies in a range is for others to say."""

    name = "share"

    def convert(self, value: Any, parameter: Any, context: Any) -> float:
        """The share. Fails for what is no number."""
        if isinstance(value, int | float):
            return float(value)
        number, percent, rest = value.strip().partition("%")
        try:
            if rest:
                raise ValueError
            return float(number) / 100 if percent else float(number)
        except ValueError:
            self.fail(f"{value!r} is no share; give 0.1 or 10%", parameter, context)


class CheckedPath(click.Path):
    """A path that is checked while the command line is parsed, before anything is computed."""

    def __init__(self, check: Callable[[Path], None]) -> None:
        """Errors are those that `check` raises."""
        super().__init__(path_type=Path)
        self._check = check

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """The path."""
        path: Any = super().convert(value, parameter, context)
        self._check(path)
        return path


SHARE = Share()
INPUT_FILE, INPUT_DIRECTORY = CheckedPath(check_readable), CheckedPath(check_directory)
OUTPUT_FILE = CheckedPath(check_writable)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")

"""The directories of the user of this process. A user id without an account may have none."""

from __future__ import annotations

import os
from pathlib import Path


def home_directory() -> Path | None:
    """The user's home; None where neither $HOME nor the system's list of users names it."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def cache_directory() -> Path | None:
    """Where programs keep for the user what they can make again: $XDG_CACHE_HOME, else ~/.cache."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    home = home_directory()
    return None if home is None else home / ".cache"

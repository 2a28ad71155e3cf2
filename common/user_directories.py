"""The directories of the user of this process. A user id without an account may have none."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MASKVOTE_CACHE"
"""The environment variable that names the directory of all that maskvote keeps and can have again."""


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


def maskvote_cache(kind: str) -> Path | None:
    """Where maskvote keeps things of a kind: in $MASKVOTE_CACHE, else in maskvote in the user's cache.

    None for a user who has no home.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own) / kind
    users = cache_directory()
    return None if users is None else users / "maskvote" / kind

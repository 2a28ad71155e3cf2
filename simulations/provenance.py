"""Provenance: which code and which libraries a measurement was made with."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch

CODE = Path(__file__).parents[1]
PARTS = ("client", "common", "protos", "server", "simulations")


def versions() -> dict[str, str]:
    """What was installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }


@cache
def commit() -> str:
    """The commit of the code that runs, with a "+" where that was changed; "" outside of a checkout."""
    found = _git("rev-parse", "HEAD")
    return f"{found}+" if found and _git("status", "--porcelain", "--", *PARTS) else found


def _git(*words: str) -> str:
    found = subprocess.run(["git", "-C", str(CODE), *words], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""

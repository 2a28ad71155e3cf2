"""docs/structure.md says what is true: its programs run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "structure.md").read_text()


def program(name: str) -> str:
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", GUIDE, re.DOTALL)
    assert found, f"the guide has no program {name!r}"
    return found.group(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("guide")


@pytest.mark.parametrize("name", ["cut", "load"])
def test_the_guides_programs_run_one_after_the_other(name, place):
    """Cut to a third and saved; then loaded where the server was never imported, and compared."""
    ran = subprocess.run(
        [sys.executable, "-c", program(name)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr

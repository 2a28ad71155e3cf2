"""Command lines in a process of their own, as the tests' process has imported everything."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PROGRAM = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout
group, lines, lacking = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(lacking))
main = importlib.import_module(group).main
ended = []
for line in lines:
    sys.argv = ["maskvote", *line]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            ended.append((int(end.code), out.getvalue()))
print(json.dumps([ended, sorted(name for name, module in sys.modules.items() if module is not None)]))
"""


class Ended(NamedTuple):
    """How a command ended, and all that it told."""

    status: int
    told: str


def call_one_by_one(
    group: str,
    lines: Sequence[Sequence[object]],
    lacking: Collection[str] = (),
    within: Path | None = None,
) -> tuple[list[Ended], set[str]]:
    """How command lines of a group ended, one after the other, and the modules imported after the last.

    `group` is the module that has it. The packages in `lacking` are as if they were not installed. They
    run in the directory `within`, else in this process's.
    """
    words = [[str(word) for word in line] for line in lines]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([group, words, [*lacking]])],
        cwd=within,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    ended, modules = json.loads(process.stdout)
    return [Ended(*one) for one in ended], set(modules)

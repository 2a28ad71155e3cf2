"""No dependency reports usage or asks for updates, whatever of ours is imported first."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.quiet_dependencies import VARIABLES

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = (
    "client.cli", "server.cli", "simulations.cli", "client.flower_app", "server.flower_app",
    "client.artefacts.runnable", "common.errors",
)  # fmt: skip
FIRST_DEPENDENCY = """
import importlib, json, os, sys

class Noticed:
    def find_spec(name, path, target=None):
        if name in ("flwr", "ray", "onnxruntime", "huggingface_hub", "timm", "torch", "grpc"):
            tell()

def tell():
    print(json.dumps(dict(os.environ)), flush=True)
    os._exit(0)

sys.meta_path.insert(0, Noticed)
importlib.import_module(sys.argv[1])
tell()
"""
REPORTS = """
import client
from flwr.supercore import telemetry, update_check
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._telemetry import send_telemetry
from ray._common.usage import usage_lib

telemetry.event(telemetry.EventType.PING).result()
update_check.warn_if_flwr_update_available()
build_hf_headers()
send_telemetry("maskvote")
print(usage_lib.usage_stats_enabled())
"""


def as_a_user_has_it(home: Path, **own: str) -> dict[str, str]:
    """The environment of somebody who has set nothing but this, in an empty home."""
    ours = {*VARIABLES, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    left = {n: v for n, v in os.environ.items() if n not in ours and not n.startswith("XDG_")}
    return {**left, "HOME": str(home), "PYTHONPATH": str(ROOT), **own}


def variables_of(module: str, environment: dict[str, str]) -> dict[str, str]:
    """The variables when a module imports the first dependency that reads any; at its end without one."""
    told = subprocess.run(
        [sys.executable, "-c", FIRST_DEPENDENCY, module],
        env=environment, stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    return {name: value for name, value in json.loads(told).items() if name in VARIABLES}


@pytest.mark.parametrize("module", ENTRIES)
def test_wherever_ours_is_entered_dependencies_are_quiet_before_they_are_imported(module, tmp_path):
    assert variables_of(module, as_a_user_has_it(tmp_path)) == VARIABLES


def test_what_the_user_has_set_stays(tmp_path):
    own = as_a_user_has_it(tmp_path, ORT_DISABLE_TELEMETRY="0", FLWR_TELEMETRY_ENABLED="1")
    assert variables_of("client.flower_app", own) == {
        **VARIABLES, "ORT_DISABLE_TELEMETRY": "0", "FLWR_TELEMETRY_ENABLED": "1",
    }  # fmt: skip


def test_what_each_dependency_would_report_is_not_sent(tmp_path, names_looked_up):
    """Each is asked to report, by its own function, where every name that is looked up is noted."""
    words = [sys.executable, "-c", REPORTS]
    ended, names = names_looked_up(words, env=as_a_user_has_it(tmp_path))
    assert (ended.returncode, ended.stdout, names) == (0, "False\n", [])
    on = {"FLWR_TELEMETRY_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "1"}
    loud = as_a_user_has_it(tmp_path, **{**dict.fromkeys(VARIABLES, ""), **on})
    ended, names = names_looked_up(words, env=loud)
    assert (ended.returncode, ended.stdout) == (0, "True\n")
    assert {"telemetry.flower.ai", "huggingface.co"} <= set(names)  # else it would notice nothing


def spin_count_of_torch(home: Path, **own: str) -> str:
    """What GNU's OpenMP says of itself when torch loads it, after ours."""
    environment = as_a_user_has_it(home, OMP_DISPLAY_ENV="verbose", **own)
    told = subprocess.run(
        [sys.executable, "-c", "import client, torch"],
        env=environment,
        stderr=subprocess.PIPE,
        check=True,
    ).stderr.decode()
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", told)
    if found is None:
        pytest.skip("this torch has another OpenMP")
    return found[1]


def test_torchs_threads_sleep_soon_while_they_wait_unless_the_user_says_otherwise(tmp_path):
    assert spin_count_of_torch(tmp_path) == "1000"
    assert spin_count_of_torch(tmp_path, GOMP_SPINCOUNT="77") == "77"
    assert spin_count_of_torch(tmp_path, OMP_WAIT_POLICY="passive") == "0"

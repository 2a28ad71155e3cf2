"""One small real backbone, which timm calls a test model, and what a library of it offers."""

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# One thread: networks here are tiny, and tests run beside processes of their own. Before torch is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
# What tests prove is kept for the tests after them, and never among the user's own.
os.environ["MASKVOTE_CACHE"] = tempfile.mkdtemp(prefix="maskvote-tests-")
# Nor does a test use, or change, the connections that the user has saved.
os.environ["XDG_CONFIG_HOME"] = os.path.join(os.environ["MASKVOTE_CACHE"], "config")

import numpy as np
import pytest
import torch
from random_weights import random_weights

from common import progress
from common.backbone import Backbone, Weights
from common.exchange import Offer
from common.mask import Mask
from common.probe import Probe
from common.structure import Structure
from common.subnetwork import SubNetwork


@pytest.fixture(scope="session", autouse=True)
def _leave_no_cache():
    cache = os.environ["MASKVOTE_CACHE"]
    yield
    shutil.rmtree(cache)


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch):
    """What a command says here does not depend on how slow the machine is."""
    monkeypatch.setattr(progress, "SECONDS", 3600.0)


@pytest.fixture(autouse=True)
def _lots_of_its_own(request):
    """A test draws the same alone, after any other and on any worker, and leaves no seed behind."""
    before = np.random.get_state()
    seed = zlib.crc32(request.node.nodeid.encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        yield
    np.random.set_state(before)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return Backbone.from_timm("test_resnet", num_classes=5, image_size=32)


@pytest.fixture(scope="session")
def structure(backbone) -> Structure:
    return backbone.structure()


@pytest.fixture(scope="session")
def weights(backbone) -> Weights:
    return random_weights(backbone)


@pytest.fixture(scope="session")
def probe(backbone, structure, weights) -> Probe:
    """A quarter of every group, and a center that is not zero."""
    scores = {group.name: np.arange(group.units) for group in structure.groups}
    mask = Mask.keep_top(structure, scores, [max(1, units // 4) for units in structure.sizes])
    center = np.linspace(-1, 1, backbone.skeleton().num_features, dtype=np.float32)
    return Probe(SubNetwork.of(backbone, weights, mask), center)


@pytest.fixture(scope="session")
def offer(backbone, structure, probe) -> Offer:
    return Offer(backbone, structure, probe)


@pytest.fixture
def tiny_temporary(tmp_path, monkeypatch):
    """The temporary directory, on a file system of its own of 1 MiB; skips where none can be mounted."""
    place = tmp_path / "tiny"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def names_looked_up(tmp_path) -> Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]:
    """Runs a command in a network of its own: how it ended, and the names that it looked up.

    The test is skipped where such a network cannot be made.
    """
    own_network = ["unshare", "--user", "--map-root-user", "--net", "--mount"]

    def run(
        words: Sequence[object], env: Mapping[str, str]
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        program, names = Path(__file__).parent / "names_looked_up.py", tmp_path / "names"
        ended = subprocess.run(
            [*own_network, sys.executable, program, names, *map(str, words)],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return ended, names.read_text().split()

    try:
        subprocess.run([*own_network, "mount", "--bind", os.devnull, "/etc/resolv.conf"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespace can be made here")
    return run

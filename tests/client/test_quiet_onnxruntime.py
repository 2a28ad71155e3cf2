"""onnxruntime leaves nothing in the user's home, asks nobody, and writes nothing between our lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cut_networks import CLASSES, cut_network
from drawn_images import draw_images

from client.artefacts.exporting import export_artefact
from client.export import save_network
from common.quiet_dependencies import VARIABLES

ROOT = Path(__file__).parents[2]
HELD_SECONDS = 15
"""onnxruntime 1.32 with telemetry looks its maker's host up after eleven to fourteen seconds."""
LINES = """
import sys, time
from client.cli import cli
seconds, *lines = sys.argv[1:]
for line in lines:
    cli(line.split(), standalone_mode=False)
time.sleep(float(seconds))
"""
PIN_REFUSED = """
import ctypes, errno, os, platform, struct, sys

# As where a container has some of the processors: the kernel refuses a thread that asks for another one.
CALL = {"x86_64": 203, "aarch64": 122}[platform.machine()]
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
REFUSE, ALLOW = 0x50000 | errno.EINVAL, 0x7FFF0000
steps = [(LOAD, 0, 0, 0), (IF_EQUAL, 0, 1, CALL), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

libc = ctypes.CDLL(None)
NO_NEW_PRIVILEGES, SECCOMP, BY_FILTER = 38, 22, 2
program = Program(len(steps), ctypes.addressof(code))
assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
assert libc.prctl(SECCOMP, BY_FILTER, ctypes.byref(program), 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux's system calls")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a network, as adapt keeps it and as ONNX, and its task's images."""
    place = tmp_path_factory.mktemp("place")
    saved = cut_network("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=3)
    save_network(place / "my.safetensors", saved.network, saved.backbone, saved.classes, saved.mask)
    export_artefact("onnx", place / "my.onnx", saved, None, lambda doing: None)
    draw_images(place / "drawn", classes=4, train=4, judging=3)
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            shutil.copytree(place / "drawn" / part / f"class{label}", place / "mine" / part / name)
    return place


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """That of a user who has set nothing, with an empty home."""
    kept = {n: v for n, v in os.environ.items() if n not in VARIABLES and not n.startswith("XDG_")}
    (tmp_path / "home").mkdir()
    own = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**kept, **own}


def lines_of(place: Path, out: Path) -> list[str]:
    """What runs onnxruntime: predict, and export in both kinds of ONNX."""
    export = f"export --network {place}/my.safetensors --data {place}/mine"
    return [
        f"predict --network {place}/my.onnx {place}/mine/val",
        f"{export} --format onnx --out {out}/out.onnx",
        f"{export} --format onnx-int8 --out {out}/int8.onnx",
    ]


def files_below(directory: str) -> list[Path]:
    return [path for path in Path(directory).rglob("*") if path.is_file()]


def test_no_file_appears_in_an_empty_home(place, tmp_path, environment):
    predict = lines_of(place, tmp_path)[0]
    words = [sys.executable, "-m", "client", *predict.split()]
    subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert files_below(environment["HOME"]) == []


def test_nothing_is_looked_up_however_long_it_runs(place, tmp_path, environment, names_looked_up):
    words = [sys.executable, "-c", LINES, HELD_SECONDS, *lines_of(place, tmp_path)[:2]]
    ended, names = names_looked_up(words, environment)
    assert (ended.returncode, names) == (0, []), ended.stderr
    assert files_below(environment["HOME"]) == []


@linux
def test_a_thread_that_cannot_have_its_processor_is_no_error_to_show(place, tmp_path, environment):
    """With as many threads as onnxruntime likes, which alone it ties to processors."""
    predict, _, export = lines_of(place, tmp_path)
    words = [sys.executable, "-c", PIN_REFUSED, "-c", LINES, "0", predict, export]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "onnxruntime" not in ended.stderr


@linux
def test_what_goes_wrong_in_onnxruntime_is_still_told(place, tmp_path, environment):
    (tmp_path / "cut.onnx").write_bytes((place / "my.onnx").read_bytes()[:2000])
    words = ["-m", "client", "predict", "--network", tmp_path / "cut.onnx", place / "mine" / "val"]
    ended = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode not in (0, 1)
    assert "cut.onnx is damaged or no ONNX file" in ended.stderr

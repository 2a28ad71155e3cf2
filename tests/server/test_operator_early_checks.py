"""What is wrong with an operator's command line is told before torch is imported.

Each time in a process of its own, by the modules that it has imported in the end.
"""

from pathlib import Path

import numpy as np
import pytest
from fresh_process import call_one_by_one
from library_tasks import contribution, request_id, stored_assignment
from PIL import Image

from common.backbone import weights_digest
from common.envelope import seal
from common.proto_codec import encode_contribution
from server.library import Library

COMPUTING = {"torch", "torchvision", "timm", "flwr"}


def draw(folder: Path) -> None:
    for name in ("owl", "wren"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((8, 8, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory, offer, weights) -> Path:
    """A directory with a library, tasks of which one is empty, and files that are of no use."""
    place = tmp_path_factory.mktemp("early")
    Library.create(place / "birds.db", offer, weights_digest(weights)).close()
    draw(place / "tasks" / "first")
    (place / "spoiled" / "first").mkdir(parents=True)
    for name in ("a.text", "a.pem", "b.pem"):
        (place / name).write_text("this is a text\n")
    return place


CREATE = "create new.db --model resnet18 --images tasks/first"
SERVE = "serve birds.db"
WRONG = {
    "a library that is there": (
        "create birds.db --model resnet18 --images tasks/first",
        2,
        "there is a file birds.db already",
    ),
    "a library in no directory": (
        "create no/new.db --model resnet18 --images tasks/first",
        2,
        "there is no directory no",
    ),
    "a library of no images": (
        "create new.db --model resnet18 --images no",
        2,
        "no/train is not a directory",
    ),
    "a probe of nothing": (f"{CREATE} --probe-keep-ratio 0%", 2, "the keep ratio is 0.0"),
    "no checkpoint": (f"{CREATE} --checkpoint no.safetensors", 2, "no.safetensors cannot be read"),
    "no image size": (f"{CREATE} --image-size 0", 2, "0 is not in the range x>=1"),
    "no library to seed": ("seed no.db --tasks tasks", 4, "no.db"),
    "no tasks": ("seed birds.db --tasks no", 2, "no has no task directories"),
    "a task without images": ("seed birds.db --tasks spoiled", 2, "first/train is not a directory"),
    "seeds of everything and more": ("seed birds.db --tasks tasks --keep-ratio 2", 2, "ratio is 2.0"),
    "no rounds": ("seed birds.db --tasks tasks --rounds 0", 2, "0 rounds"),
    "no library to heal": ("heal no.db --images tasks", 4, "no.db"),
    "nothing to heal on": ("heal birds.db --images no", 2, "no is not a directory"),
    "shares the wrong way round": (
        "heal birds.db --images tasks --keep-ratio 30% 3%",
        2,
        "keep ratios from 0.3 to 0.03",
    ),
    "no time to heal": ("heal birds.db --images tasks --seconds 0", 2, "0.0 seconds"),
    "no voters": ("heal birds.db --images tasks --neighbours 0", 2, "0 neighbours"),
    "no library to offer": ("offer no.db x", 4, "no.db"),
    "an offer in no directory": ("offer birds.db no/x", 2, "there is no directory no"),
    "no request": ("assign birds.db no x", 2, "no cannot be read"),
    "a request that is a text": ("assign birds.db a.text x", 2, "a.text is no maskvote file"),
    "an answer in no directory": ("assign birds.db a.text no/x", 2, "there is no directory no"),
    "exploring all": ("assign birds.db a.text x --explore 100%", 2, "exploring 1.0"),
    "no time for a network": ("assign birds.db a.text x --heal-seconds 0", 2, "not in the range x>0"),
    "nobody's name": (f"assign birds.db a.text x --contributor {'x' * 201}", 2, "201 characters"),
    "a contribution that is a text": ("record birds.db a.text", 2, "a.text is no maskvote file"),
    "no library to serve": ("serve no.db", 4, "no.db"),
    "no address": (f"{SERVE} --address here", 2, "it is HOST:PORT"),
    "no address for metrics": (f"{SERVE} --metrics here", 2, "it is HOST:PORT"),
    "an open door": (f"{SERVE} --address 0.0.0.0:0", 2, "without TLS they read every token"),
    "half of TLS": (f"{SERVE} --certificate a.pem", 2, "give both"),
    "a certificate that is a text": (
        f"{SERVE} --certificate a.pem --key b.pem",
        2,
        "holds no certificate",
    ),
    "no limits": (f"{SERVE} --calls-per-minute 0", 2, "each is at least 1"),
    "no spool": (f"{SERVE} --spool no", 2, "no is not a directory"),
    "no public images": (f"{SERVE} --heal-images no", 2, "no is not a directory"),
    "nothing to inspect": ("inspect", 2, "give either a MODEL, or --all"),
    "too much to inspect": ("inspect resnet18 --all resnet*", 2, "give either a MODEL, or --all"),
    "no list of models": ("inspect --models no", 2, "no cannot be read"),
    "results in no directory": ("inspect --all resnet* --out no/x", 2, "there is no directory no"),
    "negative threads": ("inspect resnet18 --threads -1", 2, "-1 is not in the range x>=0"),
    "entries in no directory": ("export birds.db no/x", 2, "there is no directory no"),
    "a copy in no directory": ("backup birds.db no/x", 2, "there is no directory no"),
    "no entries": ("import birds.db no", 2, "no cannot be read"),
}


@pytest.fixture(scope="module")
def told(place) -> tuple[dict[str, tuple[int, str]], set[str]]:
    """How each of these ended, and what all of them together imported."""
    lines = [words.split() for words, _, _ in WRONG.values()]
    ended, modules = call_one_by_one("server.cli", lines, within=place)
    sentences = [(one.status, " ".join(one.told.split())) for one in ended]
    return dict(zip(WRONG, sentences, strict=True)), modules


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_a_sentence(told, name):
    _, expected, sentence = WRONG[name]
    status, said = told[0][name]
    assert (status, sentence in said) == (expected, True), said


def test_none_of_it_waits_for_torch(told):
    assert told[1] & COMPUTING == set()


def test_nothing_is_written_for_what_is_wrong(told, place):
    files = {"birds.db", "tasks", "spoiled", "a.text", "a.pem", "b.pem"}
    assert {path.name for path in place.iterdir()} <= files | {"birds.db-wal", "birds.db-shm"}


def test_a_contribution_is_recorded_without_torch(library, path, offer, tmp_path):
    """Its mask is checked against the structure alone."""
    library.assigned(stored_assignment(offer, 1))
    seal(tmp_path / "mine.contribution", encode_contribution(contribution(offer, 1)))
    (ended,), modules = call_one_by_one("server.cli", [["record", path, tmp_path / "mine.contribution"]])
    assert ended == (0, f"entry {request_id(1)}; the library holds 1\n")
    assert modules & COMPUTING == set()

"""What is wrong with a command line is told before torch is imported: in a second, and in little memory.

Each time in a process of its own, by the modules that it has imported in the end.
"""

import json
import shutil
from pathlib import Path

import pytest
from fresh_process import call_one_by_one
from grpc_server import running_server

from common.envelope import seal
from common.proto_codec import encode_offer

COMPUTING = {"torch", "torchvision", "timm", "flwr"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, images, offer) -> Path:
    """A directory with a device's images, an offer, and files that are of no use."""
    place = tmp_path_factory.mktemp("early")
    shutil.copytree(images, place / "mine")
    seal(place / "birds.offer", *encode_offer(offer))
    (place / "a.text").write_text("this is a text\n")
    (place / "empty" / "train").mkdir(parents=True)
    for name in ("network", "my.onnx", "my.safetensors"):
        (place / name).write_bytes(b"damaged")
    return place


SERVER = "--server 127.0.0.1:1 --patience 0"
ADAPT = f"adapt --data mine {SERVER} --state new.state"
WRONG = {
    "no share": (f"{ADAPT} --keep-ratio tenth", "'tenth' is no share; give 0.1 or 10%"),
    "too large a share": (f"{ADAPT} --keep-ratio 110%", "the keep ratio is 1.1; it lies in (0, 1]"),
    "a percentage without its sign": (f"{ADAPT} --keep-ratio 10", "and 10% is 0.1"),
    "no budget": (ADAPT, "here is none; give one or several"),
    "no headroom": (f"{ADAPT} --keep-ratio 10% --headroom 0", "the headroom is 0.0"),
    "both ways": (f"{ADAPT} --out x", "--server and --out do not go together"),
    "neither way": ("adapt --data mine", "how is not given"),
    "a save in no directory": (f"{ADAPT} --keep-ratio 10% --save no/x", "there is no directory no"),
    "a save that is a directory": (f"{ADAPT} --keep-ratio 10% --save mine", "it is a directory"),
    "no data": (
        f"adapt --data nothing {SERVER} --state new.state --keep-ratio 10%",
        "nothing/train is not a directory",
    ),
    "data without a class": (
        f"adapt --data empty {SERVER} --state new.state --keep-ratio 10%",
        "empty/train has no class directories",
    ),
    "no learning rate": (f"{ADAPT} --keep-ratio 10% --learning-rate 0", "learning_rate is 0.0"),
    "tuning of something else": (f"{ADAPT} --keep-ratio 10% --tune hands", "'hands' is not one of"),
    "negative threads": (f"{ADAPT} --keep-ratio 10% --threads -1", "-1 is not in the range x>=0"),
    "no privacy": (f"{ADAPT} --keep-ratio 10% --epsilon 0", "epsilon is 0.0"),
    "half of privacy": (f"{ADAPT} --keep-ratio 10% --delta 0.1", "there is no --epsilon"),
    "no address": (
        "adapt --data mine --server here --state new.state --keep-ratio 10%",
        "it is HOST:PORT",
    ),
    "impatience": (
        "adapt --data mine --server h:1 --insecure --state new.state --keep-ratio 10% --patience -1",
        "the patience is -1.0 seconds",
    ),
    "a state that is something else": (
        f"adapt --data mine {SERVER} --state mine --keep-ratio 10%",
        "which is none of a device's steps",
    ),
    "no latency table": (f"{ADAPT} --latency-ms 3 --latency-table t.json", "t.json cannot be read"),
    "a latency table that is a text": (
        f"{ADAPT} --latency-ms 3 --latency-table a.text",
        "a.text is no latency table",
    ),
    "no offer": ("adapt --data mine --offer no --assignment a.text --out x", "no cannot be read"),
    "an offer that is a text": (
        "adapt --data mine --offer a.text --assignment a.text --out x",
        "a.text is no maskvote file",
    ),
    "an assignment that is a text": (
        "adapt --data mine --offer birds.offer --assignment a.text --out x",
        "a.text is no maskvote file",
    ),
    "a request in no directory": (
        "describe --data mine --offer birds.offer --keep-ratio 10% --out no/x",
        "there is no directory no",
    ),
    "a request for nothing": ("describe --data mine --offer birds.offer", "here is none"),
    "a request about nothing": (
        "describe --data nothing --offer birds.offer --keep-ratio 10%",
        "nothing/train is not a directory",
    ),
    "a request of a text": (
        "describe --data mine --offer a.text --keep-ratio 10%",
        "a.text is no maskvote file",
    ),
    "a measurement of a text": ("benchmark --offer a.text --out x", "a.text is no maskvote file"),
    "a measurement in no directory": ("benchmark --offer birds.offer --out no/x", "there is no dir"),
    "one class": ("benchmark --offer birds.offer --out x --classes 1", "1 is not in the range"),
    "no network": ("evaluate --network no --data mine", "no cannot be read"),
    "no images": ("evaluate --network my.safetensors --data nothing", "nothing/train is not a dir"),
    "a network that is a text": ("evaluate --network a.text --data mine", "ends in '.text'"),
    "a network that is damaged": ("evaluate --network my.onnx --data mine", "my.onnx is damaged"),
    "another suffix": ("export --network network --format onnx --out x.pte", "give --out x.onnx"),
    "an artefact in no directory": (
        "export --network network --format onnx --out no/x.onnx",
        "there is no directory no",
    ),
    "int8 without images": (
        "export --network network --format onnx-int8 --out x.onnx",
        "none are given; give --data",
    ),
    "an artefact for no images": (
        "export --network network --format onnx --out x.onnx --data nothing",
        "nothing/train is not a directory",
    ),
    "an artefact of a damaged network": (
        "export --network network --format onnx --out x.onnx --data mine",
        "network cannot be used as a network",
    ),
    "predictions of nothing": ("predict --network my.onnx empty", "no image ("),
    "predictions in no directory": (
        "predict --network my.onnx mine --out no/x.csv",
        "there is no directory no",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(place) -> tuple[dict[str, tuple[int, str]], set[str]]:
    """How each of these ended, and what all of them together imported."""
    lines = [words.split() for words, _ in WRONG.values()]
    ended, modules = call_one_by_one("client.cli", lines, within=place)
    sentences = [(one.status, " ".join(one.told.split())) for one in ended]
    return dict(zip(WRONG, sentences, strict=True)), modules


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_a_sentence(told, name):
    status, sentence = told[0][name]
    assert (status, WRONG[name][1] in sentence) == (2, True), sentence


def test_none_of_it_waits_for_torch(told):
    assert told[1] & COMPUTING == set()


def test_nothing_is_written_for_what_is_wrong(told, place):
    assert not [path.name for path in place.iterdir() if path.name in ("x", "x.onnx", "x.csv")]


def test_a_percentage_is_the_share_that_it_says(client, library, weights, images):
    words = ["describe", "--data", images, "--json", "--keep-ratio"]
    with running_server(library, weights) as port:
        through = ["--server", f"127.0.0.1:{port}", "--state", "state", "--patience", 0]
        assert client(*words, "30%", *through)[0] == 0
        assert client(*words, "0.3", *through)[0] == 0  # else the state was begun with another
        status, _, told = client(*words, "31%", *through)
    assert (status, "begun with keep ratio 0.3, now it is 0.31" in told) == (2, True), told


def test_a_server_that_is_away_is_told_of_without_torch(images, tmp_path):
    words = ["benchmark", "--server", "127.0.0.1:1", "--patience", 0, "--out", tmp_path / "t.json"]
    (ended,), modules = call_one_by_one("client.cli", [words])
    assert ended.status == 6
    assert modules & COMPUTING == set()


def test_a_finished_adaptation_tells_its_end_again_without_torch(
    client, library, weights, images, tmp_path
):
    words = ["adapt", "--data", images, "--state", tmp_path / "state", "--keep-ratio", "30%",
             "--patience", 0, "--iterations", 2, "--json", "--server"]  # fmt: skip
    with running_server(library, weights) as port:
        status, told, _ = client(*words, f"127.0.0.1:{port}")
    assert status == 0
    saved = tmp_path / "again.safetensors"
    lines = [
        [*words, f"127.0.0.1:{port}"],
        [*words, f"127.0.0.1:{port}", "--save", saved, "--threads", 2],
    ]
    (again, kept), modules = call_one_by_one("client.cli", lines)
    assert again == (0, told)
    assert json.loads(kept.told) == json.loads(told) | {"network": str(saved)}
    assert saved.read_bytes() == (tmp_path / "state" / "network.safetensors").read_bytes()
    assert modules & COMPUTING == set()

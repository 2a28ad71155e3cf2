"""The tables of maskvote-client in a terminal of 80 columns: nothing is cut."""

import sys
from functools import partial
from pathlib import Path

import pytest
from drawn_images import draw_images
from pseudo_terminal import narrow, printed_in_terminal

from client.artefacts.prediction_files import table_sink
from client.artefacts.predictions import Failures, Prediction
from client.cli import main
from client.describe_cli import _tell as tell_request
from client.disclosure import disclose
from client.export import save_network
from client.outcome import tell
from common.budget import Budget
from common.rebuild import rebuild

ID = "d41a5191b245adae233d2f863e5edb95"
KEPT = Path("/home/somebody/photographs-of-the-garden/networks/birds-of-the-garden.safetensors")
CLASSES = ("Phoenicurus-phoenicurus-the-common-redstart", "a name of several words, with a comma", "犬")
FACTS = {
    "request": ID,
    "budget": [
        {"unit": "units", "limit": 1_281_167, "used": 1_281_166, "runtime": None},
        {"unit": "ms", "limit": 12.5, "used": 12.4, "runtime": "onnxruntime 1.32.0"},
    ],
    "origin": "vote",
    "similarities": [0.75] * 14,
    "healed": True,
    "kept": 50,
    "held_out": 120,
    "units": 1_281_166,
    "of": 12_811_670,
    "parameters": 11_689_512,
    "weight_bytes": 46_758_048,
    "flops": 1_814_073_344,
    "accuracy": {"0": 0.312, "100": 0.66},
    "seconds": {"fit": 1234.5, "tune": 12345.6, "evaluate": 123.4},
    "bytes_up": {"request": 123_456, "mask and accuracies": 12_345},
    "bytes_down": {"offer and probe": 46_340_600, "network": 46_758_048, "receipt": 36},
}


def test_what_an_adaptation_came_to():
    printed = narrow(
        partial(tell, FACTS, f"stored as entry {ID}, of 3; network in {KEPT}", as_json=False)
    )
    assert {ID, f"{ID},", str(KEPT), "1,281,166", "46,758,048"} <= set(printed.split())


@pytest.mark.parametrize("budget", [Budget(keep_ratio=0.1), Budget(parameters=1_291_146, flops=10**9)])
def test_what_a_device_would_send(request_of, budget):
    description = request_of(budget)
    message, fields = disclose(description, None)
    printed = narrow(partial(tell_request, description, CLASSES, None, message, fields, KEPT))
    assert {description.request_id, description.signature.probe} <= set(printed.split())


def test_how_many_images_of_each_class_are_right(backbone, weights, tmp_path, monkeypatch):
    draw_images(tmp_path / "mine", classes=5)
    names = [*CLASSES, "class3", "class4"]
    for part in ("train", "val"):
        for number, name in enumerate(names):
            (tmp_path / "mine" / part / f"class{number}").rename(tmp_path / "mine" / part / name)
    save_network(tmp_path / "my.safetensors", rebuild(backbone, weights), backbone, sorted(names))
    words = ("--network", str(tmp_path / "my.safetensors"), "--data", str(tmp_path / "mine"))

    def evaluate() -> None:
        monkeypatch.setattr(sys, "argv", ["maskvote-client", "evaluate", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code

    assert CLASSES[0] in narrow(evaluate).split()


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("place", ["mine", "photographs/" * 8])
def test_predictions(top, place):
    """Those that do not fit have a line for the image and one for each class."""
    images = [Path(place, f"{number}.png") for number in range(3)]
    likeliest = tuple(zip(CLASSES, (0.9, 0.075, 0.025), strict=True))[:top]

    def predict() -> None:
        predicted, end = table_sink(sys.stdout.write, top, max(len(str(i)) for i in images), CLASSES)
        for image in images:
            predicted(Prediction(image, likeliest))
        end(Failures())

    printed = printed_in_terminal(80, predict)
    for image in images:
        lines = printed.splitlines()
        at = next(number for number, line in enumerate(lines) if line.split()[:1] == [str(image)])
        told = lines[at : at + 1] if place == "mine" and top == 1 else lines[at + 1 : at + 1 + top]
        for line, (name, share) in zip(told, likeliest, strict=True):
            assert " ".join(line.split()).endswith(f"{name} {share:.1%}")

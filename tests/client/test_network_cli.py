"""`maskvote-client evaluate` and `export`: what they tell is true of the network and the images."""

import json
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cut_networks import CLASSES, cut_network
from fresh_process import call_one_by_one
from PIL import Image

from client.artefacts.facts import all_logits
from client.artefacts.kinds import TOLERANCE
from client.artefacts.torch_network import logits_of
from client.cli import cli
from client.export import OPSET, SavedNetwork, checked_graph, load_network, save_network
from common.calibration import calibration_of
from common.command_line import run
from common.fitting import accuracy
from common.image_folders import SUFFIXES_IN_WORDS, TYPES_IN_WORDS
from common.rebuild import rebuild
from common.task_data import load_folder
from common.tensor_file import write_tensors

IMAGES = dict(zip(CLASSES, (3, 4, 5, 150), strict=True))
"""Evaluation images of each class: more than a batch in all."""


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs the command line as the console script does: (exit status, stdout, stderr in a line)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskvote-client", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            run(cli)
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, " ".join(err.split())

    return call


def draw(folder: Path, counts: dict[str, int]) -> None:
    generator = np.random.default_rng(len(folder.name))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, 3) + generator.normal(0, 40, (32, 32, 3))
            pixels = np.clip(pixels, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def saved() -> SavedNetwork:
    return cut_network("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory, saved) -> Path:
    """A directory with a network, and images of its classes: colours, which say nothing of them."""
    place = tmp_path_factory.mktemp("place")
    draw(place / "mine" / "train", dict.fromkeys(CLASSES, 2))
    draw(place / "mine" / "val", IMAGES)
    save_network(place / "network", saved.network, saved.backbone, CLASSES)
    return place


def save_with_classifier(path: Path, saved: SavedNetwork, weight, bias, classes) -> None:
    tensors = {**saved.network.state_dict(), "head.weight": weight, "head.bias": bias}
    save_network(path, rebuild(saved.backbone, tensors), saved.backbone, classes)


# evaluate


def test_a_network_that_always_says_wren_is_right_about_the_wrens(call, place, saved):
    tensors = saved.network.state_dict()
    bias = torch.tensor([0.0, 1.0, 0.0, 0.0])
    weight = torch.zeros_like(tensors["head.weight"])
    save_with_classifier(place / "wren", saved, weight, bias, CLASSES)
    status, out, err = call("evaluate", "--network", place / "wren", "--data", place / "mine", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert (told["images"], told["accuracy"]) == (162, 4 / 162)
    assert {row["class"]: (row["images"], row["right"], row["accuracy"]) for row in told["classes"]} == {
        name: (count, count if name == "wren" else 0, float(name == "wren"))
        for name, count in IMAGES.items()
    }


def test_overall_it_is_the_accuracy_that_adapting_measures(call, place, saved):
    status, out, _ = call("evaluate", "--network", place / "network", "--data", place / "mine", "--json")
    assert status == 0
    told = json.loads(out)
    # Saved by the names of the classes, which a folder gives in another order.
    in_order = sorted(CLASSES)
    assert in_order != list(CLASSES)
    rows = [CLASSES.index(name) for name in in_order]
    tensors = saved.network.state_dict()
    tensors |= {name: tensors[name][rows] for name in ("head.weight", "head.bias")}
    evaluation = load_folder(place / "mine", saved.backbone).evaluation
    assert told["accuracy"] == accuracy(rebuild(saved.backbone, tensors), evaluation)
    assert told["accuracy"] == sum(row["right"] for row in told["classes"]) / told["images"]
    assert 0 < told["accuracy"] < 1


def test_classes_are_matched_by_name_whatever_their_order(call, place, saved):
    tensors = saved.network.state_dict()
    rows = [2, 0, 3, 1]
    save_with_classifier(
        place / "reordered",
        saved,
        tensors["head.weight"][rows],
        tensors["head.bias"][rows],
        [CLASSES[row] for row in rows],
    )
    told = [
        call("evaluate", "--network", place / name, "--data", place / "mine", "--json")[1]
        for name in ("network", "reordered")
    ]
    assert told[0] == told[1]


def test_it_tells_how_far_probabilities_can_be_believed(call, place, saved):
    images = load_folder(place / "mine", saved.backbone)
    labels = [saved.classes.index(images.classes[label]) for label in images.evaluation.labels]
    expected = calibration_of(all_logits(logits_of(saved.network), images.evaluation), np.array(labels))
    words = ("evaluate", "--network", place / "network", "--data", place / "mine")
    found = json.loads(call(*words, "--json")[1])
    assert found["expected_calibration_error"] == pytest.approx(expected.error, abs=1e-6)
    assert found["mean_confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert f"calibration error is {expected.error:.3f} (from 0" in " ".join(call(*words)[1].split())


def test_every_image_is_classified_in_its_place_and_progress_is_told(place, saved):
    images = load_folder(place / "mine", saved.backbone).evaluation
    told: list[int] = []
    found = all_logits(logits_of(saved.network), images, told.append).argmax(1)
    assert told == [32, 64, 96, 128, 160, 162]
    with torch.no_grad():
        each = [int(saved.network(images.batch(torch.tensor([k]))).argmax()) for k in range(162)]
    assert found.tolist() == each
    assert len(set(each)) > 1


def test_the_table_shows_every_class_as_it_is_named(call, place):
    status, out, err = call("evaluate", "--network", place / "network", "--data", place / "mine")
    assert (status, err) == (0, "")
    assert "of 162 images right" in out
    for name, count in IMAGES.items():
        (row,) = (line for line in out.splitlines() if name in line)
        assert f" {count} " in row


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ((*CLASSES, "robin"), "it has 'robin', which the network does not know;"),
        (CLASSES[:3], "it lacks ':eagle:';"),
        (
            ("owl", "wren", "robin", "tit"),
            "it has 'robin', 'tit', which the network does not know and lacks ':eagle:', '[red] kite';",
        ),
    ],
    ids=["more", "fewer", "others"],
)
def test_images_of_other_classes_are_refused_by_name(call, place, tmp_path, classes, sentence):
    draw(tmp_path / "train", dict.fromkeys(classes, 2))
    status, out, err = call("evaluate", "--network", place / "network", "--data", tmp_path)
    assert (status, out) == (3, "")
    assert sentence in err


def test_of_hundreds_of_other_classes_ten_are_named(call, place, tmp_path):
    draw(tmp_path / "train", {f"bird {number:03}": 5 for number in range(30)})
    status, _, err = call("evaluate", "--network", place / "network", "--data", tmp_path)
    assert status == 3
    assert "'bird 009' and 20 more, which" in err
    assert "bird 010" not in err


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_classes_are_matched_in_whichever_form_unicode_has_their_names(call, tmp_path, saved, form):
    names = ("owl", "wren", "café", "naïve")
    of_network, of_folders = names, [unicodedata.normalize(form, name) for name in names]
    if form == "NFC":  # written by a version that kept them as they were found
        of_network = tuple(unicodedata.normalize("NFD", name) for name in names)
    header = {"backbone": saved.backbone.to_json(), "classes": "\n".join(of_network)}
    (tmp_path / "network").write_bytes(write_tensors(saved.network.state_dict(), header))
    for part in ("train", "val"):
        draw(tmp_path / "mine" / part, dict.fromkeys(of_folders, 3))
    words = ("--network", tmp_path / "network", "--data", tmp_path / "mine", "--json")
    status, out, err = call("evaluate", *words)
    assert (status, err) == (0, "")
    assert [row["class"] for row in json.loads(out)["classes"]] == sorted(names)
    kept = ("--format", "safetensors", "--out", tmp_path / "out.safetensors")
    status, out, err = call("export", *words, *kept)
    assert (status, err) == (0, "")
    assert json.loads(out)["accuracy"]["images"] == 12
    assert load_network(tmp_path / "out.safetensors").classes == names


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_what_is_no_image_of_the_task_is_told_once(call, place, tmp_path, command):
    mine = Path(shutil.copytree(place / "mine", tmp_path / "mine"))
    for name in ("._0.png", "0.heic", "@eaDir/0.png"):
        path = mine / "val" / CLASSES[0] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    out = ("--format", "safetensors", "--out", tmp_path / "out.safetensors")
    words = ("--network", place / "network", "--data", mine, *(out if command == "export" else ()))
    status, _, err = call(command, *words)
    assert (status, err.count("left out of")) == (0, 1)
    assert f"{mine}: 1 .heic file, 1 hidden file, 1 folder (@eaDir); image files end in .png" in err


def test_onnx_and_torch_tell_the_same_of_every_class(call, place, tmp_path):
    """By the table that is shown, too: the files alone are named differently."""
    words = ("export", "--network", place / "network", "--format", "onnx", "--out", tmp_path / "my.onnx")
    assert call(*words)[0] == 0
    told, shown = [], []
    for file in (place / "network", tmp_path / "my.onnx"):
        words = ("evaluate", "--network", file, "--data", place / "mine", "--threads", 1)
        told.append(json.loads(call(*words, "--json")[1]))
        shown.append([line for line in call(*words)[1].splitlines() if str(file) not in line])
    for measured in ("mean_confidence", "expected_calibration_error"):
        assert told[0].pop(measured) == pytest.approx(told[1].pop(measured), abs=1e-4)
    assert told[0] == told[1]
    assert 0 < told[0]["accuracy"] < 1
    assert shown[0][-len(CLASSES) :] == shown[1][-len(CLASSES) :]


def test_int8_is_judged_by_its_own_logits(call, place, tmp_path):
    out = tmp_path / "my.onnx"
    words = ("--network", place / "network", "--format", "onnx-int8", "--out", out)
    status, told, err = call("export", *words, "--data", place / "mine", "--json")
    assert status == 0, err
    measured = json.loads(told)["accuracy"]
    status, told, err = call("evaluate", "--network", out, "--data", place / "mine", "--json")
    assert (status, err) == (0, "")
    found = json.loads(told)
    assert (found["images"], found["accuracy"]) == (measured["images"], measured["share_right"])


def test_an_onnx_file_is_evaluated_without_torch_and_without_grpc(place, tmp_path):
    saved = load_network(place / "network")
    (tmp_path / "my.onnx").write_bytes(checked_graph(saved).data)
    words = ["evaluate", "--network", tmp_path / "my.onnx", "--data", place / "mine", "--json"]
    absent = ["torch", "timm", "torchvision", "flwr", "grpc"]
    (ended,), _ = call_one_by_one("client.cli", [words], lacking=absent)
    assert ended.status == 0, ended.told
    assert json.loads(ended.told)["images"] == 162


def test_an_image_that_cannot_be_read_ends_it_with_its_name(call, place, tmp_path):
    mine = Path(shutil.copytree(place / "mine", tmp_path / "mine"))
    (mine / "val" / "owl" / "1.png").write_bytes(b"no image")
    status, out, err = call("evaluate", "--network", place / "network", "--data", mine)
    assert (status, out) == (2, "")
    assert "val/owl/1.png cannot be read as an image" in err


# export


def test_the_onnx_file_is_what_is_told_of_it(call, place, tmp_path):
    out = tmp_path / "network.onnx"
    words = ("export", "--network", place / "network", "--format", "onnx", "--out", out)
    status, told, err = call(*words, "--json")
    assert (status, err) == (0, "")
    facts = json.loads(told)
    assert 0 <= facts["difference"] <= TOLERANCE
    card = tmp_path / "network.onnx.json"
    assert (facts.pop("written"), facts.pop("card")) == (str(out), str(card))
    assert json.loads(card.read_text()) == facts
    assert (facts["kind"], facts["bytes"]) == ("onnx", out.stat().st_size)
    assert onnx.load(out).opset_import[0].version == facts["opset"] == OPSET
    assert sorted(tmp_path.iterdir()) == [out, card]
    status, told, err = call(*words)
    assert (status, err) == (0, "")
    assert told.startswith(f"{out}: {out.stat().st_size:,} bytes, 4 classes, ")
    assert f"is allowed); opset {OPSET}." in told


def test_the_safetensors_file_is_the_network_again(call, place, tmp_path):
    out = tmp_path / "copy.safetensors"
    words = ("export", "--network", place / "network", "--format", "safetensors", "--out", out)
    status, told, err = call(*words, "--json")
    assert (status, err) == (0, "")
    facts = json.loads(told)
    assert (facts["kind"], facts["bytes"]) == ("safetensors", out.stat().st_size)
    assert out.read_bytes() == (place / "network").read_bytes()
    assert load_network(out).classes == CLASSES


@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_damaged_network_is_one_sentence_and_nothing_is_written(call, place, tmp_path, command, kind):
    damaged = tmp_path / "damaged"
    damaged.write_bytes((place / "network").read_bytes()[:-1])
    rest = {
        "evaluate": ("--data", place / "mine"),
        "export": ("--format", kind, "--out", tmp_path / f"out.{kind}"),
    }
    status, out, err = call(command, "--network", damaged, *rest[command])
    assert (status, out) == (2, "")
    assert f"{damaged} cannot be used as a network" in err
    assert list(tmp_path.iterdir()) == [damaged]


def test_a_place_that_cannot_be_written_to_is_told(call, place, tmp_path):
    out = tmp_path / "nowhere" / "out.safetensors"
    words = ("export", "--network", place / "network", "--format", "safetensors", "--out", out)
    status, _, err = call(*words)
    assert status == 2
    assert f"{out} cannot be written" in err


def test_the_help_of_each_command_has_an_example(call):
    for command in ("evaluate", "export", "predict"):
        status, out, _ = call(command, "--help")
        assert status == 0
        assert f"Example: maskvote-client {command} --network" in " ".join(out.split())


@pytest.mark.parametrize("command", ["adapt", "describe", "evaluate", "export"])
def test_help_names_the_types_of_images_that_are_read(call, command):
    assert f"({TYPES_IN_WORDS})" in " ".join(call(command, "--help")[1].split())


def test_help_of_predict_names_the_suffixes_of_images(call):
    assert SUFFIXES_IN_WORDS in " ".join(call("predict", "--help")[1].split())

"""int8 is calibrated on training images alone, and a card tells what is true of its artefact."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cut_networks import CLASSES, cut_network
from test_network_cli import draw

from client.artefacts import int8, runnable
from client.artefacts.card import digest_of
from client.artefacts.card_words import sentences_of
from client.artefacts.exporting import Judges, export_artefact
from client.artefacts.int8 import drawn_images, quantised
from client.artefacts.runnable import PRECISE, onnx_logits, onnx_session, open_artefact
from client.export import SavedNetwork, checked_graph, save_network
from common.backbone import Backbone
from common.calibration import calibration_of
from common.flops import counted_flops
from common.task_data import load_folder

NETWORKS = {
    "residual": ("test_resnet", {}),
    "squeeze-excite and hard swish": ("mobilenetv3_small_050", {}),
    "attention": ("vit_tiny_patch16_224", {"embed_dim": 24, "depth": 1, "num_heads": 3}),
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    mine = tmp_path_factory.mktemp("mine")
    draw(mine / "train", dict.fromkeys(CLASSES, 8))
    draw(mine / "val", dict.fromkeys(CLASSES, 10))
    return mine


def judges_of(mine: Path, saved: SavedNetwork) -> Judges:
    task = load_folder(mine, saved.backbone)
    return Judges(task, tuple(saved.classes.index(name) for name in task.classes))


def quiet_export(kind: str, out: Path, saved: SavedNetwork, judges: Judges | None = None):
    return export_artefact(kind, out, saved, judges, lambda doing: None)


def logits_in(file: Path, judges: Judges) -> np.ndarray:
    images = judges.task.evaluation
    return open_artefact(file, 1).logits(images.batch(torch.arange(len(images))).numpy())


def share_right(file: Path, judges: Judges) -> float:
    wanted = np.array(judges.logit_of)[judges.task.evaluation.labels.numpy()]
    return float((logits_in(file, judges).argmax(1) == wanted).mean())


@pytest.mark.parametrize(("model", "arguments"), NETWORKS.values(), ids=NETWORKS.keys())
def test_int8_holds_int8_and_its_card_tells_what_it_does(mine, tmp_path, one_setting, model, arguments):
    saved = cut_network(model, **arguments)
    judges = judges_of(mine, saved)
    card = quiet_export("onnx-int8", tmp_path / "int8.onnx", saved, judges)
    whole = quiet_export("safetensors", tmp_path / "whole.safetensors", saved, judges)
    graph = onnx.load(tmp_path / "int8.onnx")
    weights = {i.name: i.data_type for i in graph.graph.initializer if i.name.endswith("_quantized")}
    layers = [node for node in graph.graph.node if node.op_type in int8.PRODUCTS]
    assert list(weights.values()).count(onnx.TensorProto.INT8) >= len(layers) * 0.5
    scales = [i for i in graph.graph.initializer if i.name.endswith("weight_scale")]
    assert max((np.prod(scale.dims) for scale in scales), default=2) > 1
    assert card["accuracy"]["images"] == whole["accuracy"]["images"] == 40
    assert card["accuracy"]["share_right"] == pytest.approx(share_right(tmp_path / "int8.onnx", judges))
    assert card["accuracy"]["share_right_float32"] == whole["accuracy"]["share_right"]
    for name, judged in (("int8.onnx", card), ("whole.safetensors", whole)):
        logits = logits_in(tmp_path / name, judges)
        found = calibration_of(logits, np.array(judges.logit_of)[judges.task.evaluation.labels.numpy()])
        assert judged["accuracy"]["mean_confidence"] == pytest.approx(found.confidence, abs=1e-6)
        assert judged["accuracy"]["expected_calibration_error"] == pytest.approx(found.error, abs=1e-6)
        told = [*sentences_of(tmp_path / name, judged)]
        assert any(f"calibration error is {found.error:.3f}" in sentence for sentence in told)
    assert whole["accuracy"]["share_right"] == pytest.approx(
        share_right(tmp_path / "whole.safetensors", judges)
    )
    how = card["quantisation"]
    assert (how["calibration_images"], how["weights"][:4]) == (32, "int8")
    assert how["calibration_agreement"] > 0.5
    assert open_artefact(tmp_path / "int8.onnx").classes == CLASSES


@pytest.fixture(scope="module")
def tiny() -> SavedNetwork:
    return cut_network("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=3)


@pytest.fixture(scope="module")
def graph(tiny) -> bytes:
    """The ONNX file of `tiny`."""
    return checked_graph(tiny).data


@pytest.fixture
def one_setting(monkeypatch) -> None:
    """Random networks agree with nobody: no further setting is tried."""
    monkeypatch.setattr(int8, "SETTINGS", int8.SETTINGS[:1])


class Forbidden:
    """Images that nobody may look at."""

    labels = torch.arange(4).repeat(3)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices):
        raise AssertionError("evaluation images were looked at")


def test_calibration_looks_at_no_evaluation_image_and_at_few_training_images(
    mine, tiny, graph, one_setting, monkeypatch
):
    task = load_folder(mine, tiny.backbone)
    object.__setattr__(task, "evaluation", Forbidden())
    seen: list[int] = []

    class Watched:
        labels = task.train.labels

        def batch(self, indices):
            seen.extend(indices.tolist())
            return task.train.batch(indices)

    monkeypatch.setattr(int8, "CALIBRATION_IMAGES", 12)
    found = quantised(graph, Watched(), lambda setting: None)
    assert found.images == len(seen) == len(set(seen)) == 12
    assert torch.bincount(task.train.labels[seen]).tolist() == [3, 3, 3, 3]


def test_images_are_drawn_over_the_classes_in_turn_and_always_the_same():
    labels = torch.tensor([0] * 100 + [1] * 3 + [2] * 10)
    drawn = drawn_images(labels, 16)
    assert torch.bincount(labels[drawn]).tolist() == [7, 3, 6]
    assert len(drawn.unique()) == 16
    assert torch.equal(drawn, drawn_images(labels, 16))
    assert len(drawn_images(labels, 1000)) == 113


def test_where_it_disagrees_every_setting_is_tried_and_the_best_is_taken(mine, tiny, graph, monkeypatch):
    """By the agreement on training images, which is worked out here once more."""
    monkeypatch.setattr(int8, "LARGEST_DISAGREEMENT", -1.0)
    tried: list[str] = []
    images = load_folder(mine, tiny.backbone).train
    found = quantised(graph, images, tried.append)
    assert tried == [setting.described for setting in int8.SETTINGS]
    assert found.tried == len(tried)
    given = images.batch(torch.arange(32)).numpy()
    first, second = (
        onnx_logits(onnx_session(bytes(data), 1))(given).argmax(1) for data in (graph, found.data)
    )
    assert found.agreement == pytest.approx(float((first == second).mean()))


def test_a_processor_that_adds_up_in_16_bits_gets_weights_of_7(
    mine, tiny, graph, one_setting, monkeypatch
):
    monkeypatch.setattr(int8, "counts_in_32_bits", lambda: False)
    found = quantised(graph, load_folder(mine, tiny.backbone).train, lambda s: None)
    tensors = onnx.load_from_string(found.data).graph.initializer
    weights = [onnx.numpy_helper.to_array(i) for i in tensors if i.data_type == onnx.TensorProto.INT8]
    assert found.reduced_range
    assert max(np.abs(w.astype(int)).max() for w in weights if w.size > 10) <= 64


def adding_up() -> bytes:
    """An int8 product whose every pair of terms, 255 x 127 twice, is more than 16 bits hold."""
    constants = {
        "scale": np.float32(1),
        "scales": np.ones(8, np.float32),
        "zero": np.uint8(0),
        "zeros": np.zeros(8, np.int8),
        "weight": np.full((16, 8), 127, np.int8),
        "range": np.float32(4096),
    }
    quantised, whole = "QuantizeLinear", "DequantizeLinear"
    nodes = [
        onnx.helper.make_node(quantised, ["images", "scale", "zero"], ["bytes"]),
        onnx.helper.make_node(whole, ["bytes", "scale", "zero"], ["x"]),
        onnx.helper.make_node(whole, ["weight", "scales", "zeros"], ["w"], axis=1),
        onnx.helper.make_node("MatMul", ["x", "w"], ["sum"]),
        onnx.helper.make_node(quantised, ["sum", "range", "zero"], ["few"]),
        onnx.helper.make_node(whole, ["few", "range", "zero"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "product",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", 16])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 8])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def test_weights_of_8_bits_are_added_up_exactly_on_this_processor():
    """By hand: 16 x 255 x 127 is 126.5 times 4096. Saturated, pairs are 32767: 64 times."""
    logits = onnx_logits(onnx_session(adding_up(), 1))(np.full((1, 16), 255, np.float32))
    assert set(logits.ravel()) <= {126 * 4096, 127 * 4096}


@pytest.mark.parametrize("exact", [True, False])
def test_onnxruntime_is_told_to_be_exact_where_the_processor_is_not(monkeypatch, exact):
    monkeypatch.setattr(runnable, "counts_in_32_bits", lambda: exact)
    session = onnx_session(adding_up(), 1)
    entries = session.get_session_options()
    if exact:
        with pytest.raises(RuntimeError, match="does not have"):
            entries.get_session_config_entry(PRECISE)
    else:
        assert entries.get_session_config_entry(PRECISE) == "1"
    logits = onnx_logits(session)(np.full((1, 16), 3, np.float32))
    assert set(logits.ravel()) <= {4096, 2 * 4096}  # 16 x 3 x 127 is 1.5 times 4096


def test_the_card_tells_what_the_network_is(tiny, tmp_path):
    named = SavedNetwork(tiny.network, tiny.backbone, tiny.classes, "ab" * 32)
    card = quiet_export("onnx", tmp_path / "my.onnx", named)
    assert json.loads((tmp_path / "my.onnx.json").read_text()) == card
    assert card["sha256"] == digest_of(tmp_path / "my.onnx")
    assert (card["mask"], card["classes"]) == ("ab" * 32, list(CLASSES))
    assert Backbone.from_json(json.dumps(card["backbone"])) == tiny.backbone
    assert card["input"]["shape"] == ["N", 3, 32, 32]
    assert card["output"]["shape"] == ["N", 4]
    assert card["transform"]["mean"] == list(tiny.backbone.mean)
    assert card["parameters"] == sum(p.numel() for p in tiny.network.parameters())
    assert card["flops"] == counted_flops(tiny.network, tiny.backbone.input_size)
    assert card["latency"]["milliseconds"] > 0
    assert card["latency"]["runtime"].startswith("onnxruntime ")
    assert "accuracy" not in card
    assert {"maskvote", "torch", "onnxruntime"} <= set(card["written_by"])
    assert quiet_export("safetensors", tmp_path / "my.safetensors", tiny)["mask"] is None


# the command


@pytest.fixture
def network(tmp_path, tiny) -> Path:
    save_network(tmp_path / "network", tiny.network, tiny.backbone, tiny.classes)
    return tmp_path / "network"


def test_what_int8_loses_is_told_in_a_sentence(client, network, mine, tmp_path, one_setting):
    words = ("--network", network, "--format", "onnx-int8", "--out", tmp_path / "my.onnx")
    status, out, err = client("export", *words, "--data", mine)
    assert (status, err) == (0, "")
    assert "evaluation images right; float32 " in out
    assert "int8 loses" in out
    assert "on 32 training images" in out


REFUSED = {
    "int8 without images": (["onnx-int8", "my.onnx"], 2, "none are given; give --data"),
    "a suffix of another kind": (["onnx", "my.safetensors"], 2, "give --out my.onnx"),
    "no suffix": (["safetensors", "my"], 2, "predict knows safetensors by .safetensors"),
    "no images": (["onnx", "my.onnx", "--data", "nowhere"], 2, "nowhere/train is not a directory"),
}


@pytest.mark.parametrize(("words", "exit_status", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_exported_is_told_and_nothing_written(
    client, network, tmp_path, words, exit_status, reason
):
    kind, out, *rest = words
    status, said, err = client("export", "--network", network, "--format", kind, "--out", out, *rest)
    assert (status, said) == (exit_status, "")
    assert reason in err
    assert list(tmp_path.iterdir()) == [network]


@pytest.mark.parametrize("kind", ["onnx-int8", "safetensors"])
def test_images_of_other_classes_are_refused(client, network, tmp_path, kind):
    draw(tmp_path / "others" / "train", {"owl": 2, "robin": 2})
    out = tmp_path / ("my.onnx" if kind == "onnx-int8" else "my.safetensors")
    words = ("--format", kind, "--out", out, "--data", tmp_path / "others")
    status, _, err = client("export", "--network", network, *words)
    assert status == 3
    assert "it has 'robin', which the network does not know" in err
    assert not out.exists()


# ExecuTorch


def test_without_executorch_the_extra_to_install_is_named(client, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, "executorch", None)
    out = tmp_path / "my.pte"
    status, _, err = client("export", "--network", network, "--format", "executorch", "--out", out)
    assert status == 2
    assert 'pip install "maskvote[executorch]"' in err
    assert not out.exists()


@pytest.mark.parametrize(("model", "arguments"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_program_gives_torchs_logits(client, mine, tmp_path, model, arguments):
    pytest.importorskip("executorch.runtime")
    saved = cut_network(model, **arguments)
    judges = judges_of(mine, saved)
    card = quiet_export("executorch", tmp_path / "my.pte", saved, judges)
    assert card["difference"] < 1e-4
    assert card["input"]["shape"] == [1, 3, 32, 32]
    network = open_artefact(tmp_path / "my.pte")
    given = judges.task.evaluation.batch(torch.arange(5))
    with torch.no_grad():
        expected = saved.network(given).numpy()
    assert np.abs(network.logits(given.numpy()) - expected).max() < 1e-4 * np.abs(expected).max()
    status, out, err = client("predict", "--network", tmp_path / "my.pte", mine / "val", "--json")
    assert status == 0, err
    assert len(json.loads(out)["predictions"]) == 40


def test_a_damaged_program_is_refused_in_a_sentence(client, mine, network, tmp_path):
    pytest.importorskip("executorch.runtime")
    assert (
        client("export", "--network", network, "--format", "executorch", "--out", tmp_path / "my.pte")[0]
        == 0
    )
    card = json.loads((tmp_path / "my.pte.json").read_text())
    (tmp_path / "my.pte").write_bytes(b"no program" * 100)
    card["sha256"] = digest_of(tmp_path / "my.pte")
    (tmp_path / "my.pte.json").write_text(json.dumps(card))
    status, _, err = client("predict", "--network", tmp_path / "my.pte", mine / "val")
    assert status == 2
    assert "my.pte is damaged or no program" in err

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from toys import Example, example

from common.backbone import (
    Backbone,
    backbone_weights,
    features,
    pretrained_weights,
    read_weights,
    weights_digest,
)
from common.errors import InputError, UnsupportedModel, WeightsError


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.fixture
def checkpoint(ours, tmp_path):
    """Writes a checkpoint with some tensors changed (None: left out) and gives its path."""

    def write(**changes):
        weights = {k: v for k, v in {**ours.weights, **changes}.items() if v is not None}
        path = tmp_path / "checkpoint.safetensors"
        save_file(weights, path)
        return path

    return write


# -- description -----------------------------------------------------------------------------------


def test_a_description_holds_what_timm_says_of_the_model():
    """As of its published configuration: what inputs it takes and where its classifier is."""
    backbone = Backbone.from_timm("vit_tiny_patch16_224")
    assert backbone.input_size == (3, 224, 224)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.num_classes == 1000
    assert backbone.classifier_tensors == ("head.weight", "head.bias")
    assert backbone.interpolation == "bicubic"
    assert backbone.timm_version == timm.__version__


def test_another_image_size_goes_to_timm_only_where_the_model_fixes_it():
    assert Backbone.from_timm("resnet18", image_size=64).arguments == {}
    small = Backbone.from_timm("vit_tiny_patch16_224", image_size=64)
    assert small.arguments == {"img_size": 64}
    assert small.skeleton().state_dict()["pos_embed"].shape == (1, 1 + 4 * 4, 192)


def test_one_channel_gets_the_mean_of_the_channels_normalisation():
    backbone = Backbone.from_timm("resnet18", arguments={"in_chans": 1})
    assert backbone.input_size == (1, 224, 224)
    assert backbone.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)


def test_a_skeleton_has_shapes_and_no_weights(ours):
    skeleton = ours.backbone.skeleton(num_classes=9)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert skeleton.fc.weight.shape == (9, 96)
    assert not skeleton.training


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet-18", {}, r"no model 'resnet-18'; did you mean .*resnet18"),
        ("test_resnet", {"arguments": {"depth": 3}}, r"timm refuses test_resnet with .*depth"),
        ("test_resnet", {"num_classes": 0}, r"no linear classifier \(fc\)"),
        ("qwen3_vit_88m_enc", {}, r"no linear classifier \(none named\)"),
        ("test_resnet", {"image_size": 0}, "image size is 0 pixels"),
        ("test_vit", {"image_size": 32, "arguments": {"img_size": 48}}, "give the image size alone"),
        ("test_vit", {"arguments": {"img_size": [32, 48]}}, "give the image size alone"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(model, options, message):
    with pytest.raises(UnsupportedModel, match=message):
        Backbone.from_timm(model, **options)


@pytest.mark.parametrize("model", ["test_resnet", "vit_tiny_patch16_224"])
def test_a_description_is_the_same_after_a_journey_as_json(model):
    backbone = Backbone.from_timm(model, image_size=64, num_classes=3)
    again = Backbone.from_json(backbone.to_json())
    assert again == backbone
    assert again.to_json() == backbone.to_json()
    assert again.structure().digest == backbone.structure().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None, "name": "x"},
        {"input_size": 3},
        {"input_size": [3, 32]},
        {"input_size": [3, 0, 32]},
        {"input_size": "333"},
        {"mean": [0.5]},
        {"std": [1.0, 0.0, 1.0]},
        {"num_classes": 0},
        {"num_classes": "many"},
    ],
)
def test_json_that_describes_no_backbone_is_refused(ours, changes):
    data = {k: v for k, v in {**json.loads(ours.backbone.to_json()), **changes}.items() if v is not None}
    with pytest.raises(InputError):
        Backbone.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", b"\xff\xfe"])
def test_text_that_describes_no_backbone_is_refused(text):
    with pytest.raises(InputError, match="does not describe a backbone"):
        Backbone.from_json(text)


def test_features_are_what_the_classifier_is_given(ours):
    network: Any = timm.create_model("test_resnet", num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network.fc(features(network, images)), network(images), atol=1e-6)


# -- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_is_read_as_it_was_written(ours, checkpoint):
    weights = read_weights(checkpoint(), ours.backbone)
    assert weights_digest(weights) == weights_digest(ours.weights)


def test_a_checkpoint_in_half_precision_is_read_as_floats(ours, checkpoint):
    """Whole numbers, as in a batch norm's count of batches, stay what they are."""
    half = ours.weights["fc.weight"].half()
    weights = read_weights(checkpoint(**{"fc.weight": half}), ours.backbone)
    assert weights["fc.weight"].dtype == torch.float32
    assert torch.equal(weights["fc.weight"], half.float())
    assert weights["bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.bias": None}, r"it lacks fc\.bias \(4,\)\."),
        ({"extra": torch.zeros(1)}, r"it has extra \(1,\), which the model does not"),
        ({"fc.bias": torch.zeros(5)}, r"fc\.bias is \(5,\), not \(4,\)"),
        ({"fc.bias": torch.tensor([0, torch.nan, 0, 0])}, "fc.bias holds NaN or infinity"),
        ({"fc.bias": torch.tensor([0, torch.inf, 0, 0])}, "fc.bias holds NaN or infinity"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_file_and_tensor(ours, checkpoint, changes, message):
    path = checkpoint(**changes)
    with pytest.raises(WeightsError, match=message) as raised:
        read_weights(path, ours.backbone)
    assert str(path) in str(raised.value)
    assert "test_resnet with 4 classes" in str(raised.value)


def test_all_problems_of_a_checkpoint_are_told_at_once(ours, checkpoint):
    path = checkpoint(**{"fc.bias": None, "extra": torch.zeros(1), "fc.weight": torch.zeros(4, 95)})
    with pytest.raises(WeightsError, match=r"lacks fc\.bias \(4,\); (?=.*has extra)(?=.*fc\.weight is)"):
        read_weights(path, ours.backbone)


def test_the_checkpoint_of_another_model_is_refused_and_the_list_kept_short(checkpoint):
    with pytest.raises(WeightsError, match=r"and \d+ more.*name the model of this checkpoint"):
        read_weights(checkpoint(), Backbone.from_timm("test_vit"))


def test_a_pickled_checkpoint_is_refused(ours, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(dict(ours.weights), path)
    with pytest.raises(WeightsError, match="pickled checkpoints are refused, convert them"):
        read_weights(path, ours.backbone)


def test_a_file_that_is_not_there_is_named(ours, tmp_path):
    with pytest.raises(WeightsError, match=r"no file .*nowhere\.safetensors"):
        read_weights(tmp_path / "nowhere.safetensors", ours.backbone)


def test_a_directory_an_empty_and_a_truncated_file_are_refused(ours, checkpoint, tmp_path):
    whole = checkpoint().read_bytes()
    for data in (b"", whole[:4], whole[:100], whole[:-10]):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="not a readable safetensors file"):
            read_weights(path, ours.backbone)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_weights(tmp_path, ours.backbone)


def test_without_a_network_published_weights_are_refused_with_what_to_do(monkeypatch, tmp_path):
    """Neither the hub nor a cache: the message names the model and the way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"weights of test_resnet cannot be had.*give a checkpoint file"
    ):
        pretrained_weights(Backbone.from_timm("test_resnet"))


def test_weights_that_nobody_publishes_are_refused_and_not_made_up():
    with pytest.raises(WeightsError, match="No pretrained weights exist"):
        pretrained_weights(Backbone.from_timm("lcnet_035"))


def publish(monkeypatch, path: Path, classes: int) -> None:
    """Let timm publish a file's tensors as test_resnet's, with so many classes."""
    known, name = timm.models._registry._model_pretrained_cfgs, "test_resnet"
    published = replace(known[name], file=str(path), num_classes=classes)
    monkeypatch.setitem(known, name, published)


def test_published_weights_are_the_same_at_every_load(monkeypatch, tmp_path):
    backbone = Backbone.from_timm("test_resnet")
    tensors = timm.create_model("test_resnet").state_dict()
    save_file(tensors, tmp_path / "published.safetensors")
    publish(monkeypatch, tmp_path / "published.safetensors", 1000)
    first, again = pretrained_weights(backbone), backbone_weights(backbone, None)
    assert weights_digest(first) == weights_digest(again) == weights_digest(tensors)


@pytest.mark.parametrize("classes", [1, 20, 1001])
def test_classes_that_timm_has_not_published_are_refused_before_anything_is_fetched(classes):
    """timm would draw a classifier by lot: nobody could serve a library founded on it."""
    backbone = Backbone.from_timm("resnet18", num_classes=classes)
    with pytest.raises(
        WeightsError,
        match=f"resnet18 have 1,000 classes, asked are {classes:,}; give a checkpoint with",
    ):
        backbone_weights(backbone, None)


@pytest.mark.parametrize("classes", [None, 20])
def test_what_is_published_without_a_classifier_gets_one_of_zeros(monkeypatch, tmp_path, classes):
    """As backbones that were taught without labels are; their features are what was published."""
    headless = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(headless, tmp_path / "published.safetensors")
    publish(monkeypatch, tmp_path / "published.safetensors", 0)
    backbone = Backbone.from_timm("test_resnet", num_classes=classes)
    weights = pretrained_weights(backbone)
    assert weights_digest(backbone.without_classifiers(weights)) == weights_digest(headless)
    assert weights["fc.weight"].shape == (classes or 1000, 96)
    assert not any(weights[name].any() for name in backbone.classifier_tensors)


def test_without_a_network_a_model_on_the_hub_is_refused_as_any_other(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnsupportedModel, match="hf-hub:timm/nothing"):
        Backbone.from_timm("hf-hub:timm/nothing")


# -- digest ----------------------------------------------------------------------------------------


def test_the_digest_of_weights_does_not_depend_on_their_order_or_layout(ours):
    turned = dict(reversed(ours.weights.items()))
    name = "conv1.0.weight"
    turned[name] = turned[name].to(memory_format=torch.channels_last)
    assert weights_digest(turned) == weights_digest(ours.weights)


def test_the_digest_of_weights_sees_names_shapes_types_and_values():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    variants = [
        base,
        {"c": base["a"], "b": base["b"]},
        base | {"a": base["a"].reshape(1, 2)},
        base | {"a": base["a"].double()},
        base | {"a": torch.tensor([1.0, 2.0000002])},
        {"a": base["a"]},
    ]
    assert len({weights_digest(weights) for weights in variants}) == len(variants)


def test_tensors_without_values_have_a_digest_too():
    assert weights_digest({"a": torch.zeros(0)}) != weights_digest({"a": torch.zeros(0, 2)})


def test_an_image_size_among_the_arguments_is_the_image_size():
    """What the model is built for is what it is traced and proved with."""
    given = Backbone.from_timm("test_vit", arguments={"img_size": 48})
    assert given == Backbone.from_timm("test_vit", image_size=48)
    assert given.input_size == (3, 48, 48)


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_skeleton_has_the_shapes_and_types_of_timms_model_and_no_numbers(model):
    skeleton = Backbone.from_timm(model).skeleton()
    with torch.device("meta"):
        own = timm.create_model(model)
    described = [
        {
            name: (t.shape, t.dtype, t.device.type)
            for name, t in (*n.named_parameters(), *n.named_buffers())
        }
        for n in (skeleton, own)
    ]
    assert described[0] == described[1]

import pytest

from common.backbone import Backbone
from common.errors import UnsupportedModel
from common.model_names import timm_name


@pytest.mark.parametrize("written", ["", "timm/", "hf-hub:timm/", "hf_hub:timm/", "HF-Hub:timm/"])
@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_a_model_has_one_name_however_the_hub_writes_it(written, name):
    assert timm_name(f"{written}{name}") == name


def test_a_backbone_is_the_same_by_every_name_of_its_model():
    """So a library that was founded by one of them is served by the other."""
    plain, hub = (Backbone.from_timm(n) for n in ("test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k"))
    assert hub == plain
    assert hub.identity == plain.identity


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet-18", "resnet18"),
        ("ResNet18", "resnet18"),
        ("timm/resnet-18", "resnet18"),
        ("resnet-18.a1_in1k", "resnet18.a1_in1k"),
        ("resnet18_a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet_18.a1_in1k", "resnet18.a1_in1k"),
        ("https://huggingface.co/timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k@main", "resnet18.a1_in1k"),
        ("hf-hub:resnet18", "resnet18"),
    ],
)
def test_the_first_suggestion_for_a_misspelt_name_is_the_right_one(name, first):
    with pytest.raises(UnsupportedModel, match=rf"\bdid you mean {first}[,?]") as raised:
        timm_name(name)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize(("tag", "first"), [("a1_in1K", "a1_in1k"), ("tv", "tv_in1k"), ("@", "")])
def test_weights_that_timm_does_not_have_are_answered_with_those_that_it_has(tag, first):
    with pytest.raises(
        UnsupportedModel, match=rf"resnet18 has no weights '{tag}'; did you mean resnet18\.{first}"
    ):
        timm_name(f"resnet18.{tag}")


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/resnet18", "someone/resnet18", "hf_hub:someone/resnet18"]
)
def test_a_repository_of_somebody_else_is_refused_with_what_to_do(name):
    """What it holds could be any network, and would be fetched to find out."""
    with pytest.raises(
        UnsupportedModel,
        match=r"someone/resnet18' is a repository of someone, not of timm.*mean resnet18, .*--checkpoint",
    ):
        timm_name(name)


def test_a_directory_is_refused_as_a_name(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"local-dir:.*give the name of a timm model"):
        timm_name(f"local-dir:{tmp_path}")


def test_a_name_like_no_other_is_answered_with_where_names_are_listed():
    with pytest.raises(UnsupportedModel, match=r"no model '0000'; see timm\.list_models\(\)"):
        timm_name("0000")

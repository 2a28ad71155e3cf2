"""Checkpoints as people have them: wrapped, of another precision, image size or number of classes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from random_weights import random_weights
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from common.backbone import Backbone, Weights, classes_of, read_weights, weights_digest
from common.errors import WeightsError

CLASSES = 4


@pytest.fixture(scope="module")
def ours() -> Backbone:
    return Backbone.from_timm("test_resnet", num_classes=CLASSES, image_size=32)


@pytest.fixture(scope="module")
def tensors(ours) -> Weights:
    return random_weights(ours)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def renamed(tensors: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "backbone.",
        "state_dict_ema.",
        "_orig_mod.",
        "module.model.",
        "timm_model.net.",
    ],
)
def test_what_all_names_begin_with_is_taken_off(ours, tensors, path, prefix):
    save_file(renamed(tensors, prefix), path)
    assert weights_digest(read_weights(path, ours)) == weights_digest(tensors)
    assert classes_of(path, "test_resnet") == CLASSES


def test_a_network_that_torch_wrapped_is_read(ours, tensors, path):
    """Its compiled form in data parallel form, and the running average of its weights."""
    network = timm.create_model("test_resnet", num_classes=CLASSES)
    network.load_state_dict(tensors)
    wrapped = nn.DataParallel(torch.compile(network))
    save_file(wrapped.state_dict(), path)
    assert weights_digest(read_weights(path, ours)) == weights_digest(tensors)


def test_a_prefix_that_some_names_lack_is_left_and_named(ours, tensors, path):
    """What does not all come from one network is not guessed at."""
    save_file(renamed(tensors, "module.") | {"step": torch.zeros(1)}, path)
    with pytest.raises(
        WeightsError,
        match=r"lacks conv1\.0\.weight \(16, 3, 3, 3\), .* and \d+ more; it has module\.bn1\.",
    ):
        read_weights(path, ours)


def test_both_sides_are_shown_where_names_do_not_fit(ours, path):
    """And what all names of the file begin with, which says what it is of."""
    save_file(
        renamed(random_weights(Backbone.from_timm("test_vit", image_size=32)), "visual.trunk."), path
    )
    with pytest.raises(WeightsError) as raised:
        read_weights(path, ours)
    told = str(raised.value)
    assert f"{path} does not fit test_resnet with 4 classes" in told
    assert "all its names begin with 'visual.trunk.'" in told
    assert "it lacks conv1.0.weight (16, 3, 3, 3), " in told
    assert "it has visual.trunk.blocks.0.attn.proj.bias (64,), " in told
    assert "name the model of this checkpoint" in told


def test_a_prefix_that_makes_names_fit_is_off_where_shapes_do_not(ours, tensors, path):
    save_file(renamed({**tensors, "bn1.weight": torch.zeros(3)}, "module."), path)
    with pytest.raises(
        WeightsError, match=r"without the 'module\.' .* bn1\.weight is \(3,\), not \(32,\)"
    ) as raised:
        read_weights(path, ours)
    assert "lacks" not in str(raised.value)


def test_a_file_without_tensors_is_refused(ours, path):
    save_file({}, path)
    with pytest.raises(WeightsError, match=r"lacks conv1\.0\.weight"):
        read_weights(path, ours)


def test_batches_that_were_not_counted_are_none(ours, tensors, path):
    """Other programs do not count them, and nothing here depends on them."""
    counts = [name for name in tensors if name.endswith("num_batches_tracked")]
    save_file({name: tensor for name, tensor in tensors.items() if name not in counts}, path)
    read = read_weights(path, ours)
    assert all(read[name].dtype == torch.int64 and read[name] == 0 for name in counts)
    assert weights_digest(read) == weights_digest(tensors)


def test_what_a_model_computes_itself_may_lie_in_its_checkpoint(path):
    """timm once stored tables of positions, which follow from the image size alone."""
    model = "swin_tiny_patch4_window7_224"
    backbone = Backbone.from_timm(
        model, num_classes=CLASSES, image_size=64, arguments={"depths": [1, 1, 1, 1]}
    )
    network = timm.create_model(model, num_classes=CLASSES, **backbone.arguments)
    buffers = {
        n: b.contiguous().clone() for n, b in network.named_buffers() if "relative_position_index" in n
    }
    assert len(buffers) == 4
    assert not buffers.keys() & network.state_dict().keys()
    save_file({**network.state_dict(), **buffers}, path)
    assert weights_digest(read_weights(path, backbone)) == weights_digest(network.state_dict())


def test_a_checkpoint_without_a_classifier_gets_one_of_zeros(ours, tensors, path):
    """As what timm publishes without one: a device replaces the classifier by its own."""
    save_file(renamed(ours.without_classifiers(tensors), "backbone."), path)
    read = read_weights(path, ours)
    assert classes_of(path, "test_resnet") is None
    assert read["fc.weight"].shape == (CLASSES, 96)
    assert not any(read[name].any() for name in ours.classifier_tensors)
    assert weights_digest(ours.without_classifiers(read)) == weights_digest(
        ours.without_classifiers(tensors)
    )


def test_a_second_classifier_that_the_model_lacks_is_told(ours, tensors, path):
    save_file({**tensors, "aux.fc.weight": torch.zeros(4, 8)}, path)
    with pytest.raises(WeightsError, match=r"it has aux\.fc\.weight \(4, 8\), which the model does not"):
        read_weights(path, ours)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_floating_point_precision_is_read(ours, tensors, path, dtype):
    given = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(given, path)
    read = read_weights(path, ours)
    assert all(read[name].dtype == tensors[name].dtype for name in tensors)
    assert torch.equal(read["fc.weight"], given["fc.weight"].float())


def test_a_number_beyond_float32_is_not_taken_for_infinity(ours, tensors, path):
    save_file({**tensors, "fc.bias": torch.full((CLASSES,), 1e300, dtype=torch.float64)}, path)
    with pytest.raises(WeightsError, match=r"fc\.bias holds NaN or infinity"):
        read_weights(path, ours)


def test_quantised_weights_are_refused(ours, tensors, path):
    """Without their scales they are not the weights."""
    save_file({**tensors, "fc.weight": torch.ones(CLASSES, 96, dtype=torch.int8)}, path)
    with pytest.raises(WeightsError, match=r"fc\.weight is of whole numbers \(int8\)"):
        read_weights(path, ours)


def test_batches_counted_in_floats_are_whole_numbers(ours, tensors, path):
    """As averaging all of a state dict leaves them."""
    counted = {name: torch.tensor(7.0) for name in tensors if name.endswith("num_batches_tracked")}
    save_file({**tensors, **counted}, path)
    read = read_weights(path, ours)
    assert {read[name].item() for name in counted} == {7}
    assert {read[name].dtype for name in counted} == {torch.int64}


# -- image sizes -----------------------------------------------------------------------------------


def of_size(model: str, size: int, **arguments) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """A model at an image size, and weights in which every position is another."""
    backbone = Backbone.from_timm(model, num_classes=CLASSES, image_size=size, arguments=arguments)
    weights = dict(random_weights(backbone))
    for name, tensor in weights.items():
        if not name.endswith((".weight", ".bias")) and tensor.is_floating_point():
            weights[name] = torch.randn(tensor.shape)
    return backbone, weights


@pytest.mark.parametrize("size", [32, 224])
def test_position_embeddings_of_another_image_size_are_resampled_as_timm_does(path, size):
    _, given = of_size("test_vit", 160)
    backbone = Backbone.from_timm("test_vit", num_classes=CLASSES, image_size=size)
    save_file(renamed(given, "module."), path)
    read = read_weights(path, backbone)
    grid = [size // 16, size // 16]
    own = resample_abs_pos_embed(given["pos_embed"], grid, num_prefix_tokens=1)
    assert read["pos_embed"].shape == (1, 1 + grid[0] ** 2, 64)
    assert torch.allclose(read["pos_embed"], own, atol=1e-5)
    assert all(torch.equal(read[name], given[name]) for name in given if name != "pos_embed")


def test_tables_of_relative_positions_are_resampled(path):
    short = {"depths": [1, 1, 1, 1]}
    _, given = of_size("swin_tiny_patch4_window7_224", 224, **short)
    backbone, _ = of_size("swin_tiny_patch4_window7_224", 64, **short)
    save_file(given, path)
    read = read_weights(path, backbone)
    name = "layers.3.blocks.0.attn.relative_position_bias_table"
    assert given[name].shape == (13**2, 24)
    assert read[name].shape == (3**2, 24)
    assert read[name].abs().max() > 0.1
    network = backbone.skeleton()
    network.load_state_dict(read, strict=True, assign=True)


def test_resampling_draws_nothing_at_random(path):
    _, given = of_size("test_vit", 160)
    save_file(given, path)
    backbone = Backbone.from_timm("test_vit", num_classes=CLASSES, image_size=32)
    before = torch.get_rng_state()
    first = read_weights(path, backbone)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_digest(read_weights(path, backbone)) == weights_digest(first)


def test_every_processor_resamples_to_the_same_digest(path):
    """Who serves a library gives the checkpoint again, and may do so on another kind of machine."""
    _, given = of_size("test_vit", 160)
    save_file(given, path)
    program = (
        "import sys; from common.backbone import *; "
        "b = Backbone.from_timm('test_vit', num_classes=4, image_size=64); "
        "print(weights_digest(read_weights(sys.argv[1], b)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, path],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},  # none of the vector instructions
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    here = read_weights(path, Backbone.from_timm("test_vit", num_classes=CLASSES, image_size=64))
    assert ended.stdout.strip() == weights_digest(here)


def test_a_model_that_timm_cannot_resample_is_refused_with_the_image_size(path):
    _, given = of_size("visformer_tiny", 224)
    save_file(given, path)
    with pytest.raises(
        WeightsError,
        match=r"pos_embed1 is \(1, 96, 28, 28\), not \(1, 96, 8, 8\).*--image-size 224, or give a "
        "checkpoint for 64 x 64 pixels",
    ):
        read_weights(path, Backbone.from_timm("visformer_tiny", num_classes=CLASSES, image_size=64))


def test_another_size_than_the_models_own_is_told_as_one(path):
    """Which one cannot be told from a table of positions alone."""
    _, given = of_size("visformer_tiny", 96)
    save_file(given, path)
    with pytest.raises(WeightsError, match=r"the --image-size of the checkpoint.*for 64 x 64 pixels"):
        read_weights(path, Backbone.from_timm("visformer_tiny", num_classes=CLASSES, image_size=64))


def test_another_patch_size_is_another_model_and_not_another_image_size(path):
    _, given = of_size("test_vit", 160)
    given["patch_embed.proj.weight"] = torch.randn(64, 3, 8, 8)
    save_file(given, path)
    with pytest.raises(
        WeightsError, match=r"patch_embed\.proj\.weight is \(64, 3, 8, 8\), not \(64, 3, 16, 16\)"
    ):
        read_weights(path, Backbone.from_timm("test_vit", num_classes=CLASSES, image_size=32))


# -- classes ---------------------------------------------------------------------------------------


def test_a_checkpoint_says_how_many_classes_it_has(tensors, path):
    save_file(tensors, path)
    assert classes_of(path, "timm/test_resnet") == CLASSES
    assert classes_of(path, "test_resnet", CLASSES) == CLASSES
    assert classes_of(None, "test_resnet", 9) == 9
    assert classes_of(None, "test_resnet") is None


@pytest.mark.parametrize("asked", [0, 3, 1000])
def test_another_number_of_classes_than_the_checkpoints_is_refused_by_the_options_name(
    tensors, path, asked
):
    save_file(renamed(tensors, "module."), path)
    with pytest.raises(
        WeightsError,
        match=rf"--num-classes is {asked:,}, and .*checkpoint\.safetensors has 4 classes; leave",
    ):
        classes_of(path, "test_resnet", asked)


def test_a_backbone_of_another_number_of_classes_is_told_the_options_name(tensors, path):
    """Where the number is not an option: it was fixed when the library was founded."""
    save_file(tensors, path)
    backbone = Backbone.from_timm("test_resnet", num_classes=7)
    with pytest.raises(
        WeightsError,
        match=r"fc\.weight is \(4, 96\), not \(7, 96\).*--num-classes 4, or give a checkpoint of 7 ",
    ):
        read_weights(path, backbone)

"""What a run will need is looked at before its library is seeded; public images lie as they please."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from glyph_run import SEEDED, quiet, write_pool
from PIL import Image
from safetensors.torch import load_file, save_file

from common.errors import BudgetError, TaskDataError, WeightsError
from common.image_folders import SUFFIXES_IN_WORDS
from server.healing.drawn_votes import KeepRatios
from simulations.cli import cli
from simulations.experiments.experiment import Experiment
from simulations.pools import open_pool, open_public
from simulations.run_directory import RunDirectory
from simulations.running import cells_of, measure, prepare, ways_of
from simulations.way import Way


def healed(*healings: str) -> Experiment:
    ways = tuple(Way("L1", iterations=1, keep_ratio=0.3, healing=healing) for healing in healings)
    return Experiment("", "", ways, "way", ways[0])


@pytest.fixture
def scattered(run, tmp_path) -> Path:
    """The run's public images in a layout of their own: no classes, no train and no val."""
    path = tmp_path / "scattered"
    for number, file in enumerate(sorted(Path(run.settings.public, "train").rglob("*.png"))):
        place = path / f"{number % 3}" / "deep" / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    (path / "@eaDir").mkdir()
    (path / "0" / "photo.heic").write_bytes(b"of a phone")
    return path


def begin(run: RunDirectory, path: Path, **changes) -> RunDirectory:
    return RunDirectory.begin(path / "own", replace(run.settings, small_model="", **changes))


def refused_before_seeding(run: RunDirectory, *experiments: Experiment) -> Exception:
    """What is wrong with a run, which is found before any of its library is seeded."""
    stages: list[str] = []
    with pytest.raises((TaskDataError, BudgetError, WeightsError)) as refused:
        prepare(run, experiments, 1, lambda stage, *_: stages.append(stage))
    assert "seeding the library" not in stages
    return refused.value


def test_public_images_may_lie_in_any_layout_and_the_rest_is_told_once(run, scattered, tmp_path):
    own = begin(run, tmp_path, public=str(scattered))
    told: list[str] = []
    prepare(own, [healed("empty", "served", "mask")], 1, quiet, told.append)
    folder = f"left out of {scattered}: 1 .heic file, 1 folder (@eaDir); image files end in "
    assert told == [folder + SUFFIXES_IN_WORDS]
    assert len(own.healed.public.images) == 60
    for kind in ("empty", "served"):
        assert all(tensor.isfinite().all() for tensor in own.healed.weights(kind).values())


def test_of_a_pool_as_before_the_training_images_are_public_in_order_of_their_classes(run, scattered):
    """So that a run which is gone on with heals on the very images that it began with."""
    images, digest = open_public(run.settings.public, run.backbone, 50_000)
    pool = open_pool(run.settings.public, run.backbone)
    everything = torch.arange(60)
    assert torch.equal(images.batch(everything), pool.task(pool.all_classes).train.batch(everything))
    others, other_digest = open_public(str(scattered), run.backbone, 50_000)
    assert (len(others), digest == other_digest) == (60, False)
    assert len(open_public(str(scattered), run.backbone, 7)[0]) == 7


def test_features_of_other_public_images_are_not_taken_for_these(run, scattered, tmp_path):
    own = begin(run, tmp_path, public=str(scattered))
    prepare(own, [healed("mask")], 1, quiet)
    file = own.path / "public.safetensors"
    before = load_file(file)["features"]
    written = file.stat().st_mtime_ns
    assert torch.equal(RunDirectory(own.path).healed.public.features, before)
    assert file.stat().st_mtime_ns == written
    first = sorted(scattered.rglob("*.png"))[0]
    Image.new("L", (40, 40), 255).save(first)
    after = RunDirectory(own.path).healed.public.features
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])
    # One that an earlier version wrote does not say of which images it is.
    save_file({"features": before}, file)
    assert torch.equal(RunDirectory(own.path).healed.public.features, after)


@pytest.mark.parametrize("healing", ["library", "empty", "served", "mask", "nearest"])
def test_public_images_that_are_no_use_are_told_before_the_library_is_seeded(
    run, scattered, tmp_path, healing
):
    own = begin(run, tmp_path, public=str(scattered))
    broken = sorted(scattered.rglob("*.png"))[-1]
    broken.write_bytes(b"no image")
    ways = [SEEDED, healed(healing)]
    assert f"{broken} cannot be read" in str(refused_before_seeding(own, *ways))
    shutil.rmtree(scattered)
    assert "has 0 image files" in str(refused_before_seeding(own, *ways))


def test_a_run_that_is_measured_does_not_ask_for_its_public_images_again(run, scattered, tmp_path):
    own = begin(run, tmp_path, public=str(scattered))
    ways = healed("mask")
    prepare(own, [ways], 1, quiet)
    assert measure(own, [ways], 1, quiet) == []
    shutil.rmtree(scattered)
    again = RunDirectory(own.path)
    prepare(again, [ways], 1, quiet)
    assert measure(again, [ways], 1, quiet) == []


def test_classes_and_images_that_are_too_few_are_told_before_any_is_opened(run, tmp_path):
    few = write_pool(tmp_path / "few", "ABDEFGHKLM", 2, 1)
    for file in Path(few).rglob("*.png"):
        file.write_bytes(b"no image")
    own = begin(run, tmp_path, data=few)
    assert "10 classes are too few" in str(refused_before_seeding(own, SEEDED))
    data = Path(shutil.copytree(run.settings.data, tmp_path / "data"))
    for file in sorted((data / "train" / "03").iterdir())[1:]:
        file.unlink()
    other = RunDirectory.begin(tmp_path / "other", replace(own.settings, data=str(data)))
    said = str(refused_before_seeding(other, SEEDED))
    assert f"{data}/train has a single image of 03; the library and the devices need one each" in said
    assert not (other.path / "library.db").exists()


def test_a_checkpoint_that_is_no_use_is_told_before_any_image_is_opened(run, tmp_path):
    data = Path(shutil.copytree(run.settings.data, tmp_path / "data"))
    for file in data.rglob("*.png"):
        file.write_bytes(b"no image")
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    own = begin(run, tmp_path, data=str(data), checkpoint=str(tmp_path / "wrong.safetensors"))
    assert "wrong.safetensors" in str(refused_before_seeding(own, SEEDED))


def test_a_keep_ratio_of_which_there_is_no_mask_is_told_before_the_library_is_seeded(run, tmp_path):
    own = begin(run, tmp_path, keep_ratio=1e-6)
    said = str(refused_before_seeding(own, SEEDED))
    assert said.startswith("the library's masks cannot keep 1e-06 of the units: the budget is")
    other = RunDirectory.begin(
        tmp_path / "other", replace(run.settings, heal_ratios=KeepRatios(1e-7, 1e-6))
    )
    said = str(refused_before_seeding(other, healed("empty")))
    assert said.startswith("the masks to heal through cannot keep 1e-06 of the units")


def test_a_way_that_is_too_small_is_left_out_and_told(run):
    ways = (Way("L1", keep_ratio=0.3, iterations=1), Way("L1", keep_ratio=1e-6, iterations=1))
    one = Experiment("", "", ways, "keep_ratio", ways[0])
    assert ways_of(run, one) == [ways[0]]
    assert {cell.way for cell in cells_of(run, one)} == {ways[0]}


def test_a_way_that_turns_out_to_be_too_small_is_told_once_the_backbone_is_known(run, tmp_path):
    own = begin(run, tmp_path)
    ways = (Way("L1", keep_ratio=0.3, iterations=1), Way("L1", keep_ratio=1e-6, iterations=1))
    told: list[str] = []
    prepare(own, [Experiment("", "", ways, "keep_ratio", ways[0])], 1, quiet, told.append)
    (sentence,) = told
    assert sentence.startswith("left out: L1: the budget is 0 units, the smallest sub-network")


def test_what_systems_leave_behind_is_no_class_of_a_pool(run, tmp_path):
    data = Path(shutil.copytree(run.settings.data, tmp_path / "data"))
    for name in (".ipynb_checkpoints", "@eaDir"):
        (data / "train" / name).mkdir()
    (data / "train" / "00" / "._000.png").write_bytes(b"no image")
    plain, untidy = (open_pool(str(source), run.backbone) for source in (run.settings.data, data))
    assert untidy.names == plain.names
    assert all(torch.equal(*pair) for pair in zip(untidy.train, plain.train, strict=True))


WRONG = {
    "fleet --library-tasks 0": "0 is not in the range",
    "fleet --devices 0": "0 is not in the range",
    "fleet --ways 1": "1 is not in the range",
    "fleet --workers 0": "0 is not in the range",
    "experiment --run r --workers 0": "0 is not in the range",
    "experiment --run r --seeds 0": "0 is not in the range",
}


@pytest.mark.parametrize("words", WRONG)
def test_numbers_that_no_run_can_have_are_refused_at_once(words):
    result = CliRunner().invoke(cli, words.split())
    assert (result.exit_code, WRONG[words] in result.output) == (2, True)


def test_a_fleet_looks_at_its_images_before_anything_else_and_tells_what_it_leaves_out(tmp_path):
    data = Path(write_pool(tmp_path / "data", "ABDEFGHK", 2, 1))
    (data / "train" / "@eaDir").mkdir()
    words = ["fleet", "--backbone", "no such model", "--data", str(data), "--out", str(tmp_path / "runs")]
    few = CliRunner().invoke(cli, words)
    assert "8 classes are too few for close tasks of 10" in str(few.exception)
    unknown = CliRunner().invoke(cli, [*words, "--ways", "4"])
    assert unknown.stderr == f"left out of {data}: 1 folder (@eaDir)\n"
    assert "no such model" in str(unknown.exception)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["fleet", "experiment", "pretrain"])
def test_help_names_the_types_of_images_that_are_read(command):
    shown = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
    assert "PNG, JPEG, WebP, TIFF, GIF, BMP, PNM" in shown


def test_a_run_tells_what_it_leaves_out_of_its_data(run, tmp_path):
    data = Path(shutil.copytree(run.settings.data, tmp_path / "data"))
    (data / "train" / "00" / "._000.png").write_bytes(b"no image")
    own = begin(run, tmp_path, data=str(data))
    words = ["experiment", "library-size", "--run", str(own.path), "--only", "SMSP", "--workers", "1"]
    told = CliRunner().invoke(cli, words)
    assert told.stderr.count(f"left out of {data}: 1 hidden file\n") == 1
    assert json.loads((own.path / "run.json").read_text())["settings"]["data"] == str(data)

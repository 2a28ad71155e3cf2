"""maskvote-server heal: what it is given is checked first, and what it comes to is told and kept."""

import json
import shutil

import numpy as np
import pytest
import torch
from click import Abort
from click.testing import CliRunner
from operated import entry_of
from PIL import Image
from safetensors.torch import save_file

from common.backbone import weights_digest
from common.errors import BudgetError, InputError, MismatchError, TaskDataError
from common.image_folders import TYPES_IN_WORDS
from server.cli import cli
from server.healing.heal_library import store_of
from server.healing.public_images import image_files, images_digest
from server.library import Library


@pytest.fixture
def place(tmp_path, offer, weights):
    """A library, its checkpoint, and nine images in directories of any names."""
    Library.create(tmp_path / "library.db", offer, weights_digest(weights)).close()
    save_file(dict(weights), tmp_path / "backbone.safetensors")
    lot = np.random.default_rng(0)
    for number in range(9):
        folder = tmp_path / "images" / "sub" / f"folder{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(lot.integers(256, size=(40, 30, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    (tmp_path / "images" / "read.me").write_text("no image")
    return tmp_path


@pytest.fixture
def heal(place):
    """Runs the command; gives its JSON, or raises its error."""

    def heal(*words: str, checkpoint="backbone.safetensors", library="library.db") -> dict:
        given = ["heal", library, "--checkpoint", checkpoint, "--images", "images", "--device", "cpu"]
        paths = [str(place / word) if (place / word).exists() else word for word in [*given, *words]]
        result = CliRunner().invoke(cli, [*paths, "--json"], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return json.loads(result.stdout)

    return heal


FEW = ("--iterations", "2", "--keep-ratio", "0.2", "0.5")


def test_it_tells_what_it_did_and_the_store_has_it(heal, place):
    facts = heal(*FEW)
    assert (facts["iterations"], facts["images"], facts["entries"]) == (2, 9, 0)
    assert (facts["low"], facts["high"]) == (0.2, 0.5)
    assert facts["store"] == str(place / "library.db.healed")
    assert facts["distance"]["keep_ratio"] == pytest.approx(0.1**0.5, abs=0.03)
    with Library.open(place / "library.db") as library:
        healed = store_of(library).backbone()
    assert healed.facts == {name: facts[name] for name in healed.facts}


def test_it_computes_with_as_many_threads_as_were_asked_for(heal):
    before = torch.get_num_threads()
    try:
        heal(*FEW, "--threads", "3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_was_healed_is_kept_though_judging_it_is_broken_off(heal, place, monkeypatch):
    def broken_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("server.healing.heal_library.distance", broken_off)
    with pytest.raises(Abort):
        heal(*FEW)
    with Library.open(place / "library.db") as library:
        assert store_of(library).backbone().iterations == 2


def test_a_table_is_shown_to_people(heal, place):
    words = ["heal", str(place / "library.db"), "--checkpoint", str(place / "backbone.safetensors")]
    shown = CliRunner().invoke(cli, [*words, "--images", str(place / "images"), *FEW]).stdout
    for expected in ("healed backbone", "entries there were", "0.2-0.5", "distance after"):
        assert expected in shown


def test_the_same_seed_heals_alike_and_features_are_not_computed_again(heal, place, weights):
    features = place / "library.db.healed" / "features.safetensors"
    healed, written = [], set()
    with Library.open(place / "library.db") as library:
        store = store_of(library)
        for seed in ("1", "1", "2"):
            heal(*FEW, "--seed", seed)
            healed.append(store.backbone().weights)
            written.add(features.stat().st_mtime_ns)
    assert len(written) == 1
    first, again, other = healed
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_it_heals_through_votes_such_as_devices_are_then_served_by(heal, place, offer):
    healed = []
    with Library.open(place / "library.db") as library:
        library.take_in(entry_of(offer, number) for number in range(6))
        for prior in ("0.5", "0.5", "100"):
            heal(*FEW, "--prior", prior)
            found = store_of(library).backbone()
            assert found.prior == float(prior)
            healed.append(found.weights)
        with pytest.raises(InputError, match="the prior is -1"):
            heal(*FEW, "--prior", "-1")
    first, again, important = healed
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], important[name]) for name in first)


def test_at_most_so_many_images_are_used_drawn_by_the_seed(place):
    draws = {tuple(image_files(place / "images", 4, seed)) for seed in range(5)}
    assert {len(files) for files in draws} == {4}
    assert len(draws) > 1
    assert image_files(place / "images", 4, 3) == image_files(place / "images", 4, 3)
    assert len(image_files(place / "images", 9)) == 9


def test_images_are_known_by_their_names_and_sizes_wherever_they_lie(place):
    files = image_files(place / "images")
    digest = images_digest(place / "images", files)
    shutil.copytree(place / "images", place / "elsewhere")
    assert images_digest(place / "elsewhere", image_files(place / "elsewhere")) == digest
    assert images_digest(place / "images", files[1:]) != digest
    files[0].write_bytes(files[0].read_bytes() + b" ")
    assert images_digest(place / "images", files) != digest


def test_images_behind_links_are_found_and_what_is_none_is_left_out_and_told(heal, place):
    (place / "linked").mkdir()
    for number in range(2):
        (place / "linked" / f"class{number}").symlink_to(place / "images" / "sub" / f"folder{number}")
    assert len(image_files(place / "linked")) == 9
    assert heal(*FEW, "--images", "linked")["images"] == 9
    for name in ("._0.png", "@eaDir/0.png", "photo.heic"):
        (place / "images" / name).parent.mkdir(exist_ok=True)
        (place / "images" / name).write_bytes(b"no image")
    words = ["heal", str(place / "library.db"), "--checkpoint", str(place / "backbone.safetensors")]
    shown = CliRunner().invoke(cli, [*words, "--images", str(place / "images"), *FEW])
    assert shown.exit_code == 0
    assert shown.stderr.startswith(
        f"left out of {place / 'images'}: 1 .heic file, 1 .me file, 1 hidden file, 1 folder (@eaDir); "
    )
    assert shown.stderr.count("left out of") == 1


@pytest.mark.parametrize("command", ["create", "seed", "heal", "serve"])
def test_help_names_the_types_of_images_that_are_read(command):
    shown = CliRunner().invoke(cli, [command, "--help"]).stdout
    assert f"({TYPES_IN_WORDS})" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("--images", "nowhere"), InputError, "nowhere is not a directory"),
        (("--images", "few"), TaskDataError, "1 image files"),
        (("--images", "broken"), TaskDataError, "b.png cannot be read as an image"),
        (("--checkpoint", "other.safetensors"), MismatchError, "founded on"),
        (("--keep-ratio", "0.5", "0.1"), InputError, "the lower one first"),
        (("--keep-ratio", "0.0001", "0.0002"), BudgetError, "ask for at least"),
        (("--seconds", "0"), InputError, "seconds above 0"),
        (("--seconds", "1e-9"), InputError, "no time for a single iteration"),
    ],
)
def test_what_cannot_be_healed_is_told_and_no_backbone_is_kept(heal, place, weights, words, error, says):
    for name, count in (("few", 1), ("broken", 2)):
        (place / name).mkdir()
        for source in image_files(place / "images")[:count]:
            shutil.copy(source, place / name)
    (place / "broken" / "b.png").write_bytes(b"no image")
    save_file({k: v + 1 for k, v in weights.items()}, place / "other.safetensors")
    with pytest.raises(error, match=says):
        heal("--iterations", "2", *words)
    assert not (place / "library.db.healed" / "backbone.safetensors").exists()


def test_a_store_of_another_library_is_refused_and_left(heal, place, offer, weights):
    heal(*FEW)
    before = (place / "library.db.healed" / "backbone.safetensors").read_bytes()
    (place / "library.db").unlink()
    other = {name: tensor + 1 for name, tensor in weights.items()}
    Library.create(place / "library.db", offer, weights_digest(other)).close()
    save_file(other, place / "other.safetensors")
    with pytest.raises(MismatchError, match=r"delete .*library\.db\.healed, and heal again"):
        heal(*FEW, checkpoint="other.safetensors")
    assert (place / "library.db.healed" / "backbone.safetensors").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_there_is_told(heal):
    with pytest.raises(InputError, match="give --device cpu"):
        heal(*FEW, "--device", "cuda")

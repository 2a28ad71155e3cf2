"""A temporary directory that is full while an int8 file is made: no setting is blamed, the disk is."""

from pathlib import Path

import pytest
from cut_networks import CLASSES, cut_network
from test_network_cli import draw

from client.artefacts import int8
from client.artefacts.int8 import quantised
from client.export import SavedNetwork, checked_graph, save_network
from common.errors import InputError
from common.task_data import load_folder

SIZE = 1 << 20


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    mine = tmp_path_factory.mktemp("mine")
    draw(mine / "train", dict.fromkeys(CLASSES, 3))
    draw(mine / "val", dict.fromkeys(CLASSES, 2))
    return mine


@pytest.fixture(scope="module")
def saved() -> SavedNetwork:
    return cut_network("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=3)


@pytest.fixture(scope="module")
def graph(saved) -> bytes:
    return checked_graph(saved).data


def fill(place: Path, left: int) -> None:
    """Let so many bytes be free."""
    (place / "filling").write_bytes(bytes(SIZE - left))


def test_export_names_the_directory_and_writes_nothing(client, saved, mine, tmp_path, tiny_temporary):
    save_network(tmp_path / "network", saved.network, saved.backbone, saved.classes)
    fill(tiny_temporary, left=8192)
    out = tmp_path / "my.onnx"
    words = ("--network", tmp_path / "network", "--format", "onnx-int8", "--out", out, "--data", mine)
    status, _, err = client("export", *words)
    assert status == 2
    assert f"in {tiny_temporary} (No space left on device); free some space there" in err
    assert not out.exists()
    assert [path.name for path in tiny_temporary.iterdir()] == ["filling"]


@pytest.mark.parametrize("times", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("at", [1, 2])
def test_where_it_fills_meanwhile_no_setting_is_blamed(
    graph, saved, mine, tiny_temporary, monkeypatch, at, times
):
    """onnxruntime leaves half a file where there is no room for the whole, and then misreads it."""
    monkeypatch.setattr(int8, "LARGEST_DISAGREEMENT", -1.0)  # so that each setting is tried
    tried: list[str] = []

    def fill_at(setting: str) -> None:
        tried.append(setting)
        if len(tried) == at:
            fill(tiny_temporary, left=int(times * len(graph)))

    with pytest.raises((InputError, OSError), match="No space left on device"):
        quantised(graph, load_folder(mine, saved.backbone).train, fill_at)
    assert len(tried) == at


def test_with_room_for_four_of_its_size_it_is_made(graph, saved, mine, tiny_temporary):
    fill(tiny_temporary, left=4 * len(graph) + 16_384)
    assert quantised(graph, load_folder(mine, saved.backbone).train, lambda setting: None).data
    assert [path.name for path in tiny_temporary.iterdir()] == ["filling"]

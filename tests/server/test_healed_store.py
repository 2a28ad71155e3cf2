"""The healed store: a cache of bounded size that gives nothing damaged, nothing of other backbones."""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest
import torch
from healing_tasks import healed_backbone, mask_of

from common.backbone import weights_digest
from common.errors import InputError, MismatchError, WeightsError
from common.subnetwork import cut
from common.tensor_file import read_tensors
from server.healing.store import LEFTOVER_SECONDS, HealedStore

FEATURES = torch.arange(6).reshape(3, 2).half()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "library.db.healed"


@pytest.fixture
def open_store(directory, backbone, weights, structure):
    """Opens the store as another process would; `changes` are those of another backbone."""

    def open_store(**changes) -> HealedStore:
        given = {"backbone": backbone, "weights_digest": weights_digest(weights), "structure": structure}
        return HealedStore(directory, **given | changes)

    return open_store


@pytest.fixture
def store(open_store) -> HealedStore:
    return open_store()


@pytest.fixture
def healed(weights, backbone):
    return healed_backbone(weights, backbone)


@pytest.fixture
def network_of(healed):
    """What a mask leaves of the healed backbone, plus a number."""

    def network_of(mask, number=0):
        tensors = cut(healed.weights, mask)
        return {k: t + number if t.is_floating_point() else t for k, t in tensors.items()}

    return network_of


@pytest.fixture
def mask(structure):
    return mask_of(structure)


@pytest.fixture
def filled(store, healed, network_of, mask) -> HealedStore:
    store.put_backbone(healed)
    store.put_features("images", FEATURES)
    store.put_network(mask, network_of(mask))
    return store


def files_of(store: HealedStore):
    return sorted(path for path in store.directory.rglob("*") if path.is_file())


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_put_is_there_for_every_process(filled, open_store, healed, network_of, mask):
    other = open_store()
    found = other.backbone()
    assert found.facts == healed.facts
    assert same(found.weights, healed.weights)
    assert torch.equal(other.features("images"), FEATURES)
    assert same(other.network(mask), network_of(mask))


def test_nothing_is_there_before_and_after_the_directory_is(store, filled, directory, mask, caplog):
    def all_of_it():
        return store.backbone(), store.features("images"), store.network(mask)

    assert None not in all_of_it()
    for path in reversed([directory / "masks", *directory.rglob("*")]):
        path.rmdir() if path.is_dir() and not any(path.iterdir()) else path.unlink(missing_ok=True)
    assert all_of_it() == (None, None, None)
    assert not caplog.records


def test_classifiers_are_left_out(store, healed, weights):
    store.put_backbone(replace(healed, weights=dict(healed.weights) | dict(weights)))
    assert store.backbone().weights.keys() == healed.weights.keys()


def test_features_are_those_of_the_images_that_are_asked_for(filled):
    assert filled.features("other images") is None


def test_another_mask_has_no_network(filled, structure):
    assert filled.network(mask_of(structure, seed=1)) is None


@pytest.mark.parametrize("other", ["weights", "backbone", "structure"])
def test_what_is_of_another_backbone_is_ignored_with_one_warning_and_refused_by_commands(
    filled, open_store, backbone, structure, other, caplog
):
    changes = {
        "weights": {"weights_digest": "0" * 64},
        "backbone": {"backbone": replace(backbone, mean=(0.1, 0.2, 0.3))},
        "structure": {"structure": backbone.structure(("internal", "residual"))},
    }[other]
    mask = mask_of(changes.get("structure", structure))
    opened = open_store(**changes)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (opened.backbone(), opened.features("images"), opened.network(mask)) == (None,) * 3
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [f"(other {other})" in sentence for sentence in told] == [True]
    with pytest.raises(MismatchError, match=rf"\(other {other}\); delete .*healed, and heal again"):
        opened.check()
    filled.check()


@pytest.mark.parametrize("damage", ["cut short", "a bit", "a word", "empty", "text"])
def test_a_damaged_file_is_ignored_with_a_warning_and_a_network_is_removed(
    filled, open_store, mask, damage, caplog
):
    for path in files_of(filled):
        data = bytearray(path.read_bytes())
        if damage == "cut short":
            data = data[: len(data) // 2]
        elif damage == "a bit":
            data[-5] ^= 1
        elif damage == "a word":
            data = data.replace(b"facts", b"fucts", 1)
        path.write_bytes({"empty": b"", "text": b"no tensors" * 99}.get(damage, bytes(data)))
    opened = open_store()
    with caplog.at_level(logging.WARNING):
        assert (opened.backbone(), opened.features("images"), opened.network(mask)) == (None,) * 3
    assert len(caplog.records) == 3
    assert [path.name for path in files_of(opened)] == ["backbone.safetensors", "features.safetensors"]
    opened.check()


def test_one_content_is_not_taken_for_another(filled, open_store, directory, mask):
    """Files that changed places: each is whole, and says what it is."""
    network = next((directory / "masks").iterdir())
    os.replace(directory / "features.safetensors", network)
    os.link(network, directory / "features.safetensors")
    os.unlink(directory / "backbone.safetensors")
    os.link(network, directory / "backbone.safetensors")
    opened = open_store()
    assert opened.network(mask) is None
    assert opened.backbone() is None
    assert torch.equal(opened.features("images"), FEATURES)


def test_a_network_of_another_mask_is_not_taken_for_this_ones(
    filled, directory, structure, store, network_of
):
    larger = mask_of(structure, seed=2, keep=0.6)
    store.put_network(larger, network_of(larger))
    first, second = (directory / "masks").iterdir()
    os.replace(first, second)
    assert [store.network(m) for m in (mask_of(structure), larger)] == [None, None]


@pytest.mark.parametrize("wrong", ["missing", "of another shape", "not finite", "half"])
def test_tensors_that_healing_never_gives_are_refused_and_what_was_there_stays(
    filled, healed, network_of, mask, wrong
):
    def spoiled(tensors):
        name, *_ = (name for name, tensor in tensors.items() if tensor.ndim == 4)
        other = {
            "of another shape": tensors[name][1:],
            "not finite": tensors[name] * float("inf"),
            "half": tensors[name].half(),
        }.get(wrong)
        changed = {k: v for k, v in tensors.items() if k != name}
        return changed if other is None else changed | {name: other}

    with pytest.raises(WeightsError, match="not what healing gives"):
        filled.put_backbone(replace(healed, weights=spoiled(healed.weights)))
    with pytest.raises(WeightsError, match="not what healing gives"):
        filled.put_network(mask, spoiled(network_of(mask)))
    assert same(filled.backbone().weights, healed.weights)
    assert same(filled.network(mask), network_of(mask))


def test_a_backbone_that_is_written_by_another_process_is_taken_up_at_once(
    store, open_store, weights, backbone
):
    assert store.backbone() is None
    for offset in (1.0, 2.0):
        written = healed_backbone(weights, backbone, offset)
        open_store().put_backbone(written)
        assert same(store.backbone().weights, written.weights)
        assert store.backbone() is store.backbone()
    (store.directory / "backbone.safetensors").unlink()
    assert store.backbone() is None


def test_the_edition_is_another_with_another_network_or_backbone_alone(
    store, healed, network_of, mask, structure
):
    editions = [store.edition(mask)]
    for put in (
        lambda: store.put_backbone(healed),
        lambda: store.put_network(mask, network_of(mask)),
        lambda: store.put_network(mask, network_of(mask, 1)),
        lambda: store.put_backbone(healed),
    ):
        put()
        editions.append(store.edition(mask))
    assert len({*editions}) == 5
    store.network(mask)
    store.put_network(other := mask_of(structure, seed=1), network_of(other))
    assert store.edition(mask) == editions[-1]


def test_while_another_backbone_is_read_the_edition_is_of_the_one_that_is_given(
    filled, healed, open_store, weights, backbone, mask, monkeypatch
):
    """Or a network that was cut out of the one would be sent as one of the other's from then on."""
    before = filled.edition(mask)
    is_read, go_on = Event(), Event()

    def slowly(data):
        is_read.set()
        assert go_on.wait(10)
        return read_tensors(data)

    another = healed_backbone(weights, backbone, 2.0)
    open_store().put_backbone(another)
    monkeypatch.setattr("server.healing.store.read_tensors", slowly)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(filled.backbone)
        assert is_read.wait(10)
        meanwhile = filled.edition(mask), filled.backbone()
        go_on.set()
        assert same(reading.result().weights, another.weights)
    assert meanwhile[0] == before
    assert same(meanwhile[1].weights, healed.weights)
    assert filled.edition(mask) != before
    assert same(filled.backbone().weights, another.weights)


def test_the_least_recently_used_networks_make_room(open_store, structure, network_of):
    masks = [mask_of(structure, seed=seed) for seed in range(4)]
    probing = open_store()
    probing.put_network(masks[0], network_of(masks[0]))
    (size,) = (path.stat().st_size for path in files_of(probing))
    store = open_store(masks_bytes=3 * size)
    for number in (1, 2):
        store.put_network(masks[number], network_of(masks[number]))
    assert store.network(masks[0]) is not None  # so that 1 is the least recently used
    store.put_network(masks[3], network_of(masks[3]))
    assert [store.network(mask) is not None for mask in masks] == [True, False, True, True]
    open_store(masks_bytes=1).put_network(masks[1], network_of(masks[1]))
    assert [store.network(mask) is not None for mask in masks] == [False, True, False, False]


def test_what_killed_processes_began_to_write_is_removed_in_the_end(filled, network_of, mask):
    fresh, old = (filled.directory / "masks" / f".a.safetensors-{number:08x}" for number in range(2))
    for path in (fresh, old):
        path.write_bytes(b"half")
    os.utime(old, times=(0, time.time() - LEFTOVER_SECONDS - 60))
    filled.put_network(mask, network_of(mask))
    assert (fresh.exists(), old.exists()) == (True, False)


def test_many_that_write_and_read_at_once_see_whole_files_alone(
    open_store, healed, structure, network_of, caplog
):
    """Two processes' stores with room for three networks of four, from threads of each."""
    masks = [mask_of(structure, seed=seed) for seed in range(4)]
    networks = [[network_of(mask, number) for number in range(3)] for mask in masks]
    open_store().put_network(masks[0], networks[0][0])
    size = next(path.stat().st_size for path in files_of(open_store()))
    stores = [open_store(masks_bytes=3 * size) for _ in range(2)]

    def work(seed: int) -> None:
        store, mask = stores[seed % 2], seed % 4
        for turn in range(6):
            store.put_network(masks[mask], networks[mask][(seed + turn) % 3])
            found = store.network(masks[(mask + turn) % 4])
            assert found is None or any(same(found, one) for one in networks[(mask + turn) % 4])
            if turn == seed % 6:
                store.put_backbone(healed)
            assert (current := store.backbone()) is None or same(current.weights, healed.weights)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert not caplog.records
    assert not [path for path in files_of(stores[0]) if path.name.startswith(".")]


def test_a_directory_that_cannot_be_made_is_told(tmp_path, backbone, weights, structure, healed):
    (tmp_path / "file").write_text("")
    store = HealedStore(tmp_path / "file" / "healed", backbone, "0" * 64, structure)
    assert store.backbone() is None
    with pytest.raises(InputError, match="cannot be made"):
        store.put_backbone(healed)

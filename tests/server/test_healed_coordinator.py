"""What a device is sent: what was healed for its mask, else for all masks, else the backbone's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinated_tasks import ask, stock
from healing_tasks import healed_backbone, mask_of

from common.backbone import weights_digest
from common.budget import Budget
from common.half_precision import in_half_precision
from common.images import PixelImages
from common.importance import magnitude
from common.mask import Mask
from common.subnetwork import SubNetwork, cut
from server.coordinator import Coordinator
from server.healing.heal import PublicImages
from server.healing.heal_library import heal_library, store_of
from server.library import Library
from server.settings import HealingSettings, KeepRatios, VotingSettings
from server.voting import explored_units, ranks


@pytest.fixture
def library(path, offer, weights):
    with Library.create(path, offer, weights_digest(weights)) as library:
        stock(library)
        yield library


@pytest.fixture
def store(library):
    return store_of(library)


@pytest.fixture
def coordinator(library, weights, store) -> Coordinator:
    return Coordinator(library, weights, healed=store)


@pytest.fixture
def healed(weights, backbone):
    """Healed for 20 to 40 % of the units."""
    return healed_backbone(weights, backbone)


def holds(network: SubNetwork, tensors) -> bool:
    sent = in_half_precision(tensors)
    return all(torch.equal(tensor, sent[name]) for name, tensor in network.weights.items())


def test_the_best_that_there_is_is_cut_without_a_restart(coordinator, store, healed, weights, structure):
    mask = mask_of(structure, keep=0.3)
    plain = coordinator.cut(mask)
    assert not plain.healed
    assert holds(plain, cut(weights, mask))

    store.put_backbone(healed)
    network = coordinator.cut(mask)
    assert network.healed
    assert holds(network, cut(healed.weights, mask))

    alone = {name: tensor + 1 for name, tensor in cut(healed.weights, mask).items()}
    alone = {n: t.to(healed.weights[n].dtype) for n, t in alone.items()}
    store.put_network(mask, alone)
    network = coordinator.cut(mask)
    assert network.healed
    assert holds(network, alone)
    assert holds(coordinator.cut(mask_of(structure, seed=1)), cut(healed.weights, mask_of(structure, 1)))


@pytest.mark.parametrize("beyond", [1, -1])
def test_a_size_that_was_not_healed_for_is_cut_as_before(coordinator, store, healed, structure, beyond):
    """20 to 40 % were, which a quarter more or less is near to: 16 to 50 %."""
    store.put_backbone(healed)
    scores = {group.name: np.arange(group.units) for group in structure.groups}

    def network(share: float) -> SubNetwork:
        counts = [max(1, round(share * units)) for units in structure.sizes]
        return coordinator.cut(Mask.keep_top(structure, scores, counts))

    near, far = (0.47, 0.55) if beyond > 0 else (0.18, 0.12)
    assert (network(near).healed, network(far).healed) == (True, False)


def test_a_device_is_told_that_its_network_is_healed(coordinator, store, healed, offer):
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    before = coordinator.assign(task)
    store.put_backbone(healed)
    after = coordinator.assign(task)
    assert after.subnetwork.mask == before.subnetwork.mask
    for assignment, expected in ((before, False), (after, True)):
        sent = SubNetwork.from_bytes(assignment.subnetwork.to_bytes(), offer.structure)
        assert sent.healed == assignment.subnetwork.healed == expected


@pytest.mark.parametrize(("healed_for", "origin"), [(10_000.0, "importance"), (0.0, "vote")])
def test_out_of_a_healed_backbone_everybody_is_sent_what_it_was_healed_for(
    library, weights, store, healed, offer, healed_for, origin
):
    """What importance elects, or votes, as it says itself; for other sizes, as the server is told."""
    store.put_backbone(replace(healed, prior=healed_for))
    importance = ranks(magnitude(weights, offer.structure))
    served = Coordinator(library, weights, VotingSettings(explore=0.0, prior=0.5), healed=store)
    for share, expected in ((0.3, origin), (0.7, "vote")):
        assigned = served.assign(ask(offer, int(10 * share), Budget(keep_ratio=share)))
        assert assigned.neighbours
        assert assigned.origin == expected
        elected = Mask.keep_top(offer.structure, importance, assigned.target)
        assert (assigned.mask == elected) == (expected == "importance")


def test_where_importance_elects_all_devices_get_one_network_and_give_back_less(
    coordinator, store, healed, offer, weights
):
    """Nobody explores then, and yet the library learns which of its units a task needs least."""
    store.put_backbone(healed)
    importance = ranks(magnitude(weights, offer.structure))
    for number in (1, 2):
        assigned = coordinator.assign(ask(offer, number, Budget(keep_ratio=0.3)))
        held = assigned.mask.counts
        assert assigned.mask == Mask.keep_top(offer.structure, importance, held)
        assert sum(assigned.target) == sum(held) - sum(explored_units(offer.structure, held, 0.1))
        assert sum(assigned.target) < sum(held)


def test_the_next_device_is_served_as_the_next_healing_was(coordinator, store, healed, offer):
    for number, (prior, origin) in enumerate(((10_000.0, "importance"), (0.5, "vote")), start=1):
        store.put_backbone(replace(healed, prior=prior))
        assert coordinator.assign(ask(offer, number, Budget(keep_ratio=0.3))).origin == origin


def test_what_is_sent_of_an_edition_is_the_same_bytes(coordinator, store, healed, structure):
    mask = mask_of(structure)
    sent = {}
    for put in (
        lambda: None,
        lambda: store.put_backbone(healed),
        lambda: store.put_network(mask, cut(healed.weights, mask)),
    ):
        put()
        edition = coordinator.edition(mask)
        sent[edition] = bytes(coordinator.cut(mask).to_bytes())
        assert (coordinator.edition(mask), bytes(coordinator.cut(mask).to_bytes())) == (
            edition,
            sent[edition],
        )
    assert len(sent) == 3
    assert coordinator.edition(mask) != coordinator.edition(mask_of(structure, seed=1))


def test_damage_or_another_backbones_store_fails_no_device(library, weights, store, healed, structure):
    store.put_backbone(healed)
    mask = mask_of(structure)
    store.put_network(mask, cut(healed.weights, mask))
    for path in store.directory.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    network = Coordinator(library, weights, healed=store).cut(mask)
    assert not network.healed
    assert holds(network, cut(weights, mask))


def test_a_library_is_healed_through_the_votes_of_its_entries_and_served_so(
    library, weights, backbone, store
):
    """Removed entries do not vote; the ratios are those that were asked for."""
    *_, last = library.export()
    library.remove(last.entry, "boss", "it is a fish")
    pixels = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = PixelImages(pixels.byte(), torch.zeros(12, dtype=torch.int64), backbone)
    public = PublicImages.of(backbone, weights, images)
    healing = heal_library(
        library, weights, public, store, KeepRatios(0.2, 0.5), HealingSettings(3, batch_size=8)
    )
    made = healing.healed
    assert (made.entries, made.iterations, made.images) == (5, 3, len(public.images))
    assert (made.low, made.high) == (0.2, 0.5)
    assert healing.keep_ratio == pytest.approx((0.2 * 0.5) ** 0.5, abs=0.03)
    assert Coordinator(library, weights, healed=store).cut(mask_of(library.structure)).healed

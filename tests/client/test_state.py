"""A device's state directory: the next process finds what it keeps, and takes nothing else for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from devices import SMALL
from system_limits import files_at_most

from client.adapt import Adaptation, adapt_assignment
from client.export import load_network
from client.state import RECOVERY, State
from common.errors import InputError, MismatchError
from common.exchange import Receipt
from common.fine_tune import FineTuneSettings
from common.probe import Probe
from common.proto_codec import encode_offer
from common.subnetwork import SubNetwork
from server.coordinator import Coordinator

SETTINGS = FineTuneSettings(iterations=1, batch_size=8, fit_images=24)
STEPS = ("offer", "description", "assignment", "adaptation", "receipt")
FILES = (*RECOVERY,)


@pytest.fixture
def done(offer, library, weights, task, request_of) -> dict:
    """What all steps of a device came to."""
    description = request_of(SMALL)
    coordinator = Coordinator(library, weights)
    assignment = coordinator.assign(description)
    generator = torch.Generator().manual_seed(0)
    adapted, contribution = adapt_assignment(assignment, task, SETTINGS, generator)
    return {
        "offer": offer,
        "description": description,
        "assignment": coordinator.assign(description),
        "adaptation": Adaptation.of(assignment, adapted, contribution),
        "receipt": Receipt(description.request_id, 1),
    }


def fill(directory: Path, done: dict) -> Path:
    with State(directory) as state:
        state.remember(data="mine", classes=["class0", "class1", "class2"], keep_ratio=0.3)
        for step in STEPS:
            assert getattr(state, step) is None
            assert state.keep(done[step]) is done[step]
    return directory


@pytest.fixture
def directory(tmp_path, done) -> Path:
    return fill(tmp_path / "state", done)


def test_every_step_is_there_in_another_process(directory, done):
    with State(directory) as state:
        assert state.offer.probe.digest == done["offer"].probe.digest
        assert state.offer.structure == done["offer"].structure
        assert state.description == done["description"]
        assert state.receipt == done["receipt"]
        kept = state.adaptation
        assert kept == replace(done["adaptation"], adapted=None)
        network = load_network(state.network)
    assert network.classes == ("class0", "class1", "class2")
    for name, tensor in done["adaptation"].adapted.network.state_dict().items():
        assert torch.equal(network.network.state_dict()[name], tensor)


def test_whether_the_network_was_healed_is_kept_and_old_states_say_no(tmp_path, done, weights):
    assignment = done["assignment"]
    sent = assignment.subnetwork
    healed = replace(
        assignment, subnetwork=SubNetwork(sent.backbone, sent.mask, sent.weights, healed=True)
    )
    adapted = done["adaptation"].adapted
    adaptation = Adaptation.of(healed, adapted, done["adaptation"].contribution)
    assert adaptation.healed
    directory = fill(tmp_path / "healed", done | {"assignment": healed, "adaptation": adaptation})
    with State(directory) as state:
        assert state.assignment.subnetwork.healed
        assert state.adaptation.healed
    measured = directory / "measured.json"
    old = json.loads(measured.read_text())
    del old["healed"]
    measured.write_text(json.dumps(old))
    with State(directory) as state:
        assert not state.adaptation.healed


def test_the_assignment_is_kept_as_it_came_whatever_is_made_of_it(directory, done, task):
    for _ in range(2):
        with State(directory) as state:
            assignment = state.assignment
            for name, tensor in done["assignment"].subnetwork.weights.items():
                assert torch.equal(assignment.subnetwork.weights[name], tensor)
            adapt_assignment(assignment, task, SETTINGS, torch.Generator().manual_seed(1))


def test_bytes_are_those_of_messages_and_their_payloads(directory):
    def content(name):
        return (directory / name).stat().st_size - 26  # an envelope's own: ten letters, two lengths

    with State(directory) as state:
        assert list(state.bytes_up.values()) == [content("request"), content("contribution")]
        down = state.bytes_down
        assert list(down) == ["offer", "probe", "network", "receipt"]
        assert (down["network"], down["receipt"]) == (content("assignment"), content("receipt"))


@pytest.mark.parametrize("fetched", [True, False])
def test_a_probe_counts_as_far_as_it_was_downloaded(tmp_path, offer, fetched):
    """A kept one does not; and states of earlier versions, which do not say, have downloaded it."""
    message, probe = encode_offer(offer)
    with State(tmp_path / "state") as state:
        state.remember(keep_ratio=0.3)
        if fetched:
            (state.directory / f"probe.{'a' * 64}.part").write_bytes(probe)
        state.keep(offer)
        assert state.bytes_down == {"offer": len(message), "probe": len(probe) if fetched else 0}
    settings = state.directory / "settings.json"
    settings.write_text('{"keep_ratio": 0.3}')
    with State(state.directory) as state:
        assert state.bytes_down == {"offer": len(message), "probe": len(probe)}


def test_only_its_owner_may_read_it(directory):
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_what_a_system_puts_there_is_nobodys_step_and_stays(directory, done):
    for name in (".DS_Store", "._settings.json", "Thumbs.db"):
        (directory / name).write_bytes(b"of a system")
    (directory / "@eaDir").mkdir()
    with State(directory) as state:
        assert state.receipt == done["receipt"]
    assert {".DS_Store", "._settings.json", "Thumbs.db", "@eaDir"} < {p.name for p in directory.iterdir()}


def test_a_file_that_the_system_cannot_open_now_is_not_said_to_be_of_no_use(directory):
    """What to do about a file that is damaged would throw a step away."""
    with State(directory) as state, files_at_most(0), pytest.raises(InputError) as told:
        assert state.offer
    said = f"{directory}/offer cannot be read (Too many open files); allow this process more open files"
    assert str(told.value) == f"{said} (ulimit -n)"


def test_two_processes_are_not_at_it_at_once(directory):
    in_use = f"{directory} is in use by another process"
    with State(directory), pytest.raises(InputError, match=in_use):
        State(directory)
    State(directory).close()


def test_something_else_than_it_was_begun_with_is_refused_and_both_are_named(directory):
    with State(directory) as state:
        state.remember(data="mine", keep_ratio=0.3, iterations=20, learning_rate=0.1, parameters=None)
    with State(directory) as state:
        for name, other, words in (
            ("data", "yours", "data mine, now it is yours"),
            ("keep_ratio", 0.5, "keep ratio 0.3, now it is 0.5"),
            ("keep_ratio", None, "keep ratio 0.3, now there is none"),
            ("parameters", 1000, "begun with no parameters, now it is 1000"),
            ("iterations", 21, "iterations 20, now it is 21"),
            ("classes", ["class0", "x"], "classes class0, class1, class2, now it is class0, x"),
        ):
            with pytest.raises(InputError, match=words) as refused:
                state.remember(**{name: other})
            assert "another --state" in str(refused.value)
        state.remember(data="mine", seed=1)


def test_as_long_as_nothing_is_asked_another_thing_may_be(tmp_path, done):
    with State(tmp_path / "state") as state:
        state.remember(keep_ratio=1e-9)
        state.keep(done["offer"])
        state.remember(keep_ratio=0.3)
        state.keep(done["description"])
        with pytest.raises(InputError, match=r"keep ratio 0\.3, now it is 1e-09"):
            state.remember(keep_ratio=1e-9)


@pytest.mark.parametrize("content", [b"", b"no file of ours", None], ids=["empty", "text", "cut short"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_others_stay(directory, name, content):
    path = directory / name
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    before = {p.name: p.read_bytes() for p in directory.iterdir()}

    def read_all() -> None:
        with State(directory) as state:
            for step in STEPS:
                getattr(state, step)
            state.remember(data="mine")

    with pytest.raises(InputError, match=f"{path} cannot be used") as refused:
        read_all()
    assert str(refused.value).endswith(f"; {RECOVERY[name]}")
    assert str(refused.value).count("cannot be used") == 1
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


@pytest.mark.parametrize("name", ["measured.json", "network.safetensors"])
def test_a_contribution_without_what_belongs_to_it_is_told(directory, name):
    (directory / name).unlink()
    with State(directory) as state, pytest.raises(InputError, match=f"{name} is missing; remove contrib"):
        _ = state.adaptation


def test_how_it_is_tuned_may_change_until_there_is_a_contribution(directory):
    """The server is told none of it. Where it gave a receipt, the contribution has been there."""
    with State(directory) as state:
        state.remember(seed=0, iterations=20, learning_rate=1e12)
        for name in ("contribution", "receipt"):
            with pytest.raises(InputError, match=r"learning rate 1000000000000.0, now it is 0\.01"):
                state.remember(learning_rate=0.01)
            (directory / name).unlink()
        state.remember(seed=1, iterations=21, learning_rate=0.01)
        with pytest.raises(InputError, match="data mine, now it is yours"):
            state.remember(data="yours")


def test_what_is_begun_stays_so_whichever_of_its_files_is_lost(directory):
    with State(directory) as state:
        for name in ("request", "assignment", "contribution"):
            (directory / name).unlink()
            with pytest.raises(InputError, match="data mine, now it is yours"):
                state.remember(data="yours")
            with pytest.raises(InputError, match="request is missing; begin again with another --state"):
                _ = state.description
        (directory / "receipt").unlink()
        state.remember(data="yours")
        assert state.description is None


def test_another_servers_offer_is_not_taken_for_one_that_was_lost(directory, done, offer):
    (directory / "offer").unlink()
    probe = Probe(offer.probe.subnetwork, offer.probe.center + 1)
    with State(directory) as state:
        with pytest.raises(
            MismatchError, match=f"probe {probe.digest}, .* made with {offer.probe.digest}"
        ):
            state.keep(replace(offer, probe=probe))
        assert state.offer is None
        with pytest.raises(InputError, match="offer is missing, and contribution cannot be read without"):
            _ = state.adaptation
        state.keep(offer)
        assert state.adaptation == replace(done["adaptation"], adapted=None)


def test_bytes_of_what_is_lost_are_not_told(directory):
    for name in ("request", "assignment"):
        (directory / name).unlink()
    with State(directory) as state:
        assert list(state.bytes_up) == ["mask and accuracies"]
        assert list(state.bytes_down) == ["offer", "probe", "receipt"]


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis.tex', which is none of a device's steps"):
        State(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="give another directory"):
        State(tmp_path / "thesis.tex")


def test_what_a_killed_process_was_writing_is_cleared_away(directory):
    (directory / ".offer-0123abcd").write_bytes(b"half")
    State(directory).close()
    assert not (directory / ".offer-0123abcd").exists()
    (directory / ".offer-x").write_bytes(b"not ours")
    with pytest.raises(InputError, match=r"holds '\.offer-x'"):
        State(directory)


def test_a_download_ends_when_its_step_is_kept(tmp_path, done):
    with State(tmp_path / "state") as state:
        (state.directory / f"probe.{'0' * 64}.part").write_bytes(b"some of it")
        state.keep(done["offer"])
        assert sorted(path.name for path in state.directory.iterdir()) == [
            "lock",
            "offer",
            "settings.json",
        ]

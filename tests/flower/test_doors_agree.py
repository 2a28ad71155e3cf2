"""The same tasks in process, over gRPC and through Flower: the same library, and the same errors."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from grpc_server import PLENTY, running_server
from in_process_grid import InProcessGrid

from client.adapt import adapt, adapt_assignment, describe, generator_of
from client.flower_app import DeviceSettings, client_app
from client.grpc_client import Connection, RemoteCoordinator
from common.backbone import Weights
from common.budget import Budget
from common.errors import BudgetError, InputError, MaskvoteError, MismatchError
from common.exchange import Contribution, Coordinator, TaskDescription
from common.mask import Mask
from common.proto_codec import (
    decode_contribution,
    decode_task_description,
    encode_contribution,
    encode_task_description,
)
from common.record_codec import message_of, pack
from common.task_data import load_folder
from common.tuning_settings import FineTuneSettings
from server import coordinator as server_side
from server.flower_app import FleetSettings, serve_fleet
from server.library import Entry, Library
from server.serving import ServeSettings
from server.settings import VotingSettings

pytestmark = pytest.mark.usefixtures("in_a_run")

DOORS = ("process", "grpc", "flower")
METHODS = ("smsp", "mvp")
# Runners-up to explore are drawn by the request's id, which is another one each time.
VOTING = VotingSettings(explore=0)
DEVICES = DeviceSettings(keep_ratio=0.3, headroom=2.0, iterations=4, evaluate_at=(), threads=1)


@dataclass
class Doors:
    """Libraries that began alike, one behind each door."""

    founded: Path
    place: Path
    weights: Weights
    tasks: Path

    def library(self, name: str) -> Path:
        path = self.place / f"{name}.db"
        return path if path.exists() else Path(shutil.copy(self.founded, path))

    def coordinator(self, door: str, opened: ExitStack) -> Coordinator:
        library = opened.enter_context(Library.open(self.library(door)))
        if door == "process":
            return server_side.Coordinator(library, self.weights, VOTING)
        settings = ServeSettings(
            address="127.0.0.1:0", anonymous=True, limits=PLENTY, voting=VOTING, grace_seconds=5
        )
        port = opened.enter_context(running_server(library, self.weights, settings))
        downloads = self.place / "downloads"
        downloads.mkdir(exist_ok=True)
        connection = Connection(f"127.0.0.1:{port}")
        return opened.enter_context(RemoteCoordinator(connection, downloads))

    def flower(self, client, **changes):
        settings = FleetSettings(
            self.library("flower"), explore=0, at_once=1, idle_seconds=0, poll_seconds=0, ttl_seconds=60
        )
        nodes = {number: {"data-path": str(path)} for number, path in enumerate(self.folders())}
        grid = InProcessGrid(client, nodes, **changes)
        with Library.open(settings.library) as library:
            return serve_fleet(grid, library, self.weights, settings).devices

    def folders(self) -> list[Path]:
        return sorted(self.tasks.iterdir())


@pytest.fixture
def doors(founded, tmp_path, weights, tasks) -> Doors:
    return Doors(founded, tmp_path, weights, tasks)


def facts(entry: Entry, order: list[str]) -> tuple:
    """What of an entry does not depend on when and under which name it came."""
    return (
        entry.signature.digest,
        entry.mask.kept.tolist(),
        entry.method,
        entry.accuracy_before,
        entry.accuracy_after,
        entry.iterations,
        [(order.index(n.entry), n.similarity) for n in entry.neighbours],
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_door_leads_to_the_same_library(doors, method):
    settings = replace(DEVICES, method=method)
    doors.flower(client_app(settings))
    for door in ("process", "grpc"):
        with ExitStack() as opened:
            coordinator = doors.coordinator(door, opened)
            backbone = coordinator.offer().backbone
            for number, folder in enumerate(doors.folders()):
                adapt(
                    coordinator,
                    load_folder(folder, backbone),
                    settings.budget,
                    settings.fine_tuning,
                    generator_of(settings.seed, folder),
                    method=method,
                    request_id=f"{number:032x}",
                )
    found = {}
    for door in DOORS:
        with Library.open(doors.library(door)) as library:
            entries = library.entries()
            order = [entry.entry for entry in entries]
            found[door] = [facts(entry, order) for entry in entries]
    assert len(found["process"]) == 3
    assert found["grpc"] == found["process"]
    assert found["flower"] == found["process"]


# What is wrong with a request, or with a contribution: the same for every door.


def of_another_probe(task: TaskDescription) -> TaskDescription:
    return replace(task, signature=replace(task.signature, probe="0" * 64))


def of_another_width(task: TaskDescription) -> TaskDescription:
    means = np.zeros((task.signature.classes, 3), dtype=np.float16)
    return replace(task, signature=replace(task.signature, means=means))


def too_small(task: TaskDescription) -> TaskDescription:
    return replace(task, budget=Budget(parameters=1))


def never_assigned(contribution: Contribution) -> Contribution:
    return replace(contribution, request_id="f" * 32)


def of_units_never_held(contribution: Contribution) -> Contribution:
    structure = contribution.mask.structure
    scores = {name: ~contribution.mask[name] * 1.0 for name in contribution.mask}
    return replace(contribution, mask=Mask.keep_top(structure, scores, contribution.mask.counts))


def of_fewer_units(contribution: Contribution) -> Contribution:
    structure, counts = contribution.mask.structure, contribution.mask.counts
    scores = {name: contribution.mask[name] * 1.0 for name in contribution.mask}
    return replace(contribution, mask=Mask.keep_top(structure, scores, (counts[0] - 1, *counts[1:])))


REQUESTS = {
    of_another_probe: (MismatchError, "the signature was made with probe 000000000000"),
    of_another_width: (InputError, "the signature is 3 wide"),
    too_small: (BudgetError, "the smallest sub-network of test_resnet needs"),
}
CONTRIBUTIONS = {
    of_units_never_held: (InputError, "units that the device never held"),
    of_fewer_units: (InputError, "asked for were"),
}


def refusal(
    doors: Doors, door: str, of_request: Callable | None, of_mask: Callable | None
) -> MaskvoteError:
    """What a device's steps end in, its request or its contribution made wrong."""

    def steps(coordinator: Coordinator) -> None:
        offer = coordinator.offer()
        task = load_folder(doors.folders()[0], offer.backbone)
        description = describe(offer, task, DEVICES.budget, "smsp", "0" * 32)
        assignment = coordinator.assign(of_request(description) if of_request else description)
        _, contribution = adapt_assignment(
            assignment, task, FineTuneSettings(iterations=1), torch.Generator().manual_seed(0)
        )
        coordinator.record(of_mask(contribution) if of_mask else contribution)

    with ExitStack() as opened:
        coordinator = doors.coordinator(door, opened)
        with pytest.raises(MaskvoteError) as refused:
            steps(coordinator)
    return refused.value


def flower_refusals(doors: Doors, of_request: Callable | None, of_mask: Callable | None) -> Iterator[str]:
    """The server's sentences about replies that were made wrong on their way."""

    def wrong(request: Message, reply: Message) -> Message:
        message = message_of(reply.content)
        if request.metadata.message_type == "query.signature":
            if of_request is None:
                return reply
            changed = encode_task_description(of_request(decode_task_description(message)))
            return Message(pack(changed), reply_to=request)
        if of_mask is None:
            return reply
        with Library.open(doors.library("flower")) as library:
            contribution = decode_contribution(message, library.offer.structure)
        reply.content["message"]["message"] = encode_contribution(of_mask(contribution))
        return reply

    client = client_app(replace(DEVICES, iterations=1))
    for device in doors.flower(client, mischief=dict.fromkeys(range(3), wrong)):
        assert device.failure == "refused"
        yield device.error


def without_names(sentence: str) -> str:
    """A sentence without the request's id, which no two requests share."""
    return " ".join("ID" if len(word.strip(":;")) == 32 else word for word in sentence.split())


@pytest.mark.parametrize("wrong", [*REQUESTS, *CONTRIBUTIONS], ids=lambda wrong: wrong.__name__)
def test_every_door_refuses_the_same_for_the_same_reason(doors, wrong):
    kind, words = {**REQUESTS, **CONTRIBUTIONS}[wrong]
    faults = (wrong, None) if wrong in REQUESTS else (None, wrong)
    inside, outside = (refusal(doors, door, *faults) for door in ("process", "grpc"))
    assert isinstance(inside, kind)
    assert words in str(inside)
    assert type(outside) is type(inside)
    assert str(outside) == str(inside)
    sentences = list(flower_refusals(doors, *faults))
    assert len(sentences) == 3
    assert without_names(sentences[0]) == without_names(str(inside))
    for door in DOORS:
        with Library.open(doors.library(door)) as library:
            assert len(library) == 0


def test_what_was_never_assigned_is_refused_alike(doors):
    found = []
    for door in ("process", "grpc"):
        found.append(refusal(doors, door, None, never_assigned))
    assert str(found[0]) == str(found[1])
    assert type(found[0]) is type(found[1]) is InputError
    assert "was never assigned here" in str(found[0])

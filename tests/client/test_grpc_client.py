"""A device's side of gRPC: it ends with what it would have had in process, whatever the network does."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
import timm
import torch
from devices import SMALL, remote
from grpc_server import PLENTY, running_server

from client.adapt import Unkept, adapt
from client.grpc_client import Connection, RemoteCoordinator
from common.backbone import weights_digest
from common.budget import Budget
from common.errors import BudgetError, InputError, MismatchError, TokenError, UnavailableError
from common.exchange import Limits
from common.tuning_settings import FineTuneSettings
from server import tokens
from server.coordinator import Coordinator
from server.library import Library
from server.serving import ServeSettings

REQUEST_ID = "ab" * 16
SETTINGS = FineTuneSettings(iterations=2, batch_size=8, fit_images=24)


def whole_adaptation(coordinator, task):
    steps = Unkept()
    adaptation, receipt = adapt(
        coordinator, task, SMALL, SETTINGS, torch.Generator().manual_seed(5),
        request_id=REQUEST_ID, steps=steps,
    )  # fmt: skip
    return adaptation.contribution, adaptation.accuracies, receipt, steps.assignment.target


def test_a_whole_adaptation_through_a_server_is_the_one_in_process(
    library, weights, offer, task, port, tmp_path
):
    with remote(port, tmp_path / "downloads") as coordinator:
        outside = whole_adaptation(coordinator, task)
        assert coordinator.terms.weights_digest == weights_digest(weights)
    with Library.create(tmp_path / "other.db", offer, weights_digest(weights)) as other:
        inside = whole_adaptation(Coordinator(other, weights), task)
    assert outside == inside
    assert len(library) == 1


# What does not belong together


def test_another_timm_is_refused_before_the_probe_is_downloaded(port, tmp_path, monkeypatch):
    served = timm.__version__
    monkeypatch.setattr("timm.__version__", "0.9.16")
    with (
        remote(port, tmp_path / "d") as coordinator,
        pytest.raises(MismatchError, match=r"installed here is timm 0\.9\.16") as refused,
    ):
        coordinator.offer()
    assert f"pip install timm=={served}" in str(refused.value)
    assert list((tmp_path / "d").iterdir()) == []


def test_another_backbone_than_that_of_before_is_refused_with_both_digests(
    port, offer, request_of, tmp_path
):
    known = replace(offer, probe=replace(offer.probe, center=offer.probe.center + 1))
    with remote(port, tmp_path / "d", known=known) as coordinator:
        for call in (coordinator.offer, lambda: coordinator.assign(request_of(SMALL))):
            with pytest.raises(MismatchError, match=offer.probe.digest) as refused:
                call()
            assert known.probe.digest in str(refused.value)
    assert list((tmp_path / "d").iterdir()) == []
    with remote(port, tmp_path / "d", known=offer) as coordinator:
        assert coordinator.assign(request_of(SMALL)).request_id == "0" * 32


# Who is let in, and when


def test_errors_are_those_of_the_server_itself(port, library, weights, request_of, tmp_path):
    with remote(port, tmp_path / "d", patience_seconds=60) as coordinator:
        began = time.monotonic()
        for description in (
            request_of(Budget(parameters=1)),
            replace(request_of(SMALL), signature=replace(request_of(SMALL).signature, probe="0" * 64)),
        ):
            with pytest.raises((BudgetError, MismatchError)) as outside:
                coordinator.assign(description)
            with pytest.raises(type(outside.value)) as inside:
                Coordinator(library, weights).assign(description)
            assert str(outside.value) == str(inside.value)
        assert time.monotonic() - began < 20


def test_a_revoked_token_is_told_at_once_and_nothing_is_tried_again(
    library, weights, request_of, tmp_path
):
    token = tokens.add(library, "kitchen", "device")
    settings = ServeSettings(address="127.0.0.1:0", limits=PLENTY, grace_seconds=5)
    with running_server(library, weights, settings) as port:
        connection = Connection(f"127.0.0.1:{port}", token)
        with remote(port, tmp_path / "d", connection=connection, patience_seconds=60) as coordinator:
            coordinator.assign(request_of(SMALL))
            tokens.revoke(library, "kitchen")
            began = time.monotonic()
            with pytest.raises(TokenError, match="ask its operator for a new one"):
                coordinator.assign(request_of(SMALL, 1))
        with (
            remote(port, tmp_path / "d", patience_seconds=60) as coordinator,
            pytest.raises(TokenError, match="has no token"),
        ):
            coordinator.offer()
        assert time.monotonic() - began < 10


def test_a_server_that_has_too_much_to_do_is_asked_again_when_it_said(library, weights, tmp_path):
    settings = ServeSettings(
        address="127.0.0.1:0",
        anonymous=True,
        limits=Limits(calls_per_minute=60, burst=1),
        grace_seconds=5,
    )
    told = []
    with running_server(library, weights, settings) as port:
        with remote(port, tmp_path / "d", patience_seconds=20, tell=told.append) as coordinator:
            began = time.monotonic()
            coordinator.offer()  # two calls: the second is early
            assert 0.8 < time.monotonic() - began < 5
        with (
            remote(port, tmp_path / "d") as coordinator,
            pytest.raises(UnavailableError, match="more than 60 calls a minute"),
        ):
            coordinator.offer()
    assert ["trying on for 20 seconds" in sentence for sentence in told] == [True]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_server_that_is_away_is_waited_for(library, weights, hasty, tmp_path):
    port, told = free_port(), []
    settings = ServeSettings(address=f"127.0.0.1:{port}", anonymous=True, limits=PLENTY, grace_seconds=5)

    def start_when_missed(sentence: str) -> None:
        told.append(sentence)
        servers.append(running_server(library, weights, settings))
        servers[0].__enter__()

    servers = []
    with remote(port, tmp_path / "d", patience_seconds=60, tell=start_when_missed) as coordinator:
        assert coordinator.offer().structure == library.offer.structure
        servers[0].__exit__(None, None, None)
    assert len(told) == 1
    assert f"127.0.0.1:{port} does not answer" in told[0]


def test_patience_runs_out_and_says_so(hasty, tmp_path):
    port = free_port()
    with remote(port, tmp_path / "d", patience_seconds=0.5) as coordinator:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"tried for .* try again later") as away:
            coordinator.offer()
        assert 0.5 <= time.monotonic() - began < 10
    assert away.value.exit_status == 6
    assert f"127.0.0.1:{port}" in str(away.value)
    for wrong in (-1, float("nan")):
        with pytest.raises(InputError, match="a number from 0"):
            RemoteCoordinator(Connection("127.0.0.1:1"), tmp_path, patience_seconds=wrong)


def test_what_is_no_maskvote_server_is_told(tmp_path):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with (
        remote(port, tmp_path / "d", patience_seconds=60) as coordinator,
        pytest.raises(MismatchError, match="does not know this call"),
    ):
        coordinator.offer()
    server.stop(None).wait()

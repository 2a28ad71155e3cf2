"""Whatever bytes a device sends: a status and a sentence, soon, and nothing is stored.

A hundred thousand such messages, with the server's memory and time, are in benchmarks/grpc_abuse.py.
"""

import time
from collections import deque

import grpc
import numpy as np
import pytest
from damaged_bytes import damaged
from grpc import StatusCode
from grpc_server import running_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_tasks import random_mask, random_signature

from common.backbone import weights_digest
from common.budget import Budget
from common.exchange import Contribution, TaskDescription
from common.grpc_codec import (
    DEVICES,
    ERROR_KIND,
    KINDS,
    Resume,
    encode_fetch_probe,
    encode_fetch_subnetwork,
    full_name,
)
from common.proto_codec import encode_contribution, encode_task_description
from server.library import Library

REQUEST_ID = "ab" * 16
REFUSALS = (StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION)


@pytest.fixture(scope="module")
def served(tmp_path_factory, offer, weights):
    """A library, and a channel to its server."""
    path = tmp_path_factory.mktemp("served") / "library.db"
    with (
        Library.create(path, offer, weights_digest(weights)) as library,
        running_server(library, weights) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield library, channel


@pytest.fixture(scope="module")
def sound(offer) -> dict[str, bytes]:
    """Of every method that reads its message, one that is well-formed; the request is never assigned."""
    generator = np.random.default_rng(0)
    task = TaskDescription(REQUEST_ID, random_signature(offer.probe, generator), Budget(keep_ratio=0.3))
    contribution = Contribution(REQUEST_ID, random_mask(offer.structure, generator), 0.25, 0.75, 50)
    resume = Resume("cd" * 32, 1000)
    return {
        "FetchProbe": encode_fetch_probe(resume),
        "Assign": encode_task_description(task),
        "FetchSubNetwork": encode_fetch_subnetwork(REQUEST_ID, resume),
        "Record": encode_contribution(contribution),
    }


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_malformed_messages_are_refused_in_a_sentence_and_leave_nothing(served, sound, data):
    library, channel = served
    name = data.draw(st.sampled_from(sorted(sound)))
    message = data.draw(damaged(sound[name]))
    before = library.statistics()
    call = channel.stream_stream(full_name(DEVICES.methods_by_name[name]))(iter([message]), timeout=10)
    began, refused = time.perf_counter(), None
    try:
        deque(call, maxlen=0)
    except grpc.RpcError as error:
        refused = error
    assert time.perf_counter() - began < 5
    assert library.damaged == ()
    after = library.statistics()
    if refused is None:
        # Bytes that happen to be another message of the same kind.
        assert name != "Record"
        assert after.voting == before.voting
        return
    assert refused.code() in REFUSALS, (refused.code(), refused.details())
    assert dict(refused.trailing_metadata())[ERROR_KIND] in KINDS
    assert len(refused.details()) > 20
    assert refused.details().isprintable()
    assert after == before

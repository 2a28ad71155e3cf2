"""What crosses inside a Flower message comes out as it went in, and anything else is refused."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import InputError
from common.record_codec import Measured, measured_of, message_of, pack, payload_of

MEASURED = Measured({0: 0.25, 25: 0.5}, {"fit": 0.1, "tune": 2.5}, parameters=1234, partition=3)


@pytest.mark.parametrize("payload", [b"", b"\x00", bytes(range(256)) * 1000])
def test_message_and_payload_come_out_as_they_went_in(payload):
    content = pack(b"\x08\x01", payload)
    assert message_of(content) == b"\x08\x01"
    assert payload_of(content) == payload
    assert len(content["payload"]) == 1, "one array, as Flower takes some ms for each"


@pytest.mark.parametrize("measured", [MEASURED, Measured({0: 1.0}, {}, parameters=1)])
def test_measurements_come_out_as_they_went_in(measured):
    assert measured_of(pack(b"", measured=measured)) == measured


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"message": MetricRecord({"message": 1}), "payload": ConfigRecord({"payload": b""})}),
        RecordDict({"message": ConfigRecord({"message": "text"}), "payload": ArrayRecord()}),
        RecordDict({"message": ConfigRecord(), "payload": ArrayRecord({"other": Array(np.zeros(3))})}),
        RecordDict({"payload": ArrayRecord({"payload": Array(np.zeros(3))})}),
        RecordDict({"payload": ArrayRecord({"payload": Array("uint8", (3,), "numpy.ndarray", b"x")})}),
        RecordDict({"payload": ArrayRecord({"payload": Array("uint8", (3,), "unheard of", b"x")})}),
    ],
)
def test_content_of_another_shape_is_refused(content):
    with pytest.raises(InputError):
        message_of(content)
    with pytest.raises(InputError):
        payload_of(content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy-0", 1.01),
        ("accuracy-0", float("nan")),
        ("accuracy-0", [0.5]),
        ("accuracy--1", 0.5),
        ("accuracy-", 0.5),
        ("accuracy-9999999999", 0.5),
        ("seconds-fit", -1.0),
        ("seconds-\x1b[31m", 1.0),
        ("seconds-fit", float("inf")),
        ("parameters", 1.5),
        ("partition", -1),
        ("other", 1),
    ],
)
def test_a_measurement_that_is_none_is_refused_by_name(name, value):
    content = pack(b"", measured=MEASURED)
    content["measured"][name] = value
    with pytest.raises(InputError, match=re.escape(repr(name))):
        measured_of(content)


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord(),
        MetricRecord(),
        MetricRecord({"parameters": 1}),
        MetricRecord({"accuracy-0": 0.5, "partition": 1}),
        MetricRecord({f"accuracy-{number}": 0.5 for number in range(1001)}),
    ],
)
def test_measurements_that_lack_something_or_are_too_many_are_refused(record):
    with pytest.raises(InputError):
        measured_of(RecordDict({"measured": record}))

"""What crosses inside a Flower message: our own message, the network beside it, and measurements.

The message is protobuf (see proto_codec), a ConfigRecord's one value; a network is ONE uint8 array,
as Flower spends some ten milliseconds on each. Unpacking raises InputError for what is missing or no use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import InputError
from common.files import Data

MESSAGE, PAYLOAD, MEASURED = "message", "payload", "measured"
"""Names of the records, and of the one value in each of the first two."""

MAX_MEASUREMENTS = 1000
ACCURACY, SECONDS = re.compile(r"accuracy-([0-9]{1,9})"), re.compile(r"seconds-([a-z_]{1,40})")


@dataclass(frozen=True)
class Measured:
    """What a device measured while it adapted.

    `accuracies` in [0, 1] by iterations done; `seconds` by step; `parameters` of the network that it
    ended with; `partition` where the device has a number.
    """

    accuracies: Mapping[int, float]
    seconds: Mapping[str, float]
    parameters: int
    partition: int | None = None


def pack(message: bytes, payload: Data | None = None, measured: Measured | None = None) -> RecordDict:
    """A Flower message's content."""
    content = RecordDict({MESSAGE: ConfigRecord({MESSAGE: message})})
    if payload is not None:
        array = Array(np.frombuffer(payload, dtype=np.uint8))
        content[PAYLOAD] = ArrayRecord({PAYLOAD: array})
    if measured is not None:
        content[MEASURED] = _metrics(measured)
    return content


def message_of(content: RecordDict) -> bytes:
    """Our message's bytes."""
    record = content.get(MESSAGE)
    message = record.get(MESSAGE) if isinstance(record, ConfigRecord) else None
    if not isinstance(message, bytes):
        raise InputError(f"there is no {MESSAGE} among {_names(content)}; use one version of maskvote")
    return message


def payload_of(content: RecordDict) -> memoryview:
    """The network's bytes, in memory of their own."""
    record = content.get(PAYLOAD)
    array = record.get(PAYLOAD) if isinstance(record, ArrayRecord) else None
    if array is None:
        raise InputError(f"there is no {PAYLOAD} among {_names(content)}; use one version of maskvote")
    try:
        values = array.numpy()
    except (TypeError, ValueError, OSError, EOFError) as error:
        raise InputError(f"the {PAYLOAD} cannot be read: {error!r}; have it sent again") from error
    if values.dtype != np.uint8 or values.ndim != 1:
        raise InputError(f"the {PAYLOAD} is {values.dtype} {values.shape}; it is uint8 (bytes,)")
    return np.ascontiguousarray(values).data


def measured_of(content: RecordDict) -> Measured:
    """What a device measured; InputError names every number that is out of its range."""
    record = content.get(MEASURED)
    if not isinstance(record, MetricRecord) or len(record) > MAX_MEASUREMENTS:
        raise InputError(f"there is no {MEASURED} of at most {MAX_MEASUREMENTS} values; send it")
    accuracies: dict[int, float] = {}
    seconds: dict[str, float] = {}
    numbers: dict[str, int] = {}
    problems = []
    for name, value in record.items():
        if (at := ACCURACY.fullmatch(name)) and _within(value, 1):
            accuracies[int(at[1])] = float(value)
        elif (step := SECONDS.fullmatch(name)) and _within(value, 2**31):
            seconds[step[1]] = float(value)
        elif name in ("parameters", "partition") and _within(value, 2**63) and isinstance(value, int):
            numbers[name] = value
        else:
            problems.append(f"{name[:40]!r} is {str(value)[:40]}")
    if not accuracies or "parameters" not in numbers:
        problems.append(f"{len(accuracies)} accuracies, parameters {numbers.get('parameters')}")
    if problems:
        raise InputError(f"these are no measurements: {'; '.join(problems[:5])}; measure again")
    ordered = dict(sorted(accuracies.items()))
    return Measured(ordered, seconds, numbers["parameters"], numbers.get("partition"))


def _metrics(measured: Measured) -> MetricRecord:
    metrics = MetricRecord({"parameters": measured.parameters})
    if measured.partition is not None:
        metrics["partition"] = measured.partition
    for iterations, accuracy in measured.accuracies.items():
        metrics[f"accuracy-{iterations}"] = accuracy
    for step, seconds in measured.seconds.items():
        metrics[f"seconds-{step}"] = seconds
    return metrics


def _within(value: object, largest: float) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and 0 <= value <= largest


def _names(content: RecordDict) -> str:
    return ", ".join(str(name)[:40] for name in list(content)[:5]) or "no records"

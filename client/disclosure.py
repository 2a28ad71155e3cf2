"""Disclosure: what a device's request tells about it, field by field and byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import Message

from common.exchange import TaskDescription
from common.proto_codec import HALF, encode_task_description, parsed_as
from protos import maskvote_pb2 as pb

SHOWN_NUMBERS = 6
"""Of a long row of numbers."""


@dataclass(frozen=True)
class Field:
    """A part of a request: its name in the protocol, its bytes, what it is, and its value."""

    name: str
    size: int
    meaning: str
    value: str


def disclose(description: TaskDescription) -> tuple[bytes, list[Field]]:
    """The message that is sent, and all that is in it; the fields' bytes add up to the message's."""
    message = encode_task_description(description)
    parsed = parsed_as(pb.TaskDescription, message)
    signature, budget = parsed.signature, parsed.budget
    means = np.frombuffer(signature.means, HALF)
    told = {
        "request_id": ("random; asking twice by it is asking once", description.request_id),
        "signature.probe_digest": (
            "the server's probe, by which it is made",
            description.signature.probe,
        ),
        "signature.width": ("features of an image", f"{signature.width:,}"),
        "signature.counts": ("images of each class; no class has a name", _row(signature.counts)),
        "signature.means": ("class by class, the mean of its features", _row(means)),
        "budget.keep_ratio": ("share of the units that you can afford", f"{budget.keep_ratio:g}"),
        "budget.parameters": ("parameters that you can afford", f"{budget.parameters:,}"),
        "budget.headroom": ("how many times that while adapting", f"{budget.headroom:g}"),
        "method": ("how the sub-network is found", description.method),
    }
    fields = [Field(name, size, *told[name]) for name, size in _sizes(parsed)]
    rest = len(message) - sum(field.size for field in fields)
    return message, [*fields, Field("", rest, "where its parts begin", "")]


def _sizes(message: Message, within: str = "") -> Iterator[tuple[str, int]]:
    """The name and encoded size of every field that holds no others."""
    for field, value in message.ListFields():
        if isinstance(value, Message):
            yield from _sizes(value, f"{within}{field.name}.")
        else:
            alone = type(message)(**{field.name: value})
            yield within + field.name, alone.ByteSize()


def _row(numbers: Sequence[int] | np.ndarray) -> str:
    """The first of many numbers, and how many more there are."""
    shown = ", ".join(f"{number:.4g}" for number in numbers[:SHOWN_NUMBERS])
    more = len(numbers) - SHOWN_NUMBERS
    return shown if more <= 0 else f"{shown}, and {more:,} more"

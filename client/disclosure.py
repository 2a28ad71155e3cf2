"""Disclosure: what a device's request tells about it, field by field and byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import Message

from common.exchange import TaskDescription
from common.privacy import DIRECTIONS, Privacy
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


def disclose(description: TaskDescription, privacy: Privacy | None = None) -> tuple[bytes, list[Field]]:
    """The message that is sent, and all that is in it; the fields' bytes add up to the message's.

    `privacy` is what the description was made with.
    """
    message = encode_task_description(description)
    parsed = parsed_as(pb.TaskDescription, message)
    signature, budget = parsed.signature, parsed.budget
    means = np.frombuffer(signature.means, HALF)
    noised = "" if privacy is None else ", with noise"
    told = {
        "request_id": ("random; asking twice by it is asking once", description.request_id),
        "signature.probe_digest": (
            "the server's probe, by which it is made",
            description.signature.probe,
        ),
        "signature.width": ("features of an image", f"{signature.width:,}"),
        "signature.counts": (
            f"images of each class{noised}; no class has a name",
            _row(signature.counts),
        ),
        "signature.means": (f"class by class, the mean of its features{noised}", _row(means)),
        "budget.keep_ratio": ("share of the units that you can afford", f"{budget.keep_ratio:g}"),
        "budget.parameters": ("parameters that you can afford", f"{budget.parameters:,}"),
        "budget.flops": ("operations that you can afford for an image", f"{budget.flops:,}"),
        "budget.weight_bytes": ("bytes of weights that you can afford", f"{budget.weight_bytes:,}"),
        "budget.activation_bytes": (
            "bytes of activations that you can afford",
            f"{budget.activation_bytes:,}",
        ),
        "budget.latency_ms": ("milliseconds that an image may take you", f"{budget.latency_ms:g}"),
        "budget.latency.structure": (
            "what your latency table is of",
            budget.latency.structure.hex(),
        ),
        "budget.latency.flops": ("sizes in your latency table", _row(budget.latency.flops)),
        "budget.latency.milliseconds": (
            "how long they take on your device",
            _row(budget.latency.milliseconds),
        ),
        "budget.multiple": ("what widths are to be multiples of", f"{budget.multiple}"),
        "budget.headroom": ("how many times that while adapting", f"{budget.headroom:g}"),
        "budget.wait_seconds": ("how long you wait for it to be healed", f"{budget.wait_seconds:g}"),
        "method": ("how the sub-network is found", description.method),
    }
    fields = [Field(name, size, *told[name]) for name, size in _sizes(parsed)]
    rest = len(message) - sum(field.size for field in fields)
    return message, [*fields, Field("", rest, "where its parts begin", "")]


def guarantee_of(privacy: Privacy | None) -> str:
    """What a request guarantees of the images that it tells about, in a sentence or two."""
    if privacy is None:
        return (
            "No noise is in it, and nothing is guaranteed: class means over few images tell something "
            "about them. --epsilon adds noise with a guarantee."
        )
    return (
        f"It is differentially private ({privacy}) for one image added or removed. Another request about "
        "the same images spends as much again; the mask and the accuracies given back are not covered."
    )


def warning_of(description: TaskDescription, privacy: Privacy | None) -> str | None:
    """What to know where noise drowns some class, going by the counts that are told; None if none is."""
    if privacy is None:
        return None
    signature = description.signature
    enough = privacy.enough_images(min(DIRECTIONS, signature.means.shape[1]))
    few = int((signature.counts < enough).sum())
    if not few:
        return None
    return (
        f"Noise drowns {few} of the {signature.classes} classes: at {privacy}, a class needs some "
        f"{enough} images to be told from others, else near tasks are missed. Take more images, or a "
        "larger epsilon."
    )


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

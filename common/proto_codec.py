"""What crosses the wire, as bytes: messages of protos/maskvote.proto, and the payloads beside them.

Functions come in pairs, and decode(encode(x)) == x. A network is not inside its message but a payload
beside it, announced there by size and sha256: such pairs give and take (message, payload). Decoding
trusts no byte: it returns a valid object, or raises InputError (SignatureError, MaskError,
WeightsError and BudgetError are kinds of it) or MismatchError; limits are checked before allocation.

torch is imported where a network is decoded, as what else there is can do without.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from common import exchange
from common.budget_codec import budget_in, budget_message
from common.errors import InputError, MaskvoteError, MismatchError, SignatureError, WeightsError
from common.files import Data
from common.mask import Mask
from common.signature import MAX_CLASSES, TaskSignature
from common.structure import Structure
from protos import maskvote_pb2 as pb

if TYPE_CHECKING:
    from common.backbone import Backbone

MAX_MESSAGE_BYTES = 4 * 2**20  # gRPC's default
MAX_MEANS_BYTES = 4_096_000  # 1000 classes of 2048 features; a message holds them and a mask
MAX_PAYLOAD_BYTES = 2 * 2**30
MAX_STRUCTURE_BYTES = 4 * 2**20  # of JSON; timm's larger models need some tens of kilobytes
MAX_UNITS = 2**24
MAX_WIDTH = 2**14
MAX_ENTRY_CHARACTERS = 200

DIGEST_BYTES, REQUEST_ID_BYTES = 32, 16
HALF = np.dtype("<f2")

METHODS: dict[exchange.Method, pb.Method] = {"smsp": pb.METHOD_SMSP, "mvp": pb.METHOD_MVP}
ORIGINS: dict[exchange.Origin, pb.Origin] = {"vote": pb.ORIGIN_VOTE, "importance": pb.ORIGIN_IMPORTANCE}

MALFORMED = (DecodeError, zlib.error, ArithmeticError, AttributeError, LookupError, RecursionError,
             TypeError, ValueError)  # fmt: skip
"""What parsers raise for bytes not theirs: json RecursionError if nested deeply, numpy OverflowError."""

AnyMessage = TypeVar("AnyMessage", bound=Message)
Name = TypeVar("Name", bound=str)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever malformed bytes raise into an InputError."""
    try:
        yield
    except MaskvoteError:
        raise
    except MALFORMED as error:
        raise InputError(f"this is no {what}: {repr(error)[:200]}; have it sent again") from error


def encode_offer(offer: exchange.Offer) -> tuple[bytes, memoryview]:
    """The message, and the probe's file: it describes the backbone, so MismatchError if of another."""
    if offer.probe.subnetwork.backbone.to_json() != offer.backbone.to_json():
        raise MismatchError(f"the probe is not cut from the {offer.backbone.model} on offer; cut it anew")
    payload = offer.probe.to_bytes()
    message = pb.Offer(
        structure=structure_message(offer.structure),
        probe_digest=bytes.fromhex(offer.probe.digest),
        probe=_announce(payload),
    )
    return serialized(message), payload


@refusing("offer")
def offered_structure(message: bytes, payload: Data) -> Structure:
    """The structure in an offer, whose probe is no other than the announced one. It needs no torch."""
    parsed = parsed_as(pb.Offer, message)
    structure = structure_in(parsed.structure)
    _check_announced(payload, parsed.probe)
    return structure


@refusing("offer")
def decode_offer(message: bytes, payload: Data) -> exchange.Offer:
    """The offer, its structure and its probe checked against their digests."""
    structure = offered_structure(message, payload)
    parsed = parsed_as(pb.Offer, message)
    # Here, so that what is wrong with the message is told before torch is imported.
    from common.probe import Probe

    probe = Probe.from_bytes(payload, structure)
    _check_same(probe.digest, parsed.probe_digest, "probe")
    _check_model(probe.subnetwork.backbone, structure)
    return exchange.Offer(probe.subnetwork.backbone, structure, probe)


def encode_task_description(task: exchange.TaskDescription) -> bytes:
    """The message."""
    message = pb.TaskDescription(
        request_id=bytes.fromhex(task.request_id),
        signature=signature_message(task.signature),
        budget=budget_message(task.budget),
        method=METHODS[task.method],
    )
    return serialized(message)


@refusing("task description")
def decode_task_description(message: bytes) -> exchange.TaskDescription:
    """The task description; whether its signature is of the right probe is for the probe to say."""
    parsed = parsed_as(pb.TaskDescription, message)
    return exchange.TaskDescription(
        request_id=hexadecimal(parsed.request_id, REQUEST_ID_BYTES, "request id"),
        signature=signature_in(parsed.signature),
        budget=budget_in(parsed.budget),
        method=named(METHODS, parsed.method, "method"),
    )


def encode_choice(choice: exchange.Choice) -> bytes:
    """The message of an Assignment whose network is fetched apart, and announced there."""
    return serialized(_choice_message(choice))


def encode_assignment(assignment: exchange.Assignment) -> tuple[bytes, memoryview]:
    """The message, and the sub-network's file."""
    payload = assignment.subnetwork.to_bytes()
    message = _choice_message(assignment)
    message.subnetwork.CopyFrom(_announce(payload))
    return serialized(message), payload


@refusing("assignment")
def with_subnetwork(choice: bytes, size: int, sha256: str) -> bytes:
    """The message of `encode_assignment`, made of `encode_choice`'s and what was announced apart."""
    message = parsed_as(pb.Assignment, choice)
    message.subnetwork.CopyFrom(pb.Payload(size_bytes=size, sha256=bytes.fromhex(sha256)))
    return serialized(message)


@refusing("assignment")
def decode_assignment(message: bytes, payload: Data, structure: Structure) -> exchange.Assignment:
    """The assignment, for a device that was offered this structure."""
    from common.subnetwork import SubNetwork

    parsed = parsed_as(pb.Assignment, message)
    mask = mask_in(parsed.mask, structure)
    _check_announced(payload, parsed.subnetwork)
    subnetwork = SubNetwork.from_bytes(payload, structure)
    assignment = exchange.Assignment(
        request_id=hexadecimal(parsed.request_id, REQUEST_ID_BYTES, "request id"),
        classes=parsed.classes,
        method=named(METHODS, parsed.method, "method"),
        origin=named(ORIGINS, parsed.origin, "origin"),
        mask=mask,
        target=tuple(parsed.target),
        rounds=parsed.rounds,
        neighbours=neighbours_in(parsed.neighbours),
        subnetwork=subnetwork,
    )
    _check_model(subnetwork.backbone, structure)
    return assignment


def _choice_message(choice: exchange.Choice) -> pb.Assignment:
    return pb.Assignment(
        request_id=bytes.fromhex(choice.request_id),
        classes=choice.classes,
        method=METHODS[choice.method],
        origin=ORIGINS[choice.origin],
        mask=mask_message(choice.mask),
        target=choice.target,
        rounds=choice.rounds,
        neighbours=neighbour_messages(choice.neighbours),
    )


def encode_contribution(contribution: exchange.Contribution) -> bytes:
    """The message."""
    message = pb.Contribution(
        request_id=bytes.fromhex(contribution.request_id),
        mask=mask_message(contribution.mask),
        accuracy_before=contribution.accuracy_before,
        accuracy_after=contribution.accuracy_after,
        iterations=contribution.iterations,
    )
    return serialized(message)


@refusing("contribution")
def decode_contribution(message: bytes, structure: Structure) -> exchange.Contribution:
    """The contribution, for a library of this structure."""
    parsed = parsed_as(pb.Contribution, message)
    return exchange.Contribution(
        request_id=hexadecimal(parsed.request_id, REQUEST_ID_BYTES, "request id"),
        mask=mask_in(parsed.mask, structure),
        accuracy_before=parsed.accuracy_before,
        accuracy_after=parsed.accuracy_after,
        iterations=parsed.iterations,
    )


def encode_receipt(receipt: exchange.Receipt) -> bytes:
    """The message."""
    return serialized(pb.Receipt(**asdict(receipt)))


@refusing("receipt")
def decode_receipt(message: bytes) -> exchange.Receipt:
    """The receipt."""
    parsed = parsed_as(pb.Receipt, message)
    check_at_most(len(parsed.entry), MAX_ENTRY_CHARACTERS, "characters of entry")
    return exchange.Receipt(parsed.entry, parsed.entries)


def parsed_as(kind: type[AnyMessage], message: bytes) -> AnyMessage:
    """A message of this kind. InputError above 4 MiB; malformed bytes are for `refusing` to tell."""
    check_at_most(len(message), MAX_MESSAGE_BYTES, "bytes of message")
    return kind.FromString(message)


def serialized(message: Message) -> bytes:
    """A message's bytes. InputError above 4 MiB."""
    check_at_most(message.ByteSize(), MAX_MESSAGE_BYTES, "bytes of message")
    return message.SerializeToString()


def _announce(payload: Data) -> pb.Payload:
    check_at_most(len(payload), MAX_PAYLOAD_BYTES, "bytes of network")
    return pb.Payload(size_bytes=len(payload), sha256=hashlib.sha256(payload).digest())


def _check_announced(payload: Data, announced: pb.Payload) -> None:
    check_at_most(announced.size_bytes, MAX_PAYLOAD_BYTES, "bytes of network")
    if len(payload) != announced.size_bytes or hashlib.sha256(payload).digest() != announced.sha256:
        raise WeightsError(
            f"the network's {len(payload)} bytes are not those announced: {announced.size_bytes} of "
            f"sha256 {announced.sha256[:6].hex()}; fetch it again"
        )


def structure_message(structure: Structure) -> pb.Structure:
    """The structure inside a message."""
    text = structure.to_json().encode()
    return pb.Structure(
        digest=bytes.fromhex(structure.digest),
        json_size_bytes=len(text),
        json_zlib=zlib.compress(text, level=9),
    )


def structure_in(parsed: pb.Structure) -> Structure:
    """The structure of a message, checked against its digest; for use inside `refusing`."""
    size = parsed.json_size_bytes
    check_at_most(size, MAX_STRUCTURE_BYTES, "bytes of structure")
    stream = zlib.decompressobj()
    text = stream.decompress(parsed.json_zlib, size + 1)  # one more: to see that there is no more
    if len(text) != size or not stream.eof or stream.unused_data:
        raise InputError(f"the structure is not the {size} bytes announced; fetch the offer again")
    structure = Structure.from_json(text)
    check_at_most(structure.units, MAX_UNITS, "units")
    _check_same(structure.digest, parsed.digest, "structure")
    return structure


def signature_message(signature: TaskSignature) -> pb.Signature:
    """The signature inside a message."""
    return pb.Signature(
        probe_digest=bytes.fromhex(signature.probe),
        width=signature.means.shape[1],
        counts=signature.counts.tolist(),
        means=signature.means.astype(HALF).tobytes(),
    )


def signature_in(parsed: pb.Signature) -> TaskSignature:
    """The signature of a message; for use inside `refusing`."""
    classes, width, size = len(parsed.counts), parsed.width, len(parsed.means)
    whole = size == HALF.itemsize * classes * width and size <= MAX_MEANS_BYTES
    if classes > MAX_CLASSES or not 1 <= width <= MAX_WIDTH or not whole:
        raise SignatureError(
            f"the means of {classes} classes, {width} wide, are {size} bytes; they are two a feature, "
            f"of at most {MAX_CLASSES} classes, {MAX_WIDTH} wide, {MAX_MEANS_BYTES:,} bytes in all: "
            "compute it again"
        )
    means = np.frombuffer(parsed.means, HALF).reshape(classes, width).astype(np.float16)
    probe = hexadecimal(parsed.probe_digest, DIGEST_BYTES, "probe's digest")
    return TaskSignature(probe, means, np.array(parsed.counts, dtype=np.int32))


def mask_message(mask: Mask) -> pb.Mask:
    """The mask inside a message."""
    return pb.Mask(structure_digest=bytes.fromhex(mask.structure.digest), kept=mask.pack())


def mask_in(parsed: pb.Mask, structure: Structure) -> Mask:
    """The mask of a message, for a receiver with this structure; for use inside `refusing`."""
    _check_same(structure.digest, parsed.structure_digest, "structure")
    return Mask.unpack(structure, parsed.kept)


def neighbour_messages(neighbours: Iterable[exchange.Neighbour]) -> list[pb.Neighbour]:
    """The neighbours inside a message."""
    return [pb.Neighbour(**asdict(neighbour)) for neighbour in neighbours]


def neighbours_in(parsed: Iterable[pb.Neighbour]) -> tuple[exchange.Neighbour, ...]:
    """The neighbours of a message; for use inside `refusing`."""
    return tuple(_neighbour(neighbour) for neighbour in parsed)


def _neighbour(parsed: pb.Neighbour) -> exchange.Neighbour:
    check_at_most(len(parsed.entry), MAX_ENTRY_CHARACTERS, "characters of entry")
    if not 0 <= parsed.similarity <= 1:
        raise InputError(f"a neighbour's similarity is {parsed.similarity}; it lies in [0, 1]")
    return exchange.Neighbour(parsed.entry, parsed.similarity)


def named(names: Mapping[Name, int], number: int, what: str) -> Name:
    """The name of an enum's number. InputError for a number that has none."""
    for name, known in names.items():
        if known == number:
            return name
    raise InputError(f"there is no {what} {number}; known are {', '.join(names)}")


def hexadecimal(digest: bytes, size: int, what: str) -> str:
    """Raw bytes as the digits that names have here. InputError unless there are so many bytes."""
    if len(digest) != size:
        raise InputError(f"the {what} has {len(digest)} bytes; it has {size}")
    return digest.hex()


def _check_same(own: str, named: bytes, what: str) -> None:
    if own != named.hex():
        raise MismatchError(
            f"the {what} named is {named[:6].hex()}, not {own[:12]}; fetch the offer again"
        )


def _check_model(backbone: Backbone, structure: Structure) -> None:
    """A network is of the model that its structure was found in: no other is ever built."""
    own, other = (json.dumps(dict(m), sort_keys=True) for m in (backbone.identity, structure.model))
    if own != other:
        raise MismatchError(f"a network of {own[:200]}, not of {other[:200]}; fetch the offer again")


def check_at_most(number: int, limit: int, what: str) -> None:
    """Raise InputError for a number above its limit."""
    if number > limit:
        raise InputError(f"{number} {what}; at most {limit} are allowed")

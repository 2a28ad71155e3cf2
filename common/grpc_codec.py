"""What crosses gRPC alone, as bytes: messages of protos/devices.proto, payloads in parts, and errors.

Rules as of proto_codec, whose messages travel here too. Method names are those of the .proto: there
is no generated service code, as its stubs would parse messages before their size is checked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from common import errors, exchange
from common.errors import (
    AccessError,
    DamagedError,
    InputError,
    LibraryError,
    MaskvoteError,
    MismatchError,
    TokenError,
    UnavailableError,
)
from common.proto_codec import (
    DIGEST_BYTES,
    MAX_PAYLOAD_BYTES,
    REQUEST_ID_BYTES,
    check_at_most,
    hexadecimal,
    parsed_as,
    refusing,
    serialized,
)
from protos import devices_pb2 as pb
from protos import maskvote_pb2

DEVICES: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Devices"]

PART_BYTES = 256 * 1024
"""Bytes of a payload in one message: enough to be as fast as larger ones, little to hold for each of
many slow receivers."""

MAX_NAME_CHARACTERS = 200

AUTHORIZATION, BEARER = "authorization", "Bearer "
ERROR_KIND, RETRY = "maskvote-error", "grpc-retry-pushback-ms"
"""Names of the metadata of a call, and of those that trail a refused one."""

STATUS_OF: dict[type[MaskvoteError], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    MismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    LibraryError: grpc.StatusCode.UNAVAILABLE,
    DamagedError: grpc.StatusCode.DATA_LOSS,
    TokenError: grpc.StatusCode.UNAUTHENTICATED,
    AccessError: grpc.StatusCode.PERMISSION_DENIED,
    UnavailableError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""The status of an error of these kinds, and of those more closely named."""

UNLIMITED = 2**32 - 1
"""Bytes a minute, of a server that knows no such limit."""

KINDS: dict[str, type[MaskvoteError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, MaskvoteError)
}
"""Every kind of error by the name that trails a refused call."""


def full_name(method: MethodDescriptor) -> str:
    """The path of a method on the wire, as /maskvote.v1.Devices/Assign."""
    return f"/{method.containing_service.full_name}/{method.name}"


def encode_terms(offer: bytes, terms: exchange.Terms) -> bytes:
    """The message GetOfferResponse, around the message of an Offer."""
    return serialized(
        pb.GetOfferResponse(
            offer=maskvote_pb2.Offer.FromString(offer),
            model=terms.model,
            weights_digest=bytes.fromhex(terms.weights_digest),
            budgets=pb.BudgetLimits(**asdict(terms.budgets)),
            limits=pb.Limits(**asdict(terms.limits)),
            server_version=terms.server_version,
        )
    )


@refusing("answer to GetOffer")
def decode_terms(message: bytes) -> tuple[bytes, exchange.Terms]:
    """The message of the Offer, yet to be decoded with its probe, and the terms."""
    parsed = parsed_as(pb.GetOfferResponse, message)
    for name in (parsed.model, parsed.server_version):
        check_at_most(len(name), MAX_NAME_CHARACTERS, "characters of a name")
    budgets, limits = parsed.budgets, parsed.limits
    if not 0 < budgets.keep_ratio <= 1:
        raise InputError(f"the least keep ratio is {budgets.keep_ratio}; it lies in (0, 1]")
    terms = exchange.Terms(
        model=parsed.model,
        weights_digest=hexadecimal(parsed.weights_digest, DIGEST_BYTES, "weights' digest"),
        budgets=exchange.BudgetLimits(
            budgets.keep_ratio, budgets.parameters, budgets.parameters_per_class
        ),
        limits=exchange.Limits(
            limits.message_bytes,
            limits.calls_per_minute,
            limits.burst,
            limits.concurrent_calls,
            limits.receive_seconds,
            limits.bytes_per_minute or UNLIMITED,
        ),
        server_version=parsed.server_version,
    )
    return serialized(parsed.offer), terms


@dataclass(frozen=True)
class Announced:
    """A payload as it is announced: its size in bytes, 1 to 2 GiB, and its sha256 in hexadecimal."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_at_most(self.size, MAX_PAYLOAD_BYTES, "bytes of payload")
        if self.size < 1 or len(self.sha256) != 2 * DIGEST_BYTES:
            raise InputError(
                f"a payload of {self.size} bytes and sha256 {self.sha256[:80]!r}; needed are at least "
                "one byte and 64 hexadecimal digits"
            )


@refusing("announced payload")
def announced_probe(offer: bytes) -> Announced:
    """The probe's file, as the message of an Offer announces it."""
    return _announced(parsed_as(maskvote_pb2.Offer, offer).probe)


@dataclass(frozen=True)
class Resume:
    """What a receiver has of a payload already: the payload's sha256, and how many bytes."""

    sha256: str
    offset: int


def encode_fetch_probe(resume: Resume | None) -> bytes:
    """The message FetchProbeRequest."""
    return serialized(pb.FetchProbeRequest(resume=_resume_message(resume)))


@refusing("request for a probe")
def decode_fetch_probe(message: bytes) -> Resume | None:
    """Where to go on; None for the start."""
    return _resume(parsed_as(pb.FetchProbeRequest, message))


def encode_fetch_subnetwork(request_id: str, resume: Resume | None) -> bytes:
    """The message FetchSubNetworkRequest."""
    return serialized(
        pb.FetchSubNetworkRequest(request_id=bytes.fromhex(request_id), resume=_resume_message(resume))
    )


@refusing("request for a sub-network")
def decode_fetch_subnetwork(message: bytes) -> tuple[str, Resume | None]:
    """The request that was assigned, and where to go on; None for the start."""
    parsed = parsed_as(pb.FetchSubNetworkRequest, message)
    return hexadecimal(parsed.request_id, REQUEST_ID_BYTES, "request id"), _resume(parsed)


def encode_announcement(announced: Announced, offset: int) -> bytes:
    """The first message of a payload's stream."""
    payload = maskvote_pb2.Payload(size_bytes=announced.size, sha256=bytes.fromhex(announced.sha256))
    return serialized(pb.PayloadPart(payload=payload, offset=offset))


def encode_part(data: bytes) -> bytes:
    """Any other message of a payload's stream."""
    return pb.PayloadPart(data=data).SerializeToString()


@refusing("announced payload")
def decode_announcement(message: bytes) -> tuple[Announced, int]:
    """What the whole payload is, and where the parts that follow start."""
    parsed = parsed_as(pb.PayloadPart, message)
    announced = _announced(parsed.payload)
    check_at_most(parsed.offset, announced.size, "bytes of offset")
    return announced, parsed.offset


@refusing("part of a payload")
def decode_part(message: bytes) -> bytes:
    """The next bytes of the payload; never none."""
    data = parsed_as(pb.PayloadPart, message).data
    if not data:
        raise InputError("a part of a payload is empty; fetch it again")
    return data


def status_of(error: MaskvoteError) -> grpc.StatusCode:
    """The status that a server answers with for an error."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return STATUS_OF[kind]
    return grpc.StatusCode.INTERNAL


def trailing_metadata(error: MaskvoteError) -> tuple[tuple[str, str], ...]:
    """What trails a refused call: the error's kind, and when to try again if the error says so."""
    kind = (ERROR_KIND, type(error).__name__)
    if isinstance(error, UnavailableError) and error.retry_seconds is not None:
        return kind, (RETRY, str(max(1, round(1000 * error.retry_seconds))))
    return (kind,)


def error_of(
    kind: str | None, message: str, retry_milliseconds: str | None = None
) -> MaskvoteError | None:
    """The error that a refused call tells of; None where its kind is none of ours."""
    if kind is None or kind not in KINDS:
        return None
    if issubclass(KINDS[kind], UnavailableError):
        wait = retry_milliseconds if (retry_milliseconds or "").isdecimal() else None
        return UnavailableError(message, None if wait is None else min(int(wait) / 1000, 3600))
    return KINDS[kind](message)


def _announced(payload: maskvote_pb2.Payload) -> Announced:
    return Announced(payload.size_bytes, payload.sha256.hex())


def _resume_message(resume: Resume | None) -> pb.Resume | None:
    if resume is None:
        return None
    return pb.Resume(sha256=bytes.fromhex(resume.sha256), offset=resume.offset)


def _resume(parsed: pb.FetchProbeRequest | pb.FetchSubNetworkRequest) -> Resume | None:
    if not parsed.HasField("resume"):
        return None
    check_at_most(parsed.resume.offset, MAX_PAYLOAD_BYTES, "bytes of offset")
    sha256 = hexadecimal(parsed.resume.sha256, DIGEST_BYTES, "payload's sha256")
    return Resume(sha256, parsed.resume.offset)

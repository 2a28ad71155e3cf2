"""What operators send and get, as bytes: messages of protos/operators.proto.

Rules as of common/proto_codec: functions come in pairs, decode(encode(x)) == x, and decoding trusts no
byte. It returns what is valid, or raises InputError (MaskError and SignatureError are kinds of it) or
MismatchError.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InputError, MismatchError
from common.exchange import check_request_id
from common.proto_codec import (
    MAX_ENTRY_CHARACTERS,
    check_at_most,
    mask_in,
    mask_message,
    named,
    neighbour_messages,
    neighbours_in,
    parsed_as,
    refusing,
    serialized,
    signature_in,
    signature_message,
    structure_in,
    structure_message,
)
from common.signature import MAX_CLASSES
from common.structure import Structure
from protos import maskvote_pb2
from protos import operators_pb2 as pb
from server.entries import (
    ENTRY_METHODS,
    MAX_NAME_CHARACTERS,
    Entry,
    EntryFacts,
    EntryMethod,
    Removal,
    Statistics,
)
from server.removals import check_reason

OPERATORS: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Operators"]

METHODS: dict[EntryMethod, pb.EntryMethod] = {
    "smsp": pb.ENTRY_METHOD_SMSP,
    "mvp": pb.ENTRY_METHOD_MVP,
    "iterative": pb.ENTRY_METHOD_ITERATIVE,
}
MAX_ITERATIONS = 2**31 - 1


def encode_structure(structure: Structure) -> bytes:
    """The message Structure."""
    return serialized(structure_message(structure))


@refusing("structure")
def decode_structure(message: bytes) -> Structure:
    """The structure, checked against its digest."""
    return structure_in(parsed_as(maskvote_pb2.Structure, message))


@refusing("name of an entry")
def encode_show(entry: str) -> bytes:
    """The message ShowEntryRequest."""
    return serialized(pb.ShowEntryRequest(entry=entry))


@refusing("request to show an entry")
def decode_show(message: bytes) -> str:
    """The entry that is asked for."""
    return _name(parsed_as(pb.ShowEntryRequest, message).entry)


@refusing("removal")
def encode_remove(entry: str, reason: str) -> bytes:
    """The message RemoveEntryRequest."""
    return serialized(pb.RemoveEntryRequest(entry=entry, reason=reason))


@refusing("removal")
def decode_remove(message: bytes) -> tuple[str, str]:
    """The entry to be removed, and why."""
    parsed = parsed_as(pb.RemoveEntryRequest, message)
    return _name(parsed.entry), _reason(parsed.reason)


@refusing("restoration")
def encode_restore(entry: str, reason: str) -> bytes:
    """The message RestoreEntryRequest."""
    return serialized(pb.RestoreEntryRequest(entry=entry, reason=reason))


@refusing("restoration")
def decode_restore(message: bytes) -> tuple[str, str]:
    """The entry to be restored, and why."""
    parsed = parsed_as(pb.RestoreEntryRequest, message)
    return _name(parsed.entry), _reason(parsed.reason)


def encode_facts(facts: EntryFacts) -> bytes:
    """The message EntryFacts."""
    return serialized(_facts_message(facts))


@refusing("entry's facts")
def decode_facts(message: bytes) -> EntryFacts:
    """What there is to know of an entry."""
    return _facts(parsed_as(pb.EntryFacts, message))


def encode_entry(entry: Entry, removed: Removal | None = None) -> bytes:
    """The message Entry."""
    return serialized(
        pb.Entry(
            facts=_facts_message(entry.facts(removed)),
            signature=signature_message(entry.signature),
            mask=mask_message(entry.mask),
        )
    )


@refusing("entry")
def decode_entry(message: bytes, structure: Structure) -> tuple[Entry, Removal | None]:
    """The entry, of a library of this structure, and whether it is removed.

    What its facts say of its signature and its mask has to be so.
    """
    parsed = parsed_as(pb.Entry, message)
    facts = _facts(parsed.facts)
    theirs = parsed.mask.structure_digest.hex()
    if theirs != structure.digest:
        raise MismatchError(
            f"entry {facts.entry} is of structure {theirs[:12]}, this library's is "
            f"{structure.digest[:12]}; import it into a library of the same backbone"
        )
    entry = Entry(
        entry=facts.entry,
        signature=signature_in(parsed.signature),
        mask=mask_in(parsed.mask, structure),
        method=facts.method,
        accuracy_before=facts.accuracy_before,
        accuracy_after=facts.accuracy_after,
        iterations=facts.iterations,
        neighbours=facts.neighbours,
        contributor=facts.contributor,
        recorded=facts.recorded,
        position=facts.position,
    )
    told, found = vars(facts), vars(entry.facts(facts.removed))
    wrong = [f"{name} {told[name]}, not {found[name]}" for name in told if told[name] != found[name]]
    if wrong:
        raise InputError(
            f"the facts of entry {entry.entry} are not those of its signature and mask: "
            f"{', '.join(wrong)}; export it again"
        )
    return entry, facts.removed


def decode_import(message: bytes, structure: Structure) -> Entry:
    """An entry to be taken in: as of `decode_entry`, and InputError for one that is removed."""
    entry, removed = decode_entry(message, structure)
    if removed is not None:
        raise InputError(
            f"entry {entry.entry} is removed, by {removed.by}, and only entries that vote are imported; "
            "restore and export it again, or leave it out"
        )
    return entry


def encode_taken_in(added: int, present: int) -> bytes:
    """The message ImportEntriesResponse."""
    return serialized(pb.ImportEntriesResponse(added=added, present=present))


@refusing("answer to an import")
def decode_taken_in(message: bytes) -> tuple[int, int]:
    """How many entries were added, and how many were there already."""
    parsed = parsed_as(pb.ImportEntriesResponse, message)
    return parsed.added, parsed.present


def encode_statistics(statistics: Statistics) -> bytes:
    """The message Statistics."""
    return serialized(pb.Statistics(**vars(statistics)))


@refusing("statistics")
def decode_statistics(message: bytes) -> Statistics:
    """What a library holds, in numbers."""
    parsed = parsed_as(pb.Statistics, message)
    for method in parsed.by_method:
        if method not in ENTRY_METHODS:
            raise InputError(f"there is no method {method[:40]!r}; known are {', '.join(ENTRY_METHODS)}")
    for contributor in parsed.by_contributor:
        check_at_most(len(contributor), MAX_NAME_CHARACTERS, "characters of contributor")
    return Statistics(
        voting=parsed.voting,
        removed=parsed.removed,
        unanswered=parsed.unanswered,
        by_method=dict(parsed.by_method),
        by_contributor=dict(parsed.by_contributor),
        accuracy_before=_accuracy(parsed.accuracy_before, "accuracy_before"),
        accuracy_after=_accuracy(parsed.accuracy_after, "accuracy_after"),
        file_bytes=parsed.file_bytes,
    )


def _facts_message(facts: EntryFacts) -> pb.EntryFacts:
    changed = {
        "method": METHODS[facts.method],
        "recorded": _timestamp(facts.recorded),
        "neighbours": neighbour_messages(facts.neighbours),
        "removed": None if facts.removed is None else _removal_message(facts.removed),
    }
    return pb.EntryFacts(**{**vars(facts), **changed})


def _removal_message(removal: Removal) -> pb.Removal:
    return pb.Removal(at=_timestamp(removal.at), by=removal.by, reason=removal.reason)


def _facts(parsed: pb.EntryFacts) -> EntryFacts:
    check_request_id(parsed.entry)
    check_at_most(len(parsed.contributor), MAX_NAME_CHARACTERS, "characters of contributor")
    check_at_most(parsed.iterations, MAX_ITERATIONS, "iterations")
    for number, least, what in ((parsed.position, 1, "position"), (parsed.classes, 2, "classes")):
        if number < least:
            raise InputError(f"entry {parsed.entry} has {what} {number}; it is at least {least}")
    check_at_most(parsed.classes, MAX_CLASSES, "classes")
    return EntryFacts(
        entry=parsed.entry,
        position=parsed.position,
        method=named(METHODS, parsed.method, "method"),
        contributor=parsed.contributor,
        recorded=_moment(parsed, "recorded"),
        classes=parsed.classes,
        images=parsed.images,
        units=parsed.units,
        parameters=parsed.parameters,
        accuracy_before=_accuracy(parsed.accuracy_before, "accuracy_before"),
        accuracy_after=_accuracy(parsed.accuracy_after, "accuracy_after"),
        iterations=parsed.iterations,
        neighbours=neighbours_in(parsed.neighbours),
        removed=_removal(parsed.removed) if parsed.HasField("removed") else None,
    )


def _removal(parsed: pb.Removal) -> Removal:
    check_reason(parsed.by, parsed.reason)
    return Removal(_moment(parsed, "at"), parsed.by, parsed.reason)


def _name(entry: str) -> str:
    check_at_most(len(entry), MAX_ENTRY_CHARACTERS, "characters of entry")
    return entry


def _reason(reason: str) -> str:
    check_reason("", reason)
    return reason


def _accuracy(number: float, what: str) -> float:
    if not 0 <= number <= 1:
        raise InputError(f"{what} is {number}; it lies in [0, 1]")
    return number


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _moment(parsed: pb.EntryFacts | pb.Removal, field: str) -> datetime:
    timestamp = cast(Timestamp, getattr(parsed, field))
    if not parsed.HasField(field) or timestamp.nanos % 1000:
        raise InputError(
            f"the time {field!r} is {timestamp.ToJsonString() if parsed.HasField(field) else 'missing'}; "
            "it is given in whole microseconds"
        )
    return timestamp.ToDatetime(UTC)

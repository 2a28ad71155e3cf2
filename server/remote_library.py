"""A library that a running server holds, as an operator sees it: `Operations`, over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from types import TracebackType
from typing import Self, TypeVar

from common.grpc_channel import Connection
from common.grpc_codec import full_name
from common.handshake import refusals_raised
from common.structure import Structure
from server.entries import Entry, EntryFacts, Removal, Statistics
from server.operator_codec import (
    OPERATORS,
    decode_entry,
    decode_facts,
    decode_statistics,
    decode_structure,
    decode_taken_in,
    encode_entry,
    encode_remove,
    encode_restore,
    encode_show,
)

ANSWER_SECONDS = 60
"""For calls of one message: the server may wait 30 seconds for its library's file."""

Decoded = TypeVar("Decoded")


class RemoteLibrary:
    """Satisfies `Operations`. Raises what the server's library would, and UnavailableError.

    What is streamed is fetched as it is asked for; streams have no deadline, as they are as long as the
    library is.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel = connection.open()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def structure(self) -> Structure:
        """What the library's masks are about; it is fetched once."""
        return decode_structure(self._ask("GetStructure", b""))

    def facts(self) -> Iterator[EntryFacts]:
        """Of all entries in the order of recording, removed ones too, without damaged ones."""
        return self._stream("ListEntries", decode_facts)

    def entry(self, entry: str) -> Entry:
        """One entry, also if it is removed. InputError if it is not recorded."""
        return self._show(entry)[0]

    def facts_of(self, entry: str) -> EntryFacts:
        """What there is to know of one entry. InputError if it is not recorded."""
        shown, removed = self._show(entry)
        return shown.facts(removed)

    def remove(self, entry: str, by: str, reason: str) -> EntryFacts:
        """Take an entry out of all votes from now on; for `by` stands the name of the token."""
        return decode_facts(self._ask("RemoveEntry", encode_remove(entry, reason)))

    def restore(self, entry: str, by: str, reason: str) -> EntryFacts:
        """Let a removed entry vote again; for `by` stands the name of the token."""
        return decode_facts(self._ask("RestoreEntry", encode_restore(entry, reason)))

    def export(self) -> Iterator[Entry]:
        """All entries that are not removed, in the order of recording, without damaged ones."""
        structure = self.structure
        return self._stream("ExportEntries", lambda message: decode_entry(message, structure)[0])

    def take_in(self, entries: Iterable[Entry]) -> tuple[int, int]:
        """Add entries; how many were new, and how many there. See `Operations.take_in`."""
        faults: list[Exception] = []

        def messages() -> Iterator[bytes]:
            # gRPC draws these in a thread of its own, where an error would end the call; but those
            # before it are to stay, so the stream ends here as if there were no more.
            try:
                for entry in entries:
                    yield encode_entry(entry)
            except Exception as fault:
                faults.append(fault)

        with refusals_raised(self._connection):
            call = self._channel.stream_unary(_path("ImportEntries"))
            answer = call(messages(), metadata=self._connection.metadata)
        if faults:
            raise faults[0]
        return decode_taken_in(answer)

    def statistics(self) -> Statistics:
        """What the library holds, in numbers."""
        return decode_statistics(self._ask("GetStatistics", b""))

    def _show(self, entry: str) -> tuple[Entry, Removal | None]:
        return decode_entry(self._ask("ShowEntry", encode_show(entry)), self.structure)

    def _ask(self, method: str, message: bytes) -> bytes:
        with refusals_raised(self._connection):
            call = self._channel.unary_unary(_path(method))
            return call(message, timeout=ANSWER_SECONDS, metadata=self._connection.metadata)

    def _stream(self, method: str, decode: Callable[[bytes], Decoded]) -> Iterator[Decoded]:
        call = self._channel.unary_stream(_path(method))(b"", metadata=self._connection.metadata)
        try:
            with refusals_raised(self._connection):
                for message in call:
                    yield decode(message)
        finally:
            call.cancel()


def _path(method: str) -> str:
    return full_name(OPERATORS.methods_by_name[method])

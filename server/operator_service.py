"""The gRPC door for operators: decode, call the library, encode. protos/operators.proto says the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from server.entries import Operations
from server.grpc_calls import Call, Method, unary
from server.operator_codec import (
    OPERATORS,
    decode_import,
    decode_remove,
    decode_restore,
    decode_show,
    encode_entry,
    encode_facts,
    encode_statistics,
    encode_structure,
    encode_taken_in,
)

BATCH_ENTRIES, BATCH_BYTES = 100, 2**20
"""What a worker makes or takes in at once, a message more at most: as much is held for each call that
streams, beside a page of the library, and devices need not wait longer for a worker than that takes."""


class OperatorService:
    """Serves operators from one library."""

    def __init__(self, library: Operations) -> None:
        self._library = library
        self._structure = encode_structure(library.structure)

    def methods(self) -> list[Method]:
        """The methods of the service."""
        serving = {
            "GetStructure": unary(self._get_structure),
            "ListEntries": self._list_entries,
            "ShowEntry": unary(self._show_entry),
            "RemoveEntry": unary(self._remove_entry),
            "RestoreEntry": unary(self._restore_entry),
            "ExportEntries": self._export_entries,
            "ImportEntries": self._import_entries,
            "GetStatistics": unary(self._get_statistics),
        }
        return [
            Method(OPERATORS.methods_by_name[name], "operator", serve) for name, serve in serving.items()
        ]

    def _get_structure(self, message: bytes, call: Call) -> bytes:
        return self._structure

    def _show_entry(self, message: bytes, call: Call) -> bytes:
        name = call.facts["entry"] = decode_show(message)
        return encode_entry(self._library.entry(name), self._library.facts_of(name).removed)

    def _remove_entry(self, message: bytes, call: Call) -> bytes:
        name, reason = decode_remove(message)
        call.facts["entry"] = name
        return encode_facts(self._library.remove(name, call.caller.name, reason))

    def _restore_entry(self, message: bytes, call: Call) -> bytes:
        name, reason = decode_restore(message)
        call.facts["entry"] = name
        return encode_facts(self._library.restore(name, call.caller.name, reason))

    def _get_statistics(self, message: bytes, call: Call) -> bytes:
        return encode_statistics(self._library.statistics())

    async def _list_entries(self, call: Call) -> None:
        await call.message()
        await _send_all(call, (encode_facts(facts) for facts in self._library.facts()))

    async def _export_entries(self, call: Call) -> None:
        await call.message()
        await _send_all(call, (encode_entry(entry) for entry in self._library.export()))

    async def _import_entries(self, call: Call) -> None:
        """Take entries in by batches: no transaction is open while a slow sender sends."""
        added = present = 0
        messages = call.messages()
        while batch := await _received(messages):
            new, known = await call.workers.run(self._take_in, batch)
            added, present = added + new, present + known
        await call.send(encode_taken_in(added, present))

    def _take_in(self, batch: list[bytes]) -> tuple[int, int]:
        structure = self._library.structure
        return self._library.take_in(decode_import(message, structure) for message in batch)


async def _send_all(call: Call, messages: Iterator[bytes]) -> None:
    """Send messages that are made in a worker, a batch at a time."""
    while batch := await call.workers.run(_made, messages):
        for message in batch:
            await call.send(message)


def _made(messages: Iterator[bytes]) -> list[bytes]:
    """The next batch; empty after the last."""
    batch: list[bytes] = []
    for message in messages:
        batch.append(message)
        if _is_full(batch):
            break
    return batch


async def _received(messages: AsyncIterator[bytes]) -> list[bytes]:
    """The next batch; empty after the last."""
    batch: list[bytes] = []
    async for message in messages:
        batch.append(message)
        if _is_full(batch):
            break
    return batch


def _is_full(batch: list[bytes]) -> bool:
    return len(batch) >= BATCH_ENTRIES or sum(map(len, batch)) >= BATCH_BYTES

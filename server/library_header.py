"""The library's header: what it stands for, in which format, and how an older format becomes this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from common.errors import LibraryError, MaskvoteError
from common.exchange import Offer
from common.structure import Structure
from server.library_file import RESTORE, LibraryFile
from server.library_schema import (
    FORMAT,
    STANDING,
    header,
    is_sealed,
    metadata,
    now,
    removals,
    sealed,
    tokens,
)


@dataclass(frozen=True)
class Header:
    """What a library stands for; that it is as it was written is checked.

    Its probe is decoded, which takes torch, when the `offer` is asked for: LibraryError if it is damaged.
    """

    path: Path
    row: Row[Any]
    structure: Structure

    @property
    def weights_digest(self) -> str:
        """The digest of the backbone's weights."""
        return self.row.weights_digest

    @property
    def probe_digest(self) -> str:
        """The digest of the probe."""
        return self.row.probe_digest

    @cached_property
    def offer(self) -> Offer:
        """What devices need before they ask."""
        with _damage_told(self.path):
            return _offer_of(self.row, self.structure)


def write_header(connection: Connection, offer: Offer, weights_digest: str) -> None:
    """Make the tables of a new library, and its header."""
    metadata.create_all(connection)
    values = {
        "id": 1,
        "format": FORMAT,
        "created": now(),
        "backbone": offer.backbone.to_json(),
        "weights_digest": weights_digest,
        "structure": offer.structure.to_json(),
        "structure_digest": offer.structure.digest,
        "probe": bytes(offer.probe.to_bytes()),
        "probe_digest": offer.probe.digest,
    }
    connection.execute(insert(header).values(sealed(values, STANDING)))


def read_header(file: LibraryFile) -> Header:
    """What the library stands for; a file of an older format is of this one then.

    Raises LibraryError where the header is damaged, of a newer format, or of an older one in a file
    that cannot be written.
    """
    with file.reading() as connection:
        # The format comes first, and alone: the header of another format may have other columns.
        written = connection.execute(select(header.c.format)).scalar()
        if written is None:
            raise LibraryError(f"the library {file.path}: it has no header; {RESTORE}")
        if written not in range(1, FORMAT + 1):
            raise LibraryError(
                f"the library {file.path}: its format is {written!r}, this version of maskvote reads 1 "
                f"to {FORMAT}; use the version that wrote it"
            )
        row = connection.execute(select(header)).one()
    with _damage_told(file.path):
        content = Header(file.path, row, _structure_of(row))
    if written < FORMAT:
        _bring_up_to_date(file)
    return content


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except MaskvoteError as error:
        raise LibraryError(f"the library {path}: its header is damaged: {error}; {RESTORE}") from error


def _structure_of(row: Row[Any]) -> Structure:
    if not is_sealed(row, STANDING):
        raise LibraryError("its content does not have the sha256 that is written beside it")
    structure = Structure.from_json(row.structure)
    _check_digest("structure", structure.digest, row.structure_digest)
    return structure


def _offer_of(row: Row[Any], structure: Structure) -> Offer:
    from common.backbone import Backbone
    from common.probe import Probe

    probe = Probe.from_bytes(row.probe, structure)
    _check_digest("probe", probe.digest, row.probe_digest)
    return Offer(Backbone.from_json(row.backbone), structure, probe)


def _check_digest(name: str, digest: str, written: str) -> None:
    if digest != written:
        raise LibraryError(f"the {name}'s digest is {digest[:12]}, written is {written[:12]}")


def _bring_up_to_date(file: LibraryFile) -> None:
    try:
        file.write(_from_1_to_2)
    except LibraryError as error:
        raise LibraryError(
            f"a library of format 1 becomes one of format {FORMAT} when it is opened, and this one "
            f"cannot: {error}"
        ) from error


def _from_1_to_2(connection: Connection) -> None:
    # Another process may have done it since.
    metadata.create_all(connection, tables=[removals, tokens], checkfirst=True)
    row = connection.execute(select(header)).one()
    values = {column.name: row._mapping[column.name] for column in STANDING} | {"format": 2}
    connection.execute(update(header).values(sealed(values, STANDING)))

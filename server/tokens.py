"""Tokens: who may call the server, and as what. Their secrets are shown once and kept nowhere."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from common.errors import InputError
from common.exchange import METHODS
from server.library import Library
from server.library_file import DamagedRow
from server.library_schema import ISSUED, is_sealed, now, sealed, tasks
from server.library_schema import tokens as table
from server.removals import check_reason, decide, removed_entries

Role = Literal["device", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TOKEN = re.compile(r"mv_[A-Za-z0-9_-]{43}")
SECRET_BYTES = 32

LIVE = select(table).where(table.c.token_sha256 == bindparam("digest"), table.c.revoked.is_(None))
OF_NAME = select(table).where(table.c.name == bindparam("name")).order_by(table.c.number)
CONTRIBUTED = (
    select(tasks.c.id)
    .where(
        tasks.c.contributor == bindparam("name"),
        # Not an operator's own tasks: those are no device's, whatever they are called.
        tasks.c.method.in_(METHODS),
        tasks.c.position.is_not(None),
        tasks.c.id.not_in(removed_entries),
    )
    .order_by(tasks.c.position)
)


@dataclass(frozen=True)
class Caller:
    """Who calls: the name of a token, or "" for a device without one, and what it may do."""

    name: str
    role: Role


@dataclass(frozen=True)
class Token:
    """A token that was handed out: for whom, when, and until when. None: it still lets in."""

    name: str
    role: Role
    created: datetime
    revoked: datetime | None
    revoked_by: str | None


def add(library: Library, name: str, role: Role) -> str:
    """A new token for this name: to be handed over now, as it cannot be shown again.

    A name is 1 to 64 of a-z, 0-9, ".", "_", "-", not starting with one of the last three; what a device
    contributes is kept under it. InputError for another one, or while it has a token.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"the name is {name[:80]!r}; it is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a "
            "letter or a digit"
        )
    if role not in ROLES:
        raise InputError(f"the role is {role!r}; it is {' or '.join(ROLES)}")
    token = f"mv_{secrets.token_urlsafe(SECRET_BYTES)}"
    library.file.write(lambda connection: _add(connection, name, role, _digest(token)))
    return token


def _add(connection: Connection, name: str, role: Role, digest: str) -> None:
    if any(row.revoked is None for row in connection.execute(OF_NAME, {"name": name})):
        raise InputError(f"{name} has a token; revoke it first, or choose another name")
    number = connection.execute(select(func.max(table.c.number))).scalar() or 0
    values = {
        "number": number + 1, "name": name, "role": role, "token_sha256": digest, "created": now(),
    }  # fmt: skip
    connection.execute(insert(table), sealed(values, ISSUED))


def _digest(token: str) -> str:
    # A fast hash is right here: nobody guesses 256 random bits, however fast each guess is. Slow ones
    # are for passwords. And the look-up may leak what digests there are in its time: none is a token.
    return hashlib.sha256(token.encode()).hexdigest()


def identify(library: Library, token: str) -> Caller | None:
    """Whose token this is; None if nobody's, or if it was revoked, by whichever process."""
    if not TOKEN.fullmatch(token):
        return None
    with library.file.reading() as connection:
        row = connection.execute(LIVE, {"digest": _digest(token)}).one_or_none()
    if row is None or not is_sealed(row, ISSUED):
        return None
    return Caller(row.name, row.role)


def tokens(library: Library) -> list[Token]:
    """All tokens that were ever handed out, in that order.

    Raises LibraryError if one is damaged: it lets nobody in.
    """
    with library.file.reading() as connection:
        return [_token(row) for row in connection.execute(select(table).order_by(table.c.number))]


def _token(row: Row[Any]) -> Token:
    if not is_sealed(row, ISSUED):
        raise DamagedRow(
            f"its token of {row.name!r} is damaged and lets nobody in; revoke it, and add a new one"
        )
    created = datetime.fromisoformat(row.created)
    revoked = None if row.revoked is None else datetime.fromisoformat(row.revoked)
    return Token(row.name, row.role, created, revoked, row.revoked_by)


def revoke(library: Library, name: str, by: str = "operator", *, remove_entries: bool = False) -> int:
    """Let this name's token in no more, from the next call on; what was revoked before stays so.

    With `remove_entries`, all that devices of this name contributed takes no part in votes from then
    on: returns how many entries that removed. `by` is who revokes, at most 200 printable characters.
    InputError if the name never had a token.
    """
    reason = "the token of its contributor was revoked"
    check_reason(by, reason)

    def write(connection: Connection) -> int:
        issued = connection.execute(OF_NAME, {"name": name}).all()
        if not issued:
            raise InputError(f"{name[:80]!r} never had a token; list the tokens to see who has one")
        for row in issued:
            if row.revoked is None or not is_sealed(row, ISSUED):
                _end(connection, row, by)
        entries = connection.scalars(CONTRIBUTED, {"name": name}).all() if remove_entries else []
        decide(connection, entries, removed=True, by=by, reason=reason)
        return len(entries)

    return library.file.write(write)


def _end(connection: Connection, row: Row[Any], by: str) -> None:
    values = {column.name: row._mapping[column.name] for column in ISSUED}
    values |= {"revoked": now(), "revoked_by": by}
    if not is_sealed(row, ISSUED):
        values["created"] = values["revoked"]  # when it was, a damaged row does not say
    connection.execute(update(table).where(table.c.number == row.number), sealed(values, ISSUED))

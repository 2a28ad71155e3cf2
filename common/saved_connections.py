"""Saved connections: the servers that a user has logged in to, and how each is reached.

    ~/.config/maskvote/device-connections.json      those of maskvote-client
    ~/.config/maskvote/operator-connections.json    those of maskvote-server

XDG_CONFIG_HOME names another directory than ~/.config. Authorities and the token are kept themselves, so
that their files may move; of a certificate and its key only the paths are, as both are renewed in place,
and a private key is best in one place.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.address import Address
from common.bearer_token import check_token
from common.errors import InputError
from common.files import write_whole
from common.text_files import read_small

Role = Literal["device", "operator"]

VERSION = 1
AGAIN = "remove it, and log in again"


@dataclass(frozen=True)
class SavedConnection:
    """How one server is reached. InputError if it cannot be that.

    `ca` is PEM, `certificate` and `key` are absolute paths; see `common.grpc_channel.Connection`.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    certificate: str | None = None
    key: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        texts = (self.address, self.token, self.ca, self.certificate, self.key)
        if not all(text is None or isinstance(text, str) for text in texts) or self.address is None:
            raise InputError("a value has the wrong type")
        if not isinstance(self.insecure, bool):
            raise InputError("insecure is neither true nor false")
        Address.read(self.address)
        if self.token is not None:
            check_token(self.token)


class SavedConnections:
    """The connections of a role, in the order of logging in. Nothing is read before it is asked for."""

    def __init__(self, role: Role) -> None:
        self.role = role

    @property
    def file(self) -> Path:
        """Where they are kept. InputError for a user without a home."""
        return _directory() / f"{self.role}-connections.json"

    def all(self) -> list[SavedConnection]:
        """All of them, the newest last; none where nothing was saved. InputError for a damaged file."""
        file = self.file
        return _parsed(file, read_small(file)) if file.exists() else []

    def of(self, address: str) -> SavedConnection | None:
        """The one of the server at this address, if there is one. InputError for a damaged file."""
        wanted = str(Address.read(address))
        return next((saved for saved in self._readable() if saved.address == wanted), None)

    def newest(self) -> SavedConnection | None:
        """The one that was saved last, if any. InputError for a damaged file."""
        return next(reversed(self._readable()), None)

    def save(self, connection: SavedConnection) -> None:
        """Keep a connection, for this user's eyes alone, in place of an earlier one of its server.

        InputError where it cannot be written, or the file is damaged.
        """
        connection = replace(connection, address=str(Address.read(connection.address)))
        others = [saved for saved in self.all() if saved.address != connection.address]
        self._write([*others, connection])

    def forget(self, address: str) -> None:
        """Remove the one of the server at this address. InputError if there is none."""
        wanted, everything = str(Address.read(address)), self.all()
        left = [saved for saved in everything if saved.address != wanted]
        if len(left) == len(everything):
            known = ", ".join(saved.address for saved in everything) or "none"
            raise InputError(f"no connection to {wanted} is saved; saved are: {known}")
        self._write(left)

    def _readable(self) -> list[SavedConnection]:
        """All of them; none where there is no home, or one of another user."""
        try:
            return self.all() if os.access(self.file, os.R_OK) else []
        except HomelessError:
            return []

    def _write(self, connections: list[SavedConnection]) -> None:
        file = self.file
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.parent.chmod(0o700)
        except OSError as error:
            raise InputError(
                f"{file.parent} cannot be made ({error.strerror or error}); set XDG_CONFIG_HOME to a "
                "directory of your own"
            ) from error
        content = {"version": VERSION, "connections": [asdict(one) for one in connections]}
        write_whole(file, json.dumps(content, indent=2).encode(), private=True)


class HomelessError(InputError):
    """A user without a home directory."""


def _directory() -> Path:
    given = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(given):  # others are to be ignored, says its specification
        return Path(given) / "maskvote"
    try:
        return Path.home() / ".config" / "maskvote"
    except RuntimeError as error:
        raise HomelessError(
            "this user has no home directory to save connections in; set HOME or XDG_CONFIG_HOME, or "
            "give --server, --ca and --token-file each time"
        ) from error


def _parsed(file: Path, data: bytes) -> list[SavedConnection]:
    try:
        content: Any = json.loads(data)
        version, connections = content["version"], content["connections"]
        if version == VERSION:
            return [SavedConnection(**one) for one in connections]
    except (ValueError, TypeError, KeyError) as error:  # an InputError is a ValueError
        raise InputError(f"{file} is damaged; {AGAIN}") from error
    raise InputError(
        f"{file} has version {version!r}, this maskvote reads {VERSION}; use the newer one, or {AGAIN}"
    )

"""Card: what an artefact is, in JSON beside it; artefact and card are replaced as one.

Two files cannot be renamed at once, so the card tells of both artefacts while one takes the place of
the other. Replacing is four steps; after each of them the artefact that is there has its card:

    1. the new artefact is written beside the old one       old artefact, old card
    2. the card becomes the new one, the old one in it      old artefact, card of both
    3. the artefact becomes the new one                     new artefact, card of both
    4. the card becomes the new one alone                   new artefact, new card

A first artefact has its card one step before it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import InputError, MismatchError
from common.files import Data, read_whole, reading, sync_directory, write_whole

VERSION = 1
"""Of the card's format."""
LARGEST_BYTES = 10_000_000
"""Of a card that is read: class names of a task take far less."""
PART_BYTES = 1 << 20
"""Of an artefact that is digested: it is never in memory as a whole."""
REPLACES = "replaces"
"""Where a card keeps the one before it, while the artefact is replaced."""
AGAIN = "export the network again"

Card = Mapping[str, Any]
"""What a card says: see docs/artefacts.md. `sha256` is the artefact's, in hexadecimal."""


def card_path(artefact: Path) -> Path:
    """Where an artefact's card is."""
    return artefact.with_name(f"{artefact.name}.json")


def digest_of(artefact: Path) -> str:
    """The sha256 of an artefact, in hexadecimal. InputError where it cannot be read."""
    digest = hashlib.sha256()
    with reading(artefact) as file:
        while part := file.read(PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


def write_artefact(path: Path, data: Data, facts: Card) -> Card:
    """Write an artefact and its card, and give the card: `facts` with version, sha256 and size.

    Whenever this is killed, the artefact that is there has a card that fits. InputError where they
    cannot be written: what was there is as it was.
    """
    path = Path(path)
    card = {
        "card_version": VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        **facts,
    }
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        _write_beside(beside, path, data)
        _replace(beside, path, card)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return card


def read_card(artefact: Path, digest: str) -> Card | None:
    """The card of the artefact whose sha256 this is; None where there is none.

    InputError where it is no card, MismatchError where it is another artefact's.
    """
    path = card_path(artefact)
    if not path.exists():
        return None
    card = _parsed(path)
    for one in (card, card.get(REPLACES)):
        if isinstance(one, dict) and one.get("sha256") == digest:
            return (
                {word: fact for word, fact in one.items() if word != REPLACES} if len(one) > 1 else None
            )
    raise MismatchError(
        f"{path} is the card of another artefact (sha256 {str(card.get('sha256'))[:12]}, "
        f"{artefact.name} has {digest[:12]}); export the network again, or put its own card there"
    )


def _write_beside(beside: Path, path: Path, data: Data) -> None:
    try:
        write_whole(beside, data)
    except InputError as error:  # of the file that was asked for, not of the one beside it
        raise InputError(str(error).replace(str(beside), str(path))) from error


def _replace(new: Path, path: Path, card: Card) -> None:
    """Steps 2 to 4. Where the artefact cannot be replaced, the card is as it was."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of a file")
    beside = card_path(path)
    old = bytes(read_whole(beside)) if beside.exists() else None
    _write_card(path, {**card, REPLACES: _replaced(path)})
    try:
        os.replace(new, path)
    except OSError as error:
        if old is None:
            beside.unlink(missing_ok=True)
        else:
            write_whole(beside, old)
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); write elsewhere"
        ) from error
    with suppress(OSError):  # it is replaced, and a card that fits is there
        sync_directory(path.parent)
    _write_card(path, card)


def _replaced(path: Path) -> Card | None:
    """What a card says of the artefact that it will replace: its card, or of one without only the digest.

    None where there is no artefact, or none that its card allows to be used.
    """
    if not path.exists():
        return None
    digest = digest_of(path)
    try:
        return read_card(path, digest) or {"sha256": digest}
    except (InputError, MismatchError):
        return None


def _write_card(artefact: Path, card: Card) -> None:
    write_whole(card_path(artefact), json.dumps(card, indent=2).encode() + b"\n")


def _parsed(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_BYTES:
        raise InputError(f"{path} has more than {LARGEST_BYTES:,} bytes, which no card has; {AGAIN}")
    try:
        card = json.loads(bytes(read_whole(path)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}); {AGAIN}") from error
    version = card.get("card_version") if isinstance(card, dict) else None
    if version != VERSION:
        told = "it names no version" if version is None else f"it is of version {version!r}"
        raise InputError(
            f"{path} is no card of version {VERSION}, which this maskvote knows: {told}; {AGAIN}"
        )
    return card

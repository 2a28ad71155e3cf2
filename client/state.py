"""State: a directory that remembers which of a device's steps are done, so that another process goes on.

    settings.json          what was asked for, and the task's class names
    offer                  what the server offered, with the probe
    request                the task's description
    assignment             what the server assigned, with the network
    network.safetensors    that network, adapted
    measured.json          what was measured on the way
    contribution           the mask to give back
    receipt                what the server gave for it
    *.part                 downloads that are not finished
    lock                   held by the process that is at work here

Messages lie in the files of docs/files.md. Each is written whole; the later ones are there only if those
that they need are.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from client.adapt import Adaptation, Step
from client.download import NAME as PARTIAL
from client.download import partial_files
from client.export import save_network
from common.envelope import LENGTHS, MAGIC, seal, unseal
from common.errors import InputError, MaskvoteError
from common.exchange import Assignment, Offer, Receipt, TaskDescription
from common.files import Data, read_whole, write_whole
from common.proto_codec import (
    MALFORMED,
    decode_assignment,
    decode_contribution,
    decode_offer,
    decode_receipt,
    decode_task_description,
    encode_assignment,
    encode_contribution,
    encode_offer,
    encode_receipt,
    encode_task_description,
)
from common.structure import Structure

OFFER, REQUEST, ASSIGNMENT = "offer", "request", "assignment"
CONTRIBUTION, RECEIPT = "contribution", "receipt"
SETTINGS, MEASURED, NETWORK, LOCK = "settings.json", "measured.json", "network.safetensors", "lock"
NAMES = {OFFER, REQUEST, ASSIGNMENT, CONTRIBUTION, RECEIPT, SETTINGS, MEASURED, NETWORK, LOCK}

UNFINISHED = re.compile(r"\.(?P<name>.+)-[0-9a-f]{8}")
"""A file that `write_whole` was killed over."""

Setting = str | int | float | list[str] | None
Decoded = TypeVar("Decoded")


class State:
    """The steps that are done, in a directory; satisfies `Steps`. One process at a time has it open.

    InputError where the directory is in use or holds anything else, and where a file in it cannot be used
    or written: the file is named, and the others stay as they are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._offer: Offer | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            strange = [path.name for path in sorted(directory.iterdir()) if not _is_ours(path.name)]
            if strange:
                raise InputError(
                    f"{directory} holds {strange[0]!r}, which is none of a device's steps; give a "
                    "directory of its own"
                )
            directory.chmod(0o700)
            self._lock = self._locked()
            for path in directory.iterdir():
                if UNFINISHED.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise InputError(
                f"{directory} cannot keep a device's steps ({error.strerror or error}); give another "
                "directory"
            ) from error

    def _locked(self) -> int:
        file = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise InputError(
                f"{self.directory} is in use by another process; let it end, or give another directory"
            ) from error
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes at the directory."""
        os.close(self._lock)

    def remember(self, **settings: Setting) -> None:
        """Remember what is asked for. InputError if something else is requested already, naming both."""
        known = self._json(SETTINGS, lambda text: dict(text)) or {}
        begun = (self.directory / REQUEST).exists()
        for name, value in settings.items():
            if begun and name in known and known[name] != value:
                raise InputError(
                    f"{self.directory} was begun with {name.replace('_', ' ')} {_shown(known[name])}, now"
                    f" it is {_shown(value)}; give what it was begun with, or another --state"
                )
        if {**known, **settings} != known:
            self._write_json(SETTINGS, {**known, **settings})

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names of the task, as far as they are known here."""
        return self._json(SETTINGS, lambda text: tuple(text["classes"]) if "classes" in text else None)

    @property
    def offer(self) -> Offer | None:
        """What the server offered."""
        if self._offer is None:
            self._offer = self._message(OFFER, decode_offer)
        return self._offer

    @property
    def description(self) -> TaskDescription | None:
        """What the server is asked, under the one request id that it is asked with."""
        return self._message(REQUEST, lambda message, _: decode_task_description(message))

    @property
    def assignment(self) -> Assignment | None:
        """What the server assigned, as it came: adapting it changes nothing here."""
        return self._message(
            ASSIGNMENT,
            lambda message, network: decode_assignment(message, network, self._structure),
        )

    @property
    def adaptation(self) -> Adaptation | None:
        """What adapting the assignment came to, without the network, which lies in `network`."""
        contribution = self._message(
            CONTRIBUTION, lambda message, _: decode_contribution(message, self._structure)
        )
        if contribution is None:
            return None
        measured = self._json(MEASURED, _measured)
        if measured is None or not self.network.exists():
            missing = MEASURED if measured is None else NETWORK
            raise InputError(
                f"{self.directory / missing} is missing; remove {CONTRIBUTION} too, and the network is "
                "adapted once more"
            )
        return Adaptation(contribution, **measured)

    @property
    def receipt(self) -> Receipt | None:
        """What the server gave for the contribution."""
        return self._message(RECEIPT, lambda message, _: decode_receipt(message))

    @property
    def network(self) -> Path:
        """Where the adapted network is."""
        return self.directory / NETWORK

    @property
    def bytes_up(self) -> dict[str, int]:
        """Bytes of the messages that the device sends."""
        return {
            "request": self._content_bytes(REQUEST),
            "mask and accuracies": self._content_bytes(CONTRIBUTION),
        }

    @property
    def bytes_down(self) -> dict[str, int]:
        """Bytes of the messages that the server sends, with the probe and the network."""
        return {
            "offer and probe": self._content_bytes(OFFER),
            "network": self._content_bytes(ASSIGNMENT),
            "receipt": self._content_bytes(RECEIPT),
        }

    def keep(self, step: Step) -> Step:
        """Write what a step came to; what was downloaded for it is not needed any more."""
        match step:
            case Offer():
                self._seal(OFFER, *encode_offer(step))
            case TaskDescription():
                self._seal(REQUEST, encode_task_description(step))
            case Assignment():
                self._seal(ASSIGNMENT, *encode_assignment(step))
            case Adaptation():
                self._keep_adaptation(step)
            case Receipt():
                self._seal(RECEIPT, encode_receipt(step))
        for path in partial_files(self.directory):
            path.unlink()
        return step

    def _keep_adaptation(self, adaptation: Adaptation) -> None:
        assert adaptation.adapted is not None
        assert self.offer is not None
        classes = self._json(SETTINGS, lambda text: tuple(text["classes"])) or ()
        adapted = adaptation.adapted
        mask = adapted.pruned.mask.digest
        save_network(self.network, adapted.network, self.offer.backbone, classes, mask)
        self.network.chmod(0o600)
        self._write_json(
            MEASURED,
            {
                name: dict(value) if isinstance(value, Mapping) else value
                for name, value in vars(adaptation).items()
                if name not in ("contribution", "adapted")
            },
        )
        self._seal(CONTRIBUTION, encode_contribution(adaptation.contribution))

    @property
    def _structure(self) -> Structure:
        if (offer := self.offer) is None:
            raise InputError(f"there is no {OFFER} beside it")
        return offer.structure

    def _seal(self, name: str, message: bytes, payload: Data = b"") -> None:
        seal(self.directory / name, message, payload)
        (self.directory / name).chmod(0o600)

    def _message(self, name: str, decode: Callable[[bytes, Data], Decoded]) -> Decoded | None:
        return self._used(name, lambda path: decode(*unseal(path)))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.directory / name, json.dumps(content, indent=2).encode())
        (self.directory / name).chmod(0o600)

    def _json(self, name: str, decode: Callable[[Any], Decoded]) -> Decoded | None:
        return self._used(name, lambda path: decode(json.loads(bytes(read_whole(path)))))

    def _used(self, name: str, read: Callable[[Path], Decoded]) -> Decoded | None:
        path = self.directory / name
        if not path.exists():
            return None
        try:
            return read(path)
        except (MaskvoteError, *MALFORMED) as error:
            raise InputError(
                f"{path} cannot be used ({error}); remove it, and its step is done once more"
            ) from error

    def _content_bytes(self, name: str) -> int:
        path = self.directory / name
        return path.stat().st_size - len(MAGIC) - LENGTHS.size if path.exists() else 0


def _is_ours(name: str) -> bool:
    unfinished = UNFINISHED.fullmatch(name)
    return name in NAMES or PARTIAL.fullmatch(name) is not None or (
        unfinished is not None and unfinished["name"] in NAMES
    )  # fmt: skip


def _measured(content: Any) -> dict[str, Any]:
    return {
        "origin": str(content["origin"]),
        "similarities": tuple(float(value) for value in content["similarities"]),
        "counts": tuple(int(count) for count in content["counts"]),
        "parameters": int(content["parameters"]),
        "accuracies": {int(done): float(value) for done, value in content["accuracies"].items()},
        "seconds": {str(step): float(value) for step, value in content["seconds"].items()},
        # Those of earlier versions say nothing of it.
        "healed": content.get("healed") is True,
    }


def _shown(value: Setting) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)

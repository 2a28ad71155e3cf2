"""State: a directory that remembers which of a device's steps are done, so that another process goes on.

    settings.json          what was asked for, and the task's class names
    offer                  what the server offered, with the probe
    request                the task's description
    assignment             what the server assigned, with the network
    tuning                 how far tuning has come, every few seconds until it is done
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
from client.saved_header import classes_in, read_header
from common.class_names import composed
from common.envelope import LENGTHS, MAGIC, seal, unseal
from common.errors import InputError, MaskvoteError, MismatchError
from common.exchange import Assignment, Offer, Receipt, TaskDescription
from common.files import Data, read_whole, write_whole
from common.image_folders import is_of_a_system
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
    offered_structure,
)
from common.setting_words import changed_words
from common.structure import Structure
from common.tuning_file import TuningFile

OFFER, REQUEST, ASSIGNMENT = "offer", "request", "assignment"
CONTRIBUTION, RECEIPT = "contribution", "receipt"
SETTINGS, MEASURED, NETWORK, LOCK = "settings.json", "measured.json", "network.safetensors", "lock"
TUNING = "tuning"
BEGIN_AGAIN = "begin again with another --state; with --epsilon that spends once more"
ADAPT_AGAIN = f"remove it and {CONTRIBUTION}, and the network is adapted once more"
RECOVERY = {
    SETTINGS: "remove it, and give what it was begun with, which is known nowhere else",
    OFFER: "remove it, and it is fetched once more",
    REQUEST: BEGIN_AGAIN,
    ASSIGNMENT: "remove it, and the server is asked for it once more, by the same request",
    NETWORK: ADAPT_AGAIN,
    MEASURED: ADAPT_AGAIN,
    CONTRIBUTION: "remove it, and the network is adapted once more",
    RECEIPT: "remove it, and the contribution is given once more",
}
"""What to do about a file that cannot be used. All but the request can be had again at no cost."""
NAMES = {*RECOVERY, LOCK, TUNING}

PROBE_BYTES = "probe_bytes"
"""The name, among the settings, of how many bytes of the probe were downloaded."""

UNTOLD = {"seed", "iterations", "learning_rate"}
"""Settings that the server is told nothing of: they may change until there is a contribution."""

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
        self._structure: Structure | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = sorted(path.name for path in directory.iterdir())
            strange = [name for name in names if not (_is_ours(name) or is_of_a_system(name))]
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
        except BaseException as error:
            os.close(file)
            if not isinstance(error, BlockingIOError):
                raise
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

    @property
    def adapted(self) -> bool:
        """Whether the network is adapted, so that the task's images are not needed any more."""
        return self._any_of(CONTRIBUTION, RECEIPT)

    @property
    def begun(self) -> bool:
        """Whether the server may have been asked, so that what it is asked for stays."""
        return self._any_of(REQUEST, ASSIGNMENT, CONTRIBUTION, RECEIPT)

    def remember(self, **settings: Setting) -> None:
        """Remember what is asked for. InputError if something else is requested already, naming both.

        What the server is told nothing of stays only once the network is adapted.
        """
        known = self._json(SETTINGS, _settings) or {}
        begun, adapted = self.begun, self.adapted
        for name, value in settings.items():
            stays = adapted if name in UNTOLD else begun
            if stays and name in known and known[name] != value:
                raise InputError(
                    f"{self.directory} was begun with {changed_words(name, known[name], value)}; give "
                    "what it was begun with, or another --state"
                )
        if {**known, **settings} != known:
            self._write_json(SETTINGS, {**known, **settings})

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names of the task, as far as they are known; the adapted network has them too."""
        known = tuple((self._json(SETTINGS, _settings) or {}).get("classes", ()))
        return known or self._used(NETWORK, lambda path: classes_in(read_header(read_whole(path))))

    @property
    def offer(self) -> Offer | None:
        """What the server offered."""
        if self._offer is None:
            self._offer = self._message(OFFER, decode_offer)
        return self._offer

    @property
    def structure(self) -> Structure | None:
        """The structure in the offer: all that is needed of it to say how an adaptation ended."""
        if self._structure is None:
            self._structure = self._message(OFFER, offered_structure)
        return self._structure

    @property
    def description(self) -> TaskDescription | None:
        """What the server is asked, under the one request id that it is asked with.

        InputError where it is lost: to describe the task once more would be another request.
        """
        if self.begun and not self._any_of(REQUEST):
            raise InputError(f"{self.directory / REQUEST} is missing; {BEGIN_AGAIN}")
        return self._request

    @property
    def assignment(self) -> Assignment | None:
        """What the server assigned, as it came: adapting it changes nothing here."""
        return self._message_of_structure(ASSIGNMENT, decode_assignment)

    @property
    def adaptation(self) -> Adaptation | None:
        """What adapting the assignment came to, without the network, which lies in `network`."""
        contribution = self._message_of_structure(
            CONTRIBUTION, lambda message, _, structure: decode_contribution(message, structure)
        )
        if contribution is None:
            return None
        measured = self._json(MEASURED, _measured)
        network = self._used(NETWORK, lambda path: read_header(read_whole(path)))
        if measured is None or network is None:
            missing = MEASURED if measured is None else NETWORK
            raise InputError(
                f"{self.directory / missing} is missing; remove {CONTRIBUTION} too, and the network is "
                "adapted once more"
            )
        return Adaptation(contribution, **measured)

    @property
    def tuning_file(self) -> TuningFile:
        """Where tuning keeps how far it has come. One that is damaged is as good as none."""
        return TuningFile(self.directory / TUNING)

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
        """Bytes of the messages that the device sends, of those that are there."""
        return self._content_bytes({"request": REQUEST, "mask and accuracies": CONTRIBUTION})

    @property
    def bytes_down(self) -> dict[str, int]:
        """Bytes of the messages that the server sends, probe and network too, of those that are there.

        The probe counts as far as it was downloaded: not at all where it was kept from an earlier time.
        """
        known = self._json(SETTINGS, lambda text: dict(text)) or {}
        came: dict[str, int] = {}
        if self._any_of(OFFER):
            offer, probe = (len(part) for part in unseal(self.directory / OFFER))
            # States of earlier versions do not say: they have downloaded it.
            came = {"offer": offer, "probe": known.get(PROBE_BYTES, probe)}
        return came | self._content_bytes({"network": ASSIGNMENT, "receipt": RECEIPT})

    def keep(self, step: Step) -> Step:
        """Write what a step came to; what was downloaded for it is not needed any more.

        MismatchError for an offer that the request kept here does not answer.
        """
        match step:
            case Offer():
                self._check_offer(step)
                self._note_probe()
                self._seal(OFFER, *encode_offer(step))
            case TaskDescription():
                self._seal(REQUEST, encode_task_description(step))
            case Assignment():
                self._seal(ASSIGNMENT, *encode_assignment(step))
            case Adaptation():
                self._keep_adaptation(step)
            case Receipt():
                self._seal(RECEIPT, encode_receipt(step))
                self.tuning_file.remove()  # a kill may have come before it was removed
        for path in partial_files(self.directory):
            path.unlink()
        return step

    def _check_offer(self, offer: Offer) -> None:
        """A lost offer is fetched once more, and its server may have another one by now."""
        request = self._request
        if request is not None and request.signature.probe != offer.probe.digest:
            raise MismatchError(
                f"the server offers probe {offer.probe.digest}, {self.directory / REQUEST} was made with "
                f"{request.signature.probe}; go on with the server it began with, or {BEGIN_AGAIN}"
            )

    def _note_probe(self) -> None:
        """Remember how much of the probe was downloaded, which is still here if it was."""
        fetched = sum(path.stat().st_size for path in partial_files(self.directory, "probe"))
        known = self._json(SETTINGS, lambda text: dict(text)) or {}
        self._write_json(SETTINGS, {**known, PROBE_BYTES: fetched})

    def _keep_adaptation(self, adaptation: Adaptation) -> None:
        from client.export import save_network  # with torch, which telling an adaptation's end needs not

        assert adaptation.adapted is not None
        assert self.offer is not None
        adapted = adaptation.adapted
        mask = adapted.pruned.mask.digest
        save_network(self.network, adapted.network, self.offer.backbone, self.classes or (), mask)
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
        self.tuning_file.remove()

    @property
    def _request(self) -> TaskDescription | None:
        return self._message(REQUEST, lambda message, _: decode_task_description(message))

    def _any_of(self, *names: str) -> bool:
        return any((self.directory / name).exists() for name in names)

    def _seal(self, name: str, message: bytes, payload: Data = b"") -> None:
        seal(self.directory / name, message, payload)
        (self.directory / name).chmod(0o600)

    def _message(self, name: str, decode: Callable[[bytes, Data], Decoded]) -> Decoded | None:
        return self._used(name, lambda path: decode(*unseal(path)))

    def _message_of_structure(
        self, name: str, decode: Callable[[bytes, Data, Structure], Decoded]
    ) -> Decoded | None:
        """A message that only the offer's structure makes sense of; errors of the offer are its own."""
        if not self._any_of(name):
            return None
        if (structure := self.structure) is None:
            raise InputError(
                f"{self.directory / OFFER} is missing, and {name} cannot be read without it; fetch the "
                "offer from the server once more"
            )
        return self._message(name, lambda message, data: decode(message, data, structure))

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
            if isinstance(error.__cause__, OSError):
                raise  # the system cannot read it, which says nothing against the file
            raise InputError(f"{path} cannot be used ({error}); {RECOVERY[name]}") from error

    def _content_bytes(self, names: Mapping[str, str]) -> dict[str, int]:
        paths = {what: self.directory / name for what, name in names.items()}
        envelope = len(MAGIC) + LENGTHS.size
        return {what: p.stat().st_size - envelope for what, p in paths.items() if p.exists()}


def _is_ours(name: str) -> bool:
    unfinished = UNFINISHED.fullmatch(name)
    return name in NAMES or PARTIAL.fullmatch(name) is not None or (
        unfinished is not None and unfinished["name"] in NAMES
    )  # fmt: skip


def _settings(content: Any) -> dict[str, Any]:
    settings = dict(content)
    if "classes" in settings:
        # A system may have written them in another form of Unicode.
        settings["classes"] = [composed(name) for name in settings["classes"]]
    return settings


def _measured(content: Any) -> dict[str, Any]:
    return {
        "origin": str(content["origin"]),
        "similarities": tuple(float(value) for value in content["similarities"]),
        "counts": tuple(int(count) for count in content["counts"]),
        "parameters": int(content["parameters"]),
        "accuracies": {int(done): float(value) for done, value in content["accuracies"].items()},
        "seconds": {str(step): float(value) for step, value in content["seconds"].items()},
        # Those of earlier versions lack these, and kept the network of the last iteration.
        "healed": content.get("healed") is True,
        "kept": int(content.get("kept", max(map(int, content["accuracies"])))),
        "held_out": int(content.get("held_out", 0)),
    }

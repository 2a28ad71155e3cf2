"""Healed store: what healing has come to, in a directory beside the library. It may be deleted any time.

    backbone.safetensors      the healed backbone
    features.safetensors      the whole backbone's features of the public images
    masks/DIGEST.safetensors  networks that were healed for one mask; the least recently used go first

A cache, and never trusted blindly: every file says of which backbone it is, and carries a sum of its
content. What is of another backbone or damaged is told by a warning, and is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor

from common.backbone import Backbone, Weights, weights_digest
from common.errors import InputError, MismatchError, WeightsError
from common.files import read_whole, write_whole
from common.half_precision import in_half_precision
from common.mask import Mask
from common.selection import Selection
from common.structure import Structure
from common.tensor_file import Kind, read_tensors, write_tensors

FORMAT = "2"
BACKBONE_FILE = "backbone.safetensors"
MASKS_BYTES = 2 * 10**9
"""How much the networks that were healed for one mask may take on the disk."""
BEYOND = 1.25
"""How far from the shares of units that a backbone was healed for it is still better than another."""
LEFTOVER_SECONDS = 3600
"""A file that was begun so long ago, and has no name yet, is a killed process's."""

Content = Literal["backbone", "features", "network"]
Stamp = tuple[int, int, int]

logger = logging.getLogger("maskvote")


@dataclass(frozen=True)
class HealedBackbone:
    """The backbone's weights, healed through masks that keep `low` to `high` of its units.

    Importance elected them with `prior` beside votes, as it has to where networks are cut out of this.
    `weights` are float32 without classifiers, and not to be written to; `iterations`, `images` and
    `seconds` are what was spent on them, `entries` how many the library had.
    """

    weights: Weights
    low: float
    high: float
    prior: float
    iterations: int
    images: int
    entries: int
    seconds: float

    def covers(self, share: float) -> bool:
        """Whether it was healed for masks that keep about this share of units."""
        return self.low / BEYOND <= share <= self.high * BEYOND

    @cached_property
    def halved(self) -> Weights:
        """The weights as they travel, see `common.half_precision`."""
        return in_half_precision(self.weights)

    @property
    def facts(self) -> dict[str, Any]:
        """All but the weights."""
        names = [field.name for field in fields(self) if field.name != "weights"]
        return {name: getattr(self, name) for name in names}


class HealedStore:
    """The healed store of one backbone. Threads may share it, and processes the directory.

    Every file is written whole or not at all. What reads gives None, with a warning, where a file
    cannot be used; what writes raises InputError where it cannot, and WeightsError for tensors that
    are not this backbone's, or not finite.
    """

    def __init__(
        self,
        directory: Path,
        backbone: Backbone,
        weights_digest: str,
        structure: Structure,
        masks_bytes: int = MASKS_BYTES,
    ) -> None:
        """The store in a directory, which is made when something is put there."""
        self.directory = directory
        self._backbone_file = directory / BACKBONE_FILE
        self._features_file = directory / "features.safetensors"
        self._masks = directory / "masks"
        self._masks_bytes = masks_bytes
        self._structure = structure
        self._kinds = _kinds(backbone)
        self._identity = {
            "maskvote_healed": FORMAT,
            "backbone": backbone.to_json(),
            "weights": weights_digest,
            "structure": structure.digest,
        }
        self._reading = Lock()
        self._stamp: Stamp | None = None
        self._current: HealedBackbone | None = None
        self._told = False

    def check(self) -> None:
        """Raise MismatchError if what lies there is of another backbone: the library was replaced."""
        for path in (self._backbone_file, self._features_file):
            with suppress(InputError):
                self._read(path)

    def backbone(self) -> HealedBackbone | None:
        """The healed backbone, read again whenever its file is another; None where there is none.

        Quick where it is the same file. While one thread reads, the others get what was there before.
        """
        stamp = _stamp(self._backbone_file)
        if stamp != self._stamp and self._reading.acquire(blocking=False):
            try:
                # The file's stamp was taken first: what is replaced meanwhile is read again next time.
                self._current = self._read_backbone()
                # Last, for `edition`: whoever sees this stamp is given this backbone, or a later one.
                self._stamp = stamp
            finally:
                self._reading.release()
        return self._current

    def put_backbone(self, healed: HealedBackbone) -> None:
        """Keep a healed backbone, in place of an earlier one."""
        kept = {name: tensor for name, tensor in healed.weights.items() if name in self._kinds}
        _check_tensors(kept, self._kinds)
        self._write(self._backbone_file, "backbone", kept, healed.facts)

    def features(self, images_digest: str) -> Tensor | None:
        """The whole backbone's features, float16 (N, D), of the images with this digest (see
        `server.healing.public_images`); None where there are none, or those of other images.
        """
        found = self._found(self._features_file, "features")
        if found is None or found[1].get("images") != images_digest:
            return None
        return found[0].get("features")

    def put_features(self, images_digest: str, features: Tensor) -> None:
        """Keep the features of some public images, in place of all others."""
        self._write(self._features_file, "features", {"features": features}, {"images": images_digest})

    def network(self, mask: Mask) -> Weights | None:
        """The tensors, without classifiers, of the network that was healed for this very mask, or None.

        They are the caller's own. It counts as used; a damaged one is removed.
        """
        path = self._path(mask)
        if not path.exists():
            return None
        found = self._found(path, "network", self._kinds_of(mask))
        if found is None:
            return None
        _note_use(path)
        return found[0]

    def has_network(self, mask: Mask) -> bool:
        """Whether there is a file for this mask, quickly: of what use it is, `network` finds out."""
        return self._path(mask).exists()

    def put_network(self, mask: Mask, tensors: Weights) -> None:
        """Keep a network that was healed for this mask; the least recently used make room for it."""
        kinds = self._kinds_of(mask)
        kept = {name: tensor for name, tensor in tensors.items() if name in kinds}
        _check_tensors(kept, kinds)
        path = self._path(mask)
        self._write(path, "network", kept, {})
        _note_use(path)
        self._make_room(path)

    def edition(self, mask: Mask) -> str:
        """A text that is another as soon as there is another healed network or backbone for this mask.

        It is of what `backbone` gives: while one thread reads another backbone, the one before.
        """
        self.backbone()
        return f"{_stamp(self._path(mask))} {self._stamp}"

    def _path(self, mask: Mask) -> Path:
        if mask.structure.digest != self._structure.digest:
            raise MismatchError(
                f"the mask is of structure {mask.structure.digest[:12]}, the healed store of "
                f"{self._structure.digest[:12]}; use a mask of this backbone"
            )
        digest = hashlib.sha256(self._structure.digest.encode() + mask.pack()).hexdigest()
        return self._masks / f"{digest}.safetensors"

    def _kinds_of(self, mask: Mask) -> Mapping[str, Kind]:
        selection = Selection(mask)
        return {
            name: Kind(kind.dtype, selection.shape(name, kind.shape))
            for name, kind in self._kinds.items()
        }

    def _read_backbone(self) -> HealedBackbone | None:
        found = self._found(self._backbone_file, "backbone", self._kinds)
        return None if found is None else HealedBackbone(found[0], **found[1])

    def _found(
        self, path: Path, content: Content, kinds: Mapping[str, Kind] | None = None
    ) -> tuple[Weights, dict[str, Any]] | None:
        """The tensors and facts of a file; None, told by a warning, where they are of no use."""
        try:
            tensors, facts = self._read(path, content)
            if kinds is not None:
                _check_tensors(tensors, kinds)
            return tensors, facts
        except MismatchError as error:
            if not self._told:
                logger.warning("warning: nothing healed is used: %s", error)
            self._told = True
        except WeightsError as error:
            logger.warning("warning: %s is not used: %s", path, error)
            if content == "network":
                path.unlink(missing_ok=True)
        except InputError as error:
            if path.exists():
                logger.warning("warning: %s is not used: %s", path, error)
        return None

    def _read(self, path: Path, content: Content | None = None) -> tuple[Weights, dict[str, Any]]:
        """Errors: InputError where the file cannot be read, WeightsError where it is damaged, else
        MismatchError where it is of another backbone."""
        tensors, header = read_tensors(read_whole(path))
        if header.get("maskvote_healed") != FORMAT or header.get("sha256") != _sum(tensors, header):
            raise WeightsError("it is damaged, or of another version; heal again")
        if content is not None and (held := header.get("content", "nothing")) != content:
            raise WeightsError(f"it holds {held!r}, not {content!r}; heal again")
        others = [word for word, own in self._identity.items() if header.get(word) != own]
        if others:
            raise MismatchError(
                f"{path} is of another backbone than the library (other {', '.join(others)}); "
                f"delete {self.directory}, and heal again"
            )
        return tensors, json.loads(header["facts"])

    def _write(self, path: Path, content: Content, tensors: Weights, facts: Mapping[str, Any]) -> None:
        header = {**self._identity, "content": content, "facts": json.dumps(facts)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{path.parent} cannot be made ({error.strerror}); make the library's directory writable"
            ) from error
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        write_whole(path, write_tensors(tensors, header | {"sha256": _sum(tensors, header)}))
        _remove_leftovers(path.parent)

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self._masks.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process has made room
                status = path.stat()
                files.append((status.st_atime_ns, status.st_size, path))
        files.sort()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._masks_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


def backbone_stamp(directory: Path) -> Stamp | None:
    """What is another as soon as another healed backbone lies in a store; None where there is none."""
    return _stamp(directory / BACKBONE_FILE)


def _kinds(backbone: Backbone) -> dict[str, Kind]:
    """What the backbone's tensors are, but for the classifiers'; numbers with a point as float32."""
    return {
        name: Kind(torch.float32 if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))
        for name, tensor in backbone.skeleton().state_dict().items()
        if name not in backbone.classifier_tensors
    }


def _check_tensors(tensors: Weights, kinds: Mapping[str, Kind]) -> None:
    """Raise WeightsError unless the tensors are of these kinds, and finite."""
    found = {name: Kind(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    wrong = sorted(name for name in {*found, *kinds} if found.get(name) != kinds.get(name))
    wrong += [
        f"{name} (NaN or infinite)"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} tensors are not what healing gives, first {', '.join(wrong[:3])}; heal again, "
            "with a lower learning rate if they are not finite"
        )


def _sum(tensors: Weights, header: Mapping[str, str]) -> str:
    """sha256 over a file's tensors and all that it says of them."""
    words = json.dumps({word: text for word, text in header.items() if word != "sha256"}, sort_keys=True)
    return hashlib.sha256(f"{weights_digest(tensors)} {words}".encode()).hexdigest()


def _stamp(path: Path) -> Stamp | None:
    """What is another as soon as the file is another one; None where there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _note_use(path: Path) -> None:
    """Say when a file was used, and leave when it was written as it is."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes began to write."""
    for path in directory.glob(".*.safetensors-*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()

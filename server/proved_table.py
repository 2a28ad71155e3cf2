"""Proved table: what of a backbone can be cut, found and proved once and then read from a cache.

The cache is a directory with a file a backbone. A table is for one timm version, model, arguments and
input size, and for the code that made it; what is not for exactly that is never used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import timm
import torch

import common
from common.backbone import Backbone
from common.errors import InputError, MismatchError, UnsupportedModel
from common.files import read_whole, write_whole
from common.proof import Outcome, Proof, Verdict, prove
from common.structure import Kind, Structure
from common.system_errors import pass_on
from common.user_directories import CACHE_VARIABLE, maskvote_cache
from server.settings import PROOF_SECONDS

FORMAT = 1
TABLE_CLASSES = 1000
"""Classes that tables are made with: groups depend on no number of classes, and costs leave it open."""

CODE = (
    "structure/*.py", "backbone.py", "mask.py", "module_sizes.py", "proof.py", "rebuild.py",
    "selection.py", "subnetwork.py",
)  # fmt: skip
"""The files of `common` that a table follows from."""

logger = logging.getLogger("maskvote")


@dataclass(frozen=True)
class Spent:
    """Seconds of CPU (all threads) and of the clock on the wall."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class ProvedTable:
    """All groups of a backbone, internal and residual, and a verdict on each.

    `limit` is how many seconds the proof was given; `code` is the `code_digest` it was made with.
    Raises InputError where the verdicts are not those of the groups, in their order.
    """

    found: Structure
    proof: Proof
    discovery_seconds: Spent
    proof_seconds: Spent
    limit: float
    code: str

    def __post_init__(self) -> None:
        verdicts = [verdict.group for verdict in self.proof.verdicts]
        outcomes = {verdict.outcome for verdict in self.proof.verdicts} - set(get_args(Outcome))
        if verdicts != [group.name for group in self.found.groups] or outcomes:
            raise InputError("the verdicts are not those of the groups; prove them again")

    def structure(self, kinds: Sequence[Kind]) -> Structure:
        """The groups of these kinds that are proved; every other is frozen, with the reason."""
        return self.proof.proved(self.found).only(kinds)

    @property
    def is_complete(self) -> bool:
        """Whether the time given sufficed to check every group."""
        return all(verdict.outcome != "unchecked" for verdict in self.proof.verdicts)

    def to_json(self) -> str:
        """Two lines of JSON: how it was made, with the verdicts; and the structure that was found."""
        head = {
            "format": FORMAT,
            "code": self.code,
            "limit": self.limit,
            "discovery_seconds": astuple(self.discovery_seconds),
            "proof_seconds": astuple(self.proof_seconds),
            "verdicts": [astuple(verdict) for verdict in self.proof.verdicts],
        }
        return json.dumps(head) + "\n" + self.found.to_json()

    @classmethod
    def from_json(cls, text: str) -> ProvedTable:
        """The table of such a text; InputError if it is none, MismatchError if of another format."""
        head, _, structure = text.partition("\n")
        try:
            data = json.loads(head)
            if data["format"] != FORMAT:
                raise MismatchError(f"it has format {data['format']}, this version reads {FORMAT}")
            return cls(
                Structure.from_json(structure),
                Proof(tuple(Verdict(*verdict) for verdict in data["verdicts"])),
                Spent(*data["discovery_seconds"]),
                Spent(*data["proof_seconds"]),
                float(data["limit"]),
                str(data["code"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"it is no table: {error!r}") from error


def proved_table(
    backbone: Backbone,
    *,
    cache: Path | None = None,
    fresh: bool = False,
    seconds: float = PROOF_SECONDS,
    watch: Callable[[int, int], None] | None = None,
) -> ProvedTable:
    """The table of a backbone: from the cache directory, else found, proved, and stored there.

    `cache` is by default `cache_directory()`; with `fresh` what it holds is not read. The proof is
    given so many `seconds`, and a stored one that had fewer and ran out of them is done again.
    `watch` is called with groups checked and groups in all, once discovery is through. A stored
    table that is damaged or not of this backbone, a directory that cannot be written, and a user
    without a home are told by a warning. Raises UnsupportedModel where the model cannot be followed
    or run, MismatchError where the backbone was described with another timm than is installed.
    """
    if backbone.timm_version != timm.__version__:
        raise MismatchError(
            f"{backbone.model} was described with timm {backbone.timm_version}, installed is "
            f"{timm.__version__}; install that version, or describe the backbone anew"
        )
    directory = cache_directory() if cache is None else Path(cache)
    path = None if directory is None else directory / _file_name(backbone)
    if path is not None and not fresh:
        table = _kept(path, backbone)
        if table is not None and (table.is_complete or table.limit >= seconds):
            return _for_classes(table, backbone)
    table = _make(replace(backbone, num_classes=TABLE_CLASSES), seconds, watch)
    if path is None:
        logger.warning(
            "warning: the proof is not kept: this user has no home; let %s name a directory for it",
            CACHE_VARIABLE,
        )
    else:
        _keep(path, table)
    return _for_classes(table, backbone)


def cache_directory() -> Path | None:
    """Where tables are kept: structures in $MASKVOTE_CACHE, else in maskvote in the user's cache.

    None for a user who has no home.
    """
    return maskvote_cache("structures")


@cache
def code_digest() -> str:
    """sha256 over the code that tables follow from: our own, and torch's version for its graphs."""
    digest = hashlib.sha256(torch.__version__.encode())
    root = Path(common.__file__).parent
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        digest.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _file_name(backbone: Backbone) -> str:
    key = hashlib.sha256(f"{FORMAT} {code_digest()} {_canonical(backbone.identity)}".encode())
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', backbone.model)[:80]}-{key.hexdigest()[:16]}.json"


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)


def _sealed(text: str) -> bytes:
    """The text under a line with its sha256."""
    data = text.encode()
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def _read(path: Path, backbone: Backbone) -> ProvedTable:
    seal, _, data = bytes(read_whole(path)).partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != seal:
        raise InputError("it is damaged")
    table = ProvedTable.from_json(data.decode())
    problems = []
    if table.code != code_digest():
        problems.append("other code")
    for key, value in backbone.identity.items():
        theirs = table.found.model.get(key)
        if _canonical({key: theirs}) != _canonical({key: value}):
            problems.append(f"{key} {theirs}, not {value}")
    if problems:
        raise MismatchError(f"it is of {'; '.join(problems)}")
    return table


def _kept(path: Path, backbone: Backbone) -> ProvedTable | None:
    """The table in a file; None where there is none, or, told by a warning, none of use."""
    try:
        return _read(path, backbone) if path.exists() else None
    except (OSError, ValueError, RecursionError, MismatchError) as error:
        logger.warning("warning: %s is not used, proving anew: %s", path, error)
        return None


def _keep(path: Path, table: ProvedTable) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _sealed(table.to_json()))
    except (OSError, InputError) as error:
        logger.warning("warning: the proof is not kept: %s", error)


def _make(backbone: Backbone, seconds: float, watch: Callable[[int, int], None] | None) -> ProvedTable:
    with _timed() as discovery, _quiet_torch():
        found = backbone.structure(("internal", "residual"))
    if watch is not None:
        watch(0, len(found.groups))
    try:
        with _timed() as proving:
            proof = prove(backbone, found, seconds=seconds, watch=watch)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        pass_on(error)
        first_line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UnsupportedModel(
            f"{backbone.model} cannot be run on images of {backbone.input_size}: {first_line}; "
            "choose another image size or model"
        ) from error
    return ProvedTable(found, proof, discovery[0], proving[0], seconds, code_digest())


def _for_classes(table: ProvedTable, backbone: Backbone) -> ProvedTable:
    if table.found.classes == backbone.num_classes:
        return table
    return replace(table, found=replace(table.found, classes=backbone.num_classes))


@contextmanager
def _timed() -> Iterator[list[Spent]]:
    """A list that holds what the block has spent, once it is through."""
    spent: list[Spent] = []
    cpu, wall = time.process_time(), time.perf_counter()
    yield spent
    spent.append(Spent(time.process_time() - cpu, time.perf_counter() - wall))


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without torch's own account of what it cannot trace: the error that is raised says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)

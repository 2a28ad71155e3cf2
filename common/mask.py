"""Mask: which units of the backbone are kept, per group. An invalid mask cannot exist."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.errors import MaskError, MismatchError
from common.structure import Group, Structure

Scores = Mapping[str, np.ndarray]
"""Group name -> float64 (units,): the more, the better to keep."""


@dataclass(frozen=True, eq=False)
class Mask(Mapping[str, np.ndarray]):
    """Kept units of every group of a structure: a mapping from group name to bool (units,).

    `kept` is bool (units of all groups,), in the structure's order, and becomes read-only. Every
    group keeps at least one unit. Raises MaskError otherwise, naming every group that breaks a rule.
    """

    structure: Structure
    kept: np.ndarray

    def __post_init__(self) -> None:
        kept = np.asarray(self.kept)
        if kept.dtype != np.bool_ or kept.shape != (self.structure.units,):
            raise MaskError(
                f"the mask is {kept.dtype} {kept.shape}; the structure needs bool "
                f"({self.structure.units},): use a mask of this backbone"
            )
        kept = kept.copy()
        kept.setflags(write=False)
        object.__setattr__(self, "kept", kept)
        empty = [name for name in self if not self[name].any()]
        if empty:
            raise MaskError(
                f"the mask keeps no unit of {', '.join(empty)}; every group keeps at least one"
            )

    @classmethod
    def full(cls, structure: Structure) -> Mask:
        """The mask that keeps every unit."""
        return cls(structure, np.ones(structure.units, dtype=bool))

    @classmethod
    def of(cls, structure: Structure, groups: Mapping[str, np.ndarray]) -> Mask:
        """The mask with these rows; MaskError lists groups missing, unknown, or of a wrong length."""
        problems = [f"{name} is missing" for name in structure.starts if name not in groups]
        problems += [f"{name} is unknown" for name in groups if name not in structure.starts]
        for group in structure.groups:
            row = np.asarray(groups.get(group.name, np.ones(group.units, dtype=bool)))
            if row.dtype != np.bool_ or row.shape != (group.units,):
                problems.append(f"{group.name} is {row.dtype} {row.shape}, not bool ({group.units},)")
        if problems:
            raise MaskError(f"this is no mask of the structure: {'; '.join(problems)}")
        return cls(structure, np.concatenate([groups[name] for name in structure.starts]))

    @classmethod
    def keep_top(
        cls,
        structure: Structure,
        scores: Scores,
        counts: Sequence[int],
        tie_break: Scores | None = None,
    ) -> Mask:
        """The mask of the best-scored units: so many of every group, in the structure's order.

        Equal scores go by `tie_break`, and what is equal there too by index. NaN and scores of a
        wrong length raise MaskError; counts outside 1..units as well.
        """
        if len(counts) != len(structure.groups):
            raise MaskError(f"{len(counts)} counts for {len(structure.groups)} groups; give one a group")
        rows = {}
        for group, count in zip(structure.groups, counts, strict=True):
            score = _row(scores, group)
            second = np.zeros(group.units) if tie_break is None else _row(tie_break, group)
            if not 1 <= count <= group.units:
                raise MaskError(f"{group.name} has 1..{group.units} units to keep, not {count}")
            best = np.lexsort((-second, -score))[:count]
            row = np.zeros(group.units, dtype=bool)
            row[best] = True
            rows[group.name] = row
        return cls.of(structure, rows)

    def __getitem__(self, name: str) -> np.ndarray:
        start = self.structure.starts[name]
        return self.kept[start : start + self.structure.group(name).units]

    def __iter__(self) -> Iterator[str]:
        return iter(self.structure.starts)

    def __len__(self) -> int:
        return len(self.structure.groups)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and self.structure.digest == other.structure.digest
            and np.array_equal(self.kept, other.kept)
        )

    def __hash__(self) -> int:
        return hash((self.structure.digest, self.pack()))

    @property
    def digest(self) -> str:
        """sha256 over the structure and the units kept: the same for equal masks."""
        return hashlib.sha256(bytes.fromhex(self.structure.digest) + self.pack()).hexdigest()

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Kept units of every group, in the structure's order."""
        return tuple(int(self[name].sum()) for name in self)

    @property
    def density(self) -> float:
        """The share of all units that is kept, in (0, 1]; 1 where there is nothing to cut."""
        return float(self.kept.mean()) if self.kept.size else 1.0

    @property
    def parameters(self) -> int:
        """Parameters of the network that it cuts out, with the backbone's classifier."""
        return self.structure.parameters(self.counts)

    @property
    def flops(self) -> int:
        """Floating-point operations per image of the network that it cuts out."""
        return self.structure.flops(self.counts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors of the network that it cuts out."""
        return self.structure.weight_bytes(self.counts)

    def within(self, other: Mask) -> bool:
        """Whether every unit kept here is kept there."""
        self._same_structure(other)
        return bool((other.kept | ~self.kept).all())

    def overlap(self, other: Mask) -> dict[str, float]:
        """Per group: intersection over union of the kept units, in [0, 1]."""
        self._same_structure(other)
        return {
            name: float((self[name] & other[name]).sum() / (self[name] | other[name]).sum())
            for name in self
        }

    def pack(self) -> bytes:
        """One bit a unit, groups in order, padded with zeros to whole bytes."""
        return np.packbits(self.kept).tobytes()

    @classmethod
    def unpack(cls, structure: Structure, data: bytes) -> Mask:
        """The mask of packed bits; MaskError on a wrong length or set padding bits."""
        if len(data) != (structure.units + 7) // 8:
            raise MaskError(
                f"a packed mask of {len(data)} bytes; {structure.units} units need "
                f"{(structure.units + 7) // 8}: use a mask of this backbone"
            )
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8)).astype(bool)
        if bits[structure.units :].any():
            raise MaskError("a packed mask with bits set beyond its last unit is damaged")
        return cls(structure, bits[: structure.units])

    def _same_structure(self, other: Mask) -> None:
        if self.structure.digest != other.structure.digest:
            raise MismatchError(
                f"masks of two structures: {self.structure.digest[:12]} and "
                f"{other.structure.digest[:12]}; compare masks of one backbone"
            )


def _row(scores: Scores, group: Group) -> np.ndarray:
    """The scores of a group, float64 (units,); MaskError where they are anything else."""
    row = np.asarray(scores.get(group.name, ()), dtype=np.float64)
    if row.shape != (group.units,) or np.isnan(row).any():
        raise MaskError(
            f"scores of {group.name} are {row.shape} with {int(np.isnan(row).sum())} NaN; "
            f"needed: ({group.units},) and none"
        )
    return row

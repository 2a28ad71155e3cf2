"""A way to a small network, as data: which mask, cut out of which weights, tuned for how long.

Everything that experiments vary is a field here, and a field that is left out has its default: two
experiments that ask for the same way share its cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from common.errors import InputError

Healing = Literal["none", "library", "empty", "served", "mask", "nearest"]
"""Weights as they are; the backbone healed for what its library votes for, or would if empty, or as
maskvote-server heal does by default; this mask healed alone, on all public images, or on those nearest to
the task's signature."""

LibraryKind = Literal["seeded", "grown", "echoed"]
"""Masks that the operator found by iterative pruning; those that devices gave back, who asked a library
of nothing else; or just the masks that these were sent (see simulations.growing)."""


@dataclass(frozen=True)
class Way:
    """A way to a small network."""

    mask: str
    """Who chooses the units: a name of `simulations.cells.WAYS`."""
    keep_ratio: float = 0.1
    """Share of the backbone's units."""
    iterations: int = 50
    """Of tuning on the device."""
    learning_rate: float = 0.1
    healing: Healing = "none"
    healing_iterations: int | None = None
    """Of healing; None: as many as the run says."""
    library: LibraryKind = "seeded"
    entries: int | None = None
    """Only the first so many tasks of the library vote; None: all."""
    neighbours: int = 5
    """K, tasks that vote."""
    similarity: str = "class statistics"
    """How near tasks are: a name of `simulations.similarities.SIMILARITIES`."""
    probe: Literal["probe", "backbone"] = "probe"
    """What signatures are computed with: the library's probe, or the whole backbone."""
    epsilon: float = 0.0
    """Privacy of all signatures, the library's too; 0 adds no noise."""
    images: int | None = None
    """Images a class that the device has; None: all that the run deals out."""
    seeding_iterations: int | None = None
    """In which a twin's mask was found; None: as many as the library's masks."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1 or self.iterations < 0 or self.neighbours < 1:
            raise InputError(
                f"a way of keep ratio {self.keep_ratio}, {self.iterations} iterations and "
                f"{self.neighbours} neighbours; needed are a share in (0, 1], at least 0 and at least 1"
            )
        if self.healing not in get_args(Healing):
            raise InputError(
                f"there is no healing {self.healing!r}; choose {', '.join(get_args(Healing))}"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields that are not at their defaults, and the mask."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name == "mask" or getattr(self, field.name) != field.default
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Way:
        """The way of such fields. InputError for one that is unknown."""
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown or "mask" not in data:
            raise InputError(
                f"a way has a mask and no {', '.join(unknown) or 'other mask'}; it is {dict(data)}"
            )
        return cls(**data)

    @property
    def name(self) -> str:
        """How tables and figures call it: the mask, and how it was healed."""
        healed = {
            "none": "",
            "library": " healed",
            "empty": " healed without a library",
            "served": " healed",
            "mask": " healed alone",
            "nearest": " healed nearby",
        }
        return self.mask + healed[self.healing]

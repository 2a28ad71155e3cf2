"""The directory of a run: one backbone, one library, and all that was measured on them.

    run.json            settings, versions, and the commands that were run
    structure.json      groups and their units
    library.db          the library, seeded on its own tasks
    library.db.healed   what maskvote-server heal would have come to for it
    library.jsonl       its tasks and masks, a line each
    grown.db, echoed.db libraries of what devices gave back (see simulations.growing)
    healed-library.safetensors, healed-empty.safetensors
                        the backbone's weights, healed for what the library votes for, or would if empty;
                        with the iterations in the name where those are not the run's own
    public.safetensors  the backbone's features of the public images
    cells.jsonl         a record for every cell (see simulations.records)

What is there is not made again: a run that was stopped goes on, and another experiment adds to it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from common.backbone import Backbone, Weights, backbone_weights, classes_of
from common.errors import InputError
from common.files import read_whole, write_whole
from common.fine_tune import FineTuneSettings
from common.pruning import PruningSettings
from common.structure import Structure
from common.task_data import Task
from server.founding import found_library, seed_library
from server.healing.drawn_votes import KeepRatios
from server.healing.heal import HealingSettings
from server.library import Entry, Library
from simulations.experiments.experiment import Tasks
from simulations.growing import grow, request_of
from simulations.healed_weights import HealedWeights
from simulations.pools import open_pool
from simulations.provenance import commit, versions
from simulations.tasks import ClassPool, TaskChoice, Watch, draw_library, draw_new
from simulations.way import LibraryKind


@dataclass(frozen=True)
class RunSettings:
    """What all cells of a run have in common."""

    model: str
    data: str
    """Where tasks come from: a directory, `torchvision:NAME:DIRECTORY`, or `glyphs`."""
    public: str
    """Where public images come from, likewise; "" is nowhere, and then nothing can be healed."""
    checkpoint: str = ""
    """Safetensors file; "" is what timm publishes."""
    num_classes: int | None = None
    image_size: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    library_tasks: int = 60
    tasks_a_seed: int = 4
    seeds: int = 3
    images: int = 100
    """Training images a class, of library tasks and of devices."""
    keep_ratio: float = 0.1
    """Of the library's masks."""
    seeding: FineTuneSettings = field(
        default_factory=lambda: FineTuneSettings(iterations=60, fit_images=512)
    )
    seed_pruning: PruningSettings = field(default_factory=lambda: PruningSettings(rounds=5))
    healing: HealingSettings = field(default_factory=HealingSettings)
    heal_ratios: KeepRatios = field(default_factory=KeepRatios)
    device: str = "cpu"
    small_model: str = ""
    """A small network off the shelf to hold the others against; "" is none."""
    small_checkpoint: str = ""
    """Its safetensors file; "" is what timm publishes."""


SMALL = frozenset({"small_model", "small_checkpoint"})
"""Settings that a run may still be given after it began."""


class RunDirectory:
    """A run's files, read when they are first needed."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise InputError(
                f"{path} is no run: it has no run.json; give --backbone and --data to begin one"
            )
        data = json.loads(bytes(read_whole(self.path / "run.json")))
        try:
            given = data["settings"]
            self.settings = RunSettings(
                **{
                    **given,
                    "seeding": FineTuneSettings(**given["seeding"]),
                    "seed_pruning": PruningSettings(**given["seed_pruning"]),
                    "healing": HealingSettings(**given["healing"]),
                    "heal_ratios": KeepRatios(**given["heal_ratios"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}/run.json is no run's ({error!r}); begin another run") from error

    @classmethod
    def begin(cls, path: Path, settings: RunSettings) -> RunDirectory:
        """The directory of a new run, or of one that these settings began before.

        A small network that the run has taken since then makes it no other run. InputError where it is
        another one, or holds its ways against another small network.
        """
        path = Path(path)
        file = path / "run.json"
        if file.exists():
            found = cls(path)
            own, asked = asdict(found.settings), asdict(settings)
            other = [name for name in own.keys() - SMALL if own[name] != asked[name]]
            if other:
                raise InputError(
                    f"{path} is a run of other settings: "
                    + ", ".join(f"{name} {own[name]!r}, not {asked[name]!r}" for name in sorted(other))
                    + "; leave out --backbone and what else began it to go on with it, or choose another "
                    "directory"
                )
            if settings.small_model:
                found.hold_against(settings.small_model, settings.small_checkpoint)
            return found
        path.mkdir(parents=True, exist_ok=True)
        record = {
            "settings": asdict(settings),
            "versions": versions(),
            "commit": commit(),
            "commands": [],
        }
        write_whole(file, json.dumps(record, indent=1).encode())
        return cls(path)

    def hold_against(self, model: str, checkpoint: str) -> None:
        """Let a small network off the shelf take part in this run, too. InputError where another does."""
        mine = (self.settings.small_model, self.settings.small_checkpoint)
        if mine == (model, checkpoint):
            return
        if mine[0]:
            raise InputError(
                f"{self.path} already holds its ways against {' of '.join(filter(None, mine))}; leave "
                "out --small and --small-checkpoint, or begin another run"
            )
        data = json.loads(bytes(read_whole(self.path / "run.json")))
        data["settings"] |= {"small_model": model, "small_checkpoint": checkpoint}
        write_whole(self.path / "run.json", json.dumps(data, indent=1).encode())
        self.settings = replace(self.settings, small_model=model, small_checkpoint=checkpoint)

    def note_command(self, command: str) -> None:
        """Keep a command with the run that it was part of."""
        data = json.loads(bytes(read_whole(self.path / "run.json")))
        if command not in data["commands"]:
            data["commands"].append(command)
            write_whole(self.path / "run.json", json.dumps(data, indent=1).encode())

    @property
    def cells(self) -> Path:
        """Where records go."""
        return self.path / "cells.jsonl"

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone's description."""
        s = self.settings
        return Backbone.from_timm(
            s.model, num_classes=s.num_classes, image_size=s.image_size, arguments=s.arguments
        )

    @cached_property
    def weights(self) -> Weights:
        """Its weights, on the run's device: what is cut out of them is tuned and healed there."""
        checkpoint = self.settings.checkpoint
        found = backbone_weights(self.backbone, Path(checkpoint) if checkpoint else None)
        return {name: tensor.to(self.settings.device) for name, tensor in found.items()}

    @cached_property
    def healed(self) -> HealedWeights:
        """Its weights, healed."""
        return HealedWeights(self)

    @cached_property
    def small(self) -> tuple[Backbone, Weights]:
        """The small network off the shelf, which sees images at the backbone's size."""
        s = self.settings
        checkpoint = Path(s.small_checkpoint) if s.small_checkpoint else None
        backbone = Backbone.from_timm(
            s.small_model,
            num_classes=classes_of(checkpoint, s.small_model),
            image_size=self.backbone.input_size[-1],
            arguments={"in_chans": channels} if (channels := self.backbone.input_size[0]) != 3 else {},
        )
        return backbone, backbone_weights(backbone, checkpoint)

    @cached_property
    def pool(self) -> ClassPool:
        """The classes that tasks are drawn from."""
        return open_pool(self.settings.data, self.backbone)

    @cached_property
    def structure(self) -> Structure:
        """The structure that the library was founded with."""
        with Library.open(self.path / "library.db") as library:
            return library.offer.structure

    @cached_property
    def entries(self) -> list[Entry]:
        """The library's entries, in the order in which their tasks were drawn."""
        with Library.open(self.path / "library.db") as library:
            found = {entry.contributor.removeprefix("operator:"): entry for entry in library.entries()}
        return [found[choice.name] for choice in self.library_choices if choice.name in found]

    def entries_of(self, kind: LibraryKind) -> list[Entry]:
        """The entries of one of the run's libraries, in the order in which their tasks were drawn."""
        if kind == "seeded":
            return self.entries
        with Library.open(self.path / f"{kind}.db") as library:
            found = {entry.entry: entry for entry in library.entries()}
        requests = [request_of(choice) for choice in self.library_choices]
        return [found[request] for request in requests if request in found]

    def grow(self, kind: LibraryKind, watch: Watch) -> None:
        """Let the library's tasks come as devices to a library of their own."""
        with Library.open(self.path / "library.db") as library:
            offer, digest = library.offer, library.weights_digest
        tasks = [(choice, partial(self.library_task, choice)) for choice in self.library_choices]
        grow(
            self.path / f"{kind}.db", offer, dict(self.weights), digest, tasks,
            self.settings.keep_ratio, refined=kind == "grown", watch=watch,
        )  # fmt: skip

    @cached_property
    def library_choices(self) -> list[TaskChoice]:
        """The library's tasks, as drawn."""
        return draw_library(len(self.pool.names), self.settings.library_tasks)

    def library_task(self, choice: TaskChoice) -> Task:
        """A library task's data: half of the images, devices have the other half."""
        return self.pool.task(choice, owners=2, owner=0, images=self.settings.images)

    def new_task(self, choice: TaskChoice, images: int | None = None, *, small: bool = False) -> Task:
        """A device's data; evaluation images are the same for both sides, and only judge.

        The same pixels for the `small` network, normalised as it wants them.
        """
        pool = replace(self.pool, backbone=self.small[0]) if small else self.pool
        return pool.task(choice, owners=2, owner=1, images=images or self.settings.images)

    def new_choices(self, kinds: Sequence[Tasks]) -> list[tuple[int, TaskChoice]]:
        """The devices' tasks, each with its seed."""
        settings = self.settings
        return draw_new(len(self.pool.names), settings.tasks_a_seed, settings.seeds, kinds)

    def found(self) -> None:
        """The library without entries; its probe is fitted to some of its own side's images."""
        file = self.path / "library.db"
        if not file.exists():
            images = self.pool.task(self.pool.all_classes, owners=2, owner=0, images=20).train
            found_library(file, self.backbone, self.weights, images).close()
        groups = [[group.name, group.units] for group in self.structure.groups]
        write_whole(self.path / "structure.json", json.dumps({"groups": groups}).encode())

    def seed(self, choice: TaskChoice) -> None:
        """Prune the backbone iteratively on one of the library's tasks, and store its mask."""
        with Library.open(self.path / "library.db") as library:
            seed_library(
                library,
                self.weights,
                [(choice.name, lambda: self.library_task(choice))],
                keep_ratio=self.settings.keep_ratio,
                settings=self.settings.seeding,
                pruning=self.settings.seed_pruning,
            )

    def note_library(self) -> None:
        """Write the library's tasks and masks for figures."""
        choices = {choice.name: choice for choice in self.library_choices}
        lines = []
        for entry in self.entries:
            choice = choices[entry.contributor.removeprefix("operator:")]
            lines.append(
                json.dumps(
                    {
                        "name": choice.name,
                        "classes": choice.classes,
                        "domain": choice.domain,
                        "mask": base64.b64encode(entry.mask.pack()).decode(),
                        "before": round(entry.accuracy_before, 4),
                        "after": round(entry.accuracy_after, 4),
                    }
                )
            )
        write_whole(self.path / "library.jsonl", "".join(f"{line}\n" for line in lines).encode())

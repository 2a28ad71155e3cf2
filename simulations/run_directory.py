"""The directory of a run: one backbone, one library, and all that was measured on them.

    run.json            settings, versions, digests of the weights, and the commands that were run
    structure.json      groups and their units
    library.db          the library, seeded on its own tasks
    library.db.healed   what maskvote-server heal would have come to for it
    library.jsonl       its tasks and masks, a line each: without library.db they are taken from here
    grown.db, echoed.db libraries of what devices gave back (see simulations.growing)
    healed-library.safetensors, healed-empty.safetensors
                        the backbone's weights, healed for what the library votes for, or would if empty;
                        with the iterations in the name where those are not the run's own
    public.safetensors  the backbone's features of the public images
    cells.jsonl         a record for every cell (see simulations.records)

What is there is not made again: a run that was stopped goes on, and another experiment adds to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from common.backbone import Backbone, Weights, backbone_weights, classes_of, weights_digest
from common.errors import InputError
from common.files import read_whole, write_whole
from common.mask import Mask
from common.setting_words import changed_words
from common.structure import Structure
from common.task_data import Task
from common.task_folder import TaskFolder
from common.tuning_settings import FineTuneSettings, PruningSettings
from server.founding import contributor_of, found_library, seed_library, task_of
from server.library import Entry, Library, seed_entry
from server.settings import HealingSettings, KeepRatios
from simulations.experiments.experiment import Tasks
from simulations.growing import grow, request_of
from simulations.healed_weights import HealedWeights
from simulations.library_records import LIBRARY, STRUCTURE, LibraryMasks, read_library, write_library
from simulations.pools import open_pool, source_folder
from simulations.provenance import commit, versions
from simulations.run_settings import SMALL, RunSettings, check_is_run
from simulations.tasks import ClassPool, TaskChoice, Watch, draw_library, draw_new
from simulations.way import LibraryKind


def _read_info(path: Path) -> dict[str, Any]:
    """run.json of the run in a directory, as it is now."""
    return json.loads(bytes(read_whole(path / "run.json")))


def _write_info(path: Path, info: Mapping[str, Any]) -> None:
    write_whole(path / "run.json", json.dumps(info, indent=1).encode())


class RunDirectory:
    """A run's files, read when they are first needed."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        check_is_run(self.path)
        data = _read_info(self.path)
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
            self._digests = dict(data.get("digests", {}))
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}/run.json is no run's ({error!r}); begin another run") from error

    @classmethod
    def begin(cls, path: Path, settings: RunSettings) -> RunDirectory:
        """The directory of a new run, or of one that these settings began before.

        A small network that the run has taken since then makes it no other run. InputError where it is
        another one, or holds its ways against another small network.
        """
        path = Path(path)
        if (path / "run.json").exists():
            found = cls(path)
            own, asked = asdict(found.settings), asdict(settings)
            other = [name for name in own.keys() - SMALL if own[name] != asked[name]]
            if other:
                raise InputError(
                    f"{path} was begun with "
                    + ", and with ".join(changed_words(n, own[n], asked[n]) for n in sorted(other))
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
        _write_info(path, record)
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
        info = _read_info(self.path)
        info["settings"] |= {"small_model": model, "small_checkpoint": checkpoint}
        _write_info(self.path, info)
        self.settings = replace(self.settings, small_model=model, small_checkpoint=checkpoint)

    def note_command(self, command: str) -> None:
        """Keep a command with the run that it was part of."""
        info = _read_info(self.path)
        if command not in info["commands"]:
            info["commands"].append(command)
            _write_info(self.path, info)

    def note_weights(self, *, small: bool = False) -> None:
        """Keep the digest of the backbone's weights, and of the `small` network's, unless it is kept.

        InputError where the run has been measured on other weights.
        """
        loaded = {"backbone": self.weights, **({"small": self.small[1]} if small else {})}
        if missing := loaded.keys() - self._digests.keys():
            self._digests |= {name: weights_digest(loaded[name]) for name in sorted(missing)}
            _write_info(self.path, _read_info(self.path) | {"digests": self._digests})

    def _check_weights(self, name: str, weights: Weights, checkpoint: str) -> None:
        """Raise InputError if the run has kept a digest of these, and it is another one."""
        told = self._digests.get(name)
        if told is not None and (digest := weights_digest(weights)) != told:
            raise InputError(
                f"{checkpoint or 'what timm publishes'} has weights of digest {digest[:12]}, and "
                f"{self.path} was measured on {told[:12]}; put those where its run.json says, or begin "
                "another run: cells of both would be compared as if they were of one"
            )

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
        """Its weights, on the run's device: what is cut out of them is tuned and healed there.

        InputError where they are others than the run was measured on.
        """
        checkpoint = self.settings.checkpoint
        found = backbone_weights(self.backbone, Path(checkpoint) if checkpoint else None)
        self._check_weights("backbone", found, checkpoint)
        return {name: tensor.to(self.settings.device) for name, tensor in found.items()}

    @cached_property
    def healed(self) -> HealedWeights:
        """Its weights, healed."""
        return HealedWeights(self)

    @cached_property
    def small(self) -> tuple[Backbone, Weights]:
        """The small network off the shelf, which sees images at the backbone's size.

        InputError where its weights are others than the run was measured on.
        """
        s = self.settings
        checkpoint = Path(s.small_checkpoint) if s.small_checkpoint else None
        backbone = Backbone.from_timm(
            s.small_model,
            num_classes=classes_of(checkpoint, s.small_model),
            image_size=self.backbone.input_size[-1],
            arguments={"in_chans": channels} if (channels := self.backbone.input_size[0]) != 3 else {},
        )
        weights = backbone_weights(backbone, checkpoint)
        self._check_weights("small", weights, s.small_checkpoint)
        return backbone, weights

    @cached_property
    def pool(self) -> ClassPool:
        """The classes that tasks are drawn from."""
        return open_pool(self.settings.data, self.backbone)

    def read_images(self, watch: Watch) -> None:
        """Read the classes that tasks are drawn from, unless that is done, and tell how far it is."""
        if "pool" not in vars(self):
            self.pool = open_pool(self.settings.data, self.backbone, watch)

    @cached_property
    def folder(self) -> TaskFolder | None:
        """The images of these classes, none of them opened; None where they come from no directory."""
        return source_folder(self.settings.data)

    @property
    def class_count(self) -> int:
        """How many classes there are; no image of a directory is opened for it."""
        return len(self.pool.names) if self.folder is None else len(self.folder.train)

    @cached_property
    def structure(self) -> Structure:
        """The structure that the library was founded with."""
        with Library.open(self.path / "library.db") as library:
            return library.offer.structure

    @cached_property
    def entries(self) -> list[Entry]:
        """The library's entries, in the order in which their tasks were drawn."""
        with Library.open(self.path / "library.db") as library:
            found = {task_of(entry.contributor): entry for entry in library.entries()}
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
        return draw_library(self.class_count, self.settings.library_tasks)

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
        return draw_new(self.class_count, settings.tasks_a_seed, settings.seeds, kinds)

    def found(self) -> None:
        """The library without entries; its probe is fitted to some of its own side's images.

        InputError where the run's records are of a library whose masks would be cut in other groups.
        """
        file = self.path / "library.db"
        if not file.exists():
            images = self.pool.task(self.pool.all_classes, owners=2, owner=0, images=20).train
            found_library(file, self.backbone, self.weights, images).close()
        if self._recorded and self._records.groups != self._groups:
            raise InputError(
                f"{self.path / STRUCTURE} tells of other groups than {self.backbone.model} has with "
                f"this timm: masks of {LIBRARY} do not fit; use the timm of run.json, or remove "
                f"{LIBRARY}, so that the library is seeded anew"
            )
        write_whole(self.path / STRUCTURE, json.dumps({"groups": self._groups}).encode())

    @property
    def _groups(self) -> tuple[tuple[str, int], ...]:
        return tuple((group.name, group.units) for group in self.structure.groups)

    def seed(self, choice: TaskChoice) -> None:
        """Store a mask for one of the library's tasks: what the run's records tell, if they do.

        Else the backbone is pruned iteratively on it. InputError where the records are of another run.
        """
        with Library.open(self.path / "library.db") as library:
            if choice.name in self._recorded:
                self._restore(library, choice)
                return
            seed_library(
                library,
                self.weights,
                [(choice.name, lambda: self.library_task(choice))],
                keep_ratio=self.settings.keep_ratio,
                settings=self.settings.seeding,
                pruning=self.settings.seed_pruning,
            )

    @cached_property
    def _recorded(self) -> dict[str, int]:
        """The tasks in the run's records of its library -> their rows there; none without records."""
        if not (self.path / LIBRARY).exists():
            return {}
        return {choice.name: row for row, choice in enumerate(self._records.tasks)}

    @cached_property
    def _records(self) -> LibraryMasks:
        return read_library(self.path)

    def _restore(self, library: Library, choice: TaskChoice) -> None:
        records, row = self._records, self._recorded[choice.name]
        if records.tasks[row] != choice:
            raise InputError(
                f"{self.path / LIBRARY} tells of {choice.name} of other classes than this run draws: it "
                "is another run's; remove it, so that the library is seeded anew"
            )
        signature = library.offer.probe.describe(self.library_task(choice).train, len(choice.classes))
        before, after = records.accuracies[row].tolist()
        library.seed(
            seed_entry(choice.name, signature),
            signature,
            Mask(self.structure, records.kept[row]),
            accuracy_before=before,
            accuracy_after=after,
            iterations=self.settings.seeding.iterations,
            contributor=contributor_of(choice.name),
        )

    def note_library(self) -> None:
        """Write the library's tasks and masks for figures, and for a run that goes on with them."""
        choices = {choice.name: choice for choice in self.library_choices}
        write_library(self.path, [(choices[task_of(e.contributor)], e) for e in self.entries])

"""What a cell comes to: one way, on one task, from the run's library and weights."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from client.adapt import adapt_assignment, describe
from common.adaptation import Adapted
from common.budget import Budget
from common.exchange import Method, Origin
from common.fitting import all_features
from common.mask import Mask
from common.privacy import Privacy
from common.probe import Probe
from common.signature import TaskSignature
from common.structure import Structure
from common.subnetwork import SubNetwork, cut
from common.task_data import Task
from common.temporary_files import temporary_directory
from common.tuning_settings import FineTuneSettings, PruningSettings
from server.budget import allot
from server.coordinator import Coordinator
from server.healing.heal import heal_mask
from server.healing.heal_library import store_of
from server.library import Entry, Library
from server.library_backup import back_up
from simulations.baselines import MASKS, NETWORKS, whole
from simulations.contest import Contest
from simulations.provenance import commit
from simulations.records import Cell, Record
from simulations.run_directory import RunDirectory
from simulations.voters import VOTES, Voters, similarities_of, voted
from simulations.way import LibraryKind, Way

HEADROOM = 1.5
"""Times its final size that MVP starts with."""
NEAREST_PUBLIC_SHARE = 0.1
"""Of the public images, those that healing nearby uses."""

CENTER_TASKS = 8
"""Library tasks whose images tell the mean of the whole backbone's features: the server's own side."""

PRUNED: dict[str, Method] = {"MVP": "mvp", "SMSP pruned": "smsp"}
"""Ways that start with more units than they end with -> the votes that choose them: the first paper's,
and both papers' together, votes weighted by similarity and then pruned while tuning."""

WAYS: tuple[str, ...] = (
    *VOTES, *PRUNED, "neighbours", "twin", *MASKS, *NETWORKS, "small network", "served",
)  # fmt: skip
"""All masks that a way may name; "neighbours" only looks for them, and adapts nothing, "twin" is the mask
of a library task of the very same classes, "small network" is the run's own one off the shelf, and
"served" what a server sends."""


def asks_the_library(way: Way) -> bool:
    """Whether a way takes anything of the tasks that a run's library is seeded with."""
    votes = way.mask in {*VOTES, *PRUNED, "neighbours"} and way.library == "seeded" and way.entries != 0
    return votes or way.mask == "served" or way.healing in ("library", "nearest", "served")


def _copy_of(library: Library, place: Path) -> Library:
    back_up(library, place / "library.db")
    return Library.open(place / "library.db")


class Cells:
    """Measures the cells of one run, one after the other; what several need is kept."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._signatures: dict[tuple, TaskSignature] = {}
        self._libraries: dict[LibraryKind, list[Entry]] = {}
        self._healed_alone: dict[tuple[str, int | None], dict[str, torch.Tensor]] = {}

    def measure(self, cell: Cell, evaluate_at: Sequence[int] = ()) -> Record:
        """The record of a cell. What goes wrong in it is in the record."""
        try:
            record = self._measured(cell, tuple(evaluate_at))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            record = Record(cell.seed, cell.task.name, cell.way, error=told)
        return replace(record, commit=commit())

    def _measured(self, cell: Cell, evaluate_at: tuple[int, ...]) -> Record:
        way, run = cell.way, self._run
        task = run.new_task(cell.task, way.images, small=way.mask == "small network")
        values: dict[str, float] = {}
        facts: dict[str, object] = {"classes": len(task.classes), "domain": cell.task.domain}
        voters = None
        if way.mask in {*VOTES, *PRUNED, "neighbours"} or way.healing == "nearest":
            voters = self._voters(cell, task)
            if (recall := self._recall(cell, voters)) is not None:
                values["recall"] = recall
            best = np.sort(voters.similarities)[::-1][: way.neighbours]
            facts["similarities"] = [round(float(s), 4) for s in best]
        if way.mask == "neighbours":
            return Record(cell.seed, cell.task.name, way, values, facts)
        contest = self._contest(cell, task, evaluate_at)
        if way.mask == "served":
            adapted, facts["origin"] = self._served(cell, contest)
        elif way.mask == "twin":
            adapted = contest.adapt(self._twin(cell, contest))
        else:
            adapted = self._adapted(way, contest, voters)
        last = max(adapted.accuracies)
        values |= {f"at {done}": value for done, value in sorted(adapted.accuracies.items())}
        values["after"] = adapted.accuracies[last]
        facts["parameters"] = sum(p.numel() for p in adapted.network.parameters())
        facts["mask"] = base64.b64encode(adapted.pruned.mask.pack()).decode()
        seconds = {step: round(took, 3) for step, took in adapted.seconds.items()}
        return Record(cell.seed, cell.task.name, way, values, facts, seconds)

    def _contest(self, cell: Cell, task: Task, evaluate_at: tuple[int, ...]) -> Contest:
        run, way = self._run, cell.way
        name = hashlib.sha256(f"{cell.seed} {cell.task.name}".encode()).digest()
        return Contest(
            run.backbone,
            run.weights,
            run.structure,
            task,
            allot(run.structure, Budget(keep_ratio=way.keep_ratio), len(task.classes)),
            FineTuneSettings(iterations=way.iterations, learning_rate=way.learning_rate),
            int.from_bytes(name[:4], "big"),
            tuple(point for point in evaluate_at if point < way.iterations),
            cut=None if way.healing == "none" else lambda mask: self._healed(way, mask, task),
            device=run.settings.device,
        )

    def _adapted(self, way: Way, contest: Contest, voters: Voters | None) -> Adapted:
        if way.mask == "small network":
            backbone, weights = self._run.small
            return whole(contest, backbone, weights, self._small_structure)
        if way.mask in NETWORKS:
            return NETWORKS[way.mask](contest)
        if voters is not None and way.mask in PRUNED:
            larger = allot(
                contest.structure,
                Budget(keep_ratio=way.keep_ratio, headroom=HEADROOM).while_adapting,
                len(contest.task.classes),
            )
            start = voted(replace(contest, counts=larger), voters, PRUNED[way.mask], voters.nearest_first)
            return contest.adapt(start, target=contest.counts, pruning=PruningSettings())
        if voters is not None and way.mask in VOTES:
            return contest.adapt(VOTES[way.mask](contest, voters))
        return contest.adapt(MASKS[way.mask](contest))

    def _twin(self, cell: Cell, contest: Contest) -> Mask:
        """What the library would hold of a task of these very classes: no neighbour can be nearer."""
        run, iterations = self._run, cell.way.seeding_iterations
        seeding = run.settings.seeding
        seeds = replace(
            contest,
            task=run.library_task(cell.task),
            settings=seeding if iterations is None else replace(seeding, iterations=iterations),
            evaluate_at=(),
            cut=None,
        )
        everything, pruning = Mask.full(run.structure), run.settings.seed_pruning
        return seeds.adapt(everything, target=contest.counts, pruning=pruning).pruned.mask

    def _served(self, cell: Cell, contest: Contest) -> tuple[Adapted, Origin]:
        """What a device comes to that asks a server, with the defaults of both, and what elected."""
        way, run = cell.way, self._run
        request = hashlib.sha256(cell.key.encode()).hexdigest()[:32]
        with (
            Library.open(run.path / "library.db") as library,
            temporary_directory() as place,
            # In a copy: the library keeps what it assigned once, and would give it to later code too.
            _copy_of(library, Path(place)) as copy,
        ):
            healed = store_of(library) if way.healing == "served" else None
            coordinator = Coordinator(copy, run.weights, healed=healed)
            budget = Budget(keep_ratio=way.keep_ratio)
            asked = describe(coordinator.offer(), contest.task, budget, "smsp", request)
            assignment = coordinator.assign(asked)
        adapted, _ = adapt_assignment(
            assignment, contest.task, contest.settings, contest.generator, evaluate_at=contest.evaluate_at
        )
        return adapted, assignment.origin

    def _healed(self, way: Way, mask: Mask, task: Task) -> dict[str, torch.Tensor]:
        """The tensors that a mask leaves, healed as the way says."""
        run = self._run
        if way.healing in ("library", "empty", "served"):
            healed = run.healed.weights(way.healing, way.healing_iterations)
            return cut(run.backbone.without_classifiers(healed), mask)
        if way.healing == "nearest":
            means = self._whole_probe.describe(task.train, len(task.classes)).means
            count = max(2, int(NEAREST_PUBLIC_SHARE * len(run.healed.public.images)))
            center = run.healed.public.features.float().mean(0).numpy()
            return self._alone(way, mask, run.healed.public.nearest(means, center, count))
        key = (mask.digest, way.healing_iterations)
        if key not in self._healed_alone:
            # The last one alone: a mask that is the same for all tasks comes twelve times in a row.
            self._healed_alone = {key: self._alone(way, mask, None)}
        return {name: tensor.clone() for name, tensor in self._healed_alone[key].items()}

    def _alone(self, way: Way, mask: Mask, indices: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """One network healed, on the public images at `indices`, or all."""
        run = self._run
        settings = run.healed.settings(way.healing_iterations)
        generator = torch.Generator().manual_seed(0)
        return heal_mask(
            run.backbone, run.weights, mask, run.healed.public, settings, generator, indices=indices
        )

    @cached_property
    def _whole_probe(self) -> Probe:
        """The whole backbone as a probe, its center the mean feature of some of the library's tasks."""
        run = self._run
        network = SubNetwork.of(run.backbone, run.weights, Mask.full(run.structure))
        bare = Probe(network, np.zeros(len(self._probe.center), dtype=np.float32))
        rows = []
        for choice in run.library_choices[:CENTER_TASKS]:
            images = run.library_task(choice).train
            rows.append(all_features(bare.network, images, torch.arange(0, len(images), 10)))
        center = torch.cat(rows)
        return Probe(network, center.mean(0).numpy())

    @cached_property
    def _small_structure(self) -> Structure:
        return self._run.small[0].structure()

    @cached_property
    def _probe(self) -> Probe:
        with Library.open(self._run.path / "library.db") as library:
            return library.offer.probe

    def _entries(self, kind: LibraryKind) -> list[Entry]:
        if kind not in self._libraries:
            self._libraries[kind] = self._run.entries_of(kind)
        return self._libraries[kind]

    def _probe_of(self, way: Way) -> Probe:
        return self._probe if way.probe == "probe" else self._whole_probe

    def _voters(self, cell: Cell, task: Task) -> Voters:
        way, run = cell.way, self._run
        entries = self._entries(way.library)[: way.entries]
        probe = self._probe_of(way)
        signature = self._signature(way, f"{cell.seed} {cell.task.name}", lambda: task, way.images)
        choices = run.library_choices[: len(entries)]
        library = []
        for entry, choice in zip(entries, choices, strict=True):
            known = entry.signature
            if way.epsilon or way.probe != "probe":
                known = self._signature(way, choice.name, partial(run.library_task, choice))
            library.append((entry.entry, known))
        found = similarities_of(way.similarity, probe, library, task, signature)
        return Voters(entries, found, way.neighbours)

    def _signature(
        self, way: Way, name: str, load: Callable[[], Task], images: int | None = None
    ) -> TaskSignature:
        """A task's signature, computed once: its noise is drawn once, as a device draws it once."""
        key = (way.probe, way.epsilon, name, images)
        if key not in self._signatures:
            task = load()
            privacy = Privacy(way.epsilon) if way.epsilon else None
            seed = hashlib.sha256(repr(key).encode()).digest()
            noise = np.random.default_rng(int.from_bytes(seed[:8], "big"))
            self._signatures[key] = self._probe_of(way).describe(
                task.train, len(task.classes), privacy, noise
            )
        return self._signatures[key]

    def _recall(self, cell: Cell, voters: Voters) -> float | None:
        """Relatedness of the neighbours, as a share of what the truly nearest tasks would have.

        None where no task of the library is related at all.
        """
        related = np.array(
            [cell.task.relatedness(choice) for choice in self._run.library_choices[: len(voters.entries)]]
        )
        best = np.sort(related)[::-1][: voters.count].sum()
        return float(related[voters.nearest_first[: voters.count]].sum() / best) if best else None

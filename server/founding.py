"""Founding a library: its backbone, structure and probe; then masks of the operator's own tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from common.adaptation import adapt_network
from common.backbone import Backbone, Weights, weights_digest
from common.budget import Budget
from common.errors import UnsupportedModel
from common.exchange import Offer
from common.fitting import all_features, recalibrate_batch_norm
from common.half_precision import in_half_precision
from common.images import LabelledImages
from common.importance import magnitude
from common.mask import Mask
from common.probe import Probe
from common.rebuild import rebuild
from common.structure import Kind
from common.subnetwork import SubNetwork, cut
from common.task_data import Task
from common.tuning_settings import FineTuneSettings, PruningSettings
from server.admission import check_contributor, check_weights
from server.budget import allot
from server.library import Entry, Library, seed_entry
from server.library_file import check_is_free
from server.proved_table import proved_table
from server.settings import PROBE_KEEP_RATIO


def found_library(
    path: Path,
    backbone: Backbone,
    weights: Weights,
    images: LabelledImages,
    *,
    kinds: tuple[Kind, ...] = ("internal",),
    probe_keep_ratio: float = PROBE_KEEP_RATIO,
    seed: int = 0,
    watch: Callable[[int, int], None] | None = None,
) -> Library:
    """A new, empty library: the backbone's structure and a probe fitted on the operator's images.

    What of the structure is not proved to be cut right is frozen; the proof comes from the cache
    (`server.proved_table`), and `watch` is called with groups checked and groups in all where it is
    not there. Raises UnsupportedModel where nothing is left, and InputError where there is a file
    already, before anything is proved.
    """
    check_is_free(path)
    structure = proved_table(backbone, watch=watch).structure(kinds)
    if not structure.groups:
        reasons = "; ".join(structure.frozen.values()) or "it has no coupled units"
        raise UnsupportedModel(
            f"nothing of {backbone.model} can be cut: {reasons[:300]}; choose another model"
        )
    mask = Mask.keep_top(
        structure,
        magnitude(weights, structure),
        allot(structure, Budget(keep_ratio=probe_keep_ratio), classes=backbone.num_classes),
    )
    probe = make_probe(backbone, weights, mask, images, seed)
    return Library.create(path, Offer(backbone, structure, probe), weights_digest(weights))


def make_probe(
    backbone: Backbone, weights: Weights, mask: Mask, images: LabelledImages, seed: int
) -> Probe:
    """The sub-network of a mask, its batch norm and its center set on the operator's images.

    Its weights are in half precision before anything is computed with them, so that they are the same
    on all devices, and so are the signatures.
    """
    left = in_half_precision(cut(backbone.without_classifiers(weights), mask))
    network = SubNetwork(backbone, mask, left).network(num_classes=1)
    generator = torch.Generator().manual_seed(seed)
    recalibrate_batch_norm(network, images, generator, count=1024)
    center = all_features(network, images).mean(0).numpy()
    fitted = in_half_precision(backbone.without_classifiers(network.state_dict()))
    return Probe(SubNetwork(backbone, mask, fitted), center)


def seed_library(
    library: Library,
    weights: Weights,
    tasks: Sequence[tuple[str, Callable[[], Task]]],
    *,
    keep_ratio: float,
    settings: FineTuneSettings,
    pruning: PruningSettings,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Entry]:
    """Prune the backbone iteratively on each of the operator's tasks, and store the masks.

    `tasks` are names and how to load each. A task that is stored already is not done again, so an
    interrupted run goes on where it stopped. Each task's randomness comes from `seed` and its name.
    Raises MismatchError for weights that the library was not founded on, InputError for a name that
    cannot be kept.
    """
    check_weights(weights, library.weights_digest)
    for name, _ in tasks:
        check_contributor(contributor_of(name))  # not only once its mask is to be stored
    offer = library.offer
    budget = Budget(keep_ratio=keep_ratio)
    entries = []
    for name, load in tasks:
        task = load()
        signature = offer.probe.describe(task.train, len(task.classes))
        entry = seed_entry(name, signature)
        if not library.has(entry):
            target = allot(offer.structure, budget, len(task.classes))
            generator = torch.Generator().manual_seed(seed ^ int(entry[:15], 16))
            left = {k: v.clone() for k, v in offer.backbone.without_classifiers(weights).items()}
            network = rebuild(offer.backbone, left, len(task.classes))
            adapted = adapt_network(
                network,
                offer.backbone,
                Mask.full(offer.structure),
                task,
                settings,
                generator,
                target=target,
                pruning=pruning,
                progress=None if progress is None else partial(progress, name),
            )
            library.seed(
                entry,
                signature,
                adapted.pruned.mask,
                accuracy_before=adapted.before,
                accuracy_after=adapted.after,
                iterations=settings.iterations,
                contributor=contributor_of(name),
            )
        entries.append(library.entry(entry))
    return entries


OPERATOR = "operator:"


def contributor_of(name: str) -> str:
    """Who stands behind the mask of an operator's own task."""
    return f"{OPERATOR}{name}"


def task_of(contributor: str) -> str:
    """The name of the operator's own task that such a contributor stands for."""
    return contributor.removeprefix(OPERATOR)

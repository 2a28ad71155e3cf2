"""Healed weights: what a run's backbone becomes by healing, in files of the run's directory."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from common.backbone import Weights, read_weights
from common.errors import InputError
from common.files import read_whole, write_whole
from common.images import PIXEL_BYTES, LabelledImages
from common.importance import magnitude
from common.tensor_file import read_tensors
from server.healing.drawn_votes import drawn_votes
from server.healing.heal import PublicImages, heal
from server.healing.heal_library import heal_library, store_of
from server.library import Library
from server.settings import MOST_IMAGES, HealingSettings, VotingSettings
from server.voting import ranks
from simulations.pools import open_public
from simulations.tasks import Watch
from simulations.way import Healing

if TYPE_CHECKING:
    from simulations.run_directory import RunDirectory

PUBLIC_IMAGES = 50_000
"""At most so many public images are used, but for what a server does itself."""


class HealedWeights:
    """A run's weights, healed for many masks at once: made if they are not there, and read once.

    For what the library votes for ("library"), or would if it were empty ("empty"), or as
    `maskvote-server heal` does it, into the library's own store ("served").
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._read: dict[Path, Weights] = {}

    def settings(self, iterations: int | None) -> HealingSettings:
        """How to heal with so many iterations; None: with as many as the run says."""
        own = self._run.settings.healing
        return own if iterations is None else replace(own, iterations=iterations)

    @cached_property
    def public(self) -> PublicImages:
        """The public images, and the backbone's features of them."""
        return self._public(lambda done, total: None)

    def is_missing(self, kind: Healing, iterations: int | None) -> bool:
        """Whether a backbone is to be healed in this way, and is not yet."""
        if kind == "served":
            library = self._run.path / "library.db"
            return not library.exists() or self._has_no_store()
        return kind in ("library", "empty") and not self._file(kind, iterations).exists()

    def check_public(self, kind: Healing, watch: Watch) -> None:
        """Read the public images that a healing needs, so that one that cannot be read is told at once.

        The backbone's features of them are kept, as far as the healing needs those.
        """
        if kind != "served":
            self._public(watch)
            return
        images, _ = self._images(MOST_IMAGES, PIXEL_BYTES)
        for indices in torch.arange(len(images)).split(256):
            images.batch(indices)
            watch(int(indices[-1]) + 1, len(images))

    def prepare(self, kind: Healing, iterations: int | None, watch: Watch) -> None:
        """Heal, if that was not done. InputError where the run has no public images."""
        if kind == "served":
            self._prepare_store(watch)
        elif not (file := self._file(kind, iterations)).exists():
            healed = self._healed(kind, iterations, watch)
            write_whole(file, save({name: t.cpu().contiguous() for name, t in healed.items()}))

    def weights(self, kind: Healing, iterations: int | None = None) -> Weights:
        """What was healed. InputError where it is gone."""
        file = self._file(kind, iterations)
        if file not in self._read:
            stored = kind == "served"
            self._read[file] = self._stored() if stored else read_weights(file, self._run.backbone)
        return self._read[file]

    def _file(self, kind: Healing, iterations: int | None) -> Path:
        other = iterations not in (None, self._run.settings.healing.iterations)
        return self._run.path / f"healed-{kind}{f'-{iterations}' if other else ''}.safetensors"

    def _healed(self, kind: Healing, iterations: int | None, watch: Watch) -> Weights:
        run = self._run
        masks = drawn_votes(
            run.structure,
            [entry.mask for entry in run.entries] if kind == "library" else [],
            ranks(magnitude(run.weights, run.structure)),
            run.settings.heal_ratios,
            VotingSettings(),  # votes count, whose worth is measured: "empty" is without
            seed=0,
        )
        return heal(
            run.backbone,
            run.weights,
            masks,
            self._public(watch),
            self.settings(iterations),
            torch.Generator().manual_seed(0),
            watch=watch,
        )

    def _has_no_store(self) -> bool:
        with Library.open(self._run.path / "library.db") as library:
            return store_of(library).backbone() is None

    def _prepare_store(self, watch: Watch) -> None:
        run = self._run
        with Library.open(run.path / "library.db") as library:
            store = store_of(library)
            if store.backbone() is None:
                images, _ = self._images(MOST_IMAGES)
                public = PublicImages.of(run.backbone, run.weights, images, watch)
                ratios, settings = run.settings.heal_ratios, run.settings.healing
                heal_library(library, run.weights, public, store, ratios, settings, watch=watch)

    def _stored(self) -> Weights:
        with Library.open(self._run.path / "library.db") as library:
            store = store_of(library)
            if (healed := store.backbone()) is None:
                raise InputError(f"{store.directory} holds no healed backbone; run the experiment again")
            return healed.weights

    def _public(self, watch: Watch) -> PublicImages:
        images, digest = self._images(PUBLIC_IMAGES)
        file = self._run.path / "public.safetensors"
        if file.exists():
            tensors, header = read_tensors(read_whole(file))
            if header.get("images") == digest:
                return PublicImages(images, tensors["features"])
        found = PublicImages.of(self._run.backbone, self._run.weights, images, watch)
        write_whole(file, save({"features": found.features}, {"images": digest}))
        return found

    def _images(self, most: int, pixel_bytes: int = sys.maxsize) -> tuple[LabelledImages, str]:
        """Public images, and their digest."""
        if not self._run.settings.public:
            raise InputError("this run has no public images to heal on; begin one with --public")
        return open_public(self._run.settings.public, self._run.backbone, most, pixel_bytes)

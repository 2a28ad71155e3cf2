"""A small run of glyphs, and what is done to it."""

from pathlib import Path

from glyph_tasks import glyph_backbone
from PIL import Image
from random_weights import random_weights
from safetensors.torch import save_file

from common.tuning_settings import FineTuneSettings, PruningSettings
from server.settings import HealingSettings, KeepRatios
from simulations.experiments.experiment import Experiment
from simulations.glyphs import SCRIPTS, render
from simulations.run_directory import RunDirectory
from simulations.run_settings import RunSettings
from simulations.running import prepare
from simulations.way import Way

SEEDED = Experiment("", "", (Way("SMSP"),), "way", Way("SMSP"))
"""One that asks the library, and nothing else of a run."""


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


def write_pool(path: Path, characters: str, train: int, evaluation: int) -> str:
    """Printed characters as a directory of images; its path."""
    pixels, labels = render(characters, train + evaluation, size=32, seed=len(characters))
    for k in range(len(characters)):
        for number, image in enumerate(pixels[labels == k]):
            folder = path / ("train" if number < train else "val") / f"{k:02}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03}.png")
    return str(path)


def glyph_run(place: Path) -> RunDirectory:
    """A run in this directory, with a library of three tasks, and healed for its votes and for none."""
    path = place / "glyphs"
    backbone = glyph_backbone()
    save_file(random_weights(backbone), path.with_name("backbone.safetensors"))
    settings = RunSettings(
        model=backbone.model,
        data=write_pool(path.with_name("tasks"), "".join(SCRIPTS["latin_upper"][:20]), 12, 4),
        public=write_pool(path.with_name("public"), "".join(SCRIPTS["greek"][:5]), 12, 1),
        checkpoint=str(path.with_name("backbone.safetensors")),
        num_classes=backbone.num_classes,
        image_size=32,
        arguments={"in_chans": 1},
        library_tasks=3,
        tasks_a_seed=1,
        seeds=2,
        images=6,
        keep_ratio=0.3,
        seeding=FineTuneSettings(iterations=2),
        seed_pruning=PruningSettings(rounds=1),
        healing=HealingSettings(iterations=3, batch_size=8),
        heal_ratios=KeepRatios(0.2, 0.5),
    )
    run = RunDirectory.begin(path, settings)
    run.hold_against(backbone.model, settings.checkpoint)
    ways = tuple(Way("SMSP", healing=healing) for healing in ("library", "empty"))
    healed = Experiment("", "", ways, "way", Way("SMSP"))
    prepare(run, [healed], workers=1, watch=quiet)
    return run

"""maskvote-server: found a library, seed it, operate and serve it, and answer devices by files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import torch

from common.backbone import Backbone, backbone_weights
from common.command_line import progress, run, settings_option
from common.envelope import seal, unseal
from common.errors import TaskDataError
from common.fine_tune import FineTuneSettings
from common.proto_codec import (
    decode_contribution,
    decode_task_description,
    encode_assignment,
    encode_offer,
)
from common.pruning import PruningSettings
from common.structure import Kind
from common.task_data import load_folder
from server.coordinator import Coordinator, VotingSettings
from server.entry_tables import show_entries
from server.founding import PROBE_KEEP_RATIO, found_library, seed_library
from server.heal_cli import heal
from server.healing.heal_library import store_of
from server.healing.healer import healer_of
from server.inspect_cli import inspect
from server.library import Library
from server.model_options import CHECKPOINT, model_options, proof_progress
from server.operate_cli import JSON, OPERATE
from server.serve_cli import HEAL_IMAGES, HEAL_SECONDS, serve
from server.token_cli import token

LIBRARY = click.argument("library", type=click.Path(path_type=Path))


@click.group()
@click.version_option(package_name="maskvote")
@settings_option("--threads", default=0, help="CPU threads; 0 leaves it to torch.")
def cli(threads: int) -> None:
    """Hold a pre-trained backbone and a library of masks, and serve sub-networks of it."""
    if threads:
        torch.set_num_threads(threads)


for command in (inspect, heal, serve, *OPERATE, token):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    run(cli)


@cli.command()
@LIBRARY
@click.option("--model", required=True, help="A timm model name, for example resnet18.")
@model_options
@CHECKPOINT
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help="An ImageFolder task of yours: its images set the probe's statistics.",
)
@click.option("--residual", is_flag=True, help="Let masks cut the residual stream too.")
@settings_option("--probe-keep-ratio", default=PROBE_KEEP_RATIO, help="The probe's share of units.")
@settings_option("--seed", default=0)
def create(
    library: Path,
    model: str,
    num_classes: int | None,
    image_size: int | None,
    arguments: Mapping[str, object],
    checkpoint: Path | None,
    images: Path,
    residual: bool,
    probe_keep_ratio: float,
    seed: int,
) -> None:
    """Found a new, empty LIBRARY for a backbone.

    Example: maskvote-server create birds.db --model resnet18 --images tasks/birds
    """
    backbone = Backbone.from_timm(
        model, num_classes=num_classes, image_size=image_size, arguments=arguments
    )
    kinds: tuple[Kind, ...] = ("internal", "residual") if residual else ("internal",)
    weights, own_images = backbone_weights(backbone, checkpoint), load_folder(images, backbone).train
    with proof_progress() as watch:
        founded = found_library(
            library,
            backbone,
            weights,
            own_images,
            kinds=kinds,
            probe_keep_ratio=probe_keep_ratio,
            seed=seed,
            watch=watch,
        )
    with founded:
        offer = founded.offer
        probe = offer.probe.subnetwork
        click.echo(
            f"{library}: {model}, {offer.structure.units:,} units, {len(offer.structure.groups)} groups; "
            f"probe of {probe.parameters:,} parameters"
        )


@cli.command()
@LIBRARY
@click.option(
    "--tasks",
    required=True,
    type=click.Path(path_type=Path),
    help="A directory of tasks, each an ImageFolder with train/ and optionally val/.",
)
@CHECKPOINT
@settings_option("--keep-ratio", default=0.1, help="Share of units that the masks keep.")
@settings_option("--iterations", default=150, help="Fine-tuning iterations a task.")
@settings_option("--rounds", default=8, help="Rounds of pruning a task.")
@settings_option("--seed", default=0)
@JSON
def seed(
    library: Path,
    tasks: Path,
    checkpoint: Path | None,
    keep_ratio: float,
    iterations: int,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    """Fill LIBRARY with masks of your own tasks, by iterative pruning. Resumes where it stopped.

    Example: maskvote-server seed birds.db --tasks tasks/
    """
    folders = sorted(path for path in tasks.iterdir() if path.is_dir()) if tasks.is_dir() else []
    if not folders:
        raise TaskDataError(f"{tasks} has no task directories; put an ImageFolder task into each")
    with Library.open(library) as opened, progress() as bars:
        backbone = opened.offer.backbone
        total = bars.add_task("Seeding", total=len(folders))
        bar = bars.add_task("", total=iterations)
        done: set[str] = set()

        def watch(name: str, iteration: int, iterations: int) -> None:
            bars.update(bar, description=name, completed=iteration, total=iterations)
            done.add(name)
            bars.update(total, completed=len(done) - 1)

        entries = seed_library(
            opened,
            backbone_weights(backbone, checkpoint),
            [(path.name, partial(load_folder, path, backbone)) for path in folders],
            keep_ratio=keep_ratio,
            settings=FineTuneSettings(iterations=iterations),
            pruning=PruningSettings(rounds=rounds),
            seed=seed,
            progress=watch,
        )
        bars.update(total, completed=len(folders))
        facts = [opened.facts_of(entry.entry) for entry in entries]
    show_entries(f"{library}: seeds", facts, opened.structure, as_json)


@cli.command()
@LIBRARY
@click.argument("file", type=click.Path(path_type=Path))
def offer(library: Path, file: Path) -> None:
    """Write what a device needs before it asks (structure and probe) to FILE.

    Example: maskvote-server offer birds.db birds.offer
    """
    with Library.open(library) as opened:
        seal(file, *encode_offer(opened.offer))


@cli.command()
@LIBRARY
@click.argument("request", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@CHECKPOINT
@settings_option("--neighbours", default=VotingSettings.neighbours, help="Tasks that vote.")
@settings_option("--prior", default=VotingSettings.prior, help="What importance is worth beside votes.")
@click.option("--contributor", default="", help="Who asks; kept with the entry.")
@HEAL_IMAGES
@HEAL_SECONDS
def assign(
    library: Path,
    request: Path,
    file: Path,
    checkpoint: Path | None,
    neighbours: int,
    prior: float,
    contributor: str,
    heal_images: Path | None,
    heal_seconds: float,
) -> None:
    """Answer the REQUEST of a device with a sub-network, written to FILE.

    Example: maskvote-server assign birds.db device.request device.assignment
    """
    with Library.open(library) as opened:
        weights = backbone_weights(opened.offer.backbone, checkpoint)
        voting, healed = VotingSettings(neighbours=neighbours, prior=prior), store_of(opened)
        with healer_of(opened, healed, weights, heal_images, heal_seconds) as healer:
            coordinator = Coordinator(opened, weights, voting, healed=healed, healer=healer)
            message, _ = unseal(request)
            answer = coordinator.assign(decode_task_description(message), contributor)
        seal(file, *encode_assignment(answer))
        mask = answer.subnetwork.mask
        click.echo(
            f"{file}: {mask.kept.sum():,} of {mask.structure.units:,} units, by {answer.origin} of "
            f"{len(answer.neighbours)} neighbours"
        )


@cli.command()
@LIBRARY
@click.argument("contribution", type=click.Path(path_type=Path))
def record(library: Path, contribution: Path) -> None:
    """Store the CONTRIBUTION of a device; the next device is served better.

    Example: maskvote-server record birds.db device.contribution
    """
    with Library.open(library) as opened:
        message, _ = unseal(contribution)
        receipt = opened.record(decode_contribution(message, opened.offer.structure))
        click.echo(f"entry {receipt.entry}; the library holds {receipt.entries}")

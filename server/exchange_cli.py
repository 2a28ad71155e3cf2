"""maskvote-server offer, assign and record: devices that are never online are answered by files."""

from __future__ import annotations

from pathlib import Path

import click

from common.envelope import seal, unseal
from common.option_types import INPUT_FILE, OUTPUT_FILE
from common.progress import working
from common.proto_codec import (
    decode_contribution,
    decode_task_description,
    encode_assignment,
    encode_offer,
)
from common.threads_option import THREADS, compute_with
from server.admission import check_contributor
from server.library import Library
from server.model_options import CHECKPOINT
from server.serving_options import HEAL_IMAGES, HEAL_SECONDS, voting_options
from server.settings import VotingSettings

LIBRARY = click.argument("library", type=click.Path(path_type=Path))


@click.command()
@LIBRARY
@click.argument("file", type=OUTPUT_FILE)
def offer(library: Path, file: Path) -> None:
    """Write what a device needs before it asks (structure and probe) to FILE.

    Example: maskvote-server offer birds.db birds.offer
    """
    with Library.open(library) as opened:
        seal(file, *encode_offer(opened.offer))


@click.command()
@LIBRARY
@click.argument("request", type=INPUT_FILE)
@click.argument("file", type=OUTPUT_FILE)
@CHECKPOINT
@voting_options(VotingSettings())
@click.option(
    "--contributor", default="", help="Who asks, in at most 200 characters; kept with the entry."
)
@HEAL_IMAGES
@HEAL_SECONDS
@THREADS
def assign(
    library: Path,
    request: Path,
    file: Path,
    checkpoint: Path | None,
    voting: VotingSettings,
    contributor: str,
    heal_images: Path | None,
    heal_seconds: float,
    threads: int,
) -> None:
    """Answer the REQUEST of a device with a sub-network, written to FILE.

    Example: maskvote-server assign birds.db device.request device.assignment
    """
    check_contributor(contributor)
    with Library.open(library) as opened:
        message, _ = unseal(request)
        description = decode_task_description(message)

        from common.backbone import backbone_weights
        from server.coordinator import Coordinator
        from server.healing.heal_library import store_of
        from server.healing.healer import healer_of

        compute_with(threads)
        weights = backbone_weights(opened.offer.backbone, checkpoint)
        healed = store_of(opened)
        with healer_of(opened, healed, weights, heal_images, heal_seconds) as healer:
            coordinator = Coordinator(opened, weights, voting, healed=healed, healer=healer)
            with working("Assigning a sub-network"):
                answer = coordinator.assign(description, contributor)
        seal(file, *encode_assignment(answer))
        mask = answer.subnetwork.mask
        click.echo(
            f"{file}: {mask.kept.sum():,} of {mask.structure.units:,} units, by {answer.origin}, "
            f"{len(answer.neighbours)} neighbours"
        )


@click.command()
@LIBRARY
@click.argument("contribution", type=INPUT_FILE)
def record(library: Path, contribution: Path) -> None:
    """Store the CONTRIBUTION of a device; the next device is served better.

    Example: maskvote-server record birds.db device.contribution
    """
    with Library.open(library) as opened:
        message, _ = unseal(contribution)
        receipt = opened.record(decode_contribution(message, opened.structure))
        click.echo(f"entry {receipt.entry}; the library holds {receipt.entries}")

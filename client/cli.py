"""maskvote-client: describe a task, adapt the sub-network that comes back, contribute its mask."""

from __future__ import annotations

import secrets
from pathlib import Path

import click
import torch

from client.adapt import adapt_assignment, describe
from client.export import save_network
from client.network_cli import evaluate, export
from common.backbone import Backbone
from common.command_line import progress, run, settings_option, show, show_json
from common.envelope import seal, unseal
from common.exchange import METHODS, Budget, Method, Offer
from common.fine_tune import FineTuneSettings
from common.proto_codec import (
    decode_assignment,
    decode_offer,
    encode_contribution,
    encode_task_description,
)
from common.task_data import Task, load_folder, load_torchvision

OFFER = click.option(
    "--offer",
    "offer_file",
    required=True,
    type=click.Path(path_type=Path),
    help="What the server wrote with `maskvote-server offer`.",
)
DATA = click.option(
    "--data",
    required=True,
    help="Directory with train/CLASS/*.png|jpg (and val/), or torchvision:NAME:DIRECTORY.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")


@click.group()
@click.version_option(package_name="maskvote")
@settings_option("--threads", default=0, help="CPU threads; 0 leaves it to torch.")
def cli(threads: int) -> None:
    """Get a sub-network for this device's task, fine-tune it here, and give its mask back."""
    if threads:
        torch.set_num_threads(threads)


def main() -> None:
    """The console script."""
    run(cli)


def _offer(file: Path) -> Offer:
    return decode_offer(*unseal(file))


def _task(data: str, backbone: Backbone) -> Task:
    if data.startswith("torchvision:"):
        _, name, *root = data.split(":", 2)
        return load_torchvision(name, Path(root[0] if root else "."), backbone)
    return load_folder(Path(data), backbone)


@cli.command("describe")
@OFFER
@DATA
@click.option("--keep-ratio", type=float, help="Share of the backbone's units, in (0, 1].")
@click.option("--parameters", type=int, help="Parameters of the network that you can afford.")
@settings_option("--headroom", default=1.0, help="Times the budget that fit while adapting.")
@settings_option("--method", type=click.Choice(METHODS), default="smsp")
@click.option("--out", type=click.Path(path_type=Path), help="Write the request to this file.")
@JSON
def describe_command(
    offer_file: Path,
    data: str,
    keep_ratio: float | None,
    parameters: int | None,
    headroom: float,
    method: Method,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compute the signature of a task, say what it holds, and write the request for the server.

    Example: maskvote-client describe --offer birds.offer --data mine --keep-ratio 0.1 --out my.request
    """
    offer = _offer(offer_file)
    task = _task(data, offer.backbone)
    budget = Budget(keep_ratio, parameters, headroom)
    request = describe(offer, task, budget, method, secrets.token_hex(16))
    message = encode_task_description(request)
    if out is not None:
        seal(out, message)
    signature = request.signature
    facts = {
        "request": request.request_id,
        "classes": signature.classes,
        "images": signature.images,
        "feature_width": signature.means.shape[1],
        "bytes": len(message),
        "written": str(out) if out else None,
    }
    if as_json:
        show_json(facts)
        return
    click.echo(
        f"{signature.classes} class means of {signature.means.shape[1]} features over {signature.images} "
        f"images, and how many images each class has: {len(message):,} bytes.\n"
        "No image, no file name and no class name is in it."
        + (f"\nRequest {request.request_id} written to {out}." if out else "")
    )


@cli.command()
@OFFER
@DATA
@click.option(
    "--assignment",
    "assignment_file",
    required=True,
    type=click.Path(path_type=Path),
    help="What the server wrote with `maskvote-server assign`.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Write the contribution here."
)
@click.option("--save", "network_file", type=click.Path(path_type=Path), help="Keep the network here.")
@settings_option("--iterations", default=FineTuneSettings.iterations)
@settings_option("--learning-rate", default=FineTuneSettings.learning_rate)
@settings_option("--seed", default=0)
@JSON
def adapt(
    offer_file: Path,
    data: str,
    assignment_file: Path,
    out: Path,
    network_file: Path | None,
    iterations: int,
    learning_rate: float,
    seed: int,
    as_json: bool,
) -> None:
    """Adapt the assigned sub-network to your task, and write the contribution for the server.

    Example: maskvote-client adapt --offer birds.offer --data mine --assignment my.assignment --out
    my.contribution --save my.safetensors
    """
    offer = _offer(offer_file)
    assignment = decode_assignment(*unseal(assignment_file), offer.structure)
    task = _task(data, offer.backbone)
    settings = FineTuneSettings(iterations=iterations, learning_rate=learning_rate)
    with progress() as bars:
        bar = bars.add_task("Fine-tuning", total=iterations)
        adapted, contribution = adapt_assignment(
            assignment,
            task,
            settings,
            torch.Generator().manual_seed(seed),
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    message = encode_contribution(contribution)
    seal(out, message)
    if network_file is not None:
        save_network(network_file, adapted.network, offer.backbone, task.classes)
    mask = adapted.pruned.mask
    facts = {
        "request": assignment.request_id,
        "method": assignment.method,
        "origin": assignment.origin,
        "neighbours": len(assignment.neighbours),
        "units": int(mask.kept.sum()),
        "of": mask.structure.units,
        "parameters": sum(p.numel() for p in adapted.network.parameters()),
        "accuracy": {str(k): v for k, v in sorted(adapted.accuracies.items())},
        "seconds": {step: round(took, 2) for step, took in adapted.seconds.items()},
        "bytes_up": len(message),
    }
    if as_json:
        show_json(facts)
        return
    show(
        f"Request {assignment.request_id}",
        ["neighbours", "units", "parameters", "accuracy before", "after", "seconds", "bytes up"],
        [
            [
                facts["neighbours"], f"{facts['units']:,} of {facts['of']:,}", f"{facts['parameters']:,}",
                f"{adapted.before:.1%}", f"{adapted.after:.1%}",
                f"{sum(adapted.seconds.values()):.1f}", f"{facts['bytes_up']:,}",
            ]
        ],
        caption=f"mask written to {out}" + (f", network to {network_file}" if network_file else ""),
    )  # fmt: skip


cli.add_command(evaluate)
cli.add_command(export)

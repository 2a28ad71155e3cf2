"""What commands share that take a timm model: its options, weights, device, and its proof's progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.progress import TaskID

from common.errors import InputError
from common.option_types import INPUT_FILE
from common.progress import progress


def model_options(command: Callable) -> Callable:
    """The options --num-classes, --image-size and --argument; the last as a mapping `arguments`."""
    for option in (
        click.option(
            "--argument",
            "arguments",
            multiple=True,
            metavar="KEY=JSON",
            callback=lambda _context, _option, pairs: key_values(pairs),
            help="For timm.create_model.",
        ),
        click.option(
            "--image-size", type=click.IntRange(min=1), help="Pixels a side; default: the model's own."
        ),
        click.option(
            "--num-classes",
            type=click.IntRange(min=1),
            help="Default: those of the checkpoint, else the model's own.",
        ),
    ):
        command = option(command)
    return command


CHECKPOINT = click.option(
    "--checkpoint",
    type=INPUT_FILE,
    help="Safetensors file of the backbone's weights; without it, those that timm publishes.",
)


DEVICE = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is one."
)


def device_named(name: str | None) -> str:
    """The device to compute on, by the option's word; InputError where it is not there."""
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("there is no cuda device that this torch can use; give --device cpu")
    return name or ("cuda" if there else "cpu")


def key_values(pairs: tuple[str, ...]) -> dict[str, object]:
    """KEY=VALUE words as a mapping: values are JSON, and what is none is a text."""
    arguments: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--argument")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


@contextmanager
def proof_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of what goes on, and what tells another the groups proved and the groups in all."""
    with progress() as bars:
        bars.add_task(what, total=None)
        proof: TaskID | None = None

        def watch(done: int, total: int) -> None:
            nonlocal proof
            if proof is None:
                proof = bars.add_task("Proving groups", total=total)
            bars.update(proof, completed=done, total=total)

        yield watch

"""maskvote-client describe: what a device would tell about its task, to the last byte."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from client.adapt import describe
from client.disclosure import Field, disclose, guarantee_of, warning_of
from client.taking_part import Bars, description_of, new_request_id, opened_state
from client.task_options import (
    OF_SERVER,
    OFFER,
    Asked,
    Server,
    Way,
    asking,
    check_way,
    through_server,
)
from common.command_line import remark, show_json
from common.envelope import seal, unseal
from common.exchange import TaskDescription
from common.option_types import JSON, OUTPUT_FILE
from common.privacy import Privacy
from common.progress import progress
from common.proto_codec import decode_offer
from common.tables import show
from common.threads_option import THREADS, compute_with

SERVER = Way("through a server", ("address",), ("state", *OF_SERVER))
FILES = Way("by files", ("offer_file",))


@click.command("describe")
@OFFER
@asking
@through_server
@THREADS
@click.option("--out", type=OUTPUT_FILE, help="Write the request to this file.")
@JSON
def describe_command(
    offer_file: Path | None,
    asked: Asked,
    server: Server | None,
    threads: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compute the signature of a task and show all that is in the request, without sending any of it.

    The names of the classes that were found are shown, too; they are not in the request.
    With --server, the offer is fetched there; with --state too, `adapt` sends this very request.

    Example: maskvote-client describe --offer birds.offer --data mine --keep-ratio 0.1 --out my.request
    """
    check_way(SERVER, FILES)
    asked.check()
    if server is not None:
        with opened_state(server.state) as state:
            description = description_of(asked, server, state, threads)
            classes = state.classes or ()
    else:
        assert offer_file is not None
        description, classes = _by_file(offer_file, asked, threads)
    privacy = asked.privacy
    message, fields = disclose(description, privacy)
    if out is not None:
        seal(out, message)
    if as_json:
        _tell_scripts(description, classes, privacy, message, fields, out)
    else:
        _tell(description, classes, privacy, message, fields, out)


def _by_file(offer_file: Path, asked: Asked, threads: int) -> tuple[TaskDescription, tuple[str, ...]]:
    """The task's description, and the names of its classes."""
    asked.check_data()
    offer = decode_offer(*unseal(offer_file))
    compute_with(threads)
    task = asked.task(offer.backbone)
    remark(task.left_out)
    with progress() as shown:
        counted = Bars(shown).describing(task)
        description = describe(
            offer, counted, asked.budget, asked.method, new_request_id(), asked.privacy
        )
    return description, task.classes


def _tell_scripts(
    description: TaskDescription,
    classes: Sequence[str],
    privacy: Privacy | None,
    message: bytes,
    fields: list[Field],
    out: Path | None,
) -> None:
    signature = description.signature
    show_json(
        {
            "request": description.request_id,
            "classes": signature.classes,
            "class_names": list(classes),
            "images": signature.images,
            "feature_width": signature.means.shape[1],
            "bytes": len(message),
            "privacy": None if privacy is None else asdict(privacy),
            "warning": warning_of(description, privacy),
            "fields": {field.name: field.size for field in fields if field.name},
            "message": base64.b64encode(message).decode(),
            "written": str(out) if out else None,
        }
    )


def _tell(
    description: TaskDescription,
    classes: Sequence[str],
    privacy: Privacy | None,
    message: bytes,
    fields: list[Field],
    out: Path | None,
) -> None:
    signature = description.signature
    told = [
        guarantee_of(privacy),
        warning_of(description, privacy),
        f"The classes found are {', '.join(classes)}." if classes else None,
        "No image, no file name and no class name is in it. Nothing of it was sent.",
        f"Request {description.request_id} is written to {out}." if out else None,
    ]
    show(
        f"{signature.classes} class means of {signature.means.shape[1]} features over "
        f"{signature.images:,} images, and how many images each class has: {len(message):,} bytes",
        ["field", "bytes", "what it is", "value"],
        [
            *([field.name, f"{field.size:,}", field.meaning, field.value] for field in fields),
            ["in all", f"{len(message):,}", "", ""],
        ],
        caption="\n".join(line for line in told if line),
    )

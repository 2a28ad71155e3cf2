"""maskvote-client adapt: from a task to its own network, through a server or by files."""

from __future__ import annotations

from pathlib import Path

import click

from client.adapt import Adaptation, adapt_assignment, generator_of
from client.outcome import facts_of, tell
from client.state import State
from client.taking_part import adapt_through
from client.task_options import (
    OF_BUDGET,
    OF_SERVER,
    OFFER,
    Asked,
    Server,
    Way,
    asking,
    check_way,
    through_server,
)
from client.tuning_options import tuning
from common.command_line import remark, settings_option
from common.envelope import seal, unseal
from common.files import read_whole, write_whole
from common.option_types import INPUT_FILE, JSON, OUTPUT_FILE
from common.progress import progress
from common.proto_codec import decode_assignment, encode_contribution, offered_structure
from common.threads_option import THREADS, compute_with
from common.tuning_file import TuningFile
from common.tuning_settings import FineTuneSettings

SERVER = Way("through a server", ("address", "state"), (*OF_BUDGET, *OF_SERVER))
FILES = Way("by files", ("offer_file", "assignment_file", "out"))


@click.command("adapt")
@asking
@through_server
@OFFER
@click.option(
    "--assignment",
    "assignment_file",
    type=INPUT_FILE,
    help="What the server wrote with `maskvote-server assign`.",
)
@click.option("--out", type=OUTPUT_FILE, help="Write the contribution here.")
@click.option("--save", "network_file", type=OUTPUT_FILE, help="Keep the network here.")
@tuning
@settings_option("--seed", default=0)
@THREADS
@JSON
def adapt_command(
    asked: Asked,
    server: Server | None,
    offer_file: Path | None,
    assignment_file: Path | None,
    out: Path | None,
    network_file: Path | None,
    settings: FineTuneSettings,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Get a sub-network for your task, fine-tune it here, and give its mask back.

    With --server, in one go: what is finished is remembered in the --state directory, and the same
    command goes on from there, wherever it was stopped. By files, --assignment is what the server wrote
    for your request, and the contribution is written to --out.

    \b
    Example: maskvote-client adapt --data mine --server birds.example:7070 --state mine.state
                 --token-file my.token --keep-ratio 0.1 --save my.safetensors
    """
    check_way(SERVER, FILES)
    if server is not None:
        assert server.state is not None
        asked.check()
        with State(server.state) as state:
            _through_server(server, asked, settings, seed, state, network_file, threads, as_json)
    else:
        assert offer_file is not None
        assert assignment_file is not None
        assert out is not None
        _by_files(offer_file, assignment_file, out, asked, settings, seed, network_file, threads, as_json)


def _through_server(
    server: Server,
    asked: Asked,
    settings: FineTuneSettings,
    seed: int,
    state: State,
    network_file: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    adaptation, receipt = adapt_through(server, asked, settings, seed, state, threads)
    if network_file is not None:
        write_whole(network_file, read_whole(state.network))
    kept = network_file or state.network
    classes = state.classes
    assert classes is not None
    # The request may be lost by now; what it asked for is what is asked now.
    facts = {
        **facts_of(
            adaptation,
            asked.method,
            len(classes),
            state.bytes_up,
            state.bytes_down,
            asked.budget,
            asked.table,
        ),
        "entry": receipt.entry,
        "entries": receipt.entries,
        "network": str(kept),
    }
    caption = f"stored as entry {receipt.entry}, of {receipt.entries:,}; network in {kept}"
    tell(facts, caption, as_json)


def _by_files(
    offer_file: Path,
    assignment_file: Path,
    out: Path,
    asked: Asked,
    settings: FineTuneSettings,
    seed: int,
    network_file: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    asked.check_data()
    structure = offered_structure(*unseal(offer_file))
    assignment = decode_assignment(*unseal(assignment_file), structure)

    from client.export import save_network

    compute_with(threads)
    backbone = assignment.subnetwork.backbone
    task = asked.task(backbone, settings.max_memory)
    remark(task.left_out)
    file = TuningFile(out.with_name(f".{out.name}.tuning"))
    with progress() as bars:
        bar = bars.add_task("Fine-tuning", total=settings.iterations)
        adapted, contribution = adapt_assignment(
            assignment,
            task,
            settings,
            generator_of(seed, asked.place),
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
            file=file,
        )
    for sentence in adapted.remarks:
        remark(sentence)
    message = encode_contribution(contribution)
    seal(out, message)
    if network_file is not None:
        mask = adapted.pruned.mask.digest
        save_network(network_file, adapted.network, backbone, task.classes, mask)
    file.remove()
    adaptation = Adaptation.of(assignment, adapted, contribution)
    facts = facts_of(
        adaptation,
        assignment.method,
        len(task.classes),
        {"mask and accuracies": len(message)},
        {"network": assignment_file.stat().st_size},
    )
    caption = f"mask written to {out}" + (f", network to {network_file}" if network_file else "")
    tell(facts, caption, as_json)

"""maskvote-server inspect: what of a timm model can be cut, what it costs, and what cannot and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.command_line import settings_option, show_json
from common.errors import InputError
from common.option_types import INPUT_FILE, OUTPUT_FILE
from common.progress import progress
from common.tables import show
from common.threads_option import THREADS, compute_with
from server.model_options import model_options, proof_progress
from server.numbered_names import braced
from server.settings import PROOF_SECONDS

if TYPE_CHECKING:
    from server.inspection import Extent, InspectedGroup, Inspection
    from server.sweep import Record

NUMBERS = re.compile(r"\d[\de.+-]*")


@click.command()
@click.argument("model", required=False)
@model_options
@settings_option(
    "--seconds",
    default=PROOF_SECONDS,
    type=click.FloatRange(min=0),
    help="For the proof; what it has not checked by then stays frozen.",
)
@click.option("--fresh", is_flag=True, help="Prove anew what the cache holds.")
@click.option("--full", is_flag=True, help="Every layer on a line of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--all",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Instead of MODEL: all models that match, for example 'resnet*,vit_*'.",
)
@click.option(
    "--models",
    "names",
    type=INPUT_FILE,
    help="Instead of MODEL: all models that a file names, one a line.",
)
@settings_option("--jobs", default=1, type=click.IntRange(min=1), help="Models inspected at a time.")
@settings_option(
    "--limit",
    default=300.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds a model of many, then it is given up.",
)
@click.option(
    "--out",
    type=OUTPUT_FILE,
    help="Append a line of JSON a model of many to this file; what it holds is not done again.",
)
@THREADS
def inspect(
    model: str | None,
    num_classes: int | None,
    image_size: int | None,
    arguments: Mapping[str, object],
    seconds: float,
    fresh: bool,
    full: bool,
    as_json: bool,
    patterns: tuple[str, ...],
    names: Path | None,
    jobs: int,
    limit: float,
    out: Path | None,
    threads: int,
) -> None:
    """Show what of a timm MODEL can be cut: proved groups, what a unit costs, what is frozen and why.

    What is proved once is kept in ~/.cache/maskvote/structures ($MASKVOTE_CACHE/structures).

    Examples: maskvote-server inspect vit_tiny_patch16_224;
    maskvote-server inspect --all 'resnet*' --jobs 2 --out resnets.jsonl
    """
    if (model is None) == (not patterns and names is None):
        raise click.UsageError("give either a MODEL, or --all or --models for many")
    if model is None:
        if names is not None:
            patterns += tuple(_lines(names))
        settings = _words(num_classes, image_size, arguments, seconds)

        from server.sweep import models_matching, sweep

        with progress() as bars:
            bar = bars.add_task("Inspecting models", total=None)
            records = sweep(
                models_matching(patterns),
                settings,
                fresh=fresh,
                jobs=jobs,
                limit=limit,
                out=out,
                threads=threads,
                watch=lambda done, of, last: bars.update(
                    bar, description=last or "Inspecting models", completed=done, total=of
                ),
            )
        _show_records(records, as_json)
        return
    from common.backbone import Backbone
    from server.inspection import inspection
    from server.proved_table import proved_table

    compute_with(threads)
    backbone = Backbone.from_timm(
        model, num_classes=num_classes, image_size=image_size, arguments=arguments
    )
    with proof_progress(f"Inspecting {model}") as watch:
        table = proved_table(backbone, fresh=fresh, seconds=seconds, watch=watch)
    inspected = inspection(backbone, table)
    if as_json:
        show_json(inspected.to_dict())
    else:
        _show(inspected, full)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a file with a model a line") from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _words(
    num_classes: int | None,
    image_size: int | None,
    arguments: Mapping[str, object],
    seconds: float,
) -> list[str]:
    """The options that every model of a sweep is inspected with."""
    options = {"--num-classes": num_classes, "--image-size": image_size}
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    for key, value in arguments.items():
        words += ["--argument", f"{key}={json.dumps(value)}"]
    return words if seconds == PROOF_SECONDS else [*words, "--seconds", f"{seconds:g}"]


# -- one model -------------------------------------------------------------------------------------


def _show(inspected: Inspection, full: bool) -> None:
    backbone, table, whole = inspected.backbone, inspected.table, inspected.whole
    size = " x ".join(map(str, backbone.input_size))
    proved = sum(entry.is_proved for entry in inspected.groups)
    click.echo(
        f"{backbone.model} for {size} inputs and {backbone.num_classes:,} classes: "
        f"{whole.parameters:,} parameters,\n{whole.flops / 1e6:,.1f} MFLOPs an image; "
        f"{proved} of {len(inspected.groups)} groups are proved "
        f"(found in {table.discovery_seconds.wall:.1f} s, proved in {table.proof_seconds.wall:.1f} s)"
    )
    show(
        "Groups",
        ["group", "kind", "units", "cut", "parameters", "kFLOPs", "verdict"],
        _group_rows(inspected.groups, full),
        caption="cut: exact where the sub-network computes what the masked backbone does; else it runs, "
        "but a norm or mean over the units makes it differ. parameters, kFLOPs: of one unit.",
    )
    show(
        "Sub-networks",
        ["network", "units", "parameters", "of", "MFLOPs", "of"],
        [
            _extent_row("whole", whole, whole),
            *(
                _extent_row(f"smallest, {choice} groups cut", extent, whole)
                for choice, extent in inspected.smallest.items()
            ),
        ],
    )
    kept = [name for name, cut in inspected.attention.items() if not cut]
    if inspected.attention:
        click.echo(
            f"Attention: heads of {len(inspected.attention) - len(kept)} of "
            f"{len(inspected.attention)} modules can be cut"
            + (f", not of {', '.join(_patterns(kept, full))}" if kept else "")
        )
    if inspected.frozen:
        show("Never cut", ["weight or group", "why"], _frozen_rows(inspected.frozen, full))


def _group_rows(groups: Sequence[InspectedGroup], full: bool) -> list[list[object]]:
    """Groups that differ in numbers in their names and in what a unit costs have one row."""
    alike: dict[tuple, list[str]] = {}
    for entry in groups:
        group = entry.group
        key = (
            group.kind, group.units, "exact" if group.exact else "runs",
            "proved" if entry.is_proved else entry.verdict.outcome,
        )  # fmt: skip
        alike.setdefault(key, []).append(group.name)
    place = {entry.group.name: index for index, entry in enumerate(groups)}
    rows = []
    for (kind, units, cut, verdict), names in alike.items():
        for pattern, members in _patterns(names, full).items():
            entries = [groups[place[name]] for name in members]
            parameters = sorted(entry.parameters for entry in entries)
            flops = sorted(entry.flops / 1e3 for entry in entries)
            costs = [
                _range(f"{parameters[0]:,}", f"{parameters[-1]:,}"),
                _range(f"{flops[0]:,.1f}", f"{flops[-1]:,.1f}"),
            ]
            row = [pattern, kind, f"{units:,}", cut, *costs, verdict]
            rows.append((place[members[0]], row))
    return [row for _, row in sorted(rows, key=itemgetter(0))]


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least}-{most}"


def _frozen_rows(frozen: Mapping[str, str], full: bool) -> list[list[object]]:
    """Names that are frozen for one reason, whatever numbers stand in it, have one row."""
    alike: dict[str, list[str]] = {}
    for name, reason in frozen.items():
        alike.setdefault(NUMBERS.sub("#", reason), []).append(name)
    rows: list[list[object]] = []
    for names in alike.values():
        for pattern, members in _patterns(names, full).items():
            reasons = list(dict.fromkeys(frozen[name] for name in members))
            rows.append([pattern, reasons[0] + (" (and alike)" if len(reasons) > 1 else "")])
    return rows


def _patterns(names: Sequence[str], full: bool) -> Mapping[str, Sequence[str]]:
    return {name: (name,) for name in names} if full else braced(names)


def _extent_row(name: str, extent: Extent, whole: Extent) -> list[object]:
    return [
        name,
        f"{extent.units:,}",
        f"{extent.parameters:,}",
        f"{extent.parameters / whole.parameters:.1%}",
        f"{extent.flops / 1e6:,.1f}",
        f"{extent.flops / whole.flops:.1%}",
    ]


# -- many models -----------------------------------------------------------------------------------


def _show_records(records: Sequence[Record], as_json: bool) -> None:
    """What came of every model, and of how many everything is right."""
    summary = {
        "models": len(records),
        "internal_groups_right": sum(record.internal_right for record in records),
        "internal_and_head_groups_right": sum(record.heads_right for record in records),
        "all_groups_right": sum(record.all_right for record in records),
        "heads_frozen": sum(record.heads_cut < record.attention for record in records),
        "unsupported": sum(record.status == "unsupported" for record in records),
        "crashed": sum(record.status == "crashed" for record in records),
        "over_the_limit": sum(record.status == "over the limit" for record in records),
    }
    if as_json:
        show_json({"summary": summary, "models": [_summed_up(record) for record in records]})
        return
    show(
        "Models",
        ["model", "internal", "heads", "residual", "found in", "proved in", "smallest", "note"],
        [_record_row(record) for record in records],
        caption="internal, residual: groups proved of those found. heads: attention modules of which "
        "heads can be cut. found, proved in: seconds. smallest: parameters of the smallest sub-network "
        "by internal groups.",
    )
    of = f"of {len(records)} models"
    click.echo(
        f"Every internal and head group is right in {summary['internal_and_head_groups_right']} {of}\n"
        f"(every internal group in {summary['internal_groups_right']}, heads frozen in "
        f"{summary['heads_frozen']}), every group in {summary['all_groups_right']};\n"
        f"{summary['unsupported']} unsupported, {summary['crashed']} crashed, "
        f"{summary['over_the_limit']} over the limit."
    )


def _summed_up(record: Record) -> dict[str, Any]:
    inspected = record.inspection
    return {
        "model": record.model,
        "status": record.status,
        "error": record.error,
        "found": None if inspected is None else inspected["found"],
        "proved": None if inspected is None else inspected["proved"],
        "attention": record.attention,
        "heads_cut": record.heads_cut,
        "internal_groups_right": record.internal_right,
        "internal_and_head_groups_right": record.heads_right,
        "all_groups_right": record.all_right,
        "seconds": record.seconds,
    }


def _record_row(record: Record) -> list[object]:
    from common.proof import PROVED

    if record.inspection is None:
        note = f"{record.status}: {record.error}" if record.status != "over the limit" else record.error
        return [record.model, *[None] * 6, note]
    seconds, inspected = record.inspection["seconds"], record.inspection
    unproved = [group for group in inspected["groups"] if group["verdict"] not in PROVED]
    outcomes = sorted({group["verdict"] for group in unproved})
    smallest = inspected["smallest"]["internal"]["parameters"] / inspected["parameters"]
    return [
        record.model,
        f"{record.proved('internal')}/{record.found('internal')}",
        f"{record.heads_cut}/{record.attention}" if record.attention else None,
        f"{record.proved('residual')}/{record.found('residual')}",
        f"{seconds['discovery']['wall']:.1f}",
        f"{seconds['proof']['wall']:.1f}",
        f"{smallest:.1%}",
        f"frozen: {', '.join(outcomes)}" if outcomes else "",
    ]

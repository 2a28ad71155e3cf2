"""maskvote-sim experiment: what a figure needs is measured by one command, which also goes on with it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from common.command_line import remark, settings_option, show_json
from common.errors import InputError
from common.files import check_readable
from common.image_folders import TYPES_IN_WORDS
from common.tables import show
from server.model_options import DEVICE, device_named, model_options
from simulations.experiments import EXPERIMENTS, Experiment
from simulations.run_settings import SMALL, RunSettings, check_is_run
from simulations.sources import check_source
from simulations.stages import stages

if TYPE_CHECKING:
    from simulations.records import Record
    from simulations.run_directory import RunDirectory

LARGE: dict[str, Any] = {"library_tasks": 200, "tasks_a_seed": 20, "seeds": 5}
"""What --large asks for, where nothing else is given: days on two cores."""
BEGINS = {setting.name for setting in fields(RunSettings)} - SMALL | {"large"}
"""Parameters of the command that say how a run begins, and nothing to one that goes on."""

COUNT = click.IntRange(min=1)


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option(
    "--run", "path", required=True, type=click.Path(path_type=Path), help="The run's directory."
)
@click.option("--backbone", "model", help="A timm model name; begins a run.")
@model_options
@click.option("--checkpoint", default="", help="Safetensors file; without it, what timm publishes.")
@click.option("--data", help="Where tasks come from: DIRECTORY (images in train/CLASS/ and val/CLASS/: "
              f"{TYPES_IN_WORDS}), torchvision:NAME:DIRECTORY, or glyphs.")  # fmt: skip
@click.option("--public", default="", help="Public images to heal on: DIRECTORY in any layout, or as "
              "--data.")  # fmt: skip
@settings_option("--library-tasks", type=click.IntRange(min=0), default=RunSettings.library_tasks)
@settings_option("--tasks", "tasks_a_seed", type=COUNT, default=RunSettings.tasks_a_seed,
                 help="New tasks a seed.")  # fmt: skip
@settings_option("--seeds", type=COUNT, default=RunSettings.seeds)
@settings_option("--images", type=COUNT, default=RunSettings.images, help="Training images a class.")
@click.option("--small", "small_model", help="A small network off the shelf to hold the others against: "
              "a timm model name; a run that began without one takes it, too.")  # fmt: skip
@click.option("--small-checkpoint", default="", help="Its safetensors file, or timm's own.")
@click.option("--large", is_flag=True, help="200 library tasks, 20 new tasks for each of 5 seeds, "
              "but for what is given.")  # fmt: skip
@DEVICE
@click.option("--only", default="", help="Ways to measure, as figures name them: 'SMSP healed,L1'.")
@settings_option("--workers", type=COUNT, default=2, help="Cells at a time, a processor each.")
@click.option("--json", "as_json", is_flag=True, help="Print the records instead of a table.")
@click.pass_context
def experiment(
    context: click.Context,
    names: tuple[str, ...],
    path: Path,
    model: str | None,
    num_classes: int | None,
    image_size: int | None,
    arguments: Mapping[str, Any],
    checkpoint: str,
    data: str | None,
    public: str,
    library_tasks: int,
    tasks_a_seed: int,
    seeds: int,
    images: int,
    small_model: str | None,
    small_checkpoint: str,
    large: bool,
    device: str | None,
    only: str,
    workers: int,
    as_json: bool,
) -> int:
    """Measure what the experiments called NAME need, or all of them; without a NAME, tell what there is.

    The first command for a run begins it, with --backbone and --data. The next need --run alone, and
    measure what is missing; cells that failed are tried again. Ways that the run cannot go are told, and
    left out. maskvote-sim report makes the figures.

    Example: maskvote-sim experiment criteria --run runs/resnet18 --backbone resnet18 --checkpoint
    resnet18.safetensors --image-size 64 --data photographs --public photographs-of-the-backbone
    """
    if not names:
        show("Experiments", ["name", "cells a task", "question"],
             [[e.name, len(e.ways), e.question] for e in EXPERIMENTS.values()])  # fmt: skip
        return 0
    if small_checkpoint and small_model is None:
        raise InputError(
            f"--small-checkpoint {small_checkpoint} is of a small network, and none is given; give "
            "--small, too, or leave it out"
        )
    given = _given(context)
    chosen = _only(_chosen(names), [line.strip() for line in only.split(",")]) if only else _chosen(names)
    if model is not None:
        if data is None:
            raise InputError("a run begins with a backbone and with data; give --data too")
        check_source(data)
        for file in filter(None, (checkpoint, small_checkpoint)):
            check_readable(Path(file))
        if public:
            check_source(public)
    else:
        check_is_run(path)
        if given:
            raise InputError(
                f"{', '.join(given.values())}: that is how a run begins, and {path} has begun; leave it "
                f"out to go on with {path}, or begin another run with --backbone and --data"
            )

    from common.backbone import classes_of
    from common.model_names import timm_name
    from simulations.records import read_records
    from simulations.run_directory import RunDirectory
    from simulations.running import cells_of, left_out, measure, prepare, told_left_out

    # By one name each, whatever way it was written: a run of two names would be two runs.
    model = None if model is None else timm_name(model)
    small_model = None if small_model is None else timm_name(small_model)
    if model is not None:
        assert data is not None
        settings = RunSettings(
            model=model,
            data=data,
            public=public,
            checkpoint=checkpoint,
            num_classes=classes_of(Path(checkpoint) if checkpoint else None, model, num_classes),
            image_size=image_size,
            arguments=dict(arguments),
            library_tasks=library_tasks,
            tasks_a_seed=tasks_a_seed,
            seeds=seeds,
            images=images,
            device=device_named(device),
        )
        larger = {name: count for name, count in LARGE.items() if large and name not in given}
        run = RunDirectory.begin(path, replace(settings, **larger))
    else:
        run = RunDirectory(path)
    if small_model is not None:
        run.hold_against(small_model, small_checkpoint)
    run.note_command(f"maskvote-sim {shlex.join(sys.argv[1:])}")
    for why, ways in left_out(run, chosen).items():
        remark(told_left_out(ways, why))
    with stages() as watch:
        prepare(run, chosen, workers, watch, remark)
        failed = measure(run, chosen, workers, watch)
    records = read_records(run.cells)
    if as_json:
        wanted = {cell.key for e in chosen for cell in cells_of(run, e)}
        show_json([vars(r) | {"way": r.way.to_json()} for r in records if r.key in wanted])
    else:
        for one in chosen:
            _show(run, one, records)
    for record in failed:
        click.echo(f"{record.task}, {record.way.to_json()} failed: {record.error}", err=True)
    return 1 if failed else 0


def _given(context: click.Context) -> dict[str, str]:
    """The parameters in `BEGINS` that this command was given, and the words that gave them."""
    given = {}
    for option in context.command.params:
        name, value = option.name or "", context.params.get(option.name or "")
        if name in BEGINS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            told = "" if isinstance(value, bool | Mapping) else f" {value}"
            given[name] = option.opts[0] + told
    return given


def _chosen(names: tuple[str, ...]) -> list[Experiment]:
    unknown = [name for name in names if name not in EXPERIMENTS and name != "all"]
    if unknown:
        raise InputError(
            f"there is no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}, and all"
        )
    return list(EXPERIMENTS.values()) if "all" in names else [EXPERIMENTS[name] for name in names]


def _only(experiments: list[Experiment], lines: list[str]) -> list[Experiment]:
    """The experiments with the ways of these names alone. Each name has to be one of theirs."""
    known = dict.fromkeys(e.line(way) for e in experiments for way in e.ways)
    unknown = [line for line in lines if line not in known]
    if unknown:
        names = " and ".join(e.name for e in experiments)
        raise InputError(f"{names}: no way is called {', '.join(unknown)}; there are {', '.join(known)}")
    named = [replace(e, ways=tuple(w for w in e.ways if e.line(w) in lines)) for e in experiments]
    return [experiment for experiment in named if experiment.ways]


def _show(run: RunDirectory, one: Experiment, records: list[Record]) -> None:
    """Means over the tasks that are measured; the report has spreads and tests."""
    from simulations.running import cells_of

    by_key = {record.key: record for record in records}
    cells = cells_of(run, one)
    rows = []
    for way in one.ways:
        found = [by_key[c.key].values for c in cells if c.way == way and c.key in by_key]
        names = dict.fromkeys([f"at {k}" for k in one.evaluate_at] + [one.value])
        means = [
            sum(values) / len(values) if (values := [v[name] for v in found if name in v]) else None
            for name in names
        ]
        at = "" if one.x in ("way", "iterations") else getattr(way, one.x)
        rows.append([one.line(way), at, len(found), *("" if m is None else f"{m:.1%}" for m in means)])
    show(one.question, ["way", one.x if rows and rows[0][1] != "" else "", "tasks", *names], rows)

"""Which groups of many timm models are found and proved: the tables of docs/structure.md.

    python -m benchmarks.structures compared --jobs 2
    python -m benchmarks.structures families --jobs 2

Every model of benchmarks/models/NAME.txt is inspected in a process of its own, as `maskvote-server
inspect --models` does; what a model came to is kept in benchmarks/results/structures-NAME.json.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import click

from common.files import write_whole
from common.progress import progress
from server.numbered_names import braced
from server.sweep import Record, sweep

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "structure.md"
NUMBERS = re.compile(r"\d+")
SECONDS = 240.0
LIMIT = 300.0


def summary_of(record: Record) -> dict[str, Any]:
    """What one model came to, without its groups."""
    summary: dict[str, Any] = {"model": record.model, "status": record.status, "error": record.error}
    if record.inspection is None:
        return summary
    inspection = record.inspection
    unproved = {
        g["name"]: f"{g['verdict']}: {g['reason']}"
        for g in inspection["groups"]
        if g["verdict"] not in ("equal", "runs")
    }
    return summary | {
        "input": inspection["identity"]["input_size"][-1],
        "parameters": inspection["parameters"],
        "found": inspection["found"],
        "proved": inspection["proved"],
        "runs": sum(g["verdict"] == "runs" for g in inspection["groups"]),
        "attention": record.attention,
        "heads cut": record.heads_cut,
        "internal right": record.internal_right,
        "heads right": record.heads_right,
        "all right": record.all_right,
        "smallest": {k: v["parameters"] for k, v in inspection["smallest"].items()},
        "unproved": unproved,
        "frozen": inspection["frozen"],
        "seconds": inspection["seconds"],
    }


def table(summaries: list[dict[str, Any]]) -> str:
    """The summaries as a Markdown table, a row a model."""
    lines = [
        "| model | input | internal | heads | residual | smallest, internal | smallest, all | "
        "found in | proved in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        if "found" not in s:
            lines.append(f"| {s['model']} | | {s['status']}: {s['error']} | | | | | | |")
            continue
        found, proved, seconds = s["found"], s["proved"], s["seconds"]
        heads = f"{s['heads cut']}/{s['attention']}" if s["attention"] else "-"
        least = [f"{s['smallest'][kind] / s['parameters']:.1%}" for kind in s["smallest"]]
        least += least[-1:] * (2 - len(least))
        lines.append(
            f"| {s['model']} | {s['input']} | {proved['internal']}/{found['internal']} | {heads} | "
            f"{proved['residual']}/{found['residual']} | {least[0]} | {least[1]} | "
            f"{seconds['discovery']['cpu']:.1f} | {seconds['proof']['cpu']:.0f} |"
        )
    return "\n".join(lines)


def totals(summaries: list[dict[str, Any]]) -> str:
    """What the table comes to, and what was not proved with why, as Markdown."""
    done = [s for s in summaries if "found" in s]
    groups = {
        kind: (sum(s["proved"][kind] for s in done), sum(s["found"][kind] for s in done))
        for kind in ("internal", "residual")
    }
    slowest = max(done, key=lambda s: s["seconds"]["discovery"]["cpu"])
    longest = max(done, key=lambda s: s["seconds"]["discovery"]["wall"] + s["seconds"]["proof"]["wall"])
    whole = longest["seconds"]["discovery"]["wall"] + longest["seconds"]["proof"]["wall"]
    lines = [
        f"Of {len(summaries)} models: every internal group right on "
        f"**{sum(s['internal right'] for s in done)}**, and heads of every attention cut as well on "
        f"**{sum(s['heads right'] for s in done)}**, every group right on "
        f"**{sum(s['all right'] for s in done)}**; without a result {len(summaries) - len(done)}. "
        f"Groups proved: {groups['internal'][0]:,} of {groups['internal'][1]:,} internal, "
        f"{groups['residual'][0]:,} of {groups['residual'][1]:,} residual. Slowest to be found: "
        f"{slowest['model']}, {slowest['seconds']['discovery']['cpu']:.1f} s of CPU; longest in all: "
        f"{longest['model']}, {whole:.0f} s by the clock.",
        "",
        "Found but not proved, so frozen:",
        "",
    ]
    for s in done:
        alike: dict[str, list[str]] = {}
        for name, reason in s["unproved"].items():
            alike.setdefault(NUMBERS.sub("#", reason), []).append(name)
        for names in alike.values():
            shown = ", ".join(list(braced(names))[:2])
            lines.append(f"* {s['model']}: {len(names)} ({shown}): {s['unproved'][names[0]]}")
    if not any(s["unproved"] for s in done):
        lines.append("* nothing")
    frozen = Counter(
        reason
        for s in done
        for reason in s["frozen"].values()
        if reason != "it is the network's output" and ":" not in reason
    )
    lines += ["", "Weights whose outputs discovery froze, by reason:", ""]
    lines += [f"* {count} x {reason}" for reason, count in frozen.most_common()] or ["* none"]
    return "\n".join(lines)


@click.command()
@click.argument("name", type=click.Choice(["compared", "families"]))
@click.option("--jobs", default=1, show_default=True)
@click.option("--records", type=click.Path(path_type=Path), help="Where the sweep keeps its lines.")
def main(name: str, jobs: int, records: Path | None) -> None:
    """Inspect every model of a list, and write what came of it into docs/structure.md."""
    models = (HERE / "models" / f"{name}.txt").read_text().split()
    settings = ("--seconds", str(SECONDS))
    with progress() as bars:
        bar = bars.add_task("models", total=len(models))
        swept = sweep(
            models,
            settings,
            jobs=jobs,
            limit=LIMIT,
            out=records,
            watch=lambda done, _, model: bars.update(bar, completed=done, description=model or "models"),
        )
    summaries = [summary_of(record) for record in swept]
    path = HERE / "results" / f"structures-{name}.json"
    write_whole(path, (json.dumps(summaries, indent=1) + "\n").encode())
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = DOCS.read_text().split(begin)
    _, after = rest.split(end)
    text = f"{before}{begin}{totals(summaries)}\n\n{table(summaries)}\n{end}{after}"
    write_whole(DOCS, text.encode())


if __name__ == "__main__":
    main()

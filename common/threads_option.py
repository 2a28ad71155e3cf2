"""The option of every command that computes: with how many threads."""

from __future__ import annotations

import click

THREADS = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="CPU threads to compute with; 0 leaves it to torch, or to what else runs the network.",
)


def compute_with(threads: int) -> None:
    """Let torch compute with so many threads in this process; 0 leaves it to torch."""
    if threads:
        import torch

        torch.set_num_threads(threads)

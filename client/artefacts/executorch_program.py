"""ExecuTorch: the network as a program for phones and small boards, run by XNNPACK's kernels."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from client.artefacts.runnable import Logits, import_for
from client.export import TOLERANCE, SavedNetwork, first_line, quiet
from common.errors import InputError, UnsupportedModel
from common.system_errors import pass_on

INSTALL = "maskvote[executorch]"
CHECKED_IMAGES = 3


@dataclass(frozen=True)
class Program:
    """A program of one image: its bytes, and what runs them.

    `difference` is how far its logits are from torch's at worst, as a share of torch's largest, on random
    images.
    """

    data: bytes
    logits: Logits
    difference: float


def program_of(saved: SavedNetwork) -> Program:
    """The network as a program. InputError where executorch is missing;
    UnsupportedModel where it cannot express the network, or its logits differ by over TOLERANCE.
    """
    with quiet():
        import_for("executorch.exir", "a program is made", INSTALL)
    try:
        with quiet():
            data = _lowered(saved)
            logits = program_logits(data)
            difference = _difference(logits, saved)
    except InputError:
        raise
    except Exception as error:  # of any kind: the exporter is not ours
        pass_on(error)
        raise UnsupportedModel(
            f"{saved.backbone.model} cannot be written for ExecuTorch by torch {torch.__version__}: "
            f"{first_line(error)}; export it as onnx"
        ) from error
    if not difference <= TOLERANCE:
        raise UnsupportedModel(
            f"ExecuTorch's logits of {saved.backbone.model} differ from torch's by {difference:.1e} of "
            f"the largest, {TOLERANCE:.0e} is allowed; nothing was written, export it as onnx"
        )
    return Program(data, logits, difference)


def program_logits(data: bytes) -> Logits:
    """What runs a program. InputError where executorch is missing, else what its runtime raises."""
    with quiet():
        runtime = import_for("executorch.runtime", "a program is run", INSTALL)
    with _terminal_aside():
        program = runtime.Runtime.get().load_program(data)
        method = program.load_method("forward")

    # The method works on the program's memory, and the program on the bytes': neither keeps the other.
    def logits(images: np.ndarray, kept: tuple[Any, bytes] = (program, data)) -> np.ndarray:
        # A program takes the one image that it was made for; its output is overwritten by the next.
        found = [method.execute([torch.from_numpy(image[None])])[0].clone() for image in images]
        return torch.cat(found).numpy()

    return logits


@contextmanager
def _terminal_aside() -> Iterator[None]:
    """ExecuTorch's kernels tell on stderr what they find out of the processor when first used."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _lowered(saved: SavedNetwork) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    image = (torch.zeros(1, *saved.backbone.input_size),)
    graph = torch.export.export(saved.network, image, strict=False)
    program: Any = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()])
    return bytes(program.to_executorch().buffer)


def _difference(logits: Logits, saved: SavedNetwork) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECKED_IMAGES, *saved.backbone.input_size, generator=generator)
    with torch.inference_mode():
        expected = saved.network(images)
    given = torch.from_numpy(logits(images.numpy()))
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((given - expected).abs().max() / largest)

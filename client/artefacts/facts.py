"""Facts: what a card says of a network and of how it runs here."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from client.artefacts.runnable import Logits
from client.artefacts.transform import Transform
from client.export import SavedNetwork
from client.processor import processor
from common.fitting import BATCH
from common.flops import counted_flops
from common.image_reading import COLOURS
from common.images import LabelledImages

WARM_UPS, RUNS, SECONDS = 3, 50, 2.0
"""Latency is the median of so many runs, or of as many as so many seconds allow."""
WRITERS = ("maskvote", "torch", "timm", "onnx", "onnxruntime", "executorch")
"""Packages whose versions a card names, where they are installed."""

Done = Callable[[int], object]
"""Told how many images are done so far."""


def facts_of(saved: SavedNetwork) -> dict[str, Any]:
    """What a card says of the network itself, whatever it is written as."""
    backbone = saved.backbone
    size = list(backbone.input_size)
    transform = Transform(backbone.input_size[1:], backbone.interpolation, backbone.mean, backbone.std)
    return {
        "backbone": json.loads(backbone.to_json()),
        "mask": saved.mask or None,
        "classes": list(saved.classes),
        "input": {"name": "images", "type": "float32", "shape": ["N", *size]},
        "output": {"name": "logits", "type": "float32", "shape": ["N", len(saved.classes)]},
        "transform": {
            "orientation": "upright, as EXIF says",
            "colour": COLOURS[transform.channels],
            "resize": "the shorter side fills the input, its shape is kept",
            "crop": "centre",
            "size": size[1:],
            "interpolation": transform.interpolation,
            "scale": "pixel / 255",
            "mean": list(transform.mean),
            "std": list(transform.std),
        },
        "parameters": sum(parameter.numel() for parameter in saved.network.parameters()),
        "flops": counted_flops(saved.network, saved.backbone.input_size),
        "written_by": {name: version for name in WRITERS if (version := _version(name))},
    }


def latency_of(logits: Logits, size: Sequence[int], runtime: str, threads: int) -> dict[str, Any]:
    """How long one image takes here, with what runs it: the median of several runs, in milliseconds."""
    image = np.random.default_rng(0).standard_normal((1, *size), dtype=np.float32)
    for _ in range(WARM_UPS):
        logits(image)
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(times) < RUNS and (time.perf_counter() < ends or not times):
        began = time.perf_counter()
        logits(image)
        times.append(1000 * (time.perf_counter() - began))
    return {
        "milliseconds": round(median(times), 4),
        "batch": 1,
        "runs": len(times),
        "runtime": runtime,
        "threads": threads,
        "processor": f"{processor() or 'unknown'} ({platform.machine()})",
    }


def all_logits(logits: Logits, images: LabelledImages, done: Done = lambda count: None) -> np.ndarray:
    """The logits (N, K) of all images, in their order."""
    parts = []
    for indices in torch.arange(len(images)).split(BATCH):
        parts.append(logits(images.batch(indices).numpy()))
        done(int(indices[-1]) + 1)
    return np.concatenate(parts)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

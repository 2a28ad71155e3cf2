"""Quiet dependencies: no usage reports, no questions for updates, no logs, and no busy waiting.

They read these variables when they are imported, or when their own processes start. Each of our packages
therefore sets them in its `__init__`, before any module of it can import a dependency.
"""

from __future__ import annotations

import os

VARIABLES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Of 1.29 and later: else a device id and events in ~/.cache/Microsoft, sent after some seconds.
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    # gRPC's core would write lines of its own between ours.
    "GRPC_VERBOSITY": "NONE",
}
"""Environment variables of flwr, ray, onnxruntime, huggingface_hub and grpc. torch and timm have none:
they report nothing."""

# By default torch's threads spin so long for each other that they take the processor from those that they
# wait for. On two cores that others used too, an iteration of the demo's pre-training took 736 ms by
# default and 157 ms with this; with the cores to itself 38 and 33 ms.
SPIN_COUNT = "1000"
"""GOMP_SPINCOUNT, the turns for which a thread of GNU's OpenMP spins before it sleeps: some microseconds.
GNU's OpenMP takes the same by itself where a process has more threads than there are cores."""


def quiet_dependencies() -> None:
    """Set each of `VARIABLES` for this process and those that it starts, and how torch's threads wait.

    What the user has set stays, an OMP_WAIT_POLICY too.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

"""The client is light to import: nothing of the server's, of simulations, or of what export alone needs.

Each time in a process of its own, as this one has imported everything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import client

ROOT = Path(__file__).parents[2]
OURS = frozenset({"server", "simulations"})
HEAVY = frozenset(
    [
        "flwr.server",
        "flwr.serverapp",
        "flwr.superlink",
        "flwr.simulation",
        "ray",
        "sqlalchemy",
        "faiss",
        "matplotlib",
        "sklearn",
        "onnx",
        "onnxscript",
        "onnxruntime",
    ]
)
FLOWERS_OWN = frozenset({"flwr.server", "flwr.serverapp"})
"""Packages that `import flwr` brings by itself, whatever of it is used: flwr/__init__.py names them."""
CLIENT = Path(client.__file__).parent
MODULES = sorted(
    ".".join(["client", *path.relative_to(CLIENT).with_suffix("").parts])
    for path in CLIENT.rglob("*.py")
    if path.stem[0] != "_"
)
COMMAND_LINE = [module for module in MODULES if module != "client.flower_app"]


def imported_by(*modules: str) -> set[str]:
    """All modules that a fresh process has after importing these."""
    source = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return set(json.loads(process.stdout))


def within(modules: set[str], packages: frozenset[str]) -> set[str]:
    """The modules that are one of these packages, or lie in one."""
    return {m for m in modules if any(m == p or m.startswith(f"{p}.") for p in packages)}


def test_the_command_line_imports_nothing_heavy_and_no_flower():
    assert {"client.network_cli", "client.artefacts.int8"} <= set(COMMAND_LINE)
    found = imported_by(*COMMAND_LINE)
    assert set(COMMAND_LINE) <= found
    assert within(found, OURS | HEAVY | {"flwr"}) == set()


TORCH = frozenset({"torch", "torchvision", "timm", "safetensors", "grpc", "google", "cryptography"})
WITHOUT_TORCH = [
    "client.cli",
    "client.predict_cli",
    *(f"client.artefacts.{name}" for name in ("transform", "card", "kinds", "runnable")),
    "client.network_cli",
    "client.saved_header",
    *(f"client.artefacts.{name}" for name in ("image_files", "predictions", "prediction_files")),
    "client.artefacts.evaluation",
]


def test_what_predicts_and_evaluates_imports_no_torch():
    assert set(WITHOUT_TORCH) <= set(MODULES)
    assert within(imported_by(*WITHOUT_TORCH), OURS | HEAVY | TORCH | {"flwr"}) == set()


def test_flowers_client_app_imports_nothing_heavy_but_what_flower_itself_does():
    flower = imported_by("flwr.app", "flwr.clientapp")
    assert within(flower, HEAVY) == within(flower, FLOWERS_OWN)
    found = imported_by("client.flower_app")
    assert within(found, OURS) == set()
    assert within(found, HEAVY) == within(flower, FLOWERS_OWN)


def test_what_is_imported_within_a_package_counts_and_what_only_begins_like_it_does_not():
    names = {"ray", "ray.air", "rays", "flwr", "flwr.server", "flwr.serverless"}
    assert within(names, HEAVY) == {"ray", "ray.air", "flwr.server"}

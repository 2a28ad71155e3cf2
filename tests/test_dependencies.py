"""Dependencies: a device installs few packages, and needs none of the others."""

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = (
    "flwr", "ray", "sqlalchemy", "structlog", "prometheus_client", "grpc_health", "grpc_reflection",
    "onnx", "onnxruntime", "onnxscript", "matplotlib", "scipy", "sklearn", "jinja2",
)  # fmt: skip


def needed_by(name: str) -> set[str]:
    """A package and all that it brings along."""
    known: set[str] = set()
    waiting = [name]
    while waiting:
        package = waiting.pop().lower().replace("_", "-")
        if package in known:
            continue
        known.add(package)
        for line in distribution(package).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return known


def test_beyond_torch_and_timm_a_device_installs_five_packages_of_ours():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {Requirement(line).name for line in project["dependencies"]}
    assert {"torch", "timm"} <= ours
    assert len(ours - needed_by("timm")) <= 5


def test_a_device_needs_no_package_of_an_extra():
    """Every module of the client and of what is common, but for the door that is Flower's."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for part in ("client", "common")
        for path in sorted((ROOT / part).rglob("*.py"))
        if path.name not in ("__main__.py", "flower_app.py", "record_codec.py")
    ]
    assert "client.cli" in modules
    program = (
        "import sys, importlib\n"
        f"for name in {OPTIONAL}: sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_service_and_the_container_run_commands_that_there_are():
    unit = (ROOT / "deploy" / "maskvote-adapt.service").read_text()
    started = unit.split("ExecStart=")[1].split("\nRestart=")[0].replace("\\\n", " ").split()
    options = {word for word in started if word.startswith("--")}
    script = "maskvote-client"
    assert Path(started[0]).name == script
    told = subprocess.run(
        [sys.executable, "-m", "client", "adapt", "--help"], cwd=ROOT, capture_output=True, text=True,
        check=True, timeout=60,
    ).stdout  # fmt: skip
    assert options <= {word.strip(",") for word in told.split()}
    container = (ROOT / "deploy" / "Containerfile").read_text()
    assert f'ENTRYPOINT ["/opt/maskvote/bin/{script}"]' in container
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert script in scripts

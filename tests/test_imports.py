"""The direction of dependencies: client -> common <- server; simulations and tests may see both."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "common": {"client", "server", "simulations", "tests"},
    "client": {"server", "simulations", "tests"},
    "server": {"client", "simulations", "tests"},
    "simulations": {"tests"},
    "protos": {"client", "common", "server", "simulations", "tests"},
}


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it: also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_against_the_direction(package):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in modules
        if (found := imported_packages(path.read_text()) & FORBIDDEN[package])
    }
    assert wrong == {}


def test_every_kind_of_import_is_seen():
    source = """
import server.library as library, numpy
def late():
    from client import adapt
    import importlib
    importlib.import_module("simulations.fleet")
from . import sibling
"""
    found = {"server", "numpy", "client", "importlib", "simulations"}
    assert imported_packages(source) == found

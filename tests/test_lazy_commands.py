"""A command starts without what only other commands need; nobody sees a difference but in time."""

import importlib
import sys
from collections.abc import Iterator

import click
import pytest
import torch
from click.testing import CliRunner
from fresh_process import call_one_by_one

from client.cli import cli as client
from common.command_line import Commands
from server.cli import cli as server
from simulations.cli import cli as simulations

GROUPS: dict[str, Commands] = {"client": client, "server": server, "simulations": simulations}
COMMANDS = [(package, name) for package, group in GROUPS.items() for name in group.sources]
SLOW = frozenset({"torch", "torchvision", "timm", "flwr", "matplotlib", "scipy", "sklearn", "sqlalchemy"})


def imported(package: str, name: str) -> click.Command:
    source = GROUPS[package].sources[name]
    return getattr(importlib.import_module(source.module), source.name)


def eager(package: str) -> click.Group:
    """The same group, with every command imported."""
    commands = {name: imported(package, name) for name in GROUPS[package].sources}
    group = GROUPS[package]
    return click.Group(group.name, commands, params=group.params, help=group.help)


@pytest.mark.parametrize(("package", "name"), COMMANDS)
def test_what_is_kept_of_a_command_is_what_it_says_itself(package, name):
    source = GROUPS[package].sources[name]
    assert source.module.startswith(f"{package}.")
    command = imported(package, name)
    assert command.name == name
    assert source.help.endswith(".")
    assert source.help == command.get_short_help_str(limit=10_000)


@pytest.mark.parametrize("package", GROUPS)
@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["lits"], ["prediict"], ["--nonsense"]])
def test_a_group_tells_what_it_would_with_all_commands_imported(package, words):
    for width in (40, 80, 200):
        ended, expected = (
            CliRunner().invoke(group, words, terminal_width=width, prog_name="maskvote")
            for group in (GROUPS[package], eager(package))
        )
        assert (ended.exit_code, ended.output) == (expected.exit_code, expected.output)


@pytest.mark.parametrize("package", GROUPS)
def test_a_group_imports_nothing_slow_for_its_help_and_for_bad_words(package):
    lines = [["--help"], ["--version"], ["nonsense"], ["--nonsense"]]
    ended, modules = call_one_by_one(f"{package}.cli", lines)
    assert [status for status, _ in ended] == [0, 0, 2, 2]
    for name in GROUPS[package].sources:
        assert f"\n  {name} " in ended[0].told
    assert modules & (SLOW | {"numpy", "grpc"}) == set()


WITHOUT_TORCH = [(package, name) for package, name in COMMANDS if not GROUPS[package].sources[name].torch]


def test_commands_that_do_not_compute_are_known():
    operations = {
        "list", "show", "remove", "restore", "backup", "export", "import", "statistics", "token"
    }  # fmt: skip
    logins = {"login", "logout", "connections"}
    assert {*WITHOUT_TORCH} == {
        ("client", "predict"),
        *(("client", name) for name in logins),
        *(("server", name) for name in operations | logins),
    }


@pytest.mark.parametrize("package", ["client", "server"])
def test_a_command_that_does_not_compute_starts_without_torch(package):
    names = [name for package_of, name in WITHOUT_TORCH if package_of == package]
    lines = [["--threads", "2", name, *words] for name in names for words in (["--help"], ["--nonsense"])]
    ended, modules = call_one_by_one(f"{package}.cli", lines)
    assert [status for status, _ in ended] == [0, 2] * len(names)
    assert modules & {"torch", "torchvision", "timm", "flwr"} == set()


def test_an_operator_is_told_what_is_wrong_before_torch_is_imported(tmp_path):
    (tmp_path / "text.db").write_text("this is a text\n")
    library, text, file = tmp_path / "birds.db", tmp_path / "text.db", tmp_path / "birds.entries"
    reason = ("--reason", "fish")
    lines = [
        ["list", library],
        ["list", text],
        ["statistics", library, "--json"],
        ["show", library, "1d8f"],
        ["remove", library, "1d8f", *reason],
        ["restore", library, "1d8f", *reason],
        ["backup", library, file],
        ["backup", "grpc://kitchen", file],
        ["export", library, file],
        ["import", library, file],
        ["list", "grpc://kitchen"],
        ["list", "grpc://127.0.0.1:7070", "--token-file", tmp_path / "operator.token"],
        ["token", "--help"],
        ["token", "add", "--help"],
        ["token", "add", library, "kitchen"],
        ["token", "add", "grpc://127.0.0.1:7070", "kitchen"],
        ["token", "list", library],
        ["token", "revoke", library],
    ]
    ended, modules = call_one_by_one("server.cli", lines)
    assert [status for status, _ in ended] == [4, 4, 4, 4, 4, 4, 4, 2, 4, 2, 2, 2, 0, 0, 4, 2, 4, 2]
    assert modules & {"torch", "torchvision", "timm"} == set()


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("package", "name"), [one for one in COMMANDS if one[0] != "simulations"])
def test_torch_computes_with_as_many_threads_as_were_asked_for(package, name):
    torch.set_num_threads(1)
    ended = CliRunner().invoke(GROUPS[package], ["--threads", "3", name, "--help"])
    assert ended.exit_code == 0
    assert torch.get_num_threads() == (1 if (package, name) in WITHOUT_TORCH else 3)
    assert CliRunner().invoke(GROUPS[package], [name, "--help"]).exit_code == 0
    assert torch.get_num_threads() == (1 if (package, name) in WITHOUT_TORCH else 3)


@pytest.mark.parametrize(
    ("package", "line", "lacking", "install"),
    [
        ("server", ["list", "birds.db"], "sqlalchemy", '"maskvote[server]"'),
        ("server", ["--threads", "2", "create", "birds.db"], "torch", '"maskvote[server]"'),
        ("client", ["--threads", "2", "adapt"], "torch", "maskvote"),
        ("simulations", ["report", "runs"], "jinja2", '"maskvote[simulation]"'),
    ],
)
def test_a_command_that_lacks_a_package_says_what_to_install(package, line, lacking, install):
    (ended,), _ = call_one_by_one(f"{package}.cli", [line], lacking=[lacking])
    assert ended.status == 2
    assert ended.told.endswith(f"needs {lacking}, which is not installed; pip install {install}\n")


def test_a_module_of_ours_that_is_not_there_is_a_bug_that_no_installing_mends(monkeypatch):
    monkeypatch.setitem(sys.modules, "simulations.plots", None)
    monkeypatch.delitem(sys.modules, "simulations.plot_cli", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"simulations\.plots"):
        simulations.get_command(click.Context(simulations), "plot")

"""A command starts without what only other commands need; nobody sees a difference but in time."""

import importlib
import re
import sys
from collections.abc import Iterator

import click
import pytest
import torch
from click.testing import CliRunner
from fresh_process import call_one_by_one

from client.cli import cli as client
from common.command_line import Commands
from common.threads_option import compute_with
from server.cli import cli as server
from simulations.cli import cli as simulations

GROUPS: dict[str, Commands] = {"client": client, "server": server, "simulations": simulations}
COMMANDS = [(package, name) for package, group in GROUPS.items() for name in group.sources]
COMPUTING = frozenset({"torch", "torchvision", "timm", "flwr", "ray", "matplotlib", "scipy", "sklearn"})
SLOW = COMPUTING | {"sqlalchemy", "numpy", "grpc"}


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
@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["lits"], ["prediict"], ["--hlep"]])
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
    assert modules & SLOW == set()


def lines_to_commands(command: click.Command, line: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that name each command of a group, and those of its groups."""
    if not isinstance(command, click.Group):
        yield line
        return
    for name in command.list_commands(click.Context(command)):
        yield from lines_to_commands(command.get_command(click.Context(command), name), (*line, name))


@pytest.mark.parametrize("package", GROUPS)
def test_no_help_and_no_usage_error_of_any_command_imports_what_computes(package):
    """By the modules that are imported: seconds depend on the machine."""
    commands = [*lines_to_commands(GROUPS[package])]
    assert package != "server" or ("token", "revoke") in commands
    ended, modules = call_one_by_one(
        f"{package}.cli", [[*line, word] for line in commands for word in ("--help", "--nonsense")]
    )
    assert [status for status, _ in ended] == [0, 2] * len(commands)
    for line, (_, told) in zip(commands, ended[::2], strict=True):
        assert f"maskvote {' '.join(line)} [OPTIONS]" in " ".join(told.split())
    assert modules & COMPUTING == set()


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
    assert modules & COMPUTING == set()


COMPUTES = {
    "client": {"describe", "adapt", "benchmark", "evaluate", "export", "predict"},
    "server": {"create", "seed", "inspect", "heal", "serve", "assign"},
}


@pytest.mark.parametrize("package", COMPUTES)
def test_threads_are_an_option_of_each_command_that_computes_and_of_nothing_else(package):
    taking = {
        name for of, name in COMMANDS if of == package
        and any("--threads" in parameter.opts for parameter in imported(of, name).params)
    }  # fmt: skip
    assert taking == COMPUTES[package]
    assert not any("--threads" in parameter.opts for parameter in GROUPS[package].params)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (["--threads", "2", "adapt", "--data", "mine"], "maskvote adapt --threads ..."),
        (["--data", "mine", "adapt"], "maskvote adapt --data ..."),
        (["--threads", "2"], "maskvote COMMAND --threads ..."),
    ],
)
def test_an_option_before_the_command_is_told_where_it_goes(line, advice):
    ended = CliRunner().invoke(client, line, prog_name="maskvote")
    assert ended.exit_code == 2
    assert f"There is no option {line[0]} before the command. A command's options come after" in (
        told := " ".join(ended.output.split())
    )
    assert told.endswith(f"its name: {advice}")


def test_an_option_before_the_command_that_is_misspelt_is_still_guessed():
    assert "Did you mean '--version'?" in CliRunner().invoke(client, ["--versoin"]).output


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_torch_computes_with_as_many_threads_as_were_asked_for():
    torch.set_num_threads(1)
    compute_with(3)
    assert torch.get_num_threads() == 3
    compute_with(0)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("package", "line", "lacking", "install"),
    [
        ("server", ["list", "birds.db"], "sqlalchemy", '"maskvote[server]"'),
        ("server", ["inspect", "resnet18", "--threads", "2"], "torch", '"maskvote[server]"'),
        ("client", ["export", "--network", __file__, "--format", "onnx", "--out", "x.onnx"], "torch",
         "maskvote"),
        ("simulations", ["report", "."], "jinja2", '"maskvote[simulation]"'),
    ],
)  # fmt: skip
def test_a_command_that_lacks_a_package_says_what_to_install(package, line, lacking, install):
    (ended,), _ = call_one_by_one(f"{package}.cli", [line], lacking=[lacking])
    assert ended.status == 2
    assert ended.told.endswith(f"needs {lacking}, which is not installed; pip install {install}\n")


@pytest.mark.parametrize("lacking", ["simulations.report_cli", "simulations.report"])
def test_a_module_of_ours_that_is_not_there_is_a_bug_that_no_installing_mends(monkeypatch, lacking):
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(lacking)):
        CliRunner().invoke(simulations, ["report", "."], catch_exceptions=False)

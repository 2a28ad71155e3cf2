"""maskvote-server: found a library, seed it, operate and serve it, and answer devices by files."""

from __future__ import annotations

import click

from common.command_line import Commands, Source, run

COMMANDS = {
    "create": Source("server.founding_cli", "create", "Found a new, empty LIBRARY for a backbone."),
    "seed": Source("server.founding_cli", "seed",
                   "Fill LIBRARY with masks of your own tasks, by iterative pruning."),
    "inspect": Source("server.inspect_cli", "inspect",
                      "Show what of a timm MODEL can be cut: proved groups, what a unit costs, what is "
                      "frozen and why."),
    "heal": Source("server.heal_cli", "heal",
                   "Heal LIBRARY's backbone: whatever is cut out of it then starts nearer to the whole."),
    "serve": Source("server.serve_cli", "serve",
                    "Serve LIBRARY to devices and operators until SIGTERM or Ctrl-C; what runs then may "
                    "end."),
    "offer": Source("server.exchange_cli", "offer",
                    "Write what a device needs before it asks (structure and probe) to FILE."),
    "assign": Source("server.exchange_cli", "assign",
                     "Answer the REQUEST of a device with a sub-network, written to FILE."),
    "record": Source("server.exchange_cli", "record",
                     "Store the CONTRIBUTION of a device; the next device is served better."),
    "list": Source("server.operate_cli", "list_entries",
                   "List the entries of LIBRARY, a file or grpc://HOST:PORT, in the order they came."),
    "show": Source("server.operate_cli", "show_entry",
                   "Show one ENTRY of LIBRARY: its facts, its signature in numbers, its neighbours, its "
                   "mask."),
    "remove": Source("server.operate_cli", "remove_entry",
                     "Take an ENTRY of LIBRARY out of all votes from now on."),
    "restore": Source("server.operate_cli", "restore_entry",
                      "Let a removed ENTRY of LIBRARY vote again."),
    "backup": Source("server.operate_cli", "back_up_library",
                     "Copy LIBRARY, whole and checked, to the new FILE."),
    "export": Source("server.operate_cli", "export_entries",
                     "Write the entries of LIBRARY that are not removed to FILE, to import them "
                     "elsewhere."),
    "import": Source("server.operate_cli", "import_entries",
                     "Add the entries in FILE to LIBRARY, which is of the same backbone and probe."),
    "statistics": Source("server.operate_cli", "show_statistics",
                         "Show in numbers what LIBRARY holds."),
    "token": Source("server.token_cli", "token",
                    "Let devices and operators in, and out again; a server that runs heeds it at once."),
    "login": Source("server.login_cli", "login",
                    "Save how SERVER, grpc://HOST:PORT, is reached by you as its operator, once it has "
                    "let you in."),
    "logout": Source("server.login_cli", "logout",
                     "Remove what login has saved for SERVER."),
    "connections": Source("server.login_cli", "connections",
                          "Show the servers that login has saved, without the tokens."),
}  # fmt: skip


@click.group(cls=Commands, sources=COMMANDS, install='"maskvote[server]"')
@click.version_option(package_name="maskvote")
def cli() -> None:
    """Hold a pre-trained backbone and a library of masks, and serve sub-networks of it."""


def main() -> None:
    """The console script."""
    run(cli)

"""maskvote-server's commands for operators: the same on a library's file as on the server that has it."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog
from certificates import Authority
from fresh_process import call_one_by_one
from grpc_server import running_server
from library_tasks import change
from operated import WITH_TOKENS, entry_of, token_file

from common.backbone import weights_digest
from common.command_line import run
from common.mask import Mask
from common.signature import TaskSignature
from server import tokens
from server.cli import cli
from server.entries_file import count_entries, write_entries
from server.library import Library
from server.serving import Tls
from server.tokens import Caller, identify

NUMBERS = range(6)
REMOVED = 2


class Outcome(NamedTuple):
    """What a command did: its exit status, what it printed, and what it told beside that."""

    status: int
    printed: str
    told: str


@pytest.fixture
def command(monkeypatch, capfd):
    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["maskvote-server", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            run(cli)
        printed, told = capfd.readouterr()
        return Outcome(int(exit_.value.code), printed, told)

    return call


@pytest.fixture(scope="module")
def stocked(offer, weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stocked") / "birds.db"
    with Library.create(path, offer, weights_digest(weights)) as library:
        library.take_in(entry_of(offer, number) for number in NUMBERS)
        library.remove(entry_of(offer, REMOVED).entry, "operator", "its images are [bold]fish[/]")
    return path


@pytest.fixture
def local(stocked, tmp_path) -> Path:
    """A library that nobody serves, beside the tokens of a device and an operator."""
    (tmp_path / "local").mkdir()
    path = Path(shutil.copy(stocked, tmp_path / "local" / "birds.db"))
    for role in tokens.ROLES:
        token_file(path, role)
    return path


@pytest.fixture
def remote(local, weights, tmp_path):
    """The words that name a copy of that library where it is served, for its operator."""
    path = Path(shutil.copytree(local.parent, tmp_path / "remote")) / "birds.db"
    with (
        structlog.testing.capture_logs(),
        Library.open(path) as library,
        running_server(library, weights, WITH_TOKENS) as port,
    ):
        yield (f"grpc://127.0.0.1:{port}", "--token-file", path.with_name("operator.token"))


@pytest.fixture
def empty(offer, weights, tmp_path) -> Path:
    path = tmp_path / "empty.db"
    Library.create(path, offer, weights_digest(weights)).close()
    return path


@pytest.fixture
def both(command, local, remote):
    """Runs a command here and there; gives the outcome here, once it is known to be that there."""

    def call(name: str, *words: object) -> Outcome:
        here, there = command(name, local, *words), command(name, *remote, *words)

        def alike(outcome: Outcome, place: object) -> list[str]:
            """What is printed, but for where, when and by whom, and how large the file is."""
            for pattern, word in (
                (re.escape(str(place)), "LIBRARY"),
                (r"20\d\d-\d\d-\d\d(T[\d:+]+)?", "NOW"),
                ("the-operator|operator", "BY"),
                (r'(library\'s file +│ +|"file_bytes": )[\d,]+', "BYTES"),
                ("[━─ ]+", " "),
            ):
                outcome = Outcome(*(re.sub(pattern, word, str(part)) for part in outcome))
            return list(outcome)

        assert alike(here, local) == alike(there, remote[0])
        return here

    return call


def name_of(offer, number: int) -> str:
    return entry_of(offer, number).entry


def rows(printed: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in printed.splitlines()
        if line.startswith("│")
    ]


def test_all_entries_are_listed_and_removed_ones_are_marked(both, offer):
    table = rows(both("list").printed)
    assert [row[0] for row in table] == [name_of(offer, number)[:12] for number in NUMBERS]
    assert [number for number, row in enumerate(table) if row[-1]] == [REMOVED]


def test_a_script_gets_all_facts_of_all_entries(both, offer):
    listed = json.loads(both("list", "--json").printed)
    entry = entry_of(offer, 4)
    facts = {
        "entry": entry.entry,
        "method": "smsp",
        "contributor": "kitchen",
        "classes": 3,
        "images": entry.signature.images,
        "keep_ratio": round(entry.keep_ratio, 4),
        "parameters": entry.mask.structure.parameters(entry.mask.counts, 3),
        "accuracy_before": 0.25,
        "accuracy_after": 0.5004,
        "iterations": 50,
        "recorded": "2031-02-03T08:05:06+00:00",
        "removed": None,
        "neighbours": 1,
    }
    assert listed[4] == facts
    assert listed[REMOVED]["removed"]["reason"] == "its images are [bold]fish[/]"


def test_an_entry_is_shown_with_its_neighbours_its_mask_and_its_signature_in_numbers(both, offer):
    entry = entry_of(offer, REMOVED)
    shown = both("show", entry.entry[:6])
    assert shown.status == 0
    table = {row[0]: row[1:] for row in rows(shown.printed)}
    assert table["removed"][0].endswith("by operator: its images are [bold]fish[/]")
    assert table[f"{REMOVED:032x}"] == ["0.333"]
    for group in entry.mask.structure.groups:
        assert table[group.name] == [str(entry.mask[group.name].sum()), str(group.units)]
    assert table["images of largest class"] == [str(entry.signature.counts.max())]


def test_a_script_gets_them_as_numbers(both, offer):
    entry = entry_of(offer, 0)
    shown = json.loads(both("show", entry.entry, "--json").printed)
    assert shown["neighbours"] == [{"entry": "0" * 32, "similarity": 1 / 3}]
    assert list(shown["kept"].values()) == list(entry.mask.counts)
    assert shown["signature"]["width"] == entry.signature.means.shape[1]


def test_a_library_in_numbers(both):
    numbers = json.loads(both("statistics", "--json").printed)
    assert (numbers["voting"], numbers["removed"]) == (5, 1)
    assert numbers["by_method"] == {"iterative": 3, "smsp": 2}
    table = {row[0]: row[1] for row in rows(both("statistics").printed)}
    assert table["entries that vote"] == "5"
    assert table["entries by iterative"] == "3"


def test_what_is_removed_can_be_restored(both, offer, command, local):
    name = name_of(offer, 4)
    for _ in range(2):
        removed = both("remove", name[:8], "--reason", "these are fish")
        assert removed.status == 0
        assert f"entry {name} takes no part in votes" in removed.printed
        assert removed.printed.endswith("by operator: these are fish\n")
    assert [row["entry"] for row in json.loads(both("list", "--json").printed) if row["removed"]] == [
        name_of(offer, REMOVED),
        name,
    ]
    assert both("restore", name, "--reason", "no, birds").printed == f"entry {name} takes part in votes\n"
    assert both("statistics", "--json").status == 0


def test_the_name_of_the_operators_token_stands_with_what_it_removed(command, remote, offer):
    removed = command("remove", *remote, name_of(offer, 1), "--reason", "fish")
    assert removed.printed.endswith("by the-operator: fish\n")


def test_what_one_library_exports_another_imports_once(command, empty, local, remote, tmp_path, offer):
    files = [tmp_path / "here.entries", tmp_path / "there.entries"]
    assert command("export", local, files[0]).printed == f"{files[0]}: 5 entries\n"
    assert command("export", *remote, files[1]).printed == f"{files[1]}: 5 entries\n"
    assert files[0].read_bytes() == files[1].read_bytes()
    assert count_entries(files[0]) == 5
    for words in ("5 entries added, 0 were there already", "0 entries added, 5 were there already"):
        assert command("import", empty, files[0]).printed == f"{empty}: {words}\n"
    assert command("import", empty, files[0]).told == ""
    with Library.open(empty) as library:
        assert [entry.entry for entry in library.export()] == [
            name_of(offer, number) for number in NUMBERS if number != REMOVED
        ]


def test_a_library_is_backed_up_while_it_is_served(command, local, remote, weights, tmp_path):
    """The server's file and its log are open, and what it recorded last is in the log alone."""
    file = tmp_path / "birds.backup"
    served = remote[2].with_name("birds.db")
    outcome = command("backup", served, file)
    assert outcome == (0, f"{file}: 6 entries, {file.stat().st_size:,} bytes\n", "")
    assert command("statistics", file, "--json").status == 0
    lists = [command("list", library, "--json").printed for library in (file, served)]
    assert lists[0] == lists[1]
    again = command("backup", served, file)
    assert (again.status, again.printed) == (2, "")
    assert "overwrites nothing" in again.told
    assert "run this where its library is" in command("backup", remote[0], tmp_path / "other").told


def test_a_backup_tells_of_entries_that_are_damaged(command, local, offer, tmp_path):
    change(local, "UPDATE tasks SET accuracy_after = 1 WHERE position = 2")
    outcome = command("backup", local, tmp_path / "birds.backup")
    assert outcome.status == 0
    assert f"entry {name_of(offer, 1)} is damaged" in outcome.told


def test_an_operator_elsewhere_needs_no_torch(remote, tmp_path, offer):
    name, file, reason = name_of(offer, 1), tmp_path / "birds.entries", ("--reason", "fish")
    lines = [
        ["list", *remote],
        ["show", *remote, name[:8]],
        ["remove", *remote, name, *reason],
        ["restore", *remote, name, *reason],
        ["export", *remote, file],
        ["import", *remote, file],
        ["statistics", *remote, "--json"],
    ]
    ended, modules = call_one_by_one("server.cli", lines)
    assert [status for status, _ in ended] == [0] * len(lines)
    assert "0 entries added, 5 were there already" in ended[5].told
    assert modules & {"torch", "torchvision", "timm"} == set()


def test_an_operator_of_a_file_needs_no_torch_but_to_take_entries_in(local, tmp_path, offer):
    name, file, reason = name_of(offer, 1), tmp_path / "birds.entries", ("--reason", "fish")
    lines = [
        ["list", local],
        ["show", local, name[:8]],
        ["remove", local, name, *reason],
        ["restore", local, name, *reason],
        ["backup", local, tmp_path / "birds.backup"],
        ["export", local, file],
        ["statistics", local, "--json"],
        ["token", "add", local, "barn"],
        ["token", "list", local],
        ["token", "revoke", local, "barn"],
    ]
    ended, modules = call_one_by_one("server.cli", lines)
    assert [status for status, _ in ended] == [0] * len(lines), ended
    assert modules & {"torch", "torchvision", "timm"} == set()


def test_a_library_is_imported_into_while_it_is_served(both, tmp_path, offer):
    file = tmp_path / "more.entries"
    write_entries(file, [entry_of(offer, number) for number in (0, 10, 11)])
    assert both("import", file).printed.endswith("2 entries added, 1 were there already\n")
    assert both("import", file).printed.endswith("0 entries added, 3 were there already\n")
    assert len(json.loads(both("list", "--json").printed)) == 8


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["show", "zebra"], 2, "there is no entry 'zebra'"),
        (["show", "0" * 32], 2, "there is no entry"),
        (["show", ""], 2, "6 entries begin with ''"),
        (["remove", "", "--reason", "fish"], 2, "give more of the name"),
        (["remove", "0" * 32, "--reason", "fish"], 2, "there is no entry"),
        (["remove", "0" * 32], 2, "Missing option '--reason'"),
        (["restore", "0" * 32, "--reason", ""], 2, "the reason has 0 characters"),
        (["export", "none/birds.entries"], 2, "none/birds.entries cannot be written"),
        (["import", "none/birds.entries"], 2, "none/birds.entries cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_here_and_there(both, words, status, says):
    outcome = both(*words)
    assert outcome.status == status
    assert says in outcome.told
    assert outcome.printed == ""


def test_a_file_that_is_cut_or_damaged_or_of_others_is_refused(both, offer, local, structure, tmp_path):
    def refused(status: int, says: str) -> None:
        outcome = both("import", file)
        assert outcome.status == status
        assert says in outcome.told

    file = tmp_path / "more.entries"
    entries = [entry_of(offer, number) for number in (20, 21, 22)]
    write_entries(file, entries)
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    refused(2, "more.entries is cut short after 2 entries")
    file.write_bytes(whole[:-1000] + b"\x00" + whole[-999:])
    refused(2, "more.entries is damaged")
    file.write_bytes(b"birds")
    refused(2, "more.entries is no file of entries")
    assert len(json.loads(both("list", "--json").printed)) == 6  # nothing of these files is there

    other = structure.without({structure.groups[0].name: "a test"})
    foreign = entry_of(offer, 23, mask=Mask.full(other))
    write_entries(file, [entries[0], foreign, entries[1]])
    refused(3, f"is of structure {other.digest[:12]}")
    twice = entry_of(offer, 3, accuracy_after=0.99)
    write_entries(file, [entries[0], twice, entries[1]])
    refused(2, "differs")
    signature = TaskSignature("12" * 32, entries[1].signature.means, entries[1].signature.counts)
    write_entries(file, [entries[0], entry_of(offer, 21, signature=signature), entries[1]])
    refused(3, "probe 121212121212")
    assert len(json.loads(both("list", "--json").printed)) == 7  # the one before each of these


def test_who_is_no_operator_is_told_so(command, remote, local, monkeypatch):
    address, option, token = remote
    refused = command("list", address, option, token.with_name("device.token"))
    assert (refused.status, refused.printed) == (5, "")
    assert "has the role device, and this call needs operator" in refused.told
    refused = command("list", address)
    assert refused.status == 5
    assert "has no token" in refused.told
    monkeypatch.setenv("MASKVOTE_TOKEN", token.read_text().strip())
    assert command("list", address).status == 0
    refused = command("list", address, option, token.with_name("no.token"))
    assert (refused.status, refused.printed) == (2, "")
    assert "no.token cannot be read" in refused.told


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["grpc://127.0.0.1:1"], 6, "127.0.0.1:1 does not answer"),
        (["grpc://birds.db"], 2, "it is HOST:PORT"),
        (["GRPC://127.0.0.1:1"], 6, "127.0.0.1:1 does not answer"),
        (["grpc://::1:1"], 2, "an IPv6 address is in brackets"),
        (["https://127.0.0.1:1"], 2, "write grpc://127.0.0.1:1"),
        (["127.0.0.1:1"], 2, "for the server there, write grpc://127.0.0.1:1"),
        (["grpc://127.0.0.1:1", "--ca", "no.crt"], 2, "no.crt cannot be read"),
        (["no.db"], 4, "there is no library no.db"),
    ],
)
def test_a_library_that_is_not_there_is_told(command, words, status, says):
    outcome = command("list", *words)
    assert (outcome.status, outcome.printed) == (status, "")
    assert says in outcome.told


def test_what_does_not_go_together_is_told_before_anybody_is_called(command, tmp_path):
    authority = Authority(tmp_path)
    pair, address = authority.certify("laptop"), "grpc://127.0.0.1:1"
    for words, sentence in (
        (["--key", pair.key], "the certificate is missing; give both"),
        (["--ca", authority.ca, "--insecure"], "without TLS there is no use for ca"),
        (["--certificate", pair.key, "--key", pair.certificate], "swapped"),
    ):
        outcome = command("list", address, *words)
        assert (outcome.status, outcome.printed) == (2, "")
        assert sentence in outcome.told


def test_an_operator_speaks_tls_and_shows_a_certificate_where_it_is_asked_for(
    command, local, weights, tmp_path
):
    authority = Authority(tmp_path / "pki")
    server, own = authority.certify("server"), authority.certify("laptop")
    tls = Tls(server.certificate, server.key, client_ca=authority.ca)
    with (
        structlog.testing.capture_logs(),
        Library.open(local) as library,
        running_server(library, weights, replace(WITH_TOKENS, tls=tls)) as port,
    ):
        words = [f"grpc://localhost:{port}", "--token-file", local.with_name("operator.token")]
        trusting = ["--ca", authority.ca]
        certified = ["--certificate", own.certificate, "--key", own.key]
        assert command("list", *words, *trusting, *certified).status == 0
        for wrong, status, sentence in (
            ([], 3, "speaks TLS, and was called without; give the CA"),
            (["--insecure"], 3, "leave out --insecure"),
            (["--ca", own.certificate, *certified], 3, "not to be trusted"),
            (trusting, 6, "hangs up after the handshake; give the certificate"),
        ):
            refused = command("list", *words, *wrong)
            assert (refused.status, refused.printed) == (status, "")
            assert sentence in refused.told


def test_an_entry_that_is_damaged_is_told_where_the_file_is(command, local, offer):
    change(local, "UPDATE tasks SET accuracy_after = 1 WHERE position = 2")
    outcome = command("list", local)
    assert outcome.status == 0
    assert len(rows(outcome.printed)) == len(NUMBERS) - 1
    assert f"warning: entry {name_of(offer, 1)} is damaged and takes no part" in outcome.told


# Tokens


def test_a_token_is_printed_once_and_only_what_it_is_for_is_kept(command, local):
    added = command("token", "add", local, "attic")
    token = added.printed.strip()
    assert added.printed == f"{token}\n"
    assert "is not shown again" in added.told
    with Library.open(local) as library:
        assert identify(library, token) == Caller("attic", "device")
    listed = command("token", "list", local, "--json")
    assert token not in listed.printed + command("token", "list", local).printed
    assert token.encode() not in local.read_bytes()
    named = {row["name"]: row["role"] for row in json.loads(listed.printed)}
    assert named == {"the-device": "device", "the-operator": "operator", "attic": "device"}


def test_a_script_gets_a_token_as_json(command, local):
    added = json.loads(command("token", "add", local, "boss", "--role", "operator", "--json").printed)
    assert (added["name"], added["role"]) == ("boss", "operator")
    with Library.open(local) as library:
        assert identify(library, added["token"]) == Caller("boss", "operator")


def test_a_token_is_revoked_under_a_running_server(command, remote):
    token = remote[-1]
    assert command("list", *remote).status == 0
    library = token.with_name("birds.db")
    assert command("token", "revoke", library, "the-operator").printed == (
        "the token of the-operator lets nobody in\n"
    )
    refused = command("list", *remote)
    assert refused.status == 5
    assert "or it was revoked" in refused.told
    again = command("token", "add", library, "the-operator", "--role", "operator").printed
    token.write_text(again)
    assert command("list", *remote).status == 0


def test_with_a_token_go_the_entries_of_its_device_if_so_said(command, local, offer):
    command("token", "add", local, "garage")
    assert command("token", "revoke", local, "garage").printed.endswith("lets nobody in\n")
    assert statistics_of(command, local)["voting"] == 5
    again = command("token", "revoke", local, "garage", "--remove-entries")
    # 0 and 3 are of the garage, but only 0 came of a vote: no device made 3.
    assert again.printed == "the token of garage lets nobody in; entries removed: 1\n"
    assert statistics_of(command, local)["voting"] == 4
    shown = json.loads(command("show", local, name_of(offer, 0), "--json").printed)
    assert shown["removed"]["reason"] == "the token of its contributor was revoked"


def statistics_of(command, library: Path) -> dict:
    return json.loads(command("statistics", library, "--json").printed)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "grpc://127.0.0.1:7070", "attic"], "run this where its library is"),
        (["add", "birds.db", "The Attic"], "the name is 'The Attic'"),
        (["add", "birds.db", "the-device"], "revoke it first"),
        (["add", "birds.db", "attic", "--role", "king"], "'king' is not one of"),
        (["revoke", "birds.db", "stranger"], "'stranger' never had a token"),
    ],
)
def test_a_token_that_cannot_be_is_told(command, local, monkeypatch, words, says):
    monkeypatch.chdir(local.parent)
    outcome = command("token", *words)
    assert (outcome.status, outcome.printed) == (2, "")
    assert says in outcome.told

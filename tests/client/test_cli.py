"""maskvote-client as its user has it: statuses, sentences, and what it says and sends."""

import base64
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from drawn_images import draw_images
from grpc_server import PLENTY, running_server

from client.export import load_network
from client.latency_table import Device, MeasuredTable, write_latency_table
from client.outcome import tell
from common.budget import Budget, LatencyTable
from common.envelope import seal, unseal
from common.images import FileImages
from common.process_memory import MEGABYTE
from common.proto_codec import decode_task_description, encode_assignment, encode_offer
from server import tokens
from server.coordinator import Coordinator
from server.serving import ServeSettings

CLIENT = """
import os, sys
from client.cli import main
from common.process_memory import peak_bytes
kept = sys.stderr
try:
    main()
except SystemExit as ended:
    print(peak_bytes(), file=kept, flush=True)
    os._exit(ended.code)
"""
"""Tells its peak last. The system's own figure of a child begins with what its parent held."""
ROOT = Path(__file__).parents[2]


def through(port: int, command: str = "adapt", **changes) -> list[object]:
    """The words of a command through a server; None leaves an option out."""
    options = {"server": f"127.0.0.1:{port}", "keep_ratio": 0.3, "patience": 0}
    options |= {"state": "state", "iterations": 2} if command == "adapt" else {}
    words: list[object] = [command]
    for name, value in (options | changes).items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", value]
    return words


def test_it_ends_with_one_screen_and_says_it_again_without_a_server(
    client, library, weights, images, tmp_path
):
    with running_server(library, weights) as port:
        words = [*through(port, data=images), "--save", "my.safetensors"]
        status, told, _ = client(*words)
    assert status == 0
    entry = library.entries()[0]
    held = library.assignment_of(entry.entry).mask
    for expected in (
        f"Request {entry.entry}", "bytes up", "bytes down", f"stored as entry {entry.entry}, of 1",
        f"{held.kept.sum()} of {held.structure.units}", f"{entry.accuracy_after:.1%} after 2",
        "network in my.safetensors", "none: the library was empty", "stayed here", "labels",
    ):  # fmt: skip
        assert expected in told
    assert client(*words)[:2] == (0, told)
    network = (tmp_path / "my.safetensors").read_bytes()
    assert network == (tmp_path / "state" / "network.safetensors").read_bytes()
    facts = json.loads(client(*words, "--json")[1])
    assert (facts["entry"], facts["entries"]) == (entry.entry, 1)
    assert facts["accuracy"] == {"0": entry.accuracy_before, "2": entry.accuracy_after}
    assert facts["healed"] is False
    assert facts["bytes_down"]["network"] > 100_000 > sum(facts["bytes_up"].values()) > 0
    assert facts["budget"][0]["used"] == facts["units"] <= facts["budget"][0]["limit"]
    counts = library.assignment_of(entry.entry).mask.counts
    assert facts["weight_bytes"] == held.structure.weight_bytes(counts, 3)
    assert facts["flops"] == held.structure.flops(counts, 3)


def test_milliseconds_are_told_with_the_runtime_that_they_are_of(
    client, port, structure, images, tmp_path
):
    points = ((1, 0.5), (structure.flops(classes=3), 5.0))
    device = Device.here("onnxruntime 1.31", 1)
    table = MeasuredTable(LatencyTable(structure.digest, points), 1, device)
    write_latency_table(tmp_path / "t.json", table)
    words = through(port, data=images, latency_ms=4, latency_table="t.json")
    facts = json.loads(client(*words, "--json")[1])
    told = {limit["unit"]: limit["runtime"] for limit in facts["budget"]}
    assert told == {"units": None, "ms": "onnxruntime 1.31"}
    assert ", by onnxruntime 1.31" in client(*words)[1]


def test_what_describe_shows_is_what_is_sent_byte_by_byte(client, library, weights, images):
    with running_server(library, weights) as port:
        words = through(port, "describe", data=images, state="state")
        shown = json.loads(client(*words, "--json")[1])
        status, told, _ = client(*words)
        assert status == 0
        assert library.statistics().unanswered == 0
        message = base64.b64decode(shown["message"])
        description = decode_task_description(message)
        assert shown["bytes"] == len(message)
        framing = shown["bytes"] - sum(shown["fields"].values())
        assert 0 < framing < 10
        assert shown["fields"]["signature.means"] > 2 * description.signature.means.size
        for expected in (
            description.request_id, description.signature.probe, f"{len(message):,}", "8, 8, 8",
            f"{description.signature.means[0, 0]:.4g}", "Nothing of it was sent",
        ):  # fmt: skip
            assert expected in told
        assert str(images) not in told
        for secret in ("class0", "class1", str(images)):
            assert secret.encode() not in message
        assert client(*through(port, data=images))[0] == 0
    assert library.assignment_of(description.request_id).description == description


@pytest.fixture
def untidy(images, tmp_path) -> Path:
    """The images as a Mac, a file server, a notebook and a phone leave them; two are of another type."""
    mine = Path(shutil.copytree(images, tmp_path / "mine"))
    for part in ("train", "val"):
        for place in (mine / part, mine / part / "class0"):
            for name in ("._0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png", ".DS_Store"):
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(b"no image")
    for number in range(2):
        (mine / "train" / "class1" / f"{number}.heic").write_bytes(b"of a phone")
    return mine


LEFT_OUT = (
    "2 .heic files, 4 hidden files, 8 folders (.ipynb_checkpoints, @eaDir); image files end in .png"
)


def test_classes_are_named_on_the_screen_alone_and_what_is_no_image_is_told_once(
    client, library, weights, images, untidy
):
    with running_server(library, weights) as port:
        words = through(port, "describe", data=untidy)
        status, told, err = client(*words)
        assert (status, err.count("left out of"), f"{untidy}: {LEFT_OUT}" in err) == (0, 1, True)
        assert "The classes found are class0, class1, class2." in told
        shown = json.loads(client(*words, "--json")[1])
        assert (shown["classes"], shown["class_names"]) == (3, ["class0", "class1", "class2"])
        message = base64.b64decode(shown["message"])
        assert not any(name.encode() in message for name in shown["class_names"])
        tidy = json.loads(client(*through(port, "describe", data=images), "--json")[1])
        assert tidy["images"] == shown["images"]
        assert client(*through(port, "describe", data=untidy, state="state"))[0] == 0
        again = client(*through(port, "describe", data=untidy, state="state"))
        assert "The classes found are class0, class1, class2." in again[1]
        status, _, err = client(*through(port, data=untidy))
        assert (status, err.count("left out of"), f"{untidy}: {LEFT_OUT}" in err) == (0, 1, True)


def test_by_files_the_same_is_told(client, library, weights, offer, untidy, tmp_path):
    seal(tmp_path / "server.offer", *encode_offer(offer))
    files = ("--offer", "server.offer", "--data", untidy)
    status, told, err = client("describe", *files, "--keep-ratio", 0.3, "--out", "my.request")
    assert (status, f"{untidy}: {LEFT_OUT}" in err) == (0, True)
    assert "The classes found are class0, class1, class2." in told
    request = decode_task_description(unseal(tmp_path / "my.request")[0])
    assignment = Coordinator(library, weights).assign(request)
    seal(tmp_path / "my.assignment", *encode_assignment(assignment))
    words = ("--assignment", "my.assignment", "--out", "my.contribution", "--iterations", 1)
    status, _, err = client("adapt", *files, *words)
    assert (status, err.count("left out of"), f"{untidy}: {LEFT_OUT}" in err) == (0, 1, True)


def test_a_state_goes_on_with_classes_in_the_other_form_of_unicode(
    client, library, weights, images, tmp_path, monkeypatch
):
    """As of a version that kept names as they were found, or after a copy to another system."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    mine = Path(shutil.copytree(images, tmp_path / "mine"))
    for part in ("train", "val"):
        (mine / part / "class2").rename(mine / part / decomposed)
    with running_server(library, weights) as port:
        assert client(*through(port, "describe", data=mine, state="state"))[0] == 0
        settings = json.loads((tmp_path / "state" / "settings.json").read_text())
        assert settings["classes"] == [composed, "class0", "class1"]
        settings["classes"][0] = decomposed
        (tmp_path / "state" / "settings.json").write_text(json.dumps(settings))
        status, _, told = client(*through(port, data=mine), "--save", "my.safetensors")
    assert (status, told) == (0, "")
    assert load_network(tmp_path / "my.safetensors").classes == (composed, "class0", "class1")


def test_torch_computes_with_as_many_threads_as_were_asked_for(client, library, weights, images):
    before = torch.get_num_threads()
    try:
        with running_server(library, weights) as port:
            for command, threads in (("describe", 2), ("adapt", 3)):
                torch.set_num_threads(1)
                assert client(*through(port, command, data=images, threads=threads))[0] == 0
                assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_describe_without_a_state_asks_anew_each_time(client, library, weights, images, tmp_path):
    with running_server(library, weights) as port:
        words = through(port, "describe", data=images)
        one, other = (json.loads(client(*words, "--json")[1]) for _ in range(2))
    assert one["request"] != other["request"]
    assert one["fields"] == other["fields"]
    assert list(tmp_path.glob("*")) == [tmp_path / "library.db"] or not (tmp_path / "state").exists()


def test_a_revoked_token_ends_with_5(client, library, weights, images, monkeypatch, tmp_path):
    (tmp_path / "my.token").write_text(tokens.add(library, "kitchen", "device") + "\n")
    settings = ServeSettings(address="127.0.0.1:0", limits=PLENTY, grace_seconds=5)
    with running_server(library, weights, settings) as port:
        words = through(port, data=images, token_file="my.token", patience=60)
        assert client(*through(port, "describe", data=images, token_file="my.token"))[0] == 0
        tokens.revoke(library, "kitchen")
        assert client(*words)[::2] == (
            5,
            "error: this server knows no such token, or it was revoked; ask its operator for a new one",
        )
        monkeypatch.setenv("MASKVOTE_TOKEN", tokens.add(library, "kitchen", "device"))
        words[words.index("--token-file") : words.index("--token-file") + 2] = []
        assert client(*words)[0] == 0
    assert library.entries()[0].contributor == "kitchen"


@pytest.mark.parametrize("token", ["", "two words", "a\nb", "x" * 201])
def test_a_token_file_that_holds_none_ends_with_2(client, images, tmp_path, token):
    (tmp_path / "my.token").write_text(token)
    status, _, told = client(*through(1, data=images, token_file="my.token"))
    assert status == 2
    assert "it has 1 to 200" in told


def test_a_server_that_is_away_ends_with_6_and_whom_it_was_waiting_for(client, images):
    status, _, told = client(*through(1, data=images, patience=0.1))
    assert status == 6
    assert "127.0.0.1:1 does not answer" in told
    assert "tried for" in told


WRONG = {
    "neither way": (
        (),
        "how is not given: take part either through a server (--server, --state) or by",
    ),
    "both ways": (("--server", "h:1", "--out", "x"), "--server and --out do not go together"),
    "files with a token": (
        ("--offer", "a", "--assignment", "b", "--out", "c", "--token-file", "t"),
        "--token-file and --offer do not go together",
    ),
    "files with a budget": (
        ("--offer", "a", "--assignment", "b", "--out", "c", "--keep-ratio", "0.5"),
        "--keep-ratio and --offer do not go together",
    ),
    "no state": (("--server", "h:1", "--keep-ratio", "0.5"), "--state is not given"),
    "half of the files": (("--offer", "a"), "--assignment, --out is not given"),
    "no budget": (("--server", "h:1", "--state", "s"), "give one or several"),
    "no address": (("--server", "h", "--state", "s", "--keep-ratio", "1"), "it is HOST:PORT"),
    "a web address": (
        ("--server", "https://h:1", "--state", "s", "--keep-ratio", "1"),
        "only grpc:// may stand before it; write grpc://h:1",
    ),
    "no brackets": (
        ("--server", "::1:7171", "--state", "s", "--keep-ratio", "1"),
        "an IPv6 address is in brackets",
    ),
    "impatient": (
        ("--server", "h:1", "--state", "s", "--keep-ratio", "1", "--patience", "-1"),
        "the patience is -1.0 seconds",
    ),
    "a token in the clear": (
        ("--server", "h:1", "--state", "s", "--keep-ratio", "1", "--insecure"),
        "everybody on the way to h:1 reads the token",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_together_is_told(client, images, monkeypatch, tmp_path, words, sentence):
    monkeypatch.setenv("MASKVOTE_TOKEN", "mv_secret")
    for name in "ab":
        (tmp_path / name).write_bytes(b"")
    status, _, told = client("adapt", "--data", images, *words)
    assert (status, sentence in told) == (2, True), told
    assert "mv_secret" not in told


def test_a_budget_too_small_is_refused_before_anything_is_computed(
    client, library, weights, images, tmp_path, monkeypatch
):
    def never(self, index):
        raise AssertionError("an image is read")

    monkeypatch.setattr(FileImages, "_read", never)
    with running_server(library, weights) as port:
        for small in ({"keep_ratio": 1e-9}, {"keep_ratio": None, "parameters": 10}):
            status, _, told = client(*through(port, data=images, **small))
            assert status == 2
            assert re.search(r"the smallest sub-network .* ask for at least", told), told
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert library.statistics().unanswered == 0
        assert client(*through(port, data=images))[0] == 0


def test_other_classes_than_were_described_are_refused(client, library, weights, images, tmp_path):
    mine = Path(shutil.copytree(images, tmp_path / "mine"))
    with running_server(library, weights) as port:
        assert client(*through(port, "describe", data=mine, state="state"))[0] == 0
        for part in ("train", "val"):
            (mine / part / "class2").rename(mine / part / "cats")
        status, _, told = client(*through(port, data=mine))
    assert status == 2
    assert "described to the server: class2 gone; cats new; put the images back" in told
    assert library.statistics().unanswered == 0


def test_a_class_that_vanishes_before_fine_tuning_is_named_and_comes_back(
    client, library, weights, images, tmp_path, monkeypatch
):
    """The assignment is there, the device is switched on again: the same state goes on from it."""
    mine = Path(shutil.copytree(images, tmp_path / "mine"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with running_server(library, weights) as port:
        monkeypatch.setattr("client.adapt.adapt_assignment", killed)
        assert client(*through(port, data=mine))[0] == 130
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert (tmp_path / "state" / "assignment").exists()
        for part in ("train", "val"):
            (mine / part / "class1").rename(tmp_path / part)
        status, _, told = client(*through(port, data=mine))
        assert (status, told.startswith("error: the classes are not those that were described")) == (
            2,
            True,
        )
        assert "class1 gone; put the images back as they were" in told
        for part in ("train", "val"):
            (tmp_path / part).rename(mine / part / "class1")
        assert client(*through(port, data=mine))[0] == 0
    assert library.statistics().unanswered == 0


def test_limits_are_kept_to_and_told_of_on_the_way(client, library, weights, images):
    with running_server(library, weights) as port:
        words = [*through(port, data=images, iterations=100_000, max_seconds=3), "--json"]
        status, shown, told = client(*words)
    assert status == 0
    # Where the machine is busy with other things, there may be time for none.
    assert re.search(r"of 100000 iterations were done in the 3 seconds|3 seconds are too short", told)
    assert int(max(json.loads(shown)["accuracy"], key=int)) < 100_000
    assert library.entries()[0].iterations < 100_000


def test_a_memory_limit_below_what_one_image_needs_is_refused_with_what_it_needs(client, port, images):
    status, _, told = client(*through(port, data=images, max_memory=50))
    assert status == 2
    assert re.search(
        r"describing the task one image at a time needs at least [\d,]+ MB .* limit is 50 MB", told
    )


def test_the_memory_that_a_refusal_asks_for_is_enough_and_is_kept_to(library, weights, images, tmp_path):
    """In a process of its own, by its real peak; every refusal leaves a state that goes on.

    The process ends before the interpreter takes itself apart, for which a torch with CUDA has a hundred
    megabytes of libraries read, whoever imports it.
    """
    allowed = 50
    with running_server(library, weights) as port:
        for _ in range(8):
            words = through(port, data=images, state=tmp_path / "state", max_memory=allowed)
            ended = subprocess.run(
                [sys.executable, "-c", CLIENT, *map(str, words)], cwd=ROOT, capture_output=True, text=True
            )
            *_, peak = ended.stderr.split()
            if ended.returncode == 0:
                break
            pattern = r"needs at least ([\d,]+) MB in this process, the memory limit is"
            needed = re.search(pattern, ended.stderr)
            assert needed, ended.stderr
            allowed = int(needed[1].replace(",", "")) + 8
    assert ended.returncode == 0
    assert int(peak) <= allowed * MEGABYTE
    assert library.statistics().voting == 1


def test_data_elsewhere_is_other_data_and_the_same_from_elsewhere_is_not(
    client, library, weights, images, tmp_path, monkeypatch
):
    draw_images(tmp_path / "mine", classes=2)
    with running_server(library, weights) as port:
        assert client(*through(port, "describe", data="mine", state=tmp_path / "state"))[0] == 0
        monkeypatch.chdir(images.parent)
        status, _, told = client(*through(port, data="mine", state=tmp_path / "state"))
        assert status == 2
        assert f"data {tmp_path / 'mine'}, now it is {images}" in told
        assert client(*through(port, data=tmp_path / "mine", state=tmp_path / "state"))[0] == 0


def test_what_a_server_names_does_not_order_the_terminal_about(capsys):
    facts = {
        "request": "a", "budget": [{"unit": "ms", "limit": 2.0, "used": 1.5, "runtime": "torch 2.8"}],
        "similarities": [0.9] * 11, "units": 2, "of": 3, "parameters": 4, "weight_bytes": 16, "flops": 5,
        "accuracy": {"0": 0.5}, "seconds": {"fit": 1.0}, "bytes_up": {"request": 5, "mask": 3},
        "bytes_down": {"network": 7}, "healed": True, "origin": "vote", "kept": 0, "held_out": 0,
    }  # fmt: skip
    tell(facts, "stored as entry [/bold]\x1b[2J[red]", as_json=False)
    shown = capsys.readouterr().out
    assert r"stored as entry [/bold]\x1b[2J[red]" in shown
    for said in (
        "1.5 of 2 ms (75.0%), by torch 2.8", "11 tasks voted, similar by 0.90,", "and 1 more",
        "healed by the server", "8: request 5, mask 3", "network 7",
        "50.0% before, 50.0% after 0 iterations",
    ):  # fmt: skip
        assert said in shown
    tell(facts | {"origin": "importance"}, "", as_json=False)
    shown = capsys.readouterr().out
    assert "11 tasks found, similar by 0.90," in shown
    assert "the backbone's own importance chose" in shown


@pytest.mark.parametrize(
    ("kept", "held_out", "said"),
    [
        (
            50,
            12,
            "the network after 50 of 50 iterations, the best by 12 training images that were not",
        ),
        (25, 12, "the network after 25 of 50 iterations, the best by 12 training images"),
        (0, 1200, "the network as it was before tuning, the best by 1,200 training images"),
    ],
)
def test_which_network_was_kept_is_told(capsys, kept, held_out, said):
    facts = {
        "request": "a", "budget": [], "similarities": [], "units": 2, "of": 3, "parameters": 4,
        "weight_bytes": 16, "flops": 5, "accuracy": {"0": 0.5, "50": 0.75}, "seconds": {"fit": 1.0},
        "bytes_up": {"mask": 3}, "bytes_down": {"network": 7}, "healed": False, "origin": "vote",
        "kept": kept, "held_out": held_out,
    }  # fmt: skip
    tell(facts, "", as_json=False)
    assert said in capsys.readouterr().out


def test_how_long_a_device_is_ready_to_wait_stands_in_its_request(client, offer, images, tmp_path):
    seal(tmp_path / "server.offer", *encode_offer(offer))
    words = ["describe", "--offer", "server.offer", "--data", images, "--keep-ratio", 0.5]
    status, told, _ = client(*words, "--wait", 90, "--out", "patient.request")
    assert status == 0
    assert "budget.wait_seconds" in told
    request = decode_task_description(unseal(tmp_path / "patient.request")[0])
    assert request.budget == Budget(keep_ratio=0.5, wait_seconds=90)
    _, told, _ = client(*words)
    assert "wait" not in told
    status, _, problem = client(*words, "--wait", -1)
    assert (status, "the wait is -1.0 seconds" in problem) == (2, True)

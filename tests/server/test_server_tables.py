"""The tables of maskvote-server in a terminal of 80 columns: nothing is cut."""

import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from operated import entry_of
from pseudo_terminal import narrow

from common.backbone import weights_digest
from common.command_line import run
from common.structure import Structure
from server import entry_tables, tokens
from server.cli import cli
from server.entries import EntryFacts, Removal, Statistics
from server.heal_cli import _tell
from server.healing.heal_library import Healing
from server.healing.store import HealedBackbone
from server.inspect_cli import _show_records
from server.library import Library
from server.sweep import Record

NODE = "flower:16582484620423102582"
MOMENT = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
NAME = "the-kitchen-camera-of-the-house-at-the-end-of-the-road-" * 3


@pytest.fixture
def library(offer, weights, tmp_path) -> Path:
    path = tmp_path / "a-library-of-birds-and-of-whatever-else-flies.db"
    with Library.create(path, offer, weights_digest(weights)) as opened:
        names = {0: NODE, 1: NAME, 2: ""}
        opened.take_in(entry_of(offer, k, contributor=names[k]) for k in names)
        opened.remove(entry_of(offer, 1).entry, "the-operator", "its images are fish " * 10)
        tokens.add(opened, NAME[:64], "device")
        tokens.revoke(opened, NAME[:64])
    return path


@pytest.fixture
def printed(monkeypatch):
    """What a command prints at 80 columns."""

    def printed(*words: object) -> str:
        def command() -> None:
            with pytest.raises(SystemExit) as ended:
                run(cli)
            assert not ended.value.code

        monkeypatch.setattr(sys, "argv", ["maskvote-server", *map(str, words)])
        return narrow(command)

    return printed


def test_the_list_of_entries_has_ids_that_can_be_copied_and_all_numbers(printed, library, offer):
    words = printed("list", library).split()
    assert {entry_of(offer, k).entry[:12] for k in range(3)} <= set(words)
    assert {NODE, NAME} <= set(words)


def test_an_entry_is_shown_with_its_neighbours_and_its_mask(printed, library, offer):
    words = printed("show", library, entry_of(offer, 1).entry).split()
    assert words.count("fish") == 10
    assert offer.probe.digest in words
    assert set(offer.structure.groups[0].name.split()) <= set(words)


def test_statistics_and_tokens(printed, library):
    assert NODE in printed("statistics", library).split()
    assert NAME[:64] in printed("token", "list", library).split()


def test_entries_of_a_large_backbone(structure):
    """As `seed` shows those that it made."""
    facts = large_entry(structure)
    assert "11,689,512" in narrow(
        partial(entry_tables.show_entries, "birds.db: seeds", [facts] * 2, structure, as_json=False)
    )


def large_entry(structure: Structure) -> EntryFacts:
    return EntryFacts(
        entry="1d8f" * 8, position=1_234_567, contributor=NODE, recorded=MOMENT, classes=1_000,
        images=1_281_167, method="iterative", units=structure.units, parameters=11_689_512,
        accuracy_before=0.7231, accuracy_after=1.0, iterations=100_000, neighbours=(),
        removed=Removal(MOMENT, "the-operator", "fish"),
    )  # fmt: skip


def test_statistics_of_a_large_library():
    statistics = Statistics(
        voting=12_345_678, removed=1_234_567, unanswered=123_456, accuracy_before=0.5, accuracy_after=0.9,
        file_bytes=123_456_789_012, by_method={"iterative": 12_345_678}, by_contributor={NAME: 1_234_567},
    )  # fmt: skip
    narrow(partial(entry_tables.show_statistics, f"/srv/{NAME}/birds.db", statistics, as_json=False))


@pytest.mark.parametrize("full", [False, True])
def test_what_of_a_model_can_be_cut(printed, full):
    words = printed("inspect", "test_vit", "--image-size", "32", *["--full"] * full).split()
    assert "head.weight:0" in words


def test_many_models():
    error = "ValueError: " + "the model has no head " * 10
    records = [
        Record("vit_so150m2_patch16_reg1_gap_448.sbb_e200_in12k_ft_in1k", (), "crashed", 12.3, error),
        Record("swinv2_cr_small_ns_256", (), "inspected", 123.4, inspection={
            "seconds": {"discovery": {"wall": 12.3}, "proof": {"wall": 345.6}},
            "found": {"internal": 48, "residual": 96}, "proved": {"internal": 48, "residual": 95},
            "attention": {"blocks.0.attn": True}, "parameters": 49_700_000,
            "groups": [{"verdict": "differs"}, {"verdict": "fails"}],
            "smallest": {"internal": {"parameters": 12_345_678}},
        }),
    ]  # fmt: skip
    narrow(partial(_show_records, records, as_json=False))


def test_a_healed_backbone():
    healed = HealedBackbone(
        {}, low=0.0125, high=0.75, prior=1e12, iterations=123_456, images=1_281_167, entries=1_234_567,
        seconds=123_456.7,
    )  # fmt: skip
    library = Path(NAME) / "birds.db"
    narrow(partial(_tell, library, Path("x"), Healing(healed, 0.1, 25_147_200.0, 1.5), as_json=False))

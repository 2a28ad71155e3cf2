"""Tokens: shown once, kept as hashes, one a name, and out of force in every process once revoked."""

import hashlib
import re
import sqlite3
import string
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from library_tasks import (
    WEIGHTS_DIGEST,
    change,
    contribution,
    request_id,
    stored_assignment,
)
from random_tasks import random_mask, random_signature

from common.errors import InputError, LibraryError
from server.library import Library, seed_entry
from server.tokens import Caller, add, identify, revoke, tokens


@pytest.fixture(scope="module")
def shared_library(offer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "library.db"
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        yield library


def test_a_token_says_whose_it_is_and_for_what(library):
    kitchen, boss = add(library, "kitchen", "device"), add(library, "boss", "operator")
    assert identify(library, kitchen) == Caller("kitchen", "device")
    assert identify(library, boss) == Caller("boss", "operator")


def test_a_token_is_a_mark_and_256_random_bits(library):
    drawn = {add(library, f"device-{number}", "device") for number in range(50)}
    assert len(drawn) == 50
    assert all(re.fullmatch(r"mv_[A-Za-z0-9_-]{43}", token) for token in drawn)
    assert set("".join(token[3:] for token in drawn)) == set(string.ascii_letters + string.digits + "-_")


def test_the_file_holds_no_token_but_its_sha256(library, path):
    token = add(library, "kitchen", "device")
    library.close()
    content = path.read_bytes()
    assert token.encode() not in content
    assert token[3:].encode() not in content
    assert hashlib.sha256(token.encode()).hexdigest().encode() in content


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"mv_[A-Za-z0-9_-]{43}", fullmatch=True))
@example("mv_" + "A" * 43)
@example("mv_" + "A" * 43 + "\n")
@example("' OR 1 = 1; --")
@example("\ud800")
def test_what_is_no_token_of_this_library_is_nobodys(shared_library, given_text):
    known = [issued.name for issued in tokens(shared_library)]
    if not known:
        add(shared_library, "kitchen", "device")
    assert identify(shared_library, given_text) is None


def test_a_token_is_not_known_with_any_character_changed(library):
    token = add(library, "kitchen", "device")
    for place in range(len(token)):
        for other in "A", "b", "-":
            changed = token[:place] + other + token[place + 1 :]
            assert changed == token or identify(library, changed) is None


@pytest.mark.parametrize("name", ["a", "0", "kitchen", "a.b_c-d", "x" * 64, "operator"])
def test_a_name_is_of_letters_digits_and_few_signs(library, name):
    assert identify(library, add(library, name, "device")).name == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "_a", "A", "a b", "ü", "a\n", "x" * 65, "a:b", "a/../b"]
)
def test_another_name_is_refused(library, name):
    with pytest.raises(InputError, match="starts with a letter or a digit"):
        add(library, name, "device")
    assert tokens(library) == []


def test_another_role_is_refused(library):
    with pytest.raises(InputError, match="device or operator"):
        add(library, "kitchen", "root")


def test_a_name_has_one_token_at_a_time_and_its_history_is_kept(library):
    before = datetime.now(UTC)
    first = add(library, "kitchen", "device")
    with pytest.raises(InputError, match="revoke it first"):
        add(library, "kitchen", "operator")
    assert identify(library, first) == Caller("kitchen", "device")
    revoke(library, "kitchen", "boss")
    second = add(library, "kitchen", "operator")
    assert identify(library, first) is None
    assert identify(library, second) == Caller("kitchen", "operator")
    old, new = tokens(library)
    assert (old.name, old.role, old.revoked_by) == ("kitchen", "device", "boss")
    assert (new.name, new.role, new.revoked, new.revoked_by) == ("kitchen", "operator", None, None)
    assert before <= old.created <= old.revoked <= new.created <= datetime.now(UTC)


def test_of_many_that_ask_for_a_name_at_once_one_gets_it(library, path):
    """Through two libraries on one file, as two processes would."""
    with Library.open(path) as other, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(add, (library, other)[n % 2], "kitchen", "device") for n in range(8)]
        refused = [future.exception() for future in asked]
    assert sum(error is None for error in refused) == 1
    assert all(error is None or "revoke it first" in str(error) for error in refused)


def test_a_revocation_in_another_process_holds_from_the_next_call_on(library, path):
    token = add(library, "kitchen", "device")
    assert identify(library, token)
    with Library.open(path) as other:
        assert identify(other, token)
        revoke(other, "kitchen")
    assert identify(library, token) is None


def test_revoking_again_changes_nothing_and_of_a_name_that_had_no_token_is_refused(library):
    add(library, "kitchen", "device")
    revoke(library, "kitchen", "boss")
    once = tokens(library)
    assert revoke(library, "kitchen", "another") == 0
    assert tokens(library) == once
    with pytest.raises(InputError, match="never had a token"):
        revoke(library, "cellar")
    with pytest.raises(InputError, match="printable"):
        revoke(library, "kitchen", "bo\nss")


@pytest.fixture
def contributed(library, offer):
    """Devices 1 and 2 are the kitchen's, 3 the garden's; 4 is asked for by the kitchen; one is seeded."""
    for number, contributor in ((1, "kitchen"), (2, "kitchen"), (3, "garden"), (4, "kitchen")):
        library.assigned(replace(stored_assignment(offer, number), contributor=contributor))
    for number in (1, 2, 3):
        library.record(contribution(offer, number))
    lot = np.random.default_rng(0)
    signature, mask = random_signature(offer.probe, lot), random_mask(offer.structure, lot)
    library.seed(seed_entry("birds", signature), signature, mask, contributor="kitchen",
                 accuracy_before=0.1, accuracy_after=0.5, iterations=9)  # fmt: skip
    for name in ("kitchen", "garden"):
        add(library, name, "device")
    return library


def test_revoking_leaves_entries_alone_unless_it_is_told_to_remove_them(contributed):
    assert revoke(contributed, "kitchen") == 0
    assert contributed.removals() == []


def test_revoking_removes_all_that_devices_of_the_name_contributed(contributed):
    """Not what the operator seeded, nor what was removed before, whose reason stays."""
    contributed.remove(request_id(1), "boss", "a fish")
    assert revoke(contributed, "kitchen", "boss", remove_entries=True) == 1
    assert {d.entry: d.reason for d in contributed.removals()} == {
        request_id(1): "a fish",
        request_id(2): "the token of its contributor was revoked",
    }
    assert contributed.facts_of(request_id(2)).removed.by == "boss"
    assert {entry.contributor for entry in contributed.export()} == {"garden", "kitchen"}
    assert contributed.statistics().by_method == {"mvp": 1, "iterative": 1}


def test_entries_can_be_removed_after_the_token_was_revoked(contributed):
    revoke(contributed, "kitchen")
    assert revoke(contributed, "kitchen", remove_entries=True) == 2
    assert revoke(contributed, "kitchen", remove_entries=True) == 0


def test_where_entries_cannot_be_removed_the_token_is_not_revoked_either(contributed, path):
    """Both are of one transaction."""
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE removals")
    connection.commit()
    connection.close()
    with pytest.raises(LibraryError):
        revoke(contributed, "kitchen", remove_entries=True)
    assert tokens(contributed)[0].revoked is None


@pytest.mark.parametrize(
    "damage", ["role = 'operator'", "revoked = NULL", "name = 'boss'", "created = 'x'"]
)
def test_a_damaged_token_lets_nobody_in_and_is_told_until_it_is_revoked(library, path, damage):
    token = add(library, "kitchen", "device")
    if damage.startswith("revoked"):
        revoke(library, "kitchen")
    change(path, f"UPDATE tokens SET {damage}")
    assert identify(library, token) is None
    name = "boss" if damage.startswith("name") else "kitchen"
    with pytest.raises(LibraryError, match=f"token of '{name}' is damaged.*revoke it"):
        tokens(library)
    revoke(library, name)
    assert [issued.name for issued in tokens(library)] == [name]
    assert identify(library, add(library, name, "device")) == Caller(name, "device")

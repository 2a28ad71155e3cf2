"""What operators send and get survives the wire, and what breaks a rule is refused."""

import contextlib
from datetime import UTC, datetime

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tasks import random_mask, random_signature

from common.errors import InputError, MaskError, MismatchError, SignatureError
from common.exchange import Neighbour
from common.mask import Mask
from common.signature import TaskSignature
from protos import operators_pb2 as pb
from server import operator_codec as codec
from server.entries import ENTRY_METHODS, Entry, EntryFacts, Removal, Statistics

NAME = "0123456789abcdef" * 2
SOME_DAY = datetime(2031, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)

names = st.text(max_size=200)
printable = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=200).filter(
    str.isprintable
)
moments = st.datetimes(timezones=st.just(UTC))
shares = st.floats(0, 1)
neighbours = st.lists(st.builds(Neighbour, names, shares), max_size=4).map(tuple)
removals = st.builds(Removal, moments, printable, printable.filter(bool))
numbers = st.integers(0, 2**64 - 1)
entry_names = st.binary(min_size=16, max_size=16).map(bytes.hex)


@pytest.fixture(scope="module")
def entry(offer) -> Entry:
    generator = np.random.default_rng(5)
    return Entry(
        entry=NAME,
        signature=random_signature(offer.probe, generator),
        mask=random_mask(offer.structure, generator),
        method="mvp",
        accuracy_before=0.25,
        accuracy_after=0.5,
        iterations=50,
        neighbours=(Neighbour("5eed", 0.75),),
        contributor="kitchen",
        recorded=SOME_DAY,
        position=7,
    )


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), removed=st.none() | removals)
def test_an_entry_survives_the_wire_and_so_do_its_facts(offer, data, seed, removed):
    generator = np.random.default_rng(seed)
    sent = Entry(
        entry=data.draw(entry_names),
        signature=random_signature(offer.probe, generator, classes=data.draw(st.integers(2, 9))),
        mask=random_mask(offer.structure, generator),
        method=data.draw(st.sampled_from(ENTRY_METHODS)),
        accuracy_before=data.draw(shares),
        accuracy_after=data.draw(shares),
        iterations=data.draw(st.integers(0, 2**31 - 1)),
        neighbours=data.draw(neighbours),
        contributor=data.draw(names),
        recorded=data.draw(moments),
        position=data.draw(st.integers(1, 2**63)),
    )
    assert codec.decode_entry(codec.encode_entry(sent, removed), offer.structure) == (sent, removed)
    facts = sent.facts(removed)
    assert codec.decode_facts(codec.encode_facts(facts)) == facts


@given(name=names, reason=printable.filter(bool))
def test_what_is_asked_of_an_entry_survives_the_wire(name, reason):
    assert codec.decode_show(codec.encode_show(name)) == name
    assert codec.decode_remove(codec.encode_remove(name, reason)) == (name, reason)
    assert codec.decode_restore(codec.encode_restore(name, reason)) == (name, reason)


@given(
    by_method=st.dictionaries(st.sampled_from(ENTRY_METHODS), numbers),
    by_contributor=st.dictionaries(names, numbers, max_size=5),
    counts=st.tuples(numbers, numbers, numbers, numbers),
    accuracies=st.tuples(shares, shares),
)
def test_numbers_survive_the_wire(by_method, by_contributor, counts, accuracies):
    statistics = Statistics(*counts[:3], by_method, by_contributor, *accuracies, counts[3])
    assert codec.decode_statistics(codec.encode_statistics(statistics)) == statistics
    assert codec.decode_taken_in(codec.encode_taken_in(*counts[:2])) == counts[:2]


def test_a_structure_survives_the_wire(structure):
    assert codec.decode_structure(codec.encode_structure(structure)).to_json() == structure.to_json()


def test_every_method_of_an_entry_has_a_number_of_its_own():
    assert {*codec.METHODS} == {*ENTRY_METHODS}
    assert {*codec.METHODS.values(), pb.ENTRY_METHOD_UNSPECIFIED} == {*pb.EntryMethod.values()}


def put(path: str, value):
    """A change to a message: sets the field at a dotted path; no value clears it."""

    def change(message):
        *parents, field = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        if value is None:
            message.ClearField(field)
        elif isinstance(value, list):
            del getattr(message, field)[:]
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)

    return change


NAN = float("nan")

WRONG_FACTS = [
    (put("entry", ""), InputError, "the request id is ''"),
    (put("entry", "x" * 32), InputError, "32 hexadecimal digits"),
    (put("position", 0), InputError, "position 0; it is at least 1"),
    (put("method", 0), InputError, "no method 0"),
    (put("method", 4), InputError, "no method 4"),
    (put("contributor", "x" * 201), InputError, "201 characters of contributor"),
    (put("recorded", None), InputError, "'recorded' is missing"),
    (put("recorded.nanos", 1), InputError, "whole microseconds"),
    (put("recorded.nanos", 2**31 - 1), InputError, "no entry"),
    (put("recorded.seconds", 2**62), InputError, "no entry"),
    (put("classes", 1), InputError, "classes 1; it is at least 2"),
    (put("classes", 1001), InputError, "1001 classes"),
    (put("accuracy_before", NAN), InputError, "accuracy_before is nan"),
    (put("accuracy_after", 1.01), InputError, "accuracy_after is 1.01"),
    (put("iterations", 2**31), InputError, "2147483648 iterations"),
    (lambda facts: facts.neighbours.add(similarity=NAN), InputError, "similarity is nan"),
    (lambda facts: facts.neighbours.add(entry="x" * 201), InputError, "201 characters"),
    (put("removed.reason", "fish"), InputError, "'at' is missing"),
    (put("removed.reason", ""), InputError, "the reason has 0 characters"),
    (put("removed.by", "x" * 201), InputError, "at most 200 printable characters"),
    (put("removed.by", "\x1b[2J"), InputError, "at most 200 printable characters"),
]


@pytest.mark.parametrize(("change", "error", "says"), WRONG_FACTS)
def test_facts_that_break_a_rule_are_refused(entry, structure, change, error, says):
    whole = pb.Entry.FromString(codec.encode_entry(entry))
    change(whole.facts)
    with pytest.raises(error, match=says):
        codec.decode_entry(whole.SerializeToString(), structure)
    with pytest.raises(error, match=says.replace("no entry", "no entry's facts")):
        codec.decode_facts(whole.facts.SerializeToString())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (put("facts", None), InputError, "the request id is ''"),
        (put("signature", None), SignatureError, "0 classes"),
        (put("signature.counts", [1, 1]), SignatureError, "2 classes"),
        (put("signature.means", b"\xff" * 6 * 32), SignatureError, "bytes"),
        (put("mask.kept", b"\xff"), MaskError, "1 bytes"),
        (put("mask.structure_digest", b"\x01"), MismatchError, "structure 01, this library's is"),
        (put("mask", None), MismatchError, "into a library of the same backbone"),
        (put("facts.classes", 4), InputError, "classes 4, not 3"),
        (put("facts.images", 1), InputError, "images 1, not"),
        (put("facts.units", 1), InputError, "units 1, not"),
        (put("facts.parameters", 1), InputError, "parameters 1, not"),
    ],
)
def test_an_entry_that_breaks_a_rule_or_contradicts_itself_is_refused(
    entry, structure, change, error, says
):
    message = pb.Entry.FromString(codec.encode_entry(entry))
    change(message)
    with pytest.raises(error, match=says):
        codec.decode_entry(message.SerializeToString(), structure)


def test_all_that_contradicts_is_told_at_once(entry, structure):
    message = pb.Entry.FromString(codec.encode_entry(entry))
    message.facts.images, message.facts.units = 1, 2
    with pytest.raises(InputError, match=r"images 1, not \d+, units 2, not \d+; export it again"):
        codec.decode_entry(message.SerializeToString(), structure)


def test_an_entry_that_is_removed_is_shown_but_not_imported(entry, structure):
    removal = Removal(SOME_DAY, "boss", "its photographs are of fish")
    assert codec.decode_import(codec.encode_entry(entry), structure) == entry
    with pytest.raises(InputError, match="removed, by boss"):
        codec.decode_import(codec.encode_entry(entry, removal), structure)


@pytest.mark.parametrize("decode", [codec.decode_remove, codec.decode_restore])
@pytest.mark.parametrize(
    ("entry", "reason", "says"),
    [
        ("x" * 201, "why", "201 characters of entry"),
        ("5eed", "", "the reason has 0 characters"),
        ("5eed", "x" * 501, "the reason has 501 characters"),
        ("5eed", "two\nlines", "in one line"),
    ],
)
def test_a_decision_without_a_name_and_a_reason_of_one_line_is_refused(decode, entry, reason, says):
    message = pb.RemoveEntryRequest(entry=entry, reason=reason).SerializeToString()
    with pytest.raises(InputError, match=says):
        decode(message)


def test_a_reason_that_is_no_text_is_refused_where_it_is_given():
    for encode in (codec.encode_remove, codec.encode_restore):
        with pytest.raises(InputError, match="Unicode"):
            encode(NAME, "\udcff")


@pytest.mark.parametrize(
    ("statistics", "says"),
    [
        (pb.Statistics(by_method={"magic": 1}), "no method 'magic'"),
        (pb.Statistics(by_contributor={"x" * 201: 1}), "201 characters"),
        (pb.Statistics(accuracy_before=1.5), "accuracy_before is 1.5"),
        (pb.Statistics(accuracy_after=NAN), "accuracy_after is nan"),
    ],
)
def test_numbers_that_break_a_rule_are_refused(statistics, says):
    with pytest.raises(InputError, match=says):
        codec.decode_statistics(statistics.SerializeToString())


@settings(deadline=None, max_examples=200, derandomize=True)
@given(data=st.data())
def test_damaged_messages_raise_nothing_but_our_errors(data, entry, structure):
    removal = Removal(SOME_DAY, "boss", "fish")
    statistics = Statistics(1, 2, 3, {"smsp": 1}, {"kitchen": 1}, 0.5, 0.75, 4096)
    for decode, valid, arguments in (
        (codec.decode_entry, codec.encode_entry(entry, removal), (structure,)),
        (codec.decode_import, codec.encode_entry(entry), (structure,)),
        (codec.decode_facts, codec.encode_facts(entry.facts(removal)), ()),
        (codec.decode_statistics, codec.encode_statistics(statistics), ()),
        (codec.decode_structure, codec.encode_structure(structure), ()),
        (codec.decode_remove, codec.encode_remove(NAME, "fish"), ()),
        (codec.decode_restore, codec.encode_restore(NAME, "fish"), ()),
        (codec.decode_show, codec.encode_show(NAME), ()),
        (codec.decode_taken_in, codec.encode_taken_in(1, 2), ()),
    ):
        with contextlib.suppress(InputError, MismatchError):
            decode(data.draw(damaged(valid)), *arguments)


def test_what_is_decoded_is_of_the_kinds_that_the_library_has(entry, structure):
    decoded, _ = codec.decode_entry(codec.encode_entry(entry), structure)
    assert isinstance(decoded.signature, TaskSignature)
    assert isinstance(decoded.mask, Mask)
    assert isinstance(codec.decode_facts(codec.encode_facts(entry.facts(None))), EntryFacts)
    assert decoded.recorded.tzinfo is UTC

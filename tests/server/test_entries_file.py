"""A file of entries is there whole or not at all, and what is not whole is not read."""

import hashlib

import pytest
from operated import entry_of

from common.errors import InputError, MismatchError
from common.proto_codec import MAX_MESSAGE_BYTES
from protos import operators_pb2 as pb
from server.entries_file import count_entries, read_entries, write_entries
from server.operator_codec import encode_entry


@pytest.fixture
def file(tmp_path):
    return tmp_path / "birds.entries"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_is_written_is_read(file, offer, count):
    entries = [entry_of(offer, number) for number in range(count)]
    assert write_entries(file, iter(entries)) == count
    assert count_entries(file) == count
    assert list(read_entries(file, offer.structure)) == entries


def test_the_file_is_what_the_proto_file_says_it_is(file, offer):
    """Read as another program would: a line, varint lengths and messages, a zero byte, a sha256."""
    entries = [entry_of(offer, number, classes) for number, classes in enumerate((2, 50))]
    write_entries(file, entries)
    data = file.read_bytes()
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    rest = data.removeprefix(b"maskvote entries 1\n")
    lengths = []
    for entry in entries:
        length = shift = 0
        while True:
            group, rest = rest[0], rest[1:]
            length, shift = length + ((group % 128) << shift), shift + 7
            if group < 128:
                break
        lengths.append(length)
        assert pb.Entry.FromString(rest[:length]).facts.entry == entry.entry
        rest = rest[length:]
    assert 128 < lengths[0] < 16_384 / 2 < lengths[1]
    assert rest[:-32] == b"\0"


def test_a_file_that_is_cut_anywhere_is_refused(file, offer):
    write_entries(file, [entry_of(offer, 0, 2)])
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"birds\.entries is (no file of entries|cut short|damaged)"):
            count_entries(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="is damaged"):
        count_entries(file)


def test_a_file_with_any_byte_changed_is_refused(file, offer):
    write_entries(file, [entry_of(offer, 0, 2)])
    whole = bytearray(file.read_bytes())
    for place in range(len(whole)):
        for flip in (1, 128):
            whole[place] ^= flip
            file.write_bytes(whole)
            with pytest.raises(InputError):
                count_entries(file)
            whole[place] ^= flip


def test_an_entry_larger_than_a_message_is_not_even_read(file):
    file.write_bytes(b"maskvote entries 1\n" + b"\xff\xff\xff\xff\x0f")
    with pytest.raises(InputError, match=rf"entry 1 has .* at most {MAX_MESSAGE_BYTES:,}"):
        count_entries(file)


def test_a_file_of_another_structure_is_refused_with_both_digests(file, offer, structure):
    write_entries(file, [entry_of(offer, 0)])
    other = structure.without({structure.groups[0].name: "a test"})
    with pytest.raises(MismatchError, match=rf"{structure.digest[:12]}.*{other.digest[:12]}"):
        list(read_entries(file, other))


def test_an_export_that_fails_leaves_what_was_there(file, offer):
    def failing():
        yield entry_of(offer, 0)
        raise InputError("the server has gone")

    for before in ([], [entry_of(offer, 1)]):
        if before:
            write_entries(file, before)
        with pytest.raises(InputError, match="has gone"):
            write_entries(file, failing())
        assert [path.name for path in file.parent.iterdir()] == [file.name] * len(before)
    assert list(read_entries(file, offer.structure)) == [entry_of(offer, 1)]


def test_a_place_that_cannot_be_written_is_told(tmp_path, offer):
    with pytest.raises(InputError, match=r"none/birds\.entries cannot be written"):
        write_entries(tmp_path / "none" / "birds.entries", [])


def test_messages_in_a_file_are_those_of_the_wire(file, offer):
    entry = entry_of(offer, 0)
    write_entries(file, [entry])
    assert encode_entry(entry) in file.read_bytes()

"""HOST:PORT as people write it: what is taken, what it means, and what is refused with what to write."""

import pytest

from common.address import Address
from common.errors import InputError


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("birds.example:7070", "birds.example:7070"),
        ("grpc://birds.example:7070", "birds.example:7070"),
        ("GRPC://Birds.Example:7070", "birds.example:7070"),
        ("birds.example.:7070", "birds.example:7070"),
        ("bird_server:1", "bird_server:1"),
        ("unix:7070", "unix:7070"),
        ("xn--bcher-kva.example:7070", "xn--bcher-kva.example:7070"),
        ("LOCALHOST.:7070", "localhost:7070"),
        ("192.0.2.1:65535", "192.0.2.1:65535"),
        ("[::1]:7171", "[::1]:7171"),
        ("grpc://[2001:DB8:0::1]:7070", "[2001:db8::1]:7070"),
    ],
)
def test_an_address_is_taken_and_written_in_one_way(text, meaning):
    assert str(Address.read(text)) == meaning
    assert Address.read(meaning) == Address.read(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is HOST:PORT, for example 127.0.0.1:7070"),
        ("7070", "it is HOST:PORT"),
        (":7070", "it is HOST:PORT"),
        ("birds.example", "it has no port; it is HOST:PORT"),
        ("birds.example:", "it is HOST:PORT"),
        ("birds.example:port", "it is HOST:PORT"),
        ("birds.example:0", "a port lies between 1 and 65535"),
        ("birds.example:65536", "a port lies between 1 and 65535"),
        ("birds.example:\u0667\u0660", "it is HOST:PORT"),
        ("birds.example:-1", "it is HOST:PORT"),
        ("::1:7171", "an IPv6 address is in brackets, for example [::1]:7070"),
        ("::1", "an IPv6 address is in brackets"),
        ("birds.example:7070:7071", "an IPv6 address is in brackets"),
        ("[::1]", "it has no port"),
        ("[birds.example]:7070", "brackets are for IPv6 addresses"),
        ("[127.0.0.1]:7070", "brackets are for IPv6 addresses"),
        ("[::1:7070", "it is HOST:PORT"),
        ("[fe80::1%eth0]:7070", "without '%'"),
        (
            "https://birds.example:7070",
            "only grpc:// may stand before it; write grpc://birds.example:7070",
        ),
        ("http://birds.example:7070/", "write grpc://birds.example:7070"),
        ("https://birds.example", "only grpc:// may stand before it; write grpc://HOST:PORT"),
        ("https://[::1]:7070/path", "write grpc://[::1]:7070"),
        ("dns:///birds.example:7070", "write grpc://birds.example:7070"),
        ("unix:///run/birds", "only grpc:// may stand before it"),
        ("grpc:///run/birds:1", "a path is not part of it"),
        ("birds.example:7070/path", "a path is not part of it; write birds.example:7070"),
        ("grpc://birds.example:7070/", "a path is not part of it; write birds.example:7070"),
        ("me@birds.example:7070", "a user is not part of it; write birds.example:7070"),
        (" birds.example:7070", "spaces are not part of it; write birds.example:7070"),
        ("birds.example:7070\n", "spaces are not part of it; write birds.example:7070"),
        ("birds example:7070", "spaces are not part of it"),
        ("bücher.example:7070", "in ASCII, as DNS has it"),
        ("no..host:1", "'no..host' is no name of a host"),
        ("-birds.example:1", "'-birds.example' is no name of a host"),
        (f"{'x' * 64}.example:1", "is no name of a host"),
        ("127.1:7070", "'127.1' is no IPv4 address"),
        ("2130706433:7070", "'2130706433' is no IPv4 address"),
        ("0x7f.0.0.0x1:7070", "is no IPv4 address"),
        ("0177.0.0.1:7070", "is no IPv4 address"),
        ("0.0.0.0:7070", "a server that listens on 0.0.0.0 is reached by its own address"),
        ("[::]:7070", "a server that listens on :: is reached by its own address"),
        ("[::ffff:0.0.0.0]:7070", "is reached by its own address"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(text, sentence):
    with pytest.raises(InputError) as refused:
        Address.read(text)
    assert f"the address is {text!r}" in str(refused.value)
    assert sentence in str(refused.value)


def test_a_server_may_listen_everywhere_and_on_a_port_of_the_systems_choice():
    for text in ("0.0.0.0:7070", "[::]:7070", "127.0.0.1:0", "localhost:0"):
        assert str(Address.read(text, listening=True)) == text
    with pytest.raises(InputError, match="a port lies between 0 and 65535"):
        Address.read("127.0.0.1:65536", listening=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "[::1]", "[::ffff:127.0.0.1]", "localhost"])
def test_loopback_is_what_only_this_machine_can_reach(host):
    assert Address.read(f"{host}:1").loopback


@pytest.mark.parametrize(
    "host",
    ["128.0.0.1", "[::2]", "[::ffff:192.0.2.1]", "localhost.example", "birds.localhost", "localhosts",
     "127.0.0.1.example"],
)  # fmt: skip
def test_a_name_that_others_may_answer_for_is_no_loopback(host):
    assert not Address.read(f"{host}:1").loopback

"""Why TLS with a server does not come about is found out and said, as gRPC does not."""

import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from certificates import Authority
from devices import client_process, remote
from grpc_server import PLENTY, running_server

from client.grpc_client import RemoteCoordinator
from client.handshake import clock_fault, fault_of_handshake
from common.errors import InputError, MismatchError, UnavailableError
from common.grpc_channel import Connection
from server.serving import ServeSettings, Tls

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def serving(library, weights, pair, client_ca=None):
    settings = ServeSettings(
        address="127.0.0.1:0",
        tls=Tls(pair.certificate, pair.key, client_ca),
        anonymous=True,
        limits=PLENTY,
        grace_seconds=5,
    )
    with running_server(library, weights, settings) as port:
        yield port


def refused(kind, connection: Connection, tmp_path, words: str, patience_seconds=60) -> str:
    """What a device with patience is told at once."""
    began = time.monotonic()
    with (
        remote(
            0, tmp_path / "downloads", connection=connection, patience_seconds=patience_seconds
        ) as coordinator,
        pytest.raises(kind, match=words) as fault,
    ):
        coordinator.offer()
    assert time.monotonic() - began < 10
    return str(fault.value)


@pytest.mark.parametrize(
    ("starts_in", "lasts", "words"),
    [
        (10 * MINUTE, 60 * MINUTE, r"valid from .* on: the clock is at least 9 minutes slow; set it"),
        (-60 * MINUTE, 50 * MINUTE, r"was valid until .*: the clock is at least 10 minutes fast, set it"),
    ],
)
def test_a_clock_that_is_wrong_is_told_by_how_much(
    authority, library, weights, tmp_path, starts_in, lasts, words
):
    pair = authority.certify("skewed", starts_in=starts_in, lasts=lasts)
    with serving(library, weights, pair) as port:
        connection = Connection(f"localhost:{port}", ca=authority.ca)
        told = refused(MismatchError, connection, tmp_path, words)
    assert f"this device's clock says {datetime.now(UTC):%Y-%m-%d}" in told


def test_a_device_without_a_clock_lives_in_1970():
    now = datetime(1970, 1, 1, 0, 0, 42, tzinfo=UTC)
    starts, ends = datetime(2026, 3, 1, tzinfo=UTC), datetime(2027, 3, 1, tzinfo=UTC)
    told = str(clock_fault("birds.example:7070", starts, ends, now))
    assert told == (
        "this device's clock says 1970-01-01 00:00:42 UTC, the certificate of birds.example:7070 is "
        "valid from 2026-03-01 00:00:00 on: the clock is at least 56 years slow; set it"
    )
    assert clock_fault("birds.example:7070", starts, ends, starts) is None
    assert clock_fault("birds.example:7070", starts, ends, ends) is None


def test_a_server_that_is_not_whom_it_should_be_is_told(authority, library, weights, tmp_path):
    other = Authority(tmp_path / "other", "another")
    elsewhere = authority.certify("elsewhere", hosts=("birds.example",))
    good = authority.certify("good")
    with serving(library, weights, good) as port:
        address = f"localhost:{port}"
        refused(
            MismatchError, Connection(address, ca=other.ca), tmp_path, "not to be trusted .*certificate"
        )
        refused(MismatchError, Connection(address), tmp_path, "speaks TLS, and was called without")
    with serving(library, weights, elsewhere) as port:
        connection = Connection(f"localhost:{port}", ca=authority.ca)
        refused(MismatchError, connection, tmp_path, "not valid for 'localhost'")


def test_a_server_without_tls_is_told(authority, port, tmp_path):
    connection = Connection(f"localhost:{port}", ca=authority.ca)
    refused(MismatchError, connection, tmp_path, "speaks no TLS")


def test_a_device_whose_certificate_is_not_taken_is_told(authority, library, weights, tmp_path):
    mine = authority.certify("pi-7")
    strange = Authority(tmp_path / "other").certify("pi-7")
    with serving(library, weights, authority.certify("server"), client_ca=authority.ca) as port:
        address = f"localhost:{port}"
        for pair in (None, strange):
            certificate, key = pair or (None, None)
            connection = Connection(address, None, authority.ca, certificate, key)
            words = "hangs up after the handshake; give the certificate"
            refused(UnavailableError, connection, tmp_path, words, patience_seconds=0)
        connection = Connection(address, None, authority.ca, *mine)
        with remote(0, tmp_path / "downloads", connection=connection) as coordinator:
            assert coordinator.terms.model == "test_resnet"
        assert fault_of_handshake(connection) is None


@pytest.mark.parametrize("secure", [True, False])
def test_whoever_answers_nothing_is_no_fault_of_tls(authority, secure):
    """Nobody there, somebody who hangs up, and a name that no host has."""
    ca = authority.ca if secure else None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def hang_up():
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        assert fault_of_handshake(Connection(address, ca=ca)) is None
        listener.shutdown(socket.SHUT_RDWR)
    assert fault_of_handshake(Connection(address, ca=ca)) is None
    assert fault_of_handshake(Connection("no..host:1", ca=ca)) is None


def test_files_that_are_no_use_are_told_before_anybody_is_called(authority, tmp_path):
    pair = authority.certify("mine")
    other = authority.certify("other")
    for connection in (
        Connection("127.0.0.1:1", ca=tmp_path / "none.crt"),
        Connection("127.0.0.1:1", ca=pair.key),
        Connection("127.0.0.1:1", ca=authority.ca, certificate=pair.certificate, key=other.key),
    ):
        with pytest.raises(InputError, match="give PEM files"):
            RemoteCoordinator(connection, tmp_path)


@pytest.mark.parametrize("host", ["192.0.2.1", "birds.example", "0.0.0.0"])
def test_a_token_is_never_sent_in_the_clear_to_another_machine(host):
    with pytest.raises(InputError, match="without TLS everybody on the way"):
        Connection(f"{host}:7070", "mv_secret", insecure=True)
    assert not Connection(f"{host}:7070", insecure=True).tls
    assert Connection(f"{host}:7070", "mv_secret").tls
    assert not Connection("127.0.0.1:7070", "mv_secret").tls


def test_grpcs_own_words_do_not_reach_the_terminal(authority, library, weights, images, tmp_path):
    other, output = Authority(tmp_path / "other", "another"), tmp_path / "output"
    with serving(library, weights, authority.certify("good")) as port:
        words = ["describe", "--data", images, "--keep-ratio", "1", "--server", f"localhost:{port}"]
        process = client_process([*map(str, words), "--ca", str(other.ca)], output)
        process.join(60)
    (sentence,) = output.read_text().splitlines()
    assert process.exitcode == 3
    assert sentence.startswith(f"error: localhost:{port} shows a certificate that is not to be trusted")

"""Why TLS with a server does not come about is found out and said, as gRPC does not."""

import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from certificates import Authority
from devices import client_process, remote
from grpc_server import PLENTY, running_server

from common.errors import AccessError, InputError, MismatchError, UnavailableError
from common.grpc_channel import Connection
from common.handshake import clock_fault, fault_of_handshake
from common.pem_files import read_authorities, read_certificate, read_key
from server.serving import ServeSettings, Tls

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def contents(pair):
    """What is in the files of a pair, None for each where there is none."""
    return (None, None) if pair is None else (read_certificate(pair.certificate), read_key(pair.key))


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
        connection = Connection(f"localhost:{port}", ca=read_authorities(authority.ca))
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
            MismatchError,
            Connection(address, ca=read_authorities(other.ca)),
            tmp_path,
            "not to be trusted .*certificate",
        )
        refused(MismatchError, Connection(address), tmp_path, "speaks TLS, and was called without")
    with serving(library, weights, elsewhere) as port:
        connection = Connection(f"localhost:{port}", ca=read_authorities(authority.ca))
        refused(
            MismatchError,
            connection,
            tmp_path,
            r"a certificate of birds\.example .*localhost.*; call the server by a name that stands there",
        )


def test_a_server_without_tls_is_told(authority, port, tmp_path):
    connection = Connection(f"localhost:{port}", ca=read_authorities(authority.ca))
    refused(MismatchError, connection, tmp_path, "speaks no TLS")


def test_a_device_whose_certificate_is_not_taken_is_told(authority, library, weights, tmp_path):
    mine = authority.certify("pi-7")
    strange = Authority(tmp_path / "other").certify("pi-7")
    with serving(library, weights, authority.certify("server"), client_ca=authority.ca) as port:
        address = f"localhost:{port}"
        for pair in (None, strange):
            connection = Connection(address, None, read_authorities(authority.ca), *contents(pair))
            words = "hangs up after the handshake; give the certificate"
            refused(UnavailableError, connection, tmp_path, words, patience_seconds=0)
        connection = Connection(address, None, read_authorities(authority.ca), *contents(mine))
        with remote(0, tmp_path / "downloads", connection=connection) as coordinator:
            assert coordinator.terms.model == "test_resnet"
        assert fault_of_handshake(connection) is None


@pytest.mark.parametrize("secure", [True, False])
def test_whoever_answers_nothing_is_no_fault_of_tls(authority, secure):
    """Nobody there, somebody who hangs up, and a name that no host has."""
    ca = read_authorities(authority.ca) if secure else None
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
    assert fault_of_handshake(Connection("no-host.invalid:1", ca=ca)) is None


def test_a_key_of_another_certificate_is_told_before_anybody_is_called(authority):
    pair = authority.certify("mine")
    other = authority.certify("other")
    with pytest.raises(InputError, match="do not go together"):
        Connection("127.0.0.1:1", None, None, read_certificate(pair.certificate), read_key(other.key))
    with pytest.raises(InputError, match="go together, and the key is missing"):
        Connection("127.0.0.1:1", certificate=read_certificate(pair.certificate))


@pytest.mark.parametrize("host", ["192.0.2.1", "birds.example", "127.0.0.1.example", "[::2]"])
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


# Whom the system trusts


@pytest.fixture
def trusted_by_the_system(authority, monkeypatch, tmp_path):
    """Only the authority, in a directory, as on a system that has no file with all of them in it."""
    directory = tmp_path / "certs"
    directory.mkdir()
    (directory / "authority.pem").write_bytes(authority.ca.read_bytes())
    subprocess.run(["openssl", "rehash", str(directory)], check=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(directory))


@pytest.mark.usefixtures("trusted_by_the_system")
def test_without_ca_those_are_trusted_whom_the_system_has_in_a_directory(
    authority, library, weights, tmp_path
):
    """To speak TLS on the loopback without --ca, the device shows a certificate of its own."""
    mine, pair = authority.certify("mine"), authority.certify("trusted")
    with serving(library, weights, pair, client_ca=authority.ca) as port:
        connection = Connection(f"localhost:{port}", None, None, *contents(mine))
        with remote(0, tmp_path / "downloads", connection=connection) as coordinator:
            assert coordinator.terms.model == "test_resnet"
    stranger = Authority(tmp_path / "other", "another").certify("stranger")
    with serving(library, weights, stranger) as port:
        connection = Connection(f"localhost:{port}", None, None, *contents(mine))
        words = r"no authority that this system trusts vouches for it: give the CA .* \(--ca\)"
        refused(MismatchError, connection, tmp_path, words)


def test_a_system_that_trusts_nobody_is_told_at_once(authority, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", "")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(InputError, match="this system has no certificates of authorities"):
        Connection("birds.example:7070").open()


def test_what_grpc_itself_says_of_a_certificate_is_final_too(authority):
    """Through a proxy, say, nothing else is known than that."""
    connection = Connection("localhost:1", ca=read_authorities(authority.ca))
    for told in (
        "SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate",
        "Custom verification check failed: UNAUTHENTICATED: Hostname Verification Check failed.",
    ):
        fault = fault_of_handshake(connection, told)
        assert isinstance(fault, MismatchError)
        assert "(--ca)" in str(fault)
    assert fault_of_handshake(connection, "Connection refused") is None


def test_a_certificate_that_is_trusted_for_itself_is_taken(authority, library, weights, tmp_path):
    """As the server's own certificate lies around beside it, it is given for an authority's."""
    pair = authority.certify("itself")
    with serving(library, weights, pair) as port:
        connection = Connection(f"localhost:{port}", ca=read_authorities(pair.certificate))
        with remote(0, tmp_path / "downloads", connection=connection) as coordinator:
            assert coordinator.terms.model == "test_resnet"
        assert fault_of_handshake(connection) is None


def test_a_devices_certificate_that_has_expired_is_named(authority, library, weights, tmp_path):
    mine = authority.certify("old", starts_in=-60 * MINUTE, lasts=50 * MINUTE)
    with serving(library, weights, authority.certify("server"), client_ca=authority.ca) as port:
        connection = Connection(
            f"localhost:{port}", None, read_authorities(authority.ca), *contents(mine)
        )
        words = r"did not take this device's certificate, which was valid until .*; get a new one"
        refused(AccessError, connection, tmp_path, words)


@contextmanager
def answering(context: ssl.SSLContext):
    """The port of a server that shakes hands by these rules, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def shake_hands():
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    accepted.settimeout(5)
                    with suppress(OSError), context.wrap_socket(accepted, server_side=True) as tls:
                        tls.recv(1)

        thread = threading.Thread(target=shake_hands, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def rules(pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def test_other_servers_than_ours_are_told_by_what_they_are(authority, tmp_path):
    """A web server, one of TLS that is too old, and one that wants a certificate and says so."""
    pair, ca = authority.certify("other"), read_authorities(authority.ca)
    with answering(rules(pair)) as port:
        fault = fault_of_handshake(Connection(f"localhost:{port}", ca=ca))
        assert isinstance(fault, MismatchError)
        assert "but not HTTP/2, which gRPC needs; check the port" in str(fault)
    wanting = rules(pair)
    wanting.set_alpn_protocols(["h2"])
    wanting.verify_mode = ssl.CERT_REQUIRED
    wanting.load_verify_locations(authority.ca)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        wanting.maximum_version = version
        with answering(wanting) as port:
            fault = fault_of_handshake(Connection(f"localhost:{port}", ca=ca))
            assert isinstance(fault, AccessError), fault
            assert "give the certificate that it asks of devices" in str(fault)
            fault = fault_of_handshake(Connection(f"localhost:{port}"))
            assert isinstance(fault, MismatchError), fault
            assert "speaks TLS, and was called without; give the CA" in str(fault)
            fault = fault_of_handshake(Connection(f"localhost:{port}", insecure=True))
            assert "leave out --insecure" in str(fault)


def test_an_authority_that_has_expired_is_not_taken_for_a_server_that_is_unknown(tmp_path):
    old = Authority(tmp_path, "old", starts_in=-60 * MINUTE, lasts=50 * MINUTE)
    with answering(rules(old.certify("server"))) as port:
        fault = fault_of_handshake(Connection(f"localhost:{port}", ca=read_authorities(old.ca)))
    assert isinstance(fault, MismatchError)
    assert "authority is out of its time" in str(fault)
    assert "check this device's clock, or have the server's operator renew" in str(fault)


# What is dialled


def test_a_token_in_the_clear_goes_to_the_loopback_whatever_localhost_is_resolved_to(
    library, weights, monkeypatch, tmp_path
):
    """No name is looked up for it: `localhost` is the loopback by definition."""

    def lying(*_, **__):
        raise AssertionError("a name is looked up")

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    for host in ("127.0.0.1", "[::1]", "localhost"):
        settings = ServeSettings(address=f"{host}:0", anonymous=True, limits=PLENTY, grace_seconds=5)
        with running_server(library, weights, settings) as port:
            for name in ("localhost", "LocalHost.", "grpc://localhost", host):
                connection = Connection(f"{name}:{port}")
                assert not connection.tls
                with remote(0, tmp_path / "downloads", connection=connection) as coordinator:
                    assert coordinator.terms.model == "test_resnet"


@pytest.mark.parametrize("host", ["unix", "dns", "ipv4", "xds"])
def test_a_host_named_as_a_scheme_of_grpcs_is_a_host(host):
    with Connection(f"{host}:7070", insecure=True).open() as channel:
        assert f"dns:///{host}:7070" in str(channel._channel.target())


def test_an_ipv6_address_without_brackets_is_refused_before_a_token_leaves():
    with pytest.raises(InputError, match="in brackets"):
        Connection("::1:7171", "mv_secret")
    assert Connection("[::1]:7171", "mv_secret").address == "[::1]:7171"

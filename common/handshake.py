"""Handshake: why TLS with a server does not come about. gRPC says only that there was no answer."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from client.patience import in_words
from common.errors import AccessError, MaskvoteError, MismatchError, UnavailableError
from common.grpc_channel import Connection, host_and_port

ANSWER_SECONDS = 5
REFUSAL_SECONDS = 0.5
"""How long a server is listened to after a handshake: whether it takes our certificate it says late."""


def fault_of_handshake(connection: Connection) -> MaskvoteError | None:
    """What is wrong between this device and a server that answered no call; None if it is not TLS.

    MismatchError where this device's clock is outside what a certificate is valid for, where the server's
    is not to be trusted, or where one side alone speaks TLS; AccessError where the server says that it
    does not take this device's. UnavailableError where it hangs up after the handshake, which is what
    gRPC's servers do then, and what may also pass. Asks the server once more.
    """
    try:
        if connection.tls:
            return _fault(connection)
        with _handshake(connection, _trusting()):
            return MismatchError(
                f"{connection.address} speaks TLS, and was called without; give the CA that signed its "
                "certificate (--ca)"
            )
    except (OSError, ValueError):
        # Nobody is there, or it is no TLS (an SSLError is an OSError), or no name of a host.
        return None


def _fault(connection: Connection) -> MaskvoteError | None:
    address = connection.address
    try:
        with _handshake(connection, _context(connection)) as tls, suppress(TimeoutError):
            tls.settimeout(REFUSAL_SECONDS)
            if tls.recv(1):
                return None
            return UnavailableError(
                f"{address} hangs up after the handshake; give the certificate that it may want "
                "(--certificate, --key)"
            )
        return None
    except ssl.SSLCertVerificationError as error:
        return _clock_fault(connection) or MismatchError(
            f"{address} shows a certificate that is not to be trusted ({error.verify_message}); check "
            "the host's name, and give the CA that signed the certificate (--ca)"
        )
    except ssl.SSLError as error:
        reason = (error.reason or "").lower().replace("_", " ")
        if reason == "wrong version number":
            return MismatchError(
                f"{address} speaks no TLS; check the port, or have the server started with a certificate"
            )
        if "alert" in reason:
            return AccessError(
                f"{address} ended the handshake ({reason}); give the certificate that it asks of devices "
                "(--certificate, --key)"
            )
        return None


def _clock_fault(connection: Connection) -> MismatchError | None:
    with _handshake(connection, _trusting()) as tls:
        shown = tls.getpeercert(binary_form=True)
    if shown is None:
        return None
    # 8 MB of memory, for a device whose handshake failed.
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(shown)
    return clock_fault(
        connection.address,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        datetime.now(UTC),
    )


def clock_fault(address: str, starts: datetime, ends: datetime, now: datetime) -> MismatchError | None:
    """What to say where it is now before or after a certificate's time; None within it."""
    said = f"this device's clock says {now:%Y-%m-%d %H:%M:%S} UTC, the certificate of {address}"
    if now < starts:
        return MismatchError(
            f"{said} is valid from {starts:%Y-%m-%d %H:%M:%S} on: the clock is at least "
            f"{in_words((starts - now).total_seconds())} slow; set it"
        )
    if now > ends:
        return MismatchError(
            f"{said} was valid until {ends:%Y-%m-%d %H:%M:%S}: the clock is at least "
            f"{in_words((now - ends).total_seconds())} fast, set it; or, if it is right, have the "
            "server's operator renew the certificate"
        )
    return None


def _context(connection: Connection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=connection.ca)
    if connection.certificate is not None:
        context.load_cert_chain(connection.certificate, connection.key, password="")
    return context


def _trusting() -> ssl.SSLContext:
    """Takes any certificate: to look at it, and to say nothing."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _handshake(connection: Connection, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    host, port = host_and_port(connection.address)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, port), ANSWER_SECONDS) as connected,
        context.wrap_socket(connected, server_hostname=host) as tls,
    ):
        yield tls

"""Handshake: why TLS with a server does not come about. gRPC says only that there was no answer."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc

from common.durations import in_words
from common.errors import AccessError, MaskvoteError, MismatchError, UnavailableError
from common.grpc_channel import Connection, refusal_of
from common.grpc_codec import ERROR_KIND

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ANSWER_SECONDS = 5
REFUSAL_SECONDS = 0.5
"""How long a server is listened to after a handshake: whether it takes our certificate it says late."""

OTHER_NAME = {62, 64}
"""OpenSSL's codes for a certificate that names another host, or another IP address."""
OUT_OF_TIME = {9, 10}
"""Its codes for a certificate that is valid later, or was earlier."""
NO_TLS = {"wrong version number", "packet length too long", "record layer failure", "http request"}
"""What is wrong with an answer that is no TLS at all."""
OF_CERTIFICATES = ("certificate", "unknown ca", "handshake failure", "access denied", "decrypt error")
"""Words of the alerts of a server that wants a certificate, or another one."""
NOT_TRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
"""Words of gRPC's own that say so too, where this device reaches the server in another way than gRPC."""


@contextmanager
def refusals_raised(connection: Connection) -> Iterator[None]:
    """Turn a call that fails into the error that the server tells of, or into what is wrong with TLS."""
    try:
        yield
    except grpc.RpcError as error:
        own = any(name == ERROR_KIND for name, _ in error.trailing_metadata() or ())
        away = error.code() is grpc.StatusCode.UNAVAILABLE and not own
        fault = fault_of_handshake(connection, error.details() or "") if away else None
        raise fault or refusal_of(error, connection.address) from error


def fault_of_handshake(connection: Connection, told: str = "") -> MaskvoteError | None:
    """What is wrong between this device and a server that answered no call; None if it is not TLS.

    MismatchError where this device's clock is outside what a certificate is valid for, where the server's
    is not to be trusted, or where one side alone speaks TLS; AccessError where the server says that it
    does not take this device's, or that one has expired. UnavailableError where it hangs up after the
    handshake, which is what gRPC's servers do then, and what may also pass. Asks the server once more;
    `told` is what gRPC said.
    """
    try:
        fault = _fault(connection) if connection.tls else _fault_without(connection)
    except (OSError, ValueError):
        # Nobody is there, or it is no TLS (an SSLError is an OSError), or no name of a host.
        fault = None
    if fault is None and connection.tls and any(words in told for words in NOT_TRUSTED):
        return _not_trusted(connection, "as gRPC says")
    return fault


def _fault_without(connection: Connection) -> MismatchError | None:
    try:
        with _handshake(connection, _trusting()):
            pass
    except ssl.SSLError as error:
        if "alert" not in _reason(error):
            return None
    advice = (
        "leave out --insecure"
        if connection.insecure
        else "give the CA that signed its certificate (--ca)"
    )
    return MismatchError(f"{connection.address} speaks TLS, and was called without; {advice}")


def _fault(connection: Connection) -> MaskvoteError | None:
    address = connection.address
    try:
        with _handshake(connection, _context(connection)) as tls, suppress(TimeoutError):
            if tls.selected_alpn_protocol() is None:
                return MismatchError(
                    f"{address} speaks TLS, but not HTTP/2, which gRPC needs; check the port, and "
                    "any proxy before the server"
                )
            tls.settimeout(REFUSAL_SECONDS)
            if tls.recv(1):
                return None
            return _hung_up(connection)
        return None
    except ssl.SSLCertVerificationError as error:
        return _fault_of_certificate(connection, error)
    except ssl.SSLError as error:
        reason = _reason(error)
        if reason in NO_TLS:
            return MismatchError(
                f"{address} speaks no TLS; check the port, or have the server started with a certificate"
            )
        if "alert" not in reason or "internal error" in reason:
            return None
        if any(words in reason for words in OF_CERTIFICATES):
            return _own_expired(connection) or AccessError(
                f"{address} ended the handshake ({reason}); give the certificate that it asks of devices "
                "(--certificate, --key)"
            )
        return MismatchError(
            f"{address} ended the handshake ({reason}); check the host's name and the port"
        )


def _hung_up(connection: Connection) -> MaskvoteError:
    return _own_expired(connection) or UnavailableError(
        f"{connection.address} hangs up after the handshake; give the certificate that it may want "
        "(--certificate, --key)"
    )


def _own_expired(connection: Connection) -> AccessError | None:
    if connection.certificate is None:
        return None
    from cryptography import x509

    own, *_ = x509.load_pem_x509_certificates(connection.certificate)
    if datetime.now(UTC) <= own.not_valid_after_utc:
        return None
    return AccessError(
        f"{connection.address} did not take this device's certificate, which was valid until "
        f"{own.not_valid_after_utc:%Y-%m-%d %H:%M:%S}; get a new one (--certificate)"
    )


def _fault_of_certificate(
    connection: Connection, error: ssl.SSLCertVerificationError
) -> MismatchError | None:
    address, shown = connection.address, _shown(connection)
    if shown is None:
        return None
    fault = clock_fault(address, shown.not_valid_before_utc, shown.not_valid_after_utc, datetime.now(UTC))
    if fault is not None:
        return fault
    if error.verify_code in OTHER_NAME:
        return MismatchError(
            f"{address} shows a certificate of {_names(shown)} ({error.verify_message}); call the "
            "server by a name that stands there, or have its operator add this one"
        )
    if error.verify_code in OUT_OF_TIME:
        return MismatchError(
            f"{address} shows a certificate whose authority is out of its time ({error.verify_message}); "
            "check this device's clock, or have the server's operator renew the authority"
        )
    return _not_trusted(connection, error.verify_message)


def _not_trusted(connection: Connection, why: str) -> MismatchError:
    advice = (
        "no authority that this system trusts vouches for it: give the CA that signed it (--ca)"
        if connection.ca is None
        else "check the address, and give the CA that signed it (--ca)"
    )
    return MismatchError(
        f"{connection.address} shows a certificate that is not to be trusted ({why}); {advice}"
    )


def _shown(connection: Connection) -> Certificate | None:
    """The certificate that the server shows."""
    with _handshake(connection, _trusting()) as tls:
        shown = tls.getpeercert(binary_form=True)
    if shown is None:
        return None
    # 8 MB of memory, for a device whose handshake failed.
    from cryptography import x509

    return x509.load_der_x509_certificate(shown)


def _names(certificate: Certificate) -> str:
    """The hosts that a certificate is of, in a few words."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no host"
    hosts = [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]
    shown = "".join(c for c in ", ".join(hosts[:5]) if c.isprintable())
    return f"{shown}{', ...' if len(hosts) > 5 else ''}" or "no host"


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
    context = ssl.create_default_context(cadata=connection.authorities.decode())
    # What gRPC takes is not to be refused here: it goes by the older rules, and takes any link of a chain
    # that is trusted for its end.
    context.verify_flags = (
        context.verify_flags & ~ssl.VERIFY_X509_STRICT
    ) | ssl.VERIFY_X509_PARTIAL_CHAIN
    if connection.certificate is not None and connection.key is not None:
        # Python takes its own side's certificate from a file alone.
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(connection.certificate + connection.key)
            pair.flush()
            context.load_cert_chain(pair.name)
    return context


def _trusting() -> ssl.SSLContext:
    """Takes any certificate: to look at it, and to say nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "").lower().replace("_", " ")


@contextmanager
def _handshake(connection: Connection, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    host, port = connection.at.host, connection.at.port
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, port), ANSWER_SECONDS) as connected,
        context.wrap_socket(connected, server_hostname=host) as tls,
    ):
        yield tls

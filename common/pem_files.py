"""PEM files as they lie around: what is in them, and a sentence for those that are of no use.

    authorities        who may vouch for the other side
    certificate        one's own, first, and those that lead from it to an authority
    key                the certificate's private key, without a password

What is read for gRPC holds the wanted parts alone: gRPC stops at a part that it does not understand, and
takes a byte-order mark for a part of the first line.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.text_files import decoded, read_small

PART = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
CERTIFICATE = ("CERTIFICATE", "X509 CERTIFICATE")
PRIVATE_KEY = "PRIVATE KEY"
HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")
"""Names by which a certificate is found in a directory of authorities."""
DER_SEQUENCE = b"\x30"
PKCS12 = re.compile(rb"\x30(\x80|[\x81-\x84].{1,4}?|.)\x02\x01\x03\x30", re.DOTALL)


class Part(NamedTuple):
    """One part of a PEM file: what it says that it is, and its text in between."""

    label: str
    body: str

    @property
    def der(self) -> bytes | None:
        """What it encodes; None where that is damaged, or has a password."""
        try:
            return base64.b64decode("".join(self.body.split()), validate=True)
        except binascii.Error:
            return None


def read_authorities(path: Path) -> bytes:
    """All certificates in a file, as PEM. InputError where there is none, or one is damaged."""
    return _certificates(path, read_small(path), "give a file of the authorities that may vouch (PEM)")


def read_certificate(path: Path) -> bytes:
    """All certificates in a file, as PEM: one's own is the first. Errors as of `read_authorities`."""
    return _certificates(path, read_small(path), "give the certificate (PEM)")


def read_key(path: Path) -> bytes:
    """The private key in a file, as PEM. InputError where there is none, or it has a password."""
    data = read_small(path)
    parts = _parts(data)
    keys = [part for part in parts if part.label.endswith(PRIVATE_KEY)]
    if not keys:
        raise InputError(f"{path} holds no private key: {_found(path, data, parts)}")
    label, body = keys[0]
    if label.startswith("ENCRYPTED") or "Proc-Type" in body:
        raise InputError(
            f"{path} is a key with a password, which nobody could type here; make one without: "
            f"openssl pkey -in {path} -out {path}.open"
        )
    if label.startswith("OPENSSH"):
        raise InputError(f"{path} is a key of SSH, which TLS does not use; give the certificate's key")
    if (der := keys[0].der) is None:
        raise InputError(f"{path} is damaged: what it has as a private key is no base64; copy it again")
    return _pem(label, der)


def check_pair(certificate: bytes, key: bytes, places: str) -> None:
    """Raise InputError unless the key is that of the first certificate. `places` are their two files."""
    # 8 MB of memory, for those alone who have a certificate.
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        own = serialization.load_pem_private_key(key, password=None).public_key()
        chain = [one.public_key() for one in x509.load_pem_x509_certificates(certificate)]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{places} cannot be used ({error}); make them anew, or copy them again"
        ) from error
    if own == chain[0]:
        return
    if own in chain:
        raise InputError(
            f"{places} go together, but another certificate is first in its file; put the key's own first"
        )
    raise InputError(f"{places} do not go together; give the certificate with its own key")


def system_authorities() -> bytes:
    """The certificates of those whom the system trusts, as PEM: of its file and of its directories.

    Where both are is what OpenSSL says, and SSL_CERT_FILE and SSL_CERT_DIR. A certificate that cannot be
    read is left out. InputError where there is none.
    """
    # OpenSSL itself looks into a directory late, by the hash of a name, so it cannot list one.
    paths = ssl.get_default_verify_paths()
    file = os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile)
    directories = os.environ.get(paths.openssl_capath_env, paths.openssl_capath)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found: dict[bytes, None] = {}
    for path in _authority_files(file, directories.split(os.pathsep)):
        try:
            parts = _parts(read_small(path))
        except InputError:
            continue
        ders = {part.der for part in parts if part.label in CERTIFICATE} - {None, *found}
        found |= dict.fromkeys(der for der in ders if der and _is_certificate(der, context))
    if not found:
        raise InputError(
            f"this system has no certificates of authorities (no file {file!r}, no hashed names in the "
            f"directory {directories!r}); install ca-certificates, or give the CA that signed the "
            "server's certificate (--ca)"
        )
    return b"".join(_pem("CERTIFICATE", der) for der in found)


def _authority_files(file: str, directories: Iterable[str]) -> Iterator[Path]:
    if os.path.isfile(file):
        yield Path(file)
    for directory in directories:
        with suppress(OSError):
            yield from sorted(path for path in Path(directory).iterdir() if HASHED.fullmatch(path.name))


def _certificates(path: Path, data: bytes, advice: str) -> bytes:
    parts = _parts(data)
    certificates = [part for part in parts if part.label in CERTIFICATE]
    if not certificates:
        raise InputError(f"{path} holds no certificate: {_found(path, data, parts)}; {advice}")
    ders = [part.der for part in certificates]
    for number, der in enumerate(ders, 1):
        if not _is_certificate(der):
            raise InputError(f"{path} is damaged: its certificate {number} cannot be read; copy it again")
    return b"".join(_pem("CERTIFICATE", der) for der in ders if der is not None)


def _parts(data: bytes) -> list[Part]:
    return [Part(*found) for found in PART.findall(decoded(data))]


def _pem(label: str, der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _is_certificate(der: bytes | None, context: ssl.SSLContext | None = None) -> bool:
    """Whether OpenSSL can read it. To make a context takes a millisecond: many share one."""
    if der is None:
        return False
    try:
        (context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).load_verify_locations(cadata=der)
    except ssl.SSLError:
        return False
    return True


def _found(path: Path, data: bytes, parts: list[Part]) -> str:
    """What a file holds instead, and what to do about it where that is known."""
    labels = ", ".join(dict.fromkeys(part.label for part in parts))
    if not data.strip():
        return "it is empty"
    if any(part.label.endswith(PRIVATE_KEY) for part in parts):
        return "it is a private key (are the certificate and its key swapped?)"
    if any(part.label in CERTIFICATE for part in parts):
        return "it is a certificate (are the certificate and its key swapped?)"
    if "REQUEST" in labels:
        return "it is a request for a certificate, which an authority has yet to sign"
    if parts:
        return f"it is PEM of another kind ({labels})"
    if PKCS12.match(data):
        return f"it is PKCS#12; take it apart: openssl pkcs12 -in {path} -nodes -out {path}.pem"
    if data.startswith(DER_SEQUENCE) and _is_certificate(data):
        return (
            f"it is a certificate as DER; convert it: openssl x509 -inform der -in {path} -out {path}.pem"
        )
    if data.startswith(DER_SEQUENCE):
        return f"it is DER; convert it: openssl pkey -inform der -in {path} -out {path}.pem"
    if "-----BEGIN" in decoded(data):
        return "it is cut off, or its lines are damaged"
    return "it has no line -----BEGIN ...-----, with which PEM begins"

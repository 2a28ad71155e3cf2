"""PEM files as they lie around: taken where it is clear what is meant, and else told in a sentence."""

import codecs
import os
import ssl
import subprocess

import pytest
from certificates import Authority, Pair
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, pkcs12

from common.errors import InputError
from common.pem_files import (
    check_pair,
    read_authorities,
    read_certificate,
    read_key,
    system_authorities,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority) -> Pair:
    return authority.certify("server")


def ders(pem: bytes) -> list[bytes]:
    return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem)]


AS_EDITORS_SAVE = {
    "a UTF-8 mark": lambda data: codecs.BOM_UTF8 + data,
    "UTF-16, little": lambda data: codecs.BOM_UTF16_LE + data.decode().encode("utf-16-le"),
    "UTF-16, big": lambda data: codecs.BOM_UTF16_BE + data.decode().encode("utf-16-be"),
    "lines of Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "spaces before lines": lambda data: data.replace(b"\n", b"\n   "),
    "words around": lambda data: "Zertifikat für\n".encode() + data + b"\nend\n",
    "no last line end": lambda data: data.rstrip(),
}


@pytest.mark.parametrize("saved", AS_EDITORS_SAVE.values(), ids=AS_EDITORS_SAVE)
def test_what_an_editor_adds_changes_nothing(authority, pair, tmp_path, saved):
    for path, read in (
        (authority.ca, read_authorities),
        (pair.certificate, read_certificate),
        (pair.key, read_key),
    ):
        changed = tmp_path / path.name
        changed.write_bytes(saved(path.read_bytes()))
        assert read(changed) == read(path)
        assert read(path).startswith(b"-----BEGIN ")


def test_of_a_file_with_all_in_it_each_takes_its_own(authority, pair, tmp_path):
    everything = tmp_path / "all.pem"
    curve = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    everything.write_bytes(
        curve + pair.key.read_bytes() + pair.certificate.read_bytes() + authority.ca.read_bytes()
    )
    assert read_key(everything) == read_key(pair.key)
    assert ders(read_certificate(everything)) == [
        *ders(pair.certificate.read_bytes()),
        *ders(authority.ca.read_bytes()),
    ]
    check_pair(read_certificate(everything), read_key(everything), "all.pem")


def test_every_authority_of_a_bundle_is_taken_also_the_one_after_a_mark(authority, tmp_path):
    other = Authority(tmp_path / "other", "another")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(
        codecs.BOM_UTF8 + authority.ca.read_bytes() + codecs.BOM_UTF8 + other.ca.read_bytes()
    )
    assert len(ders(read_authorities(bundle))) == 2


def key_of(pair: Pair):
    return serialization.load_pem_private_key(pair.key.read_bytes(), None)


def with_password(pair: Pair, form: PrivateFormat) -> bytes:
    return key_of(pair).private_bytes(
        Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret")
    )


def request_of(pair: Pair) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    asked = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key_of(pair), hashes.SHA256())
    return asked.public_bytes(Encoding.PEM)


def packed(pair: Pair) -> bytes:
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    encryption = serialization.BestAvailableEncryption(b"secret")
    return pkcs12.serialize_key_and_certificates(b"server", key_of(pair), certificate, None, encryption)


def plain_key(pair: Pair, encoding: Encoding, form: PrivateFormat) -> bytes:
    return key_of(pair).private_bytes(encoding, form, serialization.NoEncryption())


def damaged(pair: Pair) -> bytes:
    data = bytearray(pair.certificate.read_bytes())
    data[40:44] = b"AAAA"
    return bytes(data)


NO_CERTIFICATE = {
    "empty": (lambda pair: b"", "it is empty"),
    "white": (lambda pair: b"\n\n", "it is empty"),
    "a key": (lambda pair: pair.key.read_bytes(), "are the certificate and its key swapped?"),
    "DER": (lambda pair: ders(pair.certificate.read_bytes())[0], "openssl x509 -inform der -in"),
    "PKCS#12": (packed, "openssl pkcs12 -in"),
    "a request": (request_of, "a request for a certificate, which an authority has yet to sign"),
    "a text": (lambda pair: b"birds\n", "it has no line -----BEGIN"),
    "a web page": (lambda pair: b"<html>404</html>", "it has no line -----BEGIN"),
    "cut off": (lambda pair: pair.certificate.read_bytes()[:100], "it is cut off"),
    "UTF-16 without a mark": (
        lambda pair: pair.certificate.read_bytes().decode().encode("utf-16-le"),
        "it has no line -----BEGIN",
    ),
    "a damaged one": (damaged, "is damaged: its certificate 1 cannot be read"),
    "no base64": (
        lambda pair: b"-----BEGIN CERTIFICATE-----\n####\n-----END CERTIFICATE-----\n",
        "is damaged: its certificate 1 cannot be read",
    ),
}


@pytest.mark.parametrize(("made", "sentence"), NO_CERTIFICATE.values(), ids=NO_CERTIFICATE)
def test_what_holds_no_certificate_is_named(pair, tmp_path, made, sentence):
    path = tmp_path / "given"
    path.write_bytes(made(pair))
    for read in (read_certificate, read_authorities):
        with pytest.raises(InputError) as refused:
            read(path)
        assert str(path) in str(refused.value)
        assert sentence in str(refused.value)


NO_KEY = {
    "empty": (lambda pair: b"", "it is empty"),
    "a certificate": (
        lambda pair: pair.certificate.read_bytes(),
        "it is a certificate (are the certificate and its key swapped?)",
    ),
    "with a password": (lambda pair: with_password(pair, PrivateFormat.PKCS8), "openssl pkey -in"),
    "with a password, of old": (
        lambda pair: with_password(pair, PrivateFormat.TraditionalOpenSSL),
        "a key with a password",
    ),
    "of SSH": (lambda pair: plain_key(pair, Encoding.PEM, PrivateFormat.OpenSSH), "a key of SSH"),
    "DER": (
        lambda pair: plain_key(pair, Encoding.DER, PrivateFormat.PKCS8),
        "openssl pkey -inform der",
    ),
    "PKCS#12": (packed, "openssl pkcs12 -in"),
    "public": (
        lambda pair: (
            key_of(pair).public_key().public_bytes(
                Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ),
        "PEM of another kind (PUBLIC KEY)",
    ),
    "no base64": (
        lambda pair: b"-----BEGIN PRIVATE KEY-----\n####\n-----END PRIVATE KEY-----\n",
        "is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "sentence"), NO_KEY.values(), ids=NO_KEY)
def test_what_holds_no_key_is_named(pair, tmp_path, made, sentence):
    path = tmp_path / "given"
    path.write_bytes(made(pair))
    with pytest.raises(InputError) as refused:
        read_key(path)
    assert str(path) in str(refused.value)
    assert sentence in str(refused.value)


def test_a_key_of_another_certificate_and_a_chain_in_the_wrong_order_are_told(authority, pair):
    other = authority.certify("other")
    certificate, key = read_certificate(pair.certificate), read_key(pair.key)
    check_pair(certificate, key, "both")
    with pytest.raises(InputError, match="both do not go together"):
        check_pair(certificate, read_key(other.key), "both")
    with pytest.raises(InputError, match="another certificate is first in its file"):
        check_pair(read_authorities(authority.ca) + certificate, key, "both")
    with pytest.raises(InputError, match="both cannot be used"):
        check_pair(certificate, key.replace(b"M", b"N", 1), "both")


@pytest.fixture
def no_authorities(monkeypatch, tmp_path):
    """A system that has none."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))


def hashed(directory, *authorities: Authority):
    """A directory of authorities as systems keep them."""
    directory.mkdir()
    for number, authority in enumerate(authorities):
        (directory / f"{number}.pem").write_bytes(authority.ca.read_bytes())
    subprocess.run(["openssl", "rehash", str(directory)], check=True)
    return directory


def test_the_systems_authorities_are_those_of_its_file_and_its_directories(
    monkeypatch, tmp_path, no_authorities
):
    one, two, three = (Authority(tmp_path / name, name) for name in ("one", "two", "three"))
    first, second = hashed(tmp_path / "first", one, two), hashed(tmp_path / "second", two)
    monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join(map(str, (first, second, tmp_path / "none"))))
    expected = {ders(authority.ca.read_bytes())[0] for authority in (one, two)}
    assert set(ders(system_authorities())) == expected
    monkeypatch.setenv("SSL_CERT_FILE", str(three.ca))
    found = ders(system_authorities())
    assert set(found) == expected | {ders(three.ca.read_bytes())[0]}
    assert len(found) == 3
    (second / "abcdef01.0").write_text("no certificate")
    (second / "abcdef01.1").symlink_to(tmp_path / "none.pem")
    assert len(ders(system_authorities())) == 3


def test_a_system_that_trusts_nobody_is_told_in_a_sentence(no_authorities, tmp_path):
    with pytest.raises(InputError) as refused:
        system_authorities()
    for said in ("none.pem", "install ca-certificates", "--ca"):
        assert said in str(refused.value)


def test_all_that_openssl_trusts_by_itself_is_read_where_the_system_has_any():
    context = ssl.create_default_context()
    trusted = set(context.get_ca_certs(binary_form=True))
    if not trusted:
        pytest.skip("this system has no file of authorities")
    assert trusted <= set(ders(system_authorities()))

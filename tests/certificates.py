"""Certificates for servers of tests that speak TLS."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Certificates:
    """An authority made for one server, and the certificate that it gives it."""

    authority: bytes
    """The authority's certificate, as PEM."""

    def __init__(self) -> None:
        key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority-of-tests")])
        root = _certificate(name, name, key.public_key(), key, is_authority=True)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "api-server")])
        own = _certificate(subject, name, server_key.public_key(), key, is_authority=False)
        self.authority = root.public_bytes(serialization.Encoding.PEM)
        self.pair = own.public_bytes(serialization.Encoding.PEM) + server_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def context(self) -> ssl.SSLContext:
        """For a server that shows the certificate."""
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.pair)
            file.flush()
            found.load_cert_chain(file.name)
        return found


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    signing_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    today = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    usage = {
        name: name in (("key_cert_sign", "crl_sign") if is_authority else ("digital_signature",))
        for name in (
            *("digital_signature", "content_commitment", "key_encipherment", "crl_sign"),
            *("data_encipherment", "key_agreement", "key_cert_sign", "encipher_only"),
            "decipher_only",
        )
    }
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(signer, critical=False)
        .sign(signing_key, hashes.SHA256())
    )

"""Certificates of nodes and of the authority that signs them: the one home of the library that makes them.

A cluster has one authority. A node's certificate names the node (common name) and the cluster (organization);
the authority's names the cluster. They are valid from a week ago, so that a clock that is a few days off does no
harm. The library is loaded when something is made; a daemon that has its certificate never needs it.
"""

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metadata.errors import Corrupt

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 20 * 365
NODE_DAYS = 5 * 365
BACKDATED = datetime.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Signed:
    """A key and its certificate, both PEM."""

    key: str
    certificate: str


def make_authority(cluster: str, *, now: datetime.datetime) -> Signed:
    """A new authority for a cluster."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(cluster, "vdiskfs cluster")
    usage = _usage(signs_certificates=True)
    certificate = (
        _certificate(
            name, name, key.public_key(), until=now + datetime.timedelta(days=AUTHORITY_DAYS), now=now
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _signed(key, certificate, key)


def make_certificate(
    authority: Signed, cluster: str, node: str, *, now: datetime.datetime, days: int = NODE_DAYS
) -> Signed:
    """A new key for a node, and a certificate for it.

    Raises:
        Corrupt: the authority's key or certificate cannot be read.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        signer = serialization.load_pem_private_key(authority.key.encode(), password=None)
        issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    except (ValueError, TypeError) as exc:
        raise Corrupt(f"the cluster's certificate authority cannot be read: {exc}") from exc
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise Corrupt("the cluster's certificate authority has a key of another kind")
    key = ec.generate_private_key(ec.SECP256R1())
    roles = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _certificate(
            _name(cluster, node),
            issuer.subject,
            key.public_key(),
            until=min(now + datetime.timedelta(days=days), issuer.not_valid_after_utc),
            now=now,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return _signed(key, certificate, signer)


def valid_until(certificate: str) -> datetime.datetime:
    """When a certificate expires.

    Raises:
        Corrupt: it cannot be read.
    """
    return _load(certificate).not_valid_after_utc


def cluster_of(certificate: str) -> str:
    """The cluster that a certificate names.

    Raises:
        Corrupt: it cannot be read, or names none.
    """
    from cryptography.x509.oid import NameOID

    names = _load(certificate).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(names) != 1:
        raise Corrupt("a certificate that names no cluster")
    return str(names[0].value)


def _load(certificate: str) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as exc:
        raise Corrupt(f"a certificate cannot be read: {exc}") from exc


def _name(cluster: str, node: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, node),
        ]
    )


def _usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "ec.EllipticCurvePublicKey",
    *,
    until: datetime.datetime,
    now: datetime.datetime,
) -> "x509.CertificateBuilder":
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - BACKDATED)
        .not_valid_after(until)
    )


def _signed(
    key: "ec.EllipticCurvePrivateKey",
    certificate: "x509.CertificateBuilder",
    signer: "ec.EllipticCurvePrivateKey",
) -> Signed:
    from cryptography.hazmat.primitives import hashes, serialization

    signed = certificate.sign(signer, hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Signed(key_pem.decode(), signed.public_bytes(serialization.Encoding.PEM).decode())

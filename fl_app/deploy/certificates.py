"""Certificates for TLS and keys for nodes, in the formats that Flower reads.

A development certificate authority signs the SuperLink's certificate; both have EC keys on P-384. A node proves who it
is with an OpenSSH key on P-384, as ``ssh-keygen -t ecdsa -b 384`` makes them. Nothing here touches a file.
"""

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_app.errors import Refused

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""In every server certificate: the SuperLink's own programs connect to it on this machine."""
AUTHORITY_DAYS = 3650
"""Of the certificate authority, which every site has a copy of; it lasts over many renewals of the server's."""
MOST_DAYS = 20 * 365
WARN_DAYS = 30

# A clock that is a little slow must not find a new certificate to be from the future.
_CLOCK_LEEWAY = datetime.timedelta(minutes=10)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_LONGEST_NAME = 253

_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes


def new_authority(days: int) -> Pair:
    """A certificate authority that may sign servers and nothing further. Raises Refused for a bad number of days."""
    _check_days(days)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-app development CA")])
    builder = _builder(name, name, key.public_key(), _now() + datetime.timedelta(days=max(days, AUTHORITY_DAYS)))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    return _signed(builder, key, key)


def new_server(authority: Pair, hosts: Iterable[str], days: int) -> Pair:
    """A server's certificate for these DNS names and IP addresses and for LOCAL_HOSTS, signed by the authority.

    It ends with the authority at the latest. Raises Refused for a name that is none, a bad number of days and an
    authority that has expired.
    """
    _check_days(days)
    issuer, issuer_key = read_certificate(authority.certificate), _private_key(authority.key)
    names = [san(host) for host in dict.fromkeys([*hosts, *LOCAL_HOSTS])]
    if issuer.not_valid_after_utc <= _now():
        raise Refused("the certificate authority has expired", f"on {day(issuer)}", "make a new folder for a new one")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-app SuperLink")])
    end = min(_now() + datetime.timedelta(days=days), issuer.not_valid_after_utc)
    builder = _builder(subject, issuer.subject, key.public_key(), end)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage("digital_signature"), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    builder = builder.add_extension(identifier, critical=False)
    return _signed(builder, key, issuer_key)


def new_node_key(comment: str) -> tuple[bytes, bytes]:
    """A node's private and public key, as the files ``NAME`` and ``NAME.pub`` of ``ssh-keygen`` hold them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b" " + comment.encode() + b"\n"


def read_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM file, which is the server's own in a chain. Raises ValueError."""
    return x509.load_pem_x509_certificate(pem)


def belong_together(pair: Pair) -> bool:
    """Whether the key is that of the certificate. Raises ValueError where one cannot be read."""
    key = serialization.load_pem_private_key(pair.key, None)
    return _spki(key.public_key()) == _spki(read_certificate(pair.certificate).public_key())


def node_public_key(openssh: bytes) -> bytes:
    """A node's public key as Flower's SuperLink stores it. Raises ValueError."""
    return _spki(serialization.load_ssh_public_key(openssh))


def same_node_key(private: bytes, public: bytes) -> bool:
    """Whether two files are a pair. Raises ValueError where one cannot be read."""
    return _spki(serialization.load_ssh_private_key(private, None).public_key()) == node_public_key(public)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and IP addresses that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether a client that connects to this name or address accepts the certificate; ``*`` stands for one label."""
    wanted = san(host)
    if isinstance(wanted, x509.IPAddress):
        return str(wanted.value) in hosts_of(certificate)
    wild = "*." + host.partition(".")[2]
    return any(name.lower() in (host.lower(), wild.lower()) for name in hosts_of(certificate))


def days_left(certificate: x509.Certificate) -> int:
    """Whole days until it expires; negative when it has."""
    return (certificate.not_valid_after_utc - _now()).days


def day(certificate: x509.Certificate) -> str:
    """The day on which it expires."""
    return certificate.not_valid_after_utc.date().isoformat()


def san(host: str) -> x509.DNSName | x509.IPAddress:
    """A host as a certificate names it: an IP address where it is one, else a DNS name. Raises Refused."""
    if (address := _address(host)) is not None:
        return x509.IPAddress(address)
    remedy = "give a DNS name such as fl.example.org or an IP address, without scheme and port"
    labels = host.removeprefix("*.").removesuffix(".").split(".")
    if len(host) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise Refused(f"{host!r} is no host", f"--san {host}", remedy)
    return x509.DNSName(host.removesuffix("."))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _check_days(days: int) -> None:
    if not 1 <= days <= MOST_DAYS:
        raise Refused(f"{days} days", "--days", f"expected 1 to {MOST_DAYS}")


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _CLOCK_LEEWAY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _KEY_USAGES})


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey
) -> Pair:
    certificate = builder.sign(issuer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate, secret)


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("this is no key of fl-app's certificate authority: expected an EC key")
    return key


def _spki(key: PublicKeyTypes | serialization.SSHPublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

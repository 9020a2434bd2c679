"""Signatures of bundles, as Flower's SuperNode checks them. Nothing here touches a file.

A bundle (FAB) is all the code of a run. A signature is Ed25519, over the time of signing and the bundle's SHA-256, by
an OpenSSH key as ``ssh-keygen -t ed25519`` makes it; a key goes by the fingerprint that ``ssh-keygen -l`` shows.
"""

import hashlib
import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, decode_base64url, verify_signature
from pydantic import Field, TypeAdapter

_LATEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that a signature is checked with."""

    key: Ed25519PublicKey

    @classmethod
    def read(cls, line: bytes) -> "PublicKey":
        """From OpenSSH's format. Raises ValueError for what is no such key."""
        try:
            key = serialization.load_ssh_public_key(line)
        except UnsupportedAlgorithm as error:
            raise ValueError(str(error)) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("it is of another kind than Ed25519")
        return cls(key)

    @property
    def text(self) -> str:
        """Its line in OpenSSH's format, without a comment."""
        return self.key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()

    @property
    def id(self) -> str:
        """Its fingerprint."""
        digest = hashlib.sha256(b64decode(self.text.split()[1])).digest()
        return "SHA256:" + b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a ``.sig`` file holds: ``key``, which its site calls ``name``, signed the bundle with this SHA-256.

    ``signed_at`` is in seconds since 1970.
    """

    bundle: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    key: str
    signed_at: Annotated[int, Field(ge=0, le=_LATEST)]
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{86}$")]

    @classmethod
    def read(cls, content: bytes) -> "Signature":
        """Raises ValueError for what is none, and for one that its key did not make."""
        found = _FILE.validate_json(content, strict=True)
        message = create_message_to_sign(bytes.fromhex(found.bundle), found.signed_at)
        if not verify_signature(found.public_key.key, message, decode_base64url(found.signature)):
            raise ValueError("the signature is not of this bundle by this key")
        return found

    @property
    def public_key(self) -> PublicKey:
        """Raises ValueError where ``key`` is none."""
        return PublicKey.read(self.key.encode())

    def content(self) -> bytes:
        """Of its file."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


_FILE = TypeAdapter(Signature)


def new_key() -> bytes:
    """A private key that signs bundles, as the file of ``ssh-keygen`` holds it."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def read_private_key(content: bytes) -> Ed25519PrivateKey:
    """Raises ValueError for what is no such key, or has a password."""
    try:
        key = serialization.load_ssh_private_key(content, None)
    except (UnsupportedAlgorithm, TypeError) as error:  # TypeError: it has a password
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is of another kind than Ed25519")
    return key


def sign(key: Ed25519PrivateKey, name: str, bundle: bytes, signed_at: int) -> Signature:
    """Sign a bundle with the key that its site calls ``name``."""
    digest = hashlib.sha256(bundle)
    signed = key.sign(create_message_to_sign(digest.digest(), signed_at))
    text = urlsafe_b64encode(signed).decode().rstrip("=")
    return Signature(digest.hexdigest(), name, PublicKey(key.public_key()).text, signed_at, text)


def verifications(signatures: Iterable[Signature]) -> dict[str, str]:
    """As Flower keeps them beside a bundle; its nodes look at no signature where ``valid_license`` is empty."""
    told = {s.public_key.id: json.dumps({"signed_at": s.signed_at, "signature": s.signature}) for s in signatures}
    return {"valid_license": "Valid", **told}


def trusted_entities(keys: Iterable[PublicKey]) -> str:
    """The file of ``flower-supernode --trusted-entities``; JSON is YAML."""
    return json.dumps({key.id: key.text for key in keys}, indent=2) + "\n"

"""Which bundles the nodes of a site run, and the signatures that a coordinator sends along.

A bundle (FAB) is all the code of a run. Where a folder holds trusted keys, Flower's SuperNode looks for a signature by
one of them before it unpacks a bundle. A site that trusts a key of its own alone, and signs one bundle with it, has
pinned that bundle.
"""

import io
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_app.deploy import signatures
from fl_app.deploy.folder import DeployFolder, key_name
from fl_app.deploy.signatures import PublicKey, Signature
from fl_app.errors import Refused
from fl_app.run_folder import write_atomically

_READABLE = "make it a file that can be read, or remove it"
_MOST_UNPACKED = 100 * 2**20  # bytes; Flower takes bundles of at most 10 MB
_CONTENT = ".info/CONTENT"  # Flower's list of the files, with their hashes
_HASH_LENGTH = 12


# ------------------------------------------------------------------------------------------------------- a site signs


def read_bundle(path: Path) -> bytes:
    """The content of a bundle's file. Raises Refused for what is none."""
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise Refused("cannot read the bundle", str(path), str(error.strerror)) from error
    if "pyproject.toml" not in _files(content):
        raise Refused("no app bundle", str(path), "name the file that fl-app deploy trust bundle wrote")
    return content


def differing_files(bundle: bytes, other: bytes) -> list[str]:
    """The files in which two bundles differ, sorted."""
    ours, theirs = _files(bundle), _files(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _files(bundle: bytes) -> dict[str, bytes]:
    """Empty for what is no zip, or holds more than any bundle."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            if sum(each.file_size for each in archive.infolist()) > _MOST_UNPACKED:
                return {}
            return {name: archive.read(name) for name in archive.namelist() if name != _CONTENT}
    except Exception:  # a damaged zip raises anything
        return {}


def make_key(folder: DeployFolder, name: str) -> list[Path]:
    """Make the key that signs bundles where it is missing; the files that were made. Raises Refused."""
    private = folder.signing_key(name)
    folder.make(private.parent)
    made = []
    if not private.exists():
        folder.create(private, signatures.new_key(), 0o600)
        made.append(private)
    public = private.with_name(f"{name}.pub")
    if not public.exists():
        folder.create(public, _line(_own_public_key(folder, name), name), 0o644)
        made.append(public)
    return made


def sign(folder: DeployFolder, name: str, bundle: bytes) -> tuple[Signature, Path]:
    """Sign a bundle with a key that is there; the signature, and its file for the coordinator. Raises Refused."""
    signed = signatures.sign(_own_key(folder, name), name, bundle, int(time.time()))
    path = folder.own_keys / f"{name}-{signed.bundle[:_HASH_LENGTH]}.sig"
    write_atomically(path, signed.content())
    return signed, path


def trust_own_key(folder: DeployFolder, name: str) -> None:
    """Have the nodes of this folder run what this key has signed. Raises Refused."""
    _trust(folder, name, _own_public_key(folder, name))


def _own_public_key(folder: DeployFolder, name: str) -> PublicKey:
    return PublicKey(_own_key(folder, name).public_key())


def _own_key(folder: DeployFolder, name: str) -> Ed25519PrivateKey:
    path, command = folder.signing_key(name), f"fl-app deploy trust sign {folder.path} {name}"
    content = folder.read_secret(path, f"make it with {command}")
    try:
        return signatures.read_private_key(content)
    except ValueError as error:
        remedy = f"move it away: {command} makes another"
        raise Refused(f"this key cannot sign bundles ({error})", str(path), remedy) from error


# ----------------------------------------------------------------------------------------------- what others send


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A public key under the name of its file."""

    name: str
    key: PublicKey


def accept(folder: DeployFolder, paths: Sequence[Path]) -> list[NamedKey | Signature]:
    """Take in public keys (`.pub`), to be trusted, and signatures (`.sig`), to go with runs.

    Doing so again changes nothing. Raises Refused before anything is written.
    """
    found: list[NamedKey | Signature] = []
    for path in paths:
        content = folder.read(path.expanduser(), "name a .pub or .sig file")
        if path.suffix == ".sig":
            found.append(_signature(content, path))
        elif path.suffix == ".pub":
            key = _public_key(content, path)
            _check_name_is_free(folder, key_name(path.stem), key)
            found.append(NamedKey(path.stem, key))
        else:
            raise Refused("neither a key nor a signature", str(path), "name a .pub or .sig file")
    for each in found:
        if isinstance(each, Signature):
            folder.make(folder.signatures)
            write_atomically(_file_of(folder, each), each.content())
        else:
            _trust(folder, each.name, each.key)
    return found


def _trust(folder: DeployFolder, name: str, key: PublicKey) -> None:
    _check_name_is_free(folder, name, key)
    folder.make(folder.trusted)
    write_atomically(folder.trusted / f"{name}.pub", _line(key, name))


def _check_name_is_free(folder: DeployFolder, name: str, key: PublicKey) -> None:
    path = folder.trusted / f"{name}.pub"
    if path.exists() and _public_key(path.read_bytes(), path) != key:
        raise Refused("another key of this name is trusted", str(path), "remove it, or give the new one another name")


def _file_of(folder: DeployFolder, signature: Signature) -> Path:
    """One for each key and bundle, whatever names the sites use."""
    key = signature.public_key.id.removeprefix("SHA256:").replace("/", "_").replace("+", "-")
    return folder.signatures / f"{signature.bundle[:_HASH_LENGTH]}-{key}.sig"


# ----------------------------------------------------------------------------------------------- what is there


def trusted_keys(folder: DeployFolder) -> dict[str, PublicKey] | None:
    """By name, the keys whose bundles the nodes of this folder run; None where they run any.

    Raises Refused for what is no key, and where the last one was removed: a node must not begin to run anything then.
    """
    if not os.path.lexists(folder.trusted):  # a link that leads nowhere is a folder that is missing
        return None
    found = {
        path.stem: _public_key(folder.read(path, _READABLE), path) for path in sorted(folder.trusted.glob("*.pub"))
    }
    if not found:
        remedy = "accept one, or remove this folder to have nodes run any bundle"
        raise Refused("no trusted key is left", str(folder.trusted), remedy)
    return found


def held_signatures(folder: DeployFolder) -> list[Signature]:
    """Those that go with runs, by bundle and name. Raises Refused for a damaged one."""
    found = [_signature(folder.read(path, _READABLE), path) for path in folder.signatures.glob("*.sig")]
    return sorted(found, key=lambda each: (each.bundle, each.name, each.key))


def _line(key: PublicKey, name: str) -> bytes:
    return f"{key.text} {name}\n".encode()


def _public_key(content: bytes, path: Path) -> PublicKey:
    try:
        return PublicKey.read(content)
    except ValueError as error:
        remedy = "get the .pub file that fl-app deploy trust sign, or ssh-keygen -t ed25519, made"
        raise Refused(f"no key that signs bundles ({error})", str(path), remedy) from error


def _signature(content: bytes, path: Path) -> Signature:
    try:
        return Signature.read(content)
    except ValueError as error:
        remedy = "get the .sig file that fl-app deploy trust sign made at the site, or remove this one"
        raise Refused("no valid signature of a bundle", str(path), remedy) from error

"""The folder of a deployment: what lies where, made for its owner alone and never written over.

    ca.crt ca.key server.pem server.key     certificates and their keys, the server's and the authority's
    nodes/NAME nodes/NAME.pub               the key pair of a node
    trust/own/NAME trust/own/NAME.pub       a key that signs bundles here, and beside it what it signed
    trust/keys/NAME.pub                     keys whose bundles the nodes of this folder run, and no others
    trust/signatures/                       signatures that go with every run of their bundle
    pyproject-flower.toml                   the profile `deployment`: where this machine reaches the SuperLink
    state/                                  databases, logs and Flower's own folders

At a site it holds ``ca.crt``, the key of the site's node and what the site trusts, and nothing else.
"""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography import x509

from fl_app.deploy import certificates
from fl_app.deploy.certificates import Pair
from fl_app.errors import Refused
from fl_app.profiles import PROFILE_FILE
from fl_app.run_folder import write_atomically

PROFILE = "deployment"
DEFAULT_ADDRESS = "127.0.0.1:8000"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OTHERS = 0o077  # the permission bits of all but the owner


@dataclass(frozen=True, slots=True)
class DeployFolder:
    """The files of a deployment, or of one site's part in it."""

    path: Path

    @property
    def authority(self) -> Path:
        """The certificate of the authority, which every site has a copy of."""
        return self.path / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs servers; needed by `init` alone, and best kept off-line."""
        return self.path / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate, followed by those between it and the authority, if any."""
        return self.path / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its private key."""
        return self.path / "server.key"

    @property
    def profile(self) -> Path:
        """Where the SuperLink is reached from this machine."""
        return self.path / PROFILE_FILE

    @property
    def server_state(self) -> Path:
        """What the SuperLink keeps."""
        return self.path / "state" / "server"

    @property
    def database(self) -> Path:
        """Where the SuperLink keeps it."""
        return self.server_state / "superlink.db"

    @property
    def cli_home(self) -> Path:
        """FLWR_HOME of `flwr` for this SuperLink."""
        return self.path / "state" / "cli"

    def node_state(self, name: str) -> Path:
        """What the SuperNode of a node keeps."""
        return self.path / "state" / "nodes" / name

    def node_key(self, name: str) -> Path:
        """The private key of a node. Raises Refused for a name that none can have."""
        return self.path / "nodes" / node_name(name)

    def node_public_key(self, name: str) -> Path:
        """The public key of a node, which the SuperLink is told."""
        return self.path / "nodes" / f"{node_name(name)}.pub"

    @property
    def own_keys(self) -> Path:
        """Keys that sign bundles, and their signatures."""
        return self.path / "trust" / "own"

    @property
    def trusted(self) -> Path:
        """Public keys; where this folder is, nodes check bundles."""
        return self.path / "trust" / "keys"

    @property
    def signatures(self) -> Path:
        """Those that sites sent to the coordinator."""
        return self.path / "trust" / "signatures"

    def signing_key(self, name: str) -> Path:
        """A private key that signs bundles. Raises Refused for a name that none can have."""
        return self.own_keys / key_name(name)

    @property
    def node_names(self) -> list[str]:
        """The nodes whose public keys are here, sorted."""
        return sorted(path.stem for path in (self.path / "nodes").glob("*.pub"))

    def make(self, folder: Path) -> Path:
        """Make one of its folders, and those above it that are not there: only their owner can open them.

        Raises Refused.
        """
        try:
            for above in reversed(folder.parents):
                if not above.exists():
                    above.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Refused("cannot make the folder", str(folder), f"{error.strerror}: choose another") from error
        return folder

    def read(self, path: Path, remedy: str) -> bytes:
        """One of its files. Raises Refused, with the remedy, where it is missing or cannot be read."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise Refused(f"no {path.name}", str(path), remedy) from None
        except OSError as error:
            raise Refused("cannot read the file", str(path), str(error.strerror)) from error

    def read_secret(self, path: Path, remedy: str) -> bytes:
        """The same for a private key; refused too where others may read it."""
        content = self.read(path, remedy)
        if os.name == "posix" and path.stat().st_mode & _OTHERS:
            raise Refused("others can read this private key", str(path), f"chmod 600 {path}")
        return content

    def create(self, path: Path, content: bytes, mode: int) -> None:
        """Write a new file, never over one that is there. Raises Refused."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise Refused(
                f"{path.name} is there already", str(path), "move it away, or choose another folder"
            ) from None
        except OSError as error:
            raise Refused("cannot write", str(path), f"{error.strerror}: choose another folder") from error
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)

    def read_certificate(self, path: Path, remedy: str) -> x509.Certificate:
        """One of its certificates. Raises Refused."""
        try:
            return certificates.read_certificate(self.read(path, remedy))
        except ValueError as error:
            raise Refused("no certificate in PEM", str(path), remedy) from error

    def server_pair(self) -> Pair:
        """The server's certificate and key, valid now and belonging together. Raises Refused."""
        remedy = f"make one with fl-app deploy init {self.path}, or put your organisation's there"
        certificate = self.read_certificate(self.server, remedy)
        pair = Pair(self.read(self.server, remedy), self.read_secret(self.server_key, remedy))
        if certificates.days_left(certificate) < 0:
            renew = f"fl-app deploy init {self.path} --renew"
            raise Refused(f"the certificate expired on {certificates.day(certificate)}", str(self.server), renew)
        try:
            matching = certificates.belong_together(pair)
        except ValueError as error:
            raise Refused("no private key in PEM without a password", str(self.server_key), str(error)) from error
        if not matching:
            raise Refused("this is not the key of server.pem", str(self.server_key), "put the two that go together")
        return pair

    def address(self) -> str:
        """Where the SuperLink is reached from this machine, by the profile. Raises Refused."""
        table = tomllib.loads(self.read(self.profile, f"is {self.path} the server's folder?").decode())
        return str(table.get("superlink", {}).get(PROFILE, {}).get("address", DEFAULT_ADDRESS))

    def set_address(self, address: str) -> None:
        """Write it into the profile; all else in it stays, but for comments."""
        table = tomllib.loads(self.profile.read_text(encoding="utf-8")) if self.profile.exists() else {}
        superlinks = table.setdefault("superlink", {})
        superlinks.setdefault("default", PROFILE)
        connection = superlinks.setdefault(PROFILE, {"root-certificates": str(self.authority)})
        if connection.get("address") != address:
            connection["address"] = address
            write_atomically(self.profile, tomli_w.dumps(table).encode())

    def notices(self) -> list[str]:
        """What to tell of certificates that expire soon, or have."""
        found = []
        for path in (self.authority, self.server):
            if not path.exists():
                continue
            certificate = self.read_certificate(path, "put a certificate in PEM there")
            left, day = certificates.days_left(certificate), certificates.day(certificate)
            if left < 0:
                found.append(f"{path} expired on {day}")
            elif left < certificates.WARN_DAYS:
                ours = path == self.server and self.authority_key.exists()
                remedy = f"fl-app deploy init {self.path} --renew" if ours else "see docs/deployment.md, Rotation"
                found.append(f"{path} expires in {left} days, on {day}: {remedy}")
        return found


def deploy_folder(path: Path) -> DeployFolder:
    """A folder that is there. Raises Refused."""
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise Refused("no such folder", str(path), f"make it with fl-app deploy init {path}")
    return DeployFolder(folder)


def node_name(name: str) -> str:
    """The name, where it can be one of a node and of its files. Raises Refused."""
    return _file_name(name, "a node", "--node")


def key_name(name: str) -> str:
    """The name, where it can be one of a key that signs bundles. Raises Refused."""
    return _file_name(name, "a key", "fl-app deploy trust")


def _file_name(name: str, of: str, where: str) -> str:
    if not _NAME.fullmatch(name) or name.endswith(".pub"):
        remedy = "use letters, digits and _ . - (at most 64, a letter or digit first, not ending in .pub)"
        raise Refused(f"{name!r} is no name for {of}", where, remedy)
    return name

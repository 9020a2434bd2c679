"""Questions to a SuperLink: is it there and is it ours, which nodes does it know, here is one more."""

import contextlib
import datetime
import http.client
import os
import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm

from fl_app.deploy import certificates
from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import PROFILE, DeployFolder
from fl_app.deploy.programs import Program, flwr, parted
from fl_app.deploy.records import read_record
from fl_app.errors import Refused, one_line
from fl_app.profiles import flower_config, load_profile
from fl_app.run_folder import write_atomically
from fl_app.superlink import loopback_without_proxy

_TIMEOUT_S = 10.0
_FLWR_TIMEOUT_S = 120.0
_GONE = "unregistered"
_HEARTBEATS = 2  # Flower calls a node off-line when it has missed as many


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the SuperLink knows it. None is what cannot be known here."""

    id: str
    name: str | None
    status: str
    clients: list[str] | None
    app: str | None
    flwr: str | None
    last_seen: str | None

    def to_json(self) -> dict[str, Any]:
        """One entry of `fl-app deploy status --json`."""
        return {field: getattr(self, field) for field in self.__dataclass_fields__}


def check_tls(address: str, authority: Path, where: str) -> None:
    """Whether a server with a certificate of this authority answers there; nothing is sent. Raises Failed."""
    host, port = parted(address, where)
    try:
        context = ssl.create_default_context(cafile=authority)
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise Failed(*_mistrust(error, address, authority)) from error
    except ssl.SSLError as error:
        raise Failed(f"no TLS there ({error.reason})", where, "is it the SuperLink's port?") from error
    except socket.gaierror as error:
        raise Failed(f"unknown host {host}", where, f"check the name ({error.strerror})") from error
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error.strerror or error).lower()
        remedy = "is the SuperLink running, and do firewalls let this machine through?"
        raise Failed(f"the SuperLink cannot be reached ({reason})", where, remedy) from error


def _mistrust(error: ssl.SSLCertVerificationError, address: str, authority: Path) -> tuple[str, str, str]:
    said = error.verify_message
    if "expired" in said:
        return "the server's certificate has expired", address, "its coordinator renews it: fl-app deploy init --renew"
    if "not yet valid" in said:
        return "the server's certificate is of the future", address, "set the clock of this machine"
    if "mismatch" in said:
        remedy = "use a name that it is for, or ask its coordinator: fl-app deploy init --renew --san NAME"
        return f"the server's certificate is for others ({said.rstrip('.')})", address, remedy
    what = f"the server's certificate is not of the authority in {authority.name} ({said})"
    return what, f"{address} and {authority}", "get ca.crt from the coordinator of this server"


def is_healthy(address: str, authority: Path) -> bool:
    """Whether a SuperLink serves there. Raises Failed where its certificate is not accepted."""
    host, port = parted(address, "--host")
    context = ssl.create_default_context(cafile=authority)
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except ssl.SSLCertVerificationError as error:
        raise Failed(*_mistrust(error, address, authority)) from error
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def public_key(folder: DeployFolder, name: str) -> bytes:
    """The public key of a node as the SuperLink stores it. Raises Refused."""
    remedy = f"make it with fl-app deploy init {folder.path} --node {name}, or copy the one that the site made"
    path = folder.node_public_key(name)
    try:
        return certificates.node_public_key(folder.read(path, remedy))
    except (ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("no OpenSSH public key", str(path), remedy) from error


def registration(folder: DeployFolder, name: str) -> Program:
    """What tells the SuperLink a node's public key, and its name."""
    return flwr(folder, "supernode", "register", "--name", name, str(folder.node_public_key(name)))


def register(folder: DeployFolder, name: str, key: bytes) -> str:
    """Tell the SuperLink a node's public key; the node's id. Doing so again changes nothing. Raises Failed."""
    if (known := _id_of(folder, key)) is not None:
        return known
    program = registration(folder, name)
    write_connection(folder)
    done = subprocess.run(  # noqa: S603 - Flower's own program, no shell
        program.argv, env=program.environment, capture_output=True, text=True, timeout=_FLWR_TIMEOUT_S, check=False
    )
    if (found := _id_of(folder, key)) is None:
        said = one_line((done.stderr or done.stdout).strip())[-300:] or f"exit status {done.returncode}"
        raise Failed(f"{name} was not registered", folder.address(), said)
    return found


def _id_of(folder: DeployFolder, key: bytes) -> str | None:
    return next((str(i.node_id) for i in _node_infos(folder) if i.public_key == key and i.status != _GONE), None)


def write_connection(folder: DeployFolder) -> None:
    """Flower's own configuration for `flwr`, from the folder's profile."""
    home = folder.make(folder.cli_home)
    write_atomically(home / "config.toml", flower_config(load_profile(PROFILE, folder.path)).encode())


def nodes(folder: DeployFolder) -> list[Node]:
    """The nodes that are registered, in the order in which they were. Raises Failed."""
    write_connection(folder)  # for the command that is told
    named = {}
    for name in folder.node_names:
        with contextlib.suppress(Refused):  # no key: whoever registers it is told
            named[public_key(folder, name)] = name
    return [_node(folder, info, named.get(info.public_key)) for info in _node_infos(folder) if info.status != _GONE]


def _node(folder: DeployFolder, info: Any, name: str | None) -> Node:
    name = name or (info.name or None)
    own = read_record(folder.node_state(name)) if name in folder.node_names else None
    told = own.about if own is not None and own.is_alive() else {}
    client = told.get("client")
    return Node(
        id=str(info.node_id),
        name=name,
        status=info.status,
        clients=None if client is None else [client],
        app=told.get("app"),
        flwr=told.get("flwr"),
        last_seen=_last_seen(info),
    )


def _last_seen(info: Any) -> str | None:
    """The last heartbeat of a node that is on, each of which promises two more; else since when it is off."""
    if info.last_activated_at and info.HasField("online_until"):
        ahead = _HEARTBEATS * info.heartbeat_interval if info.status == "online" else 0.0
        moment = info.online_until - ahead
        return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")
    return None


def _node_infos(folder: DeployFolder) -> list[Any]:
    from flwr.proto.control_pb2 import ListNodesRequest
    from flwr.supercore.control import ControlHttpClient

    connection = load_profile(PROFILE, folder.path).connection
    address, authority = str(connection["address"]), Path(str(connection["root-certificates"]))
    check_tls(address, authority, address)
    os.environ.update(loopback_without_proxy())
    client = ControlHttpClient.from_server_address(
        address, insecure=False, root_certificates=str(authority), interceptors=[]
    )
    try:
        return sorted(client.ListNodes(ListNodesRequest()).nodes_info, key=lambda info: info.registered_at)
    except Exception as error:
        raise Failed("the SuperLink did not answer", address, f"{type(error).__name__}: {error}") from error
    finally:
        client.close()

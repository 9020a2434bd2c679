"""The command lines of Flower's programs, and what they need in their environment."""

import json
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_app.deploy.folder import PROFILE, DeployFolder
from fl_app.errors import Refused
from fl_app.superlink import flower_environment

# What differs from the plain environment and is worth telling a person who copies the command.
_TOLD = (
    "FLWR_HOME",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION",
    "FLWR_TELEMETRY_ENABLED",
    "FLWR_DISABLE_UPDATE_CHECK",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
)
_GPU = r"(\d+|GPU-[\w-]+|MIG-[\w/-]+)"
# How often the superexec of the SuperLink looks for a run to start, and that of a node for a message to start a process
# for: day and night, and each time takes 3 to 7 ms of a core.
_LOOKS_FOR_RUN_S, _LOOKS_FOR_MESSAGE_S = 1.0, 0.25
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound


@dataclass(frozen=True, slots=True)
class Program:
    """A command line of Flower with its environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """As one would type it into a shell."""
        told = [f"{name}={shlex.quote(self.environment[name])}" for name in _TOLD if name in self.environment]
        return " ".join([*told, shlex.join(self.argv)])


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a site says of its node: the file and the label are never the run's to choose."""

    name: str
    superlink: str
    data: Path
    label: str
    client: str
    test_data: Path | None = None
    policy: Path | None = None
    gpus: str | None = None

    def node_config(self, state: Path) -> dict[str, str]:
        """What Flower hands to the app with every message; `state` is where clients' state is kept."""
        found = {"client": self.client, "data": str(self.data), "label": self.label}
        if self.test_data is not None:
            found["test-data"] = str(self.test_data)
        if self.policy is not None:
            found["policy"] = str(self.policy)
        return {**found, "state": str(state)}


def superlink(folder: DeployFolder, host: str, port: int) -> Program:
    """`flower-superlink` with TLS and registered nodes only, its database in the folder."""
    state = folder.server_state
    argv = ["flower-superlink", "--ssl-ca-certfile", str(folder.authority), "--ssl-certfile", str(folder.server)]
    argv += ["--ssl-keyfile", str(folder.server_key), "--enable-supernode-auth", "--host", host, "--port", str(port)]
    argv += ["--database", str(folder.database)]
    return Program(tuple(argv), _environment(state / "home", _LOOKS_FOR_RUN_S))


def supernode(folder: DeployFolder, settings: NodeSettings, port: int, trusted: Path | None = None) -> Program:
    """`flower-supernode` for one site; `port` is where its own programs find it, on this machine alone.

    `trusted`: the file of the keys whose bundles it runs; without, it runs any.
    """
    state = folder.node_state(settings.name)
    argv = ["flower-supernode", "--root-certificates", str(folder.authority), "--superlink", settings.superlink]
    argv += ["--auth-supernode-private-key", str(folder.node_key(settings.name)), "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--node-config", config_text(settings.node_config(state / "clients"))]
    if trusted is not None:
        argv += ["--trusted-entities", str(trusted)]
    environment = _environment(state / "home", _LOOKS_FOR_MESSAGE_S)
    if settings.gpus not in (None, "all"):
        environment["CUDA_VISIBLE_DEVICES"] = "" if settings.gpus == "none" else str(settings.gpus)
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi numbers them; CUDA itself begins with the best
    return Program(tuple(argv), environment)


def flwr(folder: DeployFolder, *words: str) -> Program:
    """`flwr`, for the SuperLink of the folder's profile."""
    return Program(("flwr", *words, PROFILE), flower_environment(folder.cli_home))


def _environment(home: Path, looks_s: float) -> dict[str, str]:
    """Of a program that starts others. These read the app from `home`, and find there what an earlier one compiled."""
    environment = {**flower_environment(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(looks_s)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def config_text(values: Mapping[str, str]) -> str:
    """Values as `flower-supernode --node-config` reads them, whatever they hold.

    Flower takes a value up to the next quote of the same kind and reads it as TOML: so a quote inside is an escape.
    """
    return " ".join(f'{key}="{_escaped(value)}"' for key, value in values.items())


def _escaped(value: str) -> str:
    plain = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022")
    return plain.replace("\x7f", "\\u007f")


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def local_address(host: str, port: int) -> str:
    """Where a server that binds `host` is reached from this machine."""
    return joined(_EVERY_INTERFACE.get(host, host), port)


def joined(host: str, port: int) -> str:
    """``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parted(address: str, where: str) -> tuple[str, int]:
    """The host and port of ``host:port``. Raises Refused."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16 or "/" in host:
        raise Refused(f"{address!r} is no address", where, "expected HOST:PORT, such as fl.example.org:8000")
    return host.strip("[]"), int(port)


def check_gpus(gpus: str | None) -> str | None:
    """Which GPUs a node may see: `all`, `none`, or their numbers or names as nvidia-smi lists them. Raises Refused."""
    if gpus is not None and gpus not in ("all", "none") and not re.fullmatch(f"{_GPU}(,{_GPU})*", gpus):
        raise Refused(f"GPUs {gpus!r}", "--gpus", "expected all, none, or numbers such as 0,1")
    return gpus

"""Profiles of ``pyproject-flower.toml``: which SuperLink a run goes to, and how a simulation is laid out.

Flower reads its connections from ``$FLWR_HOME/config.toml`` and takes federation settings on the command line. A
profile is one named pair of both, kept under version control; this module reads it, checks it and renders it.
"""

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from fl_app.bundle import project_file
from fl_app.caller import set_caller
from fl_app.errors import Refused, suggestion

PROFILE_FILE = "pyproject-flower.toml"
_NOTED = "profile.json"  # in the folder of a run

# Flower's addresses for a SuperLink that it manages itself; we start our own for both (fl_app/superlink.py).
_LOCAL_ADDRESSES = frozenset({":local:", ":local-in-memory:"})

_CONNECTION_TYPES: Mapping[str, type] = {
    "address": str,
    "root-certificates": str,
    "insecure": bool,
    "federation": str,
}
GPUS_EACH = "client-resources-num-gpus"
"""Of one worker of a simulation; a part of one is shared with others."""
# The fields of Flower's SimulationConfig message.
_FEDERATION_TYPES: Mapping[str, type] = {
    "num-supernodes": int,
    "client-resources-num-cpus": int,
    GPUS_EACH: float,
    "backend": str,
    "verbose": bool,
    "init-args-num-cpus": int,
    "init-args-num-gpus": int,
    "init-args-logging-level": str,
    "init-args-log-to-driver": bool,
}
_AT_LEAST_ONE = frozenset({"num-supernodes", "client-resources-num-cpus", "init-args-num-cpus"})

Settings = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Profile:
    """A SuperLink connection and the federation settings that go with it."""

    name: str
    connection: Settings
    federation: Settings
    folder: Path = Path()
    """That of its file, at a deployment also of certificates, keys and signatures; else where relative paths start."""

    @property
    def is_local(self) -> bool:
        """Whether the run is a simulation on a SuperLink of its own."""
        return self.connection["address"] in _LOCAL_ADDRESSES

    def with_num_supernodes(self, num_supernodes: int) -> "Profile":
        """The same profile with another number of simulated nodes.

        Raises Refused for a number below 1, and for a deployment, whose nodes are the machines that joined it.
        """
        if not self.is_local:
            what = f"a number of nodes ({num_supernodes}) for a deployment"
            raise Refused(what, f"profile {self.name}", "its nodes are the SuperNodes that joined it; leave it out")
        if num_supernodes < 1:
            raise Refused(f"{num_supernodes} nodes", f"profile {self.name}", "give a number of at least 1")
        return replace(self, federation={**self.federation, "num-supernodes": num_supernodes})


def chosen_profile(
    name: str | None, nodes: int | None, folder: Path, profiles: Path | None = None, resume: Path | None = None
) -> Profile:
    """The profile of a run that is started from ``folder``, with another number of nodes where one is given.

    ``profiles`` is the folder of its file, where that is not ``folder``. ``resume`` is the folder of a run to go on
    with: where no profile is named, it goes on where it was. A simulation may import from ``folder`` what the run names
    as ``module:Attr``; a deployment's nodes import what is installed there.
    """
    if resume is not None and name is None and profiles is None and (noted := resume.expanduser() / _NOTED).is_file():
        told = json.loads(noted.read_text(encoding="utf-8"))
        name, profiles = str(told["name"]), Path(str(told["folder"]))
    if profiles is not None and not (profiles.expanduser() / PROFILE_FILE).is_file():
        raise Refused(f"no {PROFILE_FILE}", f"--profiles {profiles}", "name its folder; fl-app deploy init writes one")
    profile = load_profile(name, folder if profiles is None else profiles.expanduser().absolute())
    if profile.is_local:
        set_caller(folder)
    return profile if nodes is None else profile.with_num_supernodes(nodes)


def note_profile(profile: Profile, run: Path) -> None:
    """Write into the folder of a run where it takes place, for those who resume it. A simulation takes place here."""
    if not profile.is_local:
        told = {"name": profile.name, "folder": str(profile.folder)}
        (run / _NOTED).write_text(json.dumps(told), encoding="utf-8")


def load_profile(name: str | None, folder: Path) -> Profile:
    """The profile ``name``, or the default one for None, from ``folder`` or else from the project itself.

    Relative paths in a profile start at ``folder``. Raises Refused (a ValueError) that names the file and the remedy
    for an unknown profile, an unknown or missing key and a value of the wrong type.
    """
    files = [path for path in (folder / PROFILE_FILE, project_file(PROFILE_FILE)) if path.is_file()]
    tables = {path: _read(path) for path in files}
    if name is None:
        name = _default(tables)
    for path, table in tables.items():
        if isinstance(connection := table["superlink"].get(name), dict):
            where = f"[superlink.{name}] of {path}"
            _check(connection, _CONNECTION_TYPES, where)
            if "address" not in connection:
                raise Refused("no address", where, "give address = 'HOST:PORT', or ':local:' for a simulation")
            federation = table["federation"].get(name, {})
            _check(federation, _FEDERATION_TYPES, f"[federation.{name}] of {path}")
            return Profile(name, _with_absolute_paths(connection, folder), federation, folder)
    known = [key for table in tables.values() for key, value in table["superlink"].items() if isinstance(value, dict)]
    raise Refused(f"unknown profile {name!r}", _names(tables), suggestion(name, set(known)))


def flower_config(profile: Profile, address: str | None = None) -> str:
    """Flower's ``config.toml`` with this one connection as its default.

    ``address`` (``host:port``) is that of a SuperLink on this machine, reached without TLS; None keeps the profile's.
    """
    connection = dict(profile.connection) if address is None else {"address": address, "insecure": True}
    return tomli_w.dumps({"superlink": {"default": profile.name, profile.name: connection}})


def federation_config(profile: Profile, cores: int | None = None) -> str:
    """The value for ``--federation-config``; empty when the profile sets nothing.

    Ray starts one worker for every ``client-resources-num-cpus`` of the cores that it is given, by default all of them:
    32 processes on a 32-core machine for two nodes. So a simulation gives it one worker a node, and no more than fit on
    the machine, but at least one; ``cores`` is the machine's size (None: what this process may use).
    """
    settings = dict(profile.federation)
    if profile.is_local and "init-args-num-cpus" not in settings:
        cores = cores or _usable_cores()
        cores_each = int(settings.get("client-resources-num-cpus", 2))  # 2 is Flower's default
        workers = min(int(settings.get("num-supernodes", 2)), max(1, cores // cores_each))
        settings["init-args-num-cpus"] = workers * cores_each
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer than the machine's in a container with a CPU set
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused("no valid TOML", str(path), str(error)) from error
    for section in ("superlink", "federation"):
        if not isinstance(table.setdefault(section, {}), dict):
            raise Refused(f"{section} is no table", str(path), f"write a section such as [{section}.simulation]")
    return table


def _default(tables: Mapping[Path, Mapping[str, Mapping[str, Any]]]) -> str:
    for table in tables.values():
        if isinstance(default := table["superlink"].get("default"), str):
            return default
    raise Refused("no default profile", _names(tables), "name one, or set default = 'NAME' under [superlink]")


def _check(settings: object, types: Mapping[str, type], where: str) -> None:
    if not isinstance(settings, dict):
        raise Refused("no table", where, "write KEY = VALUE lines below it")
    for key, value in settings.items():
        if key not in types:
            raise Refused(f"unknown key {key!r}", where, f"{suggestion(key, types)}; allowed: {', '.join(types)}")
        expected = types[key]
        accepted = (int, float) if expected is float else (expected,)
        if type(value) not in accepted:
            raise Refused(f"{key} = {value!r}", where, f"give a value of type {expected.__name__}")
        if key in _AT_LEAST_ONE and value < 1:
            raise Refused(f"{key} = {value!r}", where, "give a number of at least 1")
        if key == GPUS_EACH and not (0 <= value <= 1 or (value > 1 and value % 1 == 0)):
            raise Refused(f"{key} = {value!r}", where, "give a part of a GPU, such as 0.25, or a whole number")


def _with_absolute_paths(connection: Settings, folder: Path) -> Settings:
    if "root-certificates" not in connection:
        return connection
    certificates = folder / Path(str(connection["root-certificates"])).expanduser()
    return {**connection, "root-certificates": str(certificates.absolute())}


def _names(paths: Iterable[Path]) -> str:
    return " and ".join(str(path) for path in paths)

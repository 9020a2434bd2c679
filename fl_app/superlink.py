"""A SuperLink of our own for one run: its own FLWR_HOME, a free port, and nothing left of it afterwards."""

import contextlib
import http.client
import os
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from fl_app.caller import CALLER
from fl_app.kept_process import KeptProcess

_READY_TIMEOUT_S = 60.0
_POLL_S = 0.03
_MAX_PORTS = 5

# Ray's Unix sockets lie 87 characters below this folder, and the kernel allows 107 for the whole path.
_MAX_TEMP_FOLDER_LENGTH = 20

# The C library of Linux hands freed memory back to the system, which has to map and clear every page anew for the next
# client's gradients and for the next message. The processes of a simulation keep up to 256 MiB of it instead, in one
# heap, so that arrays of up to 32 MiB find the pages of those before them. Other systems do not look at these names.
_FREED_MEMORY: Mapping[str, str] = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

# A run is lost with any of these. The kernel keeps 15 characters of a name.
_VITAL_PROCESSES: Mapping[str, str] = {
    name[:15]: name for name in ("flower-superlink", "flower-superexec", "flwr-simulation")
}


class SuperLinkError(RuntimeError):
    """The SuperLink did not start; the message says why."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder with a short path, removed at the end with all that is in it."""
    root = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="fl-app-", dir=root if len(root) <= _MAX_TEMP_FOLDER_LENGTH else "/tmp"))  # noqa: S108 - mkdtemp makes it private
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def flower_environment(home: Path, caller: Path | None = None) -> dict[str, str]:
    """The environment for a Flower program with ``home`` as its FLWR_HOME.

    Flower finds its other programs on the PATH, so the ones installed with this Python come first. It must not install
    packages, call home or look for updates; Ray neither, nor join a cluster of the user's. Ray listens on every network
    interface and would run anybody's code: a token that is drawn here keeps all others out. ``caller`` is the folder
    from which a simulation may import what the run names as ``module:Attr``.
    """
    environment = {
        **os.environ,
        **loopback_without_proxy(),
        "PATH": os.pathsep.join([str(_scripts_folder()), os.environ.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # 1 s by default, all of it start-up time; 0.1 takes 7 % of a core
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_prestart_worker_first_driver": "0",  # Flower's workers have a runtime env: prestarted ones are thrown away
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers without GPUs of their own see all; silences a warning
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", CALLER):
        environment.pop(name, None)
    return environment if caller is None else {**environment, CALLER: str(caller)}


def loopback_without_proxy() -> dict[str, str]:
    """What to set so that HTTP clients do not go through a web proxy to this very machine.

    Flower's would: a proxy cannot reach it, and would be shown, in plain HTTP, what is meant to stay here.
    """
    known = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).split(",")
    direct = dict.fromkeys(filter(None, [*known, "localhost", "127.0.0.1", "::1"]))
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(direct))


def _scripts_folder() -> Path:
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / "flower-superlink").is_file():
            return folder
    raise SuperLinkError(f"flower-superlink is not installed beside {sys.executable}: pip install 'flwr[simulation]'")


class LocalSuperLink:
    """A SuperLink in simulation mode on a free loopback port, with a FLWR_HOME of its own.

    Entering starts it and returns at once; ``wait_until_ready`` follows. Leaving ends everything that it started. The
    port is open to this machine only, but to all its users, as Flower offers no authentication there.
    """

    def __init__(self, port: int | None = None) -> None:
        """``port`` is tried first; by default, and when it is taken, the system chooses one."""
        self._port = _free_port() if port is None else port
        self._cleanup = contextlib.ExitStack()
        self._vital: dict[int, str] = {}  # by pid: those seen alive

    def __enter__(self) -> Self:
        self.home = self._cleanup.enter_context(scratch_folder())
        self.log_path = self.home / "superlink.log"
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def address(self) -> str:
        """``host:port`` of its API."""
        return f"127.0.0.1:{self._port}"

    def wait_until_ready(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until this SuperLink, and no other process, answers on the port; False when ``give_up()`` became true.

        A port that someone else took meanwhile is given up for another. Raises SuperLinkError when the SuperLink ends
        or takes too long.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        ports_left = _MAX_PORTS - 1
        while not (self._owns_port() and self._is_healthy()):
            if give_up():
                return False
            if self._kept.exit_status() is not None:
                if not ports_left or _is_free(self._port):
                    raise SuperLinkError(f"the SuperLink ended at its start: {self._last_log_line()}")
                ports_left -= 1
                self._port = _free_port()
                self._start()
            if time.monotonic() > deadline:
                raise SuperLinkError(f"the SuperLink took over {_READY_TIMEOUT_S:.0f} s: {self._last_log_line()}")
            time.sleep(_POLL_S)
        return True

    def lost_process(self) -> str | None:
        """The name of a process that the run cannot do without and that has ended; None while all is well."""
        alive = {process.pid: process.name for process in self._kept.tree() if not process.is_dead}
        for pid, name in self._vital.items():
            if pid not in alive:
                return name
        self._vital |= {pid: _VITAL_PROCESSES[name] for pid, name in alive.items() if name in _VITAL_PROCESSES}
        return None

    def _start(self) -> None:
        command = [str(_scripts_folder() / "flower-superlink"), "--insecure", "--simulation"]
        command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(self._port)]
        environment = {**_FREED_MEMORY, **flower_environment(self.home, caller=Path.cwd())}
        kept = KeptProcess(command, env=environment, log_path=self.log_path, scratch=self.home)
        self._kept = self._cleanup.enter_context(kept)

    def _owns_port(self) -> bool:
        return any(_listens(process.pid, self._port) for process in self._kept.tree())

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_log_line(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # our own closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _listens(pid: int, port: int) -> bool:
    """Whether the process listens on the TCP port. Without /proc this cannot be told and is taken for granted."""
    if not Path("/proc/net/tcp").exists():
        return True
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    with contextlib.suppress(OSError):  # ended meanwhile
        return any(str(handle.readlink()) in listening for handle in Path(f"/proc/{pid}/fd").iterdir())
    return False

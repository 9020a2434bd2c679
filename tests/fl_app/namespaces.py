"""Machines within this one: network namespaces on one bridge, each with an address and loopback of its own.

Needs root and `ip` (iproute2). Everything lies in the namespaces, so that nothing of this machine's network changes;
`/etc/netns/NAME/hosts` is the hosts file of a namespace, which `ip netns exec` puts in its place.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

HOSTS = Path("/etc/netns")
_RUN = Path("/run/netns")
BRIDGE = "br0"
_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}

# Every frame of an interface, as the kernel hands it over, behind its length in four bytes, to standard output.
# Asked to end it says how many frames came too fast.
_CAPTURE = """
import signal, socket, struct, sys
BUFFER_BY_FORCE, PACKET, STATISTICS = 33, 263, 6
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
frames.setsockopt(socket.SOL_SOCKET, BUFFER_BY_FORCE, 2**26)
frames.bind((sys.argv[1], 0))
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("capturing", file=sys.stderr, flush=True)
try:
    while True:
        frame = frames.recv(2**17)
        sys.stdout.buffer.write(len(frame).to_bytes(4, "big") + frame)
finally:
    print(struct.unpack("II", frames.getsockopt(PACKET, STATISTICS, 8))[1], file=sys.stderr)
"""


class NotAllowed(Exception):
    """There can be no namespaces here; says why."""


@dataclass(frozen=True)
class Machine:
    """One namespace."""

    name: str
    namespace: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command line that runs there; its process is the program itself."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def python(self, code: str, *arguments: str) -> str:
        """What a few lines of Python print there."""
        command = self.command(sys.executable, "-c", code, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    @contextlib.contextmanager
    def captured(self, interface: str, path: Path) -> Iterator[None]:
        """All that passes an interface meanwhile, in a file that is whole afterwards."""
        with path.open("wb") as file:
            command = self.command(sys.executable, "-c", _CAPTURE, interface)
            capture = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
            try:
                assert capture.stderr is not None
                assert capture.stderr.readline() == b"capturing\n"
                yield
            finally:
                capture.terminate()
                lost = capture.communicate(timeout=30)[1]
        assert lost == b"0\n"


@contextlib.contextmanager
def machines(names: Sequence[str], hosts: dict[str, str]) -> Iterator[dict[str, Machine]]:
    """Machines of these names that reach one another; `hosts` says which of them has which host name.

    What they send to any other address comes as far as the bridge. At the end their processes are killed and they are
    gone. Raises NotAllowed.
    """
    token = secrets.token_hex(3)
    made = {name: Machine(name, f"fl-{token}-{name}", f"10.77.0.{number}") for number, name in enumerate(names, 1)}
    first, *others = made.values()
    known = "".join(f"{made[name].address} {host}\n" for host, name in hosts.items())
    with contextlib.ExitStack() as cleanup:
        for machine in made.values():
            _ip("netns", "add", machine.namespace)
            cleanup.callback(_remove, machine)
            _ip("-n", machine.namespace, "link", "set", "lo", "up")
            _write_hosts(machine, f"127.0.0.1 localhost\n::1 localhost\n{known}")
        _ip("-n", first.namespace, "link", "add", BRIDGE, "type", "bridge")
        _up(first, BRIDGE)
        for other in others:
            peer = ["peer", "name", "eth0", "netns", other.namespace]
            _ip("-n", first.namespace, "link", "add", other.name, "type", "veth", *peer)
            _ip("-n", first.namespace, "link", "set", other.name, "master", BRIDGE, "up")
            _up(other, "eth0")
        yield made


def _up(machine: Machine, interface: str) -> None:
    _ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", interface)
    _ip("-n", machine.namespace, "link", "set", interface, "up")
    _ip("-n", machine.namespace, "route", "add", "default", "dev", interface)


def _ip(*words: str) -> str:
    if (program := shutil.which("ip")) is None:
        raise NotAllowed("ip (iproute2) is not installed")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise NotAllowed(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _write_hosts(machine: Machine, text: str) -> None:
    try:
        (HOSTS / machine.namespace).mkdir(parents=True)
        (HOSTS / machine.namespace / "hosts").write_text(text)
    except OSError as error:
        raise NotAllowed(str(error)) from error


def _remove(machine: Machine) -> None:
    """The processes in a namespace are all its own; the other end of its interface goes with it."""
    while pids := _ip("netns", "pids", machine.namespace).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
    _ip("netns", "del", machine.namespace)
    shutil.rmtree(HOSTS / machine.namespace, ignore_errors=True)
    with contextlib.suppress(OSError):  # of other namespaces
        HOSTS.rmdir()


def addressed(capture: bytes) -> set[str]:
    """The IPv4 addresses that frames of a capture are for, or that somebody asks for (ARP)."""
    found, start = set(), 0
    while start < len(capture):
        end = start + 4 + int.from_bytes(capture[start : start + 4], "big")
        frame = capture[start + 4 : end]
        where = {b"\x08\x00": 30, b"\x08\x06": 38}.get(frame[12:14])
        if where is not None:
            found.add(str(ip_address(frame[where : where + 4])))
        start = end
    return found


class Watch(threading.Thread):
    """Looks at all processes of some machines, five times a second: what they tell of themselves, what listens."""

    def __init__(self, network: dict[str, Machine]) -> None:
        super().__init__(daemon=True)
        self.told: set[bytes] = set()
        """The arguments and the environment of every process."""
        self.listening: dict[str, set[tuple[str, int]]] = {name: set() for name in network}
        """By machine: addresses and ports, over TCP or UDP."""
        self._names = {(_RUN / machine.namespace).stat().st_ino: name for name, machine in network.items()}
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it has ended
                    if (name := self._names.get((process / "ns" / "net").stat().st_ino)) is not None:
                        self.told |= {(process / what).read_bytes() for what in ("cmdline", "environ")}
                        self.listening[name] |= _listening(process)

    def stop(self) -> None:
        """No more is looked at."""
        self._over.set()
        self.join()


def _listening(process: Path) -> set[tuple[str, int]]:
    """In the namespace of a process."""
    found = set()
    for kind, state in _LISTENING.items():
        for line in (process / "net" / kind).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == state and fields[2].endswith(":0000"):
                found.add((str(_address(address)), int(port, 16)))
    return found


def _address(text: str) -> object:
    """Words of 32 bits, each in the byte order of this machine."""
    words = [int(text[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(text), 8)]
    return ip_address(b"".join(words))

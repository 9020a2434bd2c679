"""Which process runs what, so that another command can find it, and never take another process for it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.deploy.failure import Failed
from fl_app.errors import Refused
from fl_app.run_folder import write_atomically

_NAME = "running.json"
_STOP_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 15.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Record:
    """A process, by its number and by when it began: numbers are given again. `about`: what it runs."""

    pid: int
    began: str
    about: Mapping[str, Any]

    def is_alive(self) -> bool:
        """Whether this very process runs."""
        return _began(self.pid) == self.began


def read_record(state: Path) -> Record | None:
    """The process of a state folder; None where none was recorded, or it can no longer be told which."""
    try:
        content = json.loads((state / _NAME).read_text(encoding="utf-8"))
        return Record(int(content["pid"]), str(content["began"]), dict(content["about"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def recorded(state: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Record this process for as long as it runs something. Raises Refused where another one does."""
    earlier = read_record(state)
    if earlier is not None and earlier.is_alive():
        what = f"it runs already, as process {earlier.pid}"
        raise Refused(what, str(state), f"stop it with fl-app deploy stop, or kill {earlier.pid}")
    mine = Record(os.getpid(), _began(os.getpid()) or "", about)
    content = {"pid": mine.pid, "began": mine.began, "about": dict(about)}
    write_atomically(state / _NAME, json.dumps(content).encode())
    try:
        yield
    finally:
        (state / _NAME).unlink(missing_ok=True)


def stop(state: Path) -> bool:
    """End the process of a state folder, and by that all that it started; False where none runs.

    Raises Failed where it does not end, or belongs to another user.
    """
    record = read_record(state)
    if record is None or not record.is_alive():
        (state / _NAME).unlink(missing_ok=True)
        return False
    for number, timeout_s in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, _KILL_TIMEOUT_S)):
        try:
            os.kill(record.pid, number)
        except ProcessLookupError:
            return True
        except PermissionError as error:
            raise Failed(f"process {record.pid} is another user's", str(state), "stop it as that user") from error
        deadline = time.monotonic() + timeout_s
        while record.is_alive() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not record.is_alive():
            (state / _NAME).unlink(missing_ok=True)
            return True
    raise Failed(f"process {record.pid} does not end", str(state), "it hangs in the kernel: a network disk?")


def _began(pid: int) -> str | None:
    """When a process began, in a form that no other process of this number shares; None where there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            state, *fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return None if state in "ZX" else f"{boot} {fields[18]}"
    command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a number
    return done.stdout.strip() or None

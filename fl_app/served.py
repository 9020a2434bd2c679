"""Whether a ServerApp is writing in the folder of a run: a lock that goes with its process, however that ends.

In a deployment the ServerApp is no child of the command that wanted the run, and may outlive it.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_app.errors import Refused

if sys.platform != "win32":
    import fcntl

_LOCK = ".served"
_STOPPED_WITHIN_S = 10.0  # a ServerApp that was stopped notices it when it next asks for replies
_LOOK_S = 0.1


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock file, unless another process does; whether it is held here."""
    with path.open("ab") as file:
        mine = True
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                mine = False
        yield mine


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for a ServerApp. One that was stopped is waited for.

    Raises Refused where another ServerApp goes on writing.
    """
    deadline = time.monotonic() + _STOPPED_WITHIN_S
    while time.monotonic() < deadline:
        with held(folder / _LOCK) as mine:
            if mine:
                yield
                return
        time.sleep(_LOOK_S)
    remedy = "wait for its end, or stop it at the SuperLink: flwr stop, with the run's number in flower.log"
    raise Refused("the run is still going on", str(folder), remedy)


def is_served(folder: Path) -> bool:
    """Whether a ServerApp on this machine is writing there."""
    if not (folder / _LOCK).exists():
        return False
    with held(folder / _LOCK) as free:
        return not free

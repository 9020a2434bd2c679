"""A program and everything it starts, certain to end with the process that wanted it.

``flower-superlink`` grows a tree: superexec (in a session of its own), flwr-simulation, Ray's gcs_server and raylet,
Ray's agents and workers. No mark on these processes survives: superexec leaves the process group, orphans change their
parent, and Ray's workers write their title over the memory that ``/proc/PID/environ`` shows. What survives is descent,
if one process adopts the orphans. So each tree has a *keeper*: this file, run as a script. On Linux it makes itself the
reaper of its orphans (PR_SET_CHILD_SUBREAPER), waits for its standard input to close, then kills every descendant and
waits until the kernel says that it has no child left. Its own end is therefore the proof that nothing is left.

- The owner ends the tree through that pipe. Nothing in the tree needs a grace period (state is in memory or scratch,
  what the app writes is written atomically), so it takes milliseconds where Flower's own way takes up to 9 s.
- When the owner dies, by kill -9 too, the kernel closes the pipe and the same happens; the keeper then removes the
  scratch folder in its place.
- When the keeper itself is killed with -9, the kernel kills the program; Flower's parent monitors and Ray's fate
  sharing end the rest within seconds, without a guarantee.
- On systems without subreapers (macOS) processes whose parent died before the end are not found.

As a script this file imports the standard library only and starts in about 20 ms.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.03


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    parent: int
    is_dead: bool  # a zombie: ended, and not yet waited for by its parent
    name: str


def descendants(pid: int) -> list[Process]:
    """The processes below ``pid``, at any depth, parents before children."""
    children: dict[int, list[Process]] = {}
    for process in _process_table():
        children.setdefault(process.parent, []).append(process)
    found = list(children.get(pid, ()))
    for process in found:  # grows while we go
        found.extend(children.get(process.pid, ()))
    return found


def _process_table() -> Iterator[Process]:
    if not Path("/proc/self/stat").exists():
        yield from _process_table_of_ps()
        return
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                head, _, tail = (folder / "stat").read_text(errors="replace").rpartition(")")
                state, parent, *_ = tail.split()
                yield Process(int(folder.name), int(parent), state in "ZX", head.partition("(")[2])


def _process_table_of_ps() -> Iterator[Process]:
    command = ["/bin/ps", "-A", "-o", "pid=,ppid=,state=,comm="]
    listing = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603 - constant
    for line in listing.splitlines():
        pid, parent, state, name = line.split(maxsplit=3)
        yield Process(int(pid), int(parent), state.startswith("Z"), name.rpartition("/")[2][:15])


class KeptProcess:
    """A program whose whole process tree ends with this object's context, or with this process.

    It runs in a session of its own, so that a terminal's Ctrl-C does not reach it. Its output is appended to
    ``log_path``. ``scratch`` is a folder that the keeper removes if this process dies and so cannot do it.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log_path: Path, scratch: Path) -> None:
        keeper = [sys.executable, "-I", "-S", __file__, str(scratch), *argv]
        with log_path.open("ab") as log:
            self._keeper = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                keeper, env=dict(env), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def exit_status(self) -> int | None:
        """The program's exit status, as a shell tells it: 128 + N for signal N. None while it runs."""
        return self._keeper.poll()

    def tree(self) -> list[Process]:
        """The processes of the program, itself first; empty when it has ended."""
        return descendants(self._keeper.pid)

    def stop(self) -> None:
        """Kill the tree and wait for its end; may be called again.

        Raises subprocess.TimeoutExpired when the kernel cannot end a process, such as one that hangs in a network disk.
        """
        pipe = self._keeper.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            if pipe is not None and not pipe.closed:
                pipe.write(b"\n")  # a fork of this process may hold the pipe open, so closing alone might not tell
                pipe.close()
        self._keeper.wait(_STOP_TIMEOUT_S)


def keep(scratch: Path, argv: Sequence[str]) -> int:
    """Run ``argv`` until it ends or a byte or the end of standard input comes; then kill all that descends from us.

    The end without a byte means that the owner died: then ``scratch`` is removed too. Returns the exit status of
    ``argv``, or 128 + the number of the signal that ended it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)  # a handler, as an ignored signal would stay ignored in the program
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    stdin = sys.stdin.fileno()
    owner_died = False
    try:
        program = subprocess.Popen(  # noqa: S603 - the owner's command line, no shell
            argv,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - we have one thread
        )
        while not select.select([stdin], [], [], _POLL_S)[0]:
            while ended := _reap():
                if ended[0] == program.pid:
                    status = os.waitstatus_to_exitcode(ended[1])
                    return status if status >= 0 else 128 - status
        owner_died = not os.read(stdin, 1)
        return 128 + signal.SIGKILL
    finally:
        _kill_descendants()
        if owner_died:
            shutil.rmtree(scratch, ignore_errors=True)


def _exit(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _reap() -> tuple[int, int] | None:
    """The pid and wait status of a child that ended, if one did: the program or an adopted orphan."""
    pid, status = os.waitpid(-1, os.WNOHANG)
    return (pid, status) if pid else None


def _kill_descendants() -> None:
    while True:
        for process in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # what was forked meanwhile becomes our child as its parent dies: look again after each
        except ChildProcessError:
            return


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), sys.argv[2:]))

"""A program of Flower in the foreground: started, said to be ready, ended with all that it started."""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_app.deploy.failure import Failed
from fl_app.deploy.programs import Program
from fl_app.deploy.records import recorded
from fl_app.kept_process import KeptProcess
from fl_app.signals import Terminated, sigterm_raises
from fl_app.superlink import scratch_folder

_POLL_S = 0.1
# uvicorn waits for open requests, a SuperNode tells the SuperLink that it goes.
_GRACE_S = 15.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

IsReady = Callable[[str], bool]
"""Whether the program serves; gets what it has logged so far."""
GivesUp = Callable[[str], bool]
"""Whether a line of its log says that the program has given up, though it goes on running."""
Explain = Callable[[str, int], Failed]
"""The error for a program that ended by itself: from what it logged and its exit status."""


def run_until_stopped(
    program: Program,
    state: Path,
    log_path: Path,
    *,
    about: Mapping[str, Any],
    is_ready: IsReady,
    on_ready: Callable[[], None],
    explain: Explain,
    gives_up: GivesUp = lambda line: False,
) -> None:
    """Run it until Ctrl-C or SIGTERM, or until it ends or gives up; no process is left then.

    It is asked to end first and killed after a while. Should this process be killed, the kernel ends the program.
    Raises Refused where it runs already, and what `is_ready` raises or `explain` makes of an end that nobody wanted.
    """
    began = log_path.stat().st_size if log_path.exists() else 0
    with sigterm_raises(), recorded(state, about), scratch_folder() as scratch:
        kept = KeptProcess(program.argv, env=program.environment, log_path=log_path, scratch=scratch)
        with kept:
            try:
                _wait(kept, lambda: is_ready(_logged(log_path, began)))
                if kept.exit_status() is None:
                    on_ready()
                lines = _NewLines(log_path)
                _wait(kept, lambda: any(map(gives_up, lines.read())))
            except (KeyboardInterrupt, Terminated):
                _ask_to_end(kept)
                return
            raise explain(_logged(log_path, began), kept.exit_status() or 0)


def _wait(kept: KeptProcess, until: Callable[[], bool]) -> None:
    """Until it is true or the program has ended."""
    while kept.exit_status() is None and not until():
        time.sleep(_POLL_S)


def _ask_to_end(kept: KeptProcess) -> None:
    tree = kept.tree()
    if tree:
        os.kill(tree[0].pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    _wait(kept, lambda: time.monotonic() > deadline)


class _NewLines:
    """What is appended to a log from now on."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, path.stat().st_size

    def read(self) -> list[str]:
        """The whole lines since the last call. A log that was cut meanwhile is read on from its end."""
        with self._path.open("rb") as log:
            self._seen = min(self._seen, log.seek(0, os.SEEK_END))
            log.seek(self._seen)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._seen += len(whole)
        return whole.decode(errors="replace").splitlines()


def _logged(path: Path, began: int) -> str:
    with path.open("rb") as log:
        log.seek(began)
        return _COLOUR.sub("", log.read().decode(errors="replace"))


def last_words(text: str) -> str:
    """The line that says most of why a program ended: of its own error report, else its last one."""
    if report := re.search(r"Exit Code: \d+\s+(.+(?:\n.+)?)", text):
        return " ".join(report[1].split())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it logged nothing"

"""SIGINT and SIGTERM, the two signals that interrupt a run: counted while Flower runs it, raised where it runs here."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

Interruption = Literal["SIGINT", "SIGTERM"]

INTERRUPTED_STATUS: dict[Interruption, int] = {"SIGINT": 130, "SIGTERM": 143}
"""The exit status of a run that a signal interrupted."""


class StopSignals:
    """Counts SIGINT and SIGTERM instead of obeying them, and restores the previous handlers at the end.

    Outside the main thread, where Python allows no handlers, and for a signal that this process was told to ignore,
    nothing changes.
    """

    def __init__(self) -> None:
        self.first: Interruption | None = None
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def came(self) -> bool:
        """Whether the run is to stop."""
        return self.count > 0

    def _note(self, number: int, _frame: object) -> None:
        self.count += 1
        if self.first is None:
            self.first = "SIGINT" if number == signal.SIGINT else "SIGTERM"


class Terminated(BaseException):
    """SIGTERM, raised where the main thread is: like KeyboardInterrupt, no error handler may swallow it."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turns SIGTERM into Terminated; outside the main thread, where Python allows no handlers, nothing changes."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

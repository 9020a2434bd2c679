"""Calls with a deadline, so that one client that hangs costs its own update and not its neighbours'."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Outcome = tuple[Any, BaseException | None]


class Worker:
    """Runs calls one after the other on a thread of its own.

    A call that overruns is abandoned: Python cannot stop it, so its thread is left behind as a daemon, which does not
    keep the process alive, and a new one takes the next call.
    """

    def __init__(self) -> None:
        self._calls, self._outcomes = self._new_thread()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """function(), or the exception it raises; TimeoutError after `timeout_s`.

        A call to sys.exit() is a RuntimeError: it ends the call, not the process.
        """
        self._calls.put(function)
        try:
            result, error = self._outcomes.get(timeout=max(0.0, timeout_s))
        except Empty:
            self._calls.put(None)  # ends the thread if the call ever returns
            self._calls, self._outcomes = self._new_thread()
            raise TimeoutError(f"not done after {timeout_s:.1f} s") from None
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RuntimeError(f"{type(error).__name__} in a call") from error
        return result  # type: ignore[no-any-return]  # what function() returned

    @staticmethod
    def _new_thread() -> "tuple[SimpleQueue[Callable[[], Any] | None], SimpleQueue[Outcome]]":
        calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        outcomes: SimpleQueue[Outcome] = SimpleQueue()

        def serve() -> None:
            while (function := calls.get()) is not None:
                try:
                    outcomes.put((function(), None))
                except BaseException as error:
                    outcomes.put((None, error))

        threading.Thread(target=serve, name="client", daemon=True).start()
        return calls, outcomes

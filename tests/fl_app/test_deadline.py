"""A deadline for one client: the call ends in time, whatever the client does, and the next one is served."""

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fl_app.deadline import Worker


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Open at the end of a test at the latest, so that no thread stays behind."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_the_result_of_a_call_comes_back() -> None:
    with Worker() as worker:
        assert [worker.call(lambda n=n: n**2, 5.0) for n in range(5)] == [0, 1, 4, 9, 16]
        assert worker.call(lambda: None, 5.0) is None


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), TimeoutError("its own")])
def test_what_a_call_raises_comes_back_and_the_next_call_works(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with Worker() as worker:
        with pytest.raises(type(error)) as caught:
            worker.call(fail, 5.0)
        assert caught.value is error
        assert worker.call(lambda: "next", 5.0) == "next"


def test_a_call_that_exits_ends_the_call_and_not_the_process() -> None:
    with Worker() as worker:
        with pytest.raises(RuntimeError, match="SystemExit in a call"):
            worker.call(lambda: sys.exit(3), 5.0)
        assert worker.call(lambda: "next", 5.0) == "next"


def test_a_call_that_overruns_is_given_up_in_time_and_the_next_calls_work(gate: threading.Event) -> None:
    with Worker() as worker:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"not done after 0\.1 s"):
            worker.call(lambda: gate.wait(30), 0.1)
        assert 0.1 <= time.monotonic() - began < 5
        assert [worker.call(lambda n=n: n, 5.0) for n in range(3)] == [0, 1, 2]


def test_the_late_result_of_a_call_is_never_taken_for_that_of_another(gate: threading.Event) -> None:
    with Worker() as worker:
        with pytest.raises(TimeoutError):
            worker.call(lambda: gate.wait(30) and "late", 0.05)
        gate.set()
        assert {worker.call(lambda: "next", 5.0) for _ in range(20)} == {"next"}


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_without_time_left_a_call_that_takes_any_times_out(gate: threading.Event, timeout_s: float) -> None:
    with Worker() as worker, pytest.raises(TimeoutError):
        worker.call(lambda: gate.wait(30), timeout_s)


def test_calls_run_one_after_the_other_on_a_thread_that_does_not_keep_the_process_alive() -> None:
    with Worker() as worker:
        threads = {worker.call(threading.current_thread, 5.0) for _ in range(5)}
    assert len(threads) == 1
    assert threads.pop().daemon
    assert threading.current_thread() not in threads


def test_no_thread_stays_behind(gate: threading.Event) -> None:
    threads: list[threading.Thread] = []

    def hang() -> None:
        threads.append(threading.current_thread())
        gate.wait(30)

    with Worker() as worker:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                worker.call(hang, 0.2)
        threads.append(worker.call(threading.current_thread, 5.0))
        assert len(set(threads)) == 4
        assert all(thread.is_alive() for thread in threads)
        gate.set()
    for thread in threads:
        thread.join(5.0)
    assert not any(thread.is_alive() for thread in threads)

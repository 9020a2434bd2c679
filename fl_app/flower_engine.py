"""A run on Flower: submits it, follows the files that its ServerApp writes, and tells how it really ended.

``flwr run --stream`` exits 0 when the run failed, and waits for a minute or for ever when a process of a simulation was
killed. The truth is ``out/summary.json``, which the ServerApp writes as its last act; without it the logs are searched
for the reason.
"""

import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from fl_app.bundle import write_app_tree
from fl_app.flower_log import FlowerLog
from fl_app.kept_process import KeptProcess
from fl_app.profiles import Profile, federation_config, flower_config
from fl_app.served import is_served
from fl_app.signals import Interruption, StopSignals
from fl_app.superlink import LocalSuperLink, SuperLinkError, flower_environment, scratch_folder

Prepare = Callable[[], Callable[[str], None] | None]

_POLL_S = 0.05
_LOOK_S = 0.5
# A process may have reported its failure before it ended; Flower's log brings it within this time.
_LAST_WORDS_S = 3.0
_STOP_RUN_TIMEOUT_S = 9.0
_ASK_TIMEOUT_S = 60.0

_CONNECTION = "config.toml"  # of FLWR_HOME, where Flower looks for it

# Imports Flower's command line while the SuperLink starts, and obeys it once the connection is there.
_FLWR = """
import pathlib, sys, time
from flwr.cli.app import app
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
del sys.argv[1]
sys.exit(app())
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    finished: bool  # the ServerApp wrote summary.json, which says whether the run completed
    interrupted: Interruption | None = None  # a signal stopped it before
    error: str | None = None  # one line, when it neither finished nor was interrupted


def run_on_flower(
    config: Mapping[str, str | int | float | bool],
    out: Path,
    profile: Profile,
    *,
    on_line: Callable[[dict[str, Any]], None] | None,
    log_path: Path,
    prepare: Prepare = lambda: None,
) -> Outcome:
    """Run the app with ``config`` and follow the files in ``out`` until the run ends. No process is left then.

    ``on_line`` is called with every object that the ServerApp appends to ``out/rounds.jsonl``. Flower's log is appended
    to ``log_path``. SIGINT and SIGTERM stop the run, a deployment's too; afterwards their previous handlers are back.

    ``prepare`` is called before the run is submitted. The function that it returns, if any, is called with the run's
    number as soon as the SuperLink has accepted the run. A RuntimeError from either ends the run.

    Raises FileNotFoundError when the installation is incomplete, and whatever ``on_line`` raises; no process is left
    then either.
    """
    return play_on_flower(config, RunOutput(out, on_line), profile, log_path=log_path, prepare=prepare)


def play_on_flower(
    config: Mapping[str, str | int | float | bool],
    output: "Output",
    profile: Profile,
    *,
    log_path: Path,
    prepare: Prepare = lambda: None,
) -> Outcome:
    """As `run_on_flower`, for a run whose files are followed by ``output``."""
    log = FlowerLog(log_path)
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        superlink = stack.enter_context(LocalSuperLink()) if profile.is_local else None
        home = superlink.home if superlink else stack.enter_context(scratch_folder())
        arguments = _prepare(config, profile, home)
        flwr = stack.enter_context(_flwr(arguments, home, log_path))
        if superlink is None and (earlier := log.earlier_run_id()):
            # A SuperLink that was killed takes the run for running, and nodes wait for what it no longer sends them.
            stack.enter_context(_flwr(["stop", earlier, profile.name], home, home / "stop.log"))
        error = None
        try:
            if superlink is None or superlink.wait_until_ready(give_up=signals.came):
                with _preparing():
                    on_accepted = prepare()
                _connect(home, flower_config(profile, superlink.address if superlink else None))
                if on_accepted is not None and (run_id := _accepted(log, flwr, signals)):
                    with _preparing():
                        on_accepted(run_id)
                _follow(output, flwr, superlink, signals)
        except (SuperLinkError, _RunDiedError) as death:
            error = str(death)
        except _UnpreparedError as failure:
            _stop_run(output, log, profile, home, signals, _ASK_TIMEOUT_S)
            return Outcome(finished=False, error=str(failure))
        if output.is_finished():
            return Outcome(finished=True)
        if superlink is not None:
            log.append(superlink.log_path)
        reason = log.reason() or error
        if superlink is None and (signals.came() or error):
            _stop_run(output, log, profile, home, signals, _STOP_RUN_TIMEOUT_S)
        if signals.first is not None:
            return Outcome(finished=False, interrupted=signals.first)
        return Outcome(finished=False, error=reason or _no_result(profile, log, home, signals))


class _UnpreparedError(RuntimeError):
    """``prepare``, or the function that it returned, has failed."""


@contextlib.contextmanager
def _preparing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _UnpreparedError(str(error)) from error


class _RunDiedError(RuntimeError):
    """A process that the run cannot do without has ended."""


def _prepare(config: Mapping[str, str | int | float | bool], profile: Profile, home: Path) -> list[str]:
    """Write what ``flwr run`` reads into ``home``, all but the connection; returns its arguments."""
    app, run_config = home / "app", home / "run-config.toml"
    write_app_tree(app)
    # A file, as Flower's KEY=VALUE syntax has no way to write a string with both kinds of quotes.
    run_config.write_text(tomli_w.dumps(config), encoding="utf-8")
    arguments = ["run", str(app), profile.name, "--stream", "--run-config", str(run_config)]
    if federation := federation_config(profile):
        arguments += ["--federation-config", federation]
    return arguments


def _flwr(arguments: Sequence[str], home: Path, log_path: Path) -> KeptProcess:
    """Start ``flwr`` with these arguments; it begins once the connection is there."""
    # -P: no module of the caller's folder is imported; -u: the log is complete whenever we look.
    command = [sys.executable, "-P", "-u", "-c", _FLWR, str(home / _CONNECTION), *arguments]
    return KeptProcess(command, env=flower_environment(home), log_path=log_path, scratch=home)


def _connect(home: Path, connection: str) -> None:
    """Let the waiting ``flwr`` begin; it sees the whole file or none."""
    draft = home / f"{_CONNECTION}.draft"
    draft.write_text(connection, encoding="utf-8")
    draft.replace(home / _CONNECTION)


def _accepted(log: FlowerLog, flwr: KeptProcess, signals: StopSignals) -> str | None:
    """Wait until the SuperLink has accepted the run; its id, or None where that did not come about."""
    while (run_id := log.run_id()) is None and flwr.exit_status() is None and not signals.came():
        time.sleep(_POLL_S)
    return run_id


def _follow(output: "Output", flwr: KeptProcess, superlink: LocalSuperLink | None, signals: StopSignals) -> None:
    """Pass on the lines of the run until summary.json is there, ``flwr run`` has ended or a signal came.

    Raises _RunDiedError when a process that the run needs has ended and ``flwr run`` does not notice, which in a
    deployment takes it a minute.
    """
    next_look_s, lost_at_s, served = 0.0, math.inf, False
    while not (output.is_finished() or signals.came() or flwr.exit_status() is not None):
        output.pass_on()
        now_s = time.monotonic()
        if now_s >= next_look_s:
            next_look_s = now_s + _LOOK_S
            if superlink is not None:
                lost = superlink.lost_process()
            else:
                serving = output.is_served()
                served = served or serving
                lost = "the ServerApp" if served and not serving else None
            lost_at_s = min(lost_at_s, now_s) if lost else math.inf
            if now_s - lost_at_s > _LAST_WORDS_S:
                raise _RunDiedError(f"{lost} ended without a result: it was killed, or crashed")
        time.sleep(_POLL_S)
    output.pass_on()


def _stop_run(
    output: "Output", log: FlowerLog, profile: Profile, home: Path, signals: StopSignals, timeout_s: float
) -> None:
    """Ask a SuperLink that is not ours to stop the run; a second signal ends the wait for it."""
    if (run_id := log.run_id()) is None:
        return
    with _flwr(["stop", run_id, profile.name], home, log.path) as stop:
        _wait(stop, timeout_s, give_up=lambda: signals.count >= 2)
    deadline_s = time.monotonic() + timeout_s
    while output.is_served() and time.monotonic() < deadline_s and signals.count < 2:
        time.sleep(_POLL_S)


def _wait(flwr: KeptProcess, timeout_s: float, give_up: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while flwr.exit_status() is None and time.monotonic() < deadline_s and not give_up():
        time.sleep(_POLL_S)


def _no_result(profile: Profile, log: FlowerLog, home: Path, signals: StopSignals) -> str:
    """Why summary.json is not there. A ServerApp writes on the SuperLink's machine, which may not be this one."""
    if not profile.is_local and _status(log, profile, home, signals) == "finished:completed":
        there = log.results() or "the folder that its log names"
        remedy = "copy that folder from there, or call fl-app run on that machine"
        return f"the run completed, but on the SuperLink's machine, where its results are in {there}: {remedy}"
    return f"the run ended without a result; see {log.path}"


def _status(log: FlowerLog, profile: Profile, home: Path, signals: StopSignals) -> str | None:
    """What the SuperLink says of the run; None where it does not answer."""
    if (run_id := log.run_id()) is None:
        return None
    answer = home / "status.log"
    with _flwr(["list", profile.name, "--run-id", run_id, "--format", "json"], home, answer) as listing:
        _wait(listing, _ASK_TIMEOUT_S, give_up=signals.came)
    match = re.search(r'"status": "([^"]+)"', answer.read_text(encoding="utf-8", errors="replace"))
    return match and match[1]


class Output(Protocol):
    """Files that a ServerApp writes, as they come."""

    def is_finished(self) -> bool:
        """Whether the last of them is there."""

    def is_served(self) -> bool:
        """Whether a ServerApp on this machine is writing them."""

    def pass_on(self) -> None:
        """Tell what is new in them."""


class RunOutput:
    """The files of one run, followed from now on: what an earlier run left in the folder is ignored."""

    def __init__(self, out: Path, on_line: Callable[[dict[str, Any]], None] | None) -> None:
        self._out = out
        self._summary = out / "summary.json"
        self._earlier_summary = _version(self._summary)
        self._rounds = out / "rounds.jsonl"
        self._offset = self._rounds.stat().st_size if self._rounds.exists() else 0
        self._on_line = on_line

    def is_finished(self) -> bool:
        """Whether this run's summary.json is there."""
        version = _version(self._summary)
        return version is not None and version != self._earlier_summary

    def is_served(self) -> bool:
        """Whether this run's ServerApp is at work here."""
        return is_served(self._out)

    def pass_on(self) -> None:
        """Hand the complete new lines of rounds.jsonl to ``on_line``."""
        if self._on_line is None or not self._rounds.exists():
            return
        with self._rounds.open("rb") as rounds:
            rounds.seek(self._offset)
            *lines, _ = rounds.read().split(b"\n")  # what follows the last line end is still being written
        self._offset += sum(len(line) + 1 for line in lines)
        for line in lines:
            self._on_line(json.loads(line))


def _version(path: Path) -> tuple[int, int] | None:
    """Tells a file from the one that replaced it; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns

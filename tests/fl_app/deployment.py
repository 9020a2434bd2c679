"""A deployment of its own for a test: its folder, the processes that were started in it, and their end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hospitals import patients, write_csv

from fl_app.deploy.programs import free_port
from fl_app.kept_process import descendants

PROJECT = Path(__file__).parents[2]
FL_APP = [sys.executable, "-m", "fl_app.cli"]
PATIENCE_S = 120.0  # other tests may be using the same cores


def alive(pid: int) -> bool:
    """Whether a process runs, or is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What the condition gives once it is true; fails where that takes too long."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Federation:
    """A folder of its own for everything, and the processes that were started in it."""

    def __init__(self, path: Path, sites: Sequence[str]) -> None:
        self.path = path
        self.sites = tuple(sites)
        self.port = free_port()
        self.started: list[subprocess.Popen[str]] = []
        self.seen: set[int] = set()
        self.environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        for seed, site in enumerate(sites):
            write_csv(path / f"{site}.csv", patients(120, seed))
        self.call("deploy", "init", "fed", "--san", "fl.example.org", "--node", *sites)

    # ------------------------------------------------------------------------------------------------ commands

    def call(self, *words: Any, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `fl-app` to its end, which is to be of this status."""
        command = [*FL_APP, *map(str, words)]
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == status, done
        return done

    def start(self, *words: Any) -> subprocess.Popen[str]:
        """Start `fl-app` in the background, its output in files."""
        command, log = [*FL_APP, *map(str, words)], self.path / f"out-{len(self.started)}"
        with log.open("w") as out, log.with_suffix(".err").open("w") as err:
            process = subprocess.Popen(
                command, cwd=self.path, env=self.environment, stdout=out, stderr=err, text=True, start_new_session=True
            )
        self.started.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """What a started process has written so far."""
        log = self.path / f"out-{self.started.index(process)}"
        return log.read_text(), log.with_suffix(".err").read_text()

    def wait_until_ready(self, *processes: subprocess.Popen[str]) -> None:
        """Until servers and nodes have said so."""

        def ready() -> bool:
            for process in processes:
                assert process.poll() is None, self.output(process)[1]
            return all(self.output(process)[0] == "ready\n" for process in processes)

        wait_for(ready, "ready")

    def serve(self) -> subprocess.Popen[str]:
        """Start the server; it is ready."""
        server = self.start("deploy", "server", "fed", "--port", self.port)
        self.wait_until_ready(server)
        return server

    def node(self, name: str, address: str | None = None) -> subprocess.Popen[str]:
        """Start the node of a site; it may take a while to be ready."""
        where = address or f"127.0.0.1:{self.port}"
        words = ["deploy", "node", "fed", name, "--superlink", where, "--data", f"{name}.csv", "--label", "outcome"]
        return self.start(*words)

    def run(self, *words: str, **keys: Any) -> subprocess.Popen[str]:
        """Start a run in the background; one that is resumed takes everything from its folder."""
        where = [] if "--resume" in words else ["deployment", "--profiles", "fed", *pairs(**keys)]
        return self.start("run", *where, *words)

    def status(self) -> list[dict[str, Any]]:
        """The nodes that the SuperLink knows."""
        nodes: list[dict[str, Any]] = json.loads(self.call("deploy", "status", "fed", "--json").stdout)["nodes"]
        return nodes

    # ------------------------------------------------------------------------------------------ what there is

    @property
    def results(self) -> Path:
        """The folder of the run."""
        return self.path / "results"

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl so far."""
        path = self.results / "rounds.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_round(self, number: int, run: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> None:
        """Until the line of a round is there."""

        def there() -> bool:
            assert run.poll() is None, self.output(run)
            return len(self.rounds()) >= number

        wait_for(there, f"round {number}", patience_s)

    def summary(self) -> dict[str, Any]:
        """How the run ended."""
        content: dict[str, Any] = json.loads((self.results / "summary.json").read_text())
        return content

    def simulated(self, **keys: Any) -> dict[str, Any]:
        """The summary of the same run on one machine, over the same files."""
        (self.path / "folder").mkdir()
        for site in self.sites:
            shutil.copy(self.path / f"{site}.csv", self.path / "folder")
        words = pairs(data_args="path=folder label=outcome", **keys)
        done = self.call("run", "--engine", "inline", "--out", "simulated", "--json", *words)
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def family(self) -> set[int]:
        """All processes that were started, at any depth."""
        for process in self.started:
            self.seen |= {process.pid, *(each.pid for each in descendants(process.pid))}
        return self.seen

    def close(self) -> None:
        """Whatever a test left is killed by its number; the keepers' ends take the rest."""
        family = self.family()
        for process in self.started:
            process.kill()
            process.wait(30)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not any(map(alive, family)), "the end")
        for pid in filter(alive, family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def federation_of(path: Path, *sites: str) -> Iterator[Federation]:
    """A folder with the keys and files of these sites; nothing that was started there is left behind."""
    made = Federation(path, sites)
    try:
        yield made
    finally:
        made.close()


def pairs(**keys: Any) -> list[str]:
    """The words that set keys of a run at sites."""
    settings = {"data": "csv", **{key.replace("_", "-"): value for key, value in keys.items()}}
    return [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]


def member(process: subprocess.Popen[str], name: str) -> int:
    """The number of the process of this name below one that was started."""
    (found,) = [each.pid for each in descendants(process.pid) if each.name == name[:15] and not each.is_dead]
    return found

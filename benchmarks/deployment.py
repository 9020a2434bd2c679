"""Logistic regression in a deployment over TLS on this machine: what a round costs, and what the server waits for.

A SuperLink and its nodes are brought up in a scratch folder as docs/deployment.md says: `fl-app deploy init`, `server`,
`register` and `node`, on free ports of loopback. Each node has a CSV file of its own, generated with a fixed seed.
`fl-app run deployment` trains on them. All processes are ended and the folder is removed, also after Ctrl-C.

The phases of a round are the server's own, from rounds.jsonl. What it waits for is told by the audit logs of both
sides, whose entries have a time, and by the kernel, which knows when a node's process began and what it used (Linux
only). In each round the node whose reply came last counts:

  node looks    from sending to the start of a process: an idle SuperNode looks every 3 s, its superexec after that
  process       until the app has the message: the imports of Flower and the app, the bundle unpacked and checked
  app           until it has answered
  reply         until the server has it: the SuperNode looks for it every 0.5 s, and then the server for its message

The last round is left out: it is followed by one exchange to measure the final model.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.figures import heading, spread
from fl_app.deploy.programs import free_port
from fl_app.kept_process import descendants
from fl_app.signals import sigterm_raises

PHASES = {
    "send": "sending",
    "wait": "waiting",
    "fold": "adding up",
    "evaluate": "evaluating",
    "checkpoint": "saving",
    "total": "a round",
}
PARTS = ("node looks", "process", "app", "reply")
PATIENCE_S = 120.0
WATCH_S = 0.1  # how often the kernel is asked for the nodes' processes
IMPORTS = {"Flower": "flwr.supernode.cli", "the app": "fl_app.client_app"}
TIMED_IMPORTS = "import sys, time\nfor name in sys.argv[1:]:\n t = time.perf_counter(); __import__(name)\n"
TIMED_IMPORTS += " print(time.perf_counter() - t)"


def main() -> None:
    """Measure and print."""
    options = _options()
    names = [f"site{number}" for number in range(1, options.nodes + 1)]
    heading(f"Logistic regression over TLS, {options.nodes} nodes with {options.rows} rows, {options.rounds} rounds")
    print("seconds a process takes to import " + ", ".join(f"{name}: {told}" for name, told in import_times().items()))
    with sigterm_raises(), TemporaryDirectory(prefix="fl-app-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        for seed, name in enumerate(names):
            write_rows(folder / f"{name}.csv", options.rows, options.columns, seed)
        ids, nodes = _bring_up(folder, names, stack)
        with ProcessWatch(nodes) as watch:
            summary = _run(folder, options.rounds, len(names))
        lines = [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
        waits = waited_for(folder, ids, watch)
    _print(lines[:-1], waits, summary)


# -------------------------------------------------------------------------------------------------- the deployment


def _bring_up(folder: Path, names: Sequence[str], stack: ExitStack) -> tuple[dict[str, str], dict[str, int]]:
    """The server and its nodes; the names of nodes by id, and their `fl-app` processes by name."""
    _fl_app(folder, "deploy", "init", "fed", "--node", *names)
    address = f"127.0.0.1:{free_port()}"
    server = ("server", "fed", "--port", address.rpartition(":")[2])
    stack.enter_context(_ready(folder, "server", server))
    registered = _fl_app(folder, "deploy", "register", "fed", *names)
    ids = {number: name for name, number in (line.split() for line in registered.splitlines())}
    nodes = {}
    for name in names:
        words = ("node", "fed", name, "--superlink", address, "--data", f"{name}.csv", "--label", "y")
        nodes[name] = stack.enter_context(_ready(folder, name, words))
    return ids, nodes


def _run(folder: Path, rounds: int, num_clients: int) -> Mapping[str, Any]:
    """The summary of a run on it."""
    keys = {"data": "csv", "rounds": rounds, "num-clients": num_clients}
    words = [word for key, value in keys.items() for word in ("-c", f"{key}={value}")]
    told = _fl_app(folder, "run", "deployment", "--profiles", "fed", "--out", "run", "--json", *words)
    summary: Mapping[str, Any] = json.loads(told)
    return summary


def _fl_app(folder: Path, *words: str) -> str:
    """What `fl-app` prints. Raises RuntimeError with its error line when it fails."""
    command = [sys.executable, "-m", "fl_app.cli", *words]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return done.stdout


@contextmanager
def _ready(folder: Path, name: str, words: Sequence[str]) -> Iterator[int]:
    """`fl-app deploy` in the background, from `ready` on; its process. It ends what it has started."""
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    command = [sys.executable, "-m", "fl_app.cli", "deploy", *words]
    with out.open("w") as out_file, err.open("w") as err_file:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=out_file, stderr=err_file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "ready" not in out.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {err.read_text()}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _environment() -> dict[str, str]:
    """With this very code, wherever the processes are started."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def write_rows(path: Path, rows: int, columns: int, seed: int) -> None:
    """Standard normal columns, and a `y` that is drawn from a logistic model of them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns))
    y = rng.random(rows) < 1 / (1 + np.exp(-x.sum(axis=1) / np.sqrt(columns)))
    header = ",".join([*(f"x{number}" for number in range(columns)), "y"])
    np.savetxt(
        path, np.column_stack([x, y]), fmt=["%.5f"] * columns + ["%d"], delimiter=",", header=header, comments=""
    )


# ------------------------------------------------------------------------------------------------------ the seconds


@dataclass
class Seen:
    """A process for one message: when it began, and the seconds of a core that it had used when last seen."""

    began: float
    cpu_s: float


class ProcessWatch:
    """The processes that nodes start for messages, as the kernel tells while this is entered."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self.seen: dict[str, dict[int, Seen]] = {name: {} for name in nodes}
        self._superexecs = {name: _superexec(pid) for name, pid in nodes.items()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "ProcessWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def last_before(self, name: str, moment: float) -> Seen:
        """The node's process that began last before then."""
        return max((seen for seen in self.seen[name].values() if seen.began <= moment), key=lambda seen: seen.began)

    def _watch(self) -> None:
        ticks, boot = os.sysconf("SC_CLK_TCK"), time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        while not self._ended.wait(WATCH_S):
            for name, superexec in self._superexecs.items():
                for pid in map(int, Path(f"/proc/{superexec}/task/{superexec}/children").read_text().split()):
                    with suppress(OSError):  # ended meanwhile
                        _, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
                        user, system, began = (int(tail.split()[place]) / ticks for place in (11, 12, 19))
                        self.seen[name][pid] = Seen(boot + began, user + system)


def _superexec(node: int) -> int:
    """The process that starts others for messages, below the one of `fl-app deploy node`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for process in descendants(node):
            if process.name == "flower-superexec"[:15]:
                return process.pid
        time.sleep(0.1)
    raise RuntimeError("a node has no flower-superexec")


@dataclass
class Waits:
    """Seconds of the node that was last in a round, one of each list for each round."""

    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    cpu_s: list[float] = field(default_factory=list)


def waited_for(folder: Path, ids: Mapping[str, str], watch: ProcessWatch) -> Waits:
    """What the server waited for in each round, by the logs of both sides."""
    here = _times(folder / "run" / "audit.jsonl")
    there = {
        name: _times(folder / "fed" / "state" / "nodes" / name / "clients" / "audit" / "audit.jsonl")
        for name in ids.values()
    }
    found = Waits()
    for number in sorted({number for _, number, _ in here}):
        node = max(ids, key=lambda node: here["received", number, node])
        name = ids[node]
        asked, answered = there[name]["asked", number, ""], there[name]["answered", number, ""]
        seen = watch.last_before(name, asked)
        moments = [here["asked", number, node], seen.began, asked, answered, here["received", number, node]]
        for part, began, ended in zip(PARTS, moments, moments[1:], strict=False):
            found.parts[part].append(ended - began)
        found.cpu_s.append(seen.cpu_s)
    return found


def _times(log: Path) -> dict[tuple[str, int, str], float]:
    """When each kind of entry about training was written, by kind, round and node."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return {
        (entry["kind"], entry["round"], entry.get("node", "")): datetime.fromisoformat(entry["at"]).timestamp()
        for entry in entries
        if entry.get("message") == "train"
    }


def import_times(repeats: int = 5) -> dict[str, str]:
    """How long a new process takes to import what each message needs, the app after Flower."""
    command = [sys.executable, "-c", TIMED_IMPORTS, *IMPORTS.values()]
    runs = [
        [float(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
        for _ in range(repeats)
    ]
    return {name: spread(list(seconds)) for name, seconds in zip(IMPORTS, zip(*runs, strict=True), strict=True)}


def _print(rounds: Sequence[Mapping[str, Any]], waits: Waits, summary: Mapping[str, Any]) -> None:
    print(f"\n{'seconds':16}median (least to greatest)")
    for phase, name in PHASES.items():
        print(f"{name:16}{spread([line['seconds'][phase] for line in rounds])}")
        if phase == "wait":
            for part, seconds in waits.parts.items():
                print(f"  {part:14}{spread(seconds[: len(rounds)])}")
            print(f"  {'its CPU time':14}{spread(waits.cpu_s[: len(rounds)])}")
    whole = summary["seconds"]
    print(f"\nthe run took {whole['total']:.1f} s, {whole['startup']:.1f} s of them before its first round")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds of a round in a deployment, by phase.")
    parser.add_argument("--rounds", type=int, default=20, help="2 or more; the last is not counted")
    parser.add_argument("--nodes", type=int, default=2, help="2 or more, all on this machine")
    parser.add_argument("--rows", type=int, default=300, help="of each node's file")
    parser.add_argument("--columns", type=int, default=10, help="of them, beside the label")
    options = parser.parse_args()
    if options.rounds < 2 or options.nodes < 2:
        parser.error("2 rounds and 2 nodes, or more")
    return options


if __name__ == "__main__":
    main()

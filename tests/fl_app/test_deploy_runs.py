"""A deployment for real: a SuperLink and nodes over TLS on loopback, a run, and no process left."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hospitals import patients, write_csv

from fl_app.config import RunConfig
from fl_app.deploy.programs import free_port
from fl_app.flower_engine import Outcome, run_on_flower
from fl_app.kept_process import descendants
from fl_app.profiles import load_profile

pytestmark = [pytest.mark.flower, pytest.mark.timeout(420)]

PROJECT = Path(__file__).parents[2]
FL_APP = [sys.executable, "-m", "fl_app.cli"]
SITES = ("north", "south")
PATIENCE_S = 120.0  # other tests may be using the same cores


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Federation:
    """A folder of its own for everything, and the processes that were started in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_port()
        self.started: list[subprocess.Popen[str]] = []
        self.seen: set[int] = set()
        self.environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        for seed, site in enumerate(SITES):
            write_csv(path / f"{site}.csv", patients(120, seed))
        self.call("deploy", "init", "fed", "--san", "fl.example.org", "--node", *SITES)

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

    def wait_until_ready(self, process: subprocess.Popen[str]) -> None:
        log = self.path / f"out-{self.started.index(process)}"

        def ready() -> bool:
            assert process.poll() is None, log.with_suffix(".err").read_text()
            return log.read_text() == "ready\n"

        wait_for(ready, "ready")

    def serve(self) -> None:
        self.wait_until_ready(self.start("deploy", "server", "fed", "--port", self.port))

    def node(self, name: str, address: str | None = None) -> subprocess.Popen[str]:
        where = address or f"127.0.0.1:{self.port}"
        words = ["deploy", "node", "fed", name, "--superlink", where, "--data", f"{name}.csv", "--label", "outcome"]
        return self.start(*words)

    def family(self) -> set[int]:
        """All processes that were started, at any depth."""
        for process in self.started:
            self.seen |= {process.pid, *(each.pid for each in descendants(process.pid))}
        return self.seen

    def status(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = json.loads(self.call("deploy", "status", "fed", "--json").stdout)["nodes"]
        return nodes

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


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.close()


def simulated(federation: Federation, words: Sequence[str]) -> dict[str, Any]:
    """The summary of the same run on one machine, over the same files."""
    (federation.path / "folder").mkdir()
    for site in SITES:
        shutil.copy(federation.path / f"{site}.csv", federation.path / "folder")
    words = ["-c", "data-args=path=folder label=outcome", *words]
    done = federation.call("run", "--engine", "inline", "--out", "simulated", "--json", *words)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def elsewhere(federation: Federation, keys: Mapping[str, Any]) -> Outcome:
    """A run whose ServerApp writes where this side does not look, as on another machine."""
    here, there = federation.path / "here", federation.path / "there"
    here.mkdir()
    config = RunConfig.parse({"data": "csv", **keys, "out": str(there)})
    profile = load_profile("deployment", federation.path / "fed")
    outcome = run_on_flower(config.values(), here, profile, on_line=None, log_path=here / "flower.log")
    assert json.loads((there / "summary.json").read_text())["status"] == "completed"
    return outcome


def test_two_sites_train_the_model_of_a_simulation_and_stop_leaves_no_process(federation: Federation) -> None:
    federation.serve()
    registered = federation.call("deploy", "register", "fed", *SITES)
    assert "flwr supernode register --name north" in registered.stderr
    ids = dict(line.split() for line in registered.stdout.splitlines())
    assert tuple(ids) == SITES
    again = federation.call("deploy", "register", "fed", "north")
    assert again.stdout == f"north {ids['north']}\n"

    for process in [federation.node(site) for site in SITES]:
        federation.wait_until_ready(process)
    nodes = federation.status()
    assert [(node["name"], node["id"], node["clients"]) for node in nodes] == [(s, ids[s], [s]) for s in SITES]
    assert {node["status"] for node in nodes} == {"online"}
    assert all(node["last_seen"] and node["flwr"] and node["app"] for node in nodes)

    keys = {"rounds": 2, "num-clients": 2, "batch-size": 16, "local-epochs": 2}
    words = [word for key, value in {"data": "csv", **keys}.items() for word in ("-c", f"{key}={value}")]
    done = federation.call("run", "deployment", "--profiles", "fed", "--out", "results", "--json", *words)
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["rounds"], summary["clients"]) == ("completed", 2, 2)
    assert json.loads((federation.path / "results" / "summary.json").read_text()) == summary
    assert "round 2/2  2 of 2 clients  accuracy" in done.stderr
    assert summary["params_sha256"] == simulated(federation, words)["params_sha256"]

    outcome = elsewhere(federation, {**keys, "rounds": 1})
    assert not outcome.finished
    assert "the run completed, but on the SuperLink's machine" in str(outcome.error)
    assert f"where its results are in {federation.path / 'there'}: copy that folder" in str(outcome.error)

    family = federation.family()
    assert len(family) >= 3 * 4  # each: fl-app, its keeper, the program, its superexec
    state = federation.path / "fed" / "state"
    assert (state / "server" / "superlink.db").stat().st_mode & 0o077 == 0
    stopped = federation.call("deploy", "stop", "fed").stdout.splitlines()
    assert stopped == ["stopped node north", "stopped node south", "stopped server"]
    assert [process.wait(30) for process in federation.started] == [0, 0, 0]
    assert not [pid for pid in family if alive(pid)]
    assert not list(state.rglob("running.json"))
    assert "SuperNode terminated gracefully" in (state / "nodes" / "north" / "supernode.log").read_text()


def test_a_node_with_an_unknown_key_or_the_wrong_authority_is_refused_with_what_to_do(federation: Federation) -> None:
    federation.serve()
    where = ["--superlink", f"127.0.0.1:{federation.port}", "--data", "north.csv", "--label", "outcome"]
    refused = federation.call("deploy", "node", "fed", "north", *where, status=1)
    assert refused.stdout == ""
    assert refused.stderr.splitlines()[-1] == (
        f"error: the SuperLink does not know this node's key: {federation.path}/fed/nodes/north: "
        "at the server: fl-app deploy register DIR north, with this node's .pub in DIR/nodes"
    )
    federation.call("deploy", "init", "other", "--node", "north")
    foreign = federation.call("deploy", "node", "other", "north", *where, status=1)
    last = foreign.stderr.splitlines()[-1]
    assert "the server's certificate is not of the authority in ca.crt" in last
    assert last.endswith("get ca.crt from the coordinator of this server")
    busy = federation.call("deploy", "server", "fed", "--port", free_port(), status=2)
    assert "it runs already, as process" in busy.stderr
    (server,) = federation.started
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    assert not [pid for pid in federation.family() if alive(pid)]


# ------------------------------------------------------------------------------------------------------- the proxy

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
REQUESTS = {
    "/v1/fleet/activate-node": True,
    "/v1/fleet/./activate-node": True,
    "/v1/control/list-nodes": False,
    "/v1/control/start-run": False,
    "/v1/runtime/acquire-task": False,
    "/v1/fleet/../control/list-nodes": False,
    "/v1/fleet/%2e%2e/control/list-nodes": False,
    "/v1/fleet/..%2fcontrol%2flist-nodes": False,
    "/v1/fleet//../control/list-nodes": False,
    "/v1/fleet": False,
    "/health": False,
    "/docs": False,
    "/": False,
}


@contextlib.contextmanager
def proxy(federation: Federation) -> Iterator[int]:
    """nginx as docs/deployment.md configures it, on a free port."""
    assert NGINX is not None
    text = (PROJECT / "docs" / "deployment.md").read_text()
    (recipe,) = re.findall(r"^```nginx\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    port, folder = free_port(), federation.path / "nginx"
    folder.mkdir()
    changes = {"DIR": str(federation.path / "fed"), "127.0.0.1:8000": f"127.0.0.1:{federation.port}"}
    for old, new in {**changes, "0.0.0.0:8443": f"127.0.0.1:{port}"}.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    here = "".join(
        f"    {kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(f"pid {folder / 'pid'};\n{recipe.replace('http {', 'http {' + chr(10) + here, 1)}")
    command = [NGINX, "-c", str(config), "-e", str(folder / "error.log"), "-g", "daemon off; worker_processes 1;"]
    with subprocess.Popen(command) as process:
        try:
            wait_for((folder / "pid").exists, "nginx starts")
            yield port
        finally:
            process.terminate()
            process.wait(30)


def answer(port: int, path: str, authority: Path) -> int:
    """The status of a request that a SuperLink would look into."""
    context = ssl.create_default_context(cafile=authority)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        connection.request("POST", path, b"", {"Content-Type": "application/x-protobuf"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_proxy_lets_a_node_through_and_nothing_of_the_control_api(federation: Federation) -> None:
    authority = federation.path / "fed" / "ca.crt"
    federation.serve()
    federation.call("deploy", "register", "fed", "north")
    with proxy(federation) as port:
        for path, passes in REQUESTS.items():
            assert (answer(port, path, authority) != http.HTTPStatus.NOT_FOUND) is passes, path
        assert answer(federation.port, "/v1/control/list-nodes", authority) != http.HTTPStatus.NOT_FOUND
        federation.wait_until_ready(federation.node("north", f"localhost:{port}"))
        assert [node["status"] for node in federation.status()] == ["online"]
        federation.call("deploy", "stop", "fed")

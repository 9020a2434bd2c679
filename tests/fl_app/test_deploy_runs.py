"""A deployment for real: a SuperLink and nodes over TLS on loopback, a run, and no process left."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from deployment import PROJECT, Federation, alive, federation_of, pairs, wait_for

from fl_app.config import RunConfig
from fl_app.deploy.programs import free_port
from fl_app.flower_engine import Outcome, run_on_flower
from fl_app.profiles import load_profile

pytestmark = [pytest.mark.flower, pytest.mark.timeout(420)]

SITES = ("north", "south")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with federation_of(tmp_path, *SITES) as made:
        yield made


def elsewhere(federation: Federation, keys: Mapping[str, Any]) -> Outcome:
    """A run whose ServerApp writes where this side does not look, as on another machine."""
    here, there = federation.path / "here", federation.path / "there"
    here.mkdir()
    values = {key.replace("_", "-"): value for key, value in keys.items()}
    config = RunConfig.parse({"data": "csv", **values, "out": str(there)})
    profile = load_profile("deployment", federation.path / "fed")
    outcome = run_on_flower(config.values(), here, profile, on_line=None, log_path=here / "flower.log")
    assert json.loads((there / "summary.json").read_text())["status"] == "completed"
    return outcome


def test_two_sites_come_to_the_model_of_a_simulation_and_stop_leaves_no_process(federation: Federation) -> None:
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

    keys = {"rounds": 1, "num_clients": 2, "batch_size": 16, "local_epochs": 2}
    done = federation.call("run", "deployment", "--profiles", "fed", "--out", "results", "--json", *pairs(**keys))
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["rounds"], summary["clients"]) == ("completed", 1, 2)
    assert json.loads((federation.path / "results" / "summary.json").read_text()) == summary
    assert "round 1/1  2 of 2 clients  accuracy" in done.stderr
    done = federation.call("run", "--resume", "results", "-c", "rounds=2", "--json")
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["rounds"], summary["resumed_from"]) == ("completed", 2, 1)
    assert summary["params_sha256"] == federation.simulated(**{**keys, "rounds": 2})["params_sha256"]

    outcome = elsewhere(federation, keys)
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

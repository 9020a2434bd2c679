"""Faults of a real deployment: processes that are killed or hang, networks that are cut. It takes minutes."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import Federation, federation_of, member, wait_for

from fl_app.deploy.folder import deploy_folder
from fl_app.deploy.programs import flwr
from fl_app.kept_process import descendants
from fl_app.served import is_served

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SITES = ("north", "south", "west")
HEARTBEAT_S = 30.0
MISSED_S = 2 * HEARTBEAT_S  # Flower calls a node dead that has missed two
EVERYBODY = {"num_clients": 3, "min_clients": 3, "local_epochs": 2, "enrol_timeout_s": 120}
SLOW_S = 60.0  # what else may take its time on a busy machine


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A server, with three sites whose keys it knows."""
    with federation_of(tmp_path, *SITES) as made:
        made.serve()
        made.call("deploy", "register", "fed", *SITES)
        yield made


def dropped(line: dict[str, Any]) -> dict[str, str]:
    """{client: reason} of a line of rounds.jsonl."""
    return {drop["client"]: drop["reason"] for drop in line["dropped"]}


def log_of(federation: Federation, site: str) -> str:
    return (federation.path / "fed" / "state" / "nodes" / site / "supernode.log").read_text()


# ----------------------------------------------------------------------------------------------------- nodes that end


def test_the_survivors_of_a_killed_node_go_on_in_bounded_time_and_it_may_come_back_until_its_key_is_withdrawn(
    federation: Federation,
) -> None:
    nodes = {site: federation.node(site) for site in SITES}
    federation.wait_until_ready(*nodes.values())
    run = federation.run("--out", "results", rounds=10, num_clients=3)
    federation.wait_for_round(1, run)
    os.kill(member(nodes["west"], "flower-supernode"), signal.SIGKILL)
    assert nodes["west"].wait(30) == 1
    assert "error: the SuperNode was killed: " in federation.output(nodes["west"])[1]
    federation.wait_for_round(2, run, MISSED_S + SLOW_S)
    federation.wait_for_round(3, run)
    missed = [line for line in federation.rounds() if "west" in dropped(line)]
    assert [(line["good"], dropped(line)) for line in missed] == [(2, {"west": "timeout"})] * len(missed)
    assert missed[0]["round"] in (2, 3)
    assert missed[0]["seconds"]["total"] < MISSED_S + SLOW_S

    nodes["west"] = federation.node("west")
    federation.wait_until_ready(nodes["west"])
    assert run.wait(300) == 0
    *_, last = federation.rounds()
    assert (last["round"], last["expected_clients"], last["good"]) == (10, 3, 3)

    (west,) = [node["id"] for node in federation.status() if node["name"] == "west"]
    withdraw = flwr(deploy_folder(federation.path / "fed"), "supernode", "unregister", west)
    subprocess.run(withdraw.argv, env=withdraw.environment, check=True, capture_output=True, timeout=60)
    assert nodes["west"].wait(MISSED_S) == 1
    assert "its key was withdrawn at the server" in federation.output(nodes["west"])[1].splitlines()[-1]
    refused = federation.call(
        *("deploy", "node", "fed", "west", "--superlink", f"127.0.0.1:{federation.port}"),
        *("--data", "west.csv", "--label", "outcome"),
        status=1,
    )
    assert "error: the SuperLink does not know this node's key: " in refused.stderr


# --------------------------------------------------------------------------------- nodes that hang, networks that fail


class Cable:
    """Passes TCP connections on to a port of this machine. Once it is cut, what is open hangs and nothing new gets
    through."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._whole = threading.Event()
        self._near: socket.socket
        self.port = 0
        self.mend()

    def cut(self) -> None:
        self._whole.clear()
        self.close()

    def mend(self) -> None:
        self._near = socket.create_server(("127.0.0.1", self.port))
        self.port = self._near.getsockname()[1]
        self._whole.set()
        threading.Thread(target=self._accept, args=(self._near,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept() does not notice close()
        self._near.close()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = server.accept()
                threading.Thread(target=self._carry, args=(end,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, socket.create_connection(("127.0.0.1", self._target)) as far:
            other = {near: far, far: near}
            while True:
                for end in select.select([near, far], [], [])[0]:
                    self._whole.wait()
                    if not (data := end.recv(65536)):
                        return
                    other[end].sendall(data)


def test_a_node_that_hangs_and_one_whose_network_is_cut_cost_a_timeout_a_round_and_come_back(
    federation: Federation,
) -> None:
    cable = Cable(federation.port)
    try:
        nodes = {site: federation.node(site) for site in ("north", "south")}
        nodes["west"] = federation.node("west", f"127.0.0.1:{cable.port}")
        federation.wait_until_ready(*nodes.values())
        timeout_s = 25
        run = federation.run("--out", "results", rounds=40, num_clients=3, min_clients=1, round_timeout_s=timeout_s)
        federation.wait_for_round(1, run)
        hung = [nodes["south"].pid, *(each.pid for each in descendants(nodes["south"].pid))]
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        cable.cut()
        began = time.monotonic()

        def missed() -> bool:
            return {node["name"]: node["status"] for node in federation.status()} == {
                "north": "online",
                "south": "offline",
                "west": "offline",
            }

        wait_for(missed, "both are missed", MISSED_S + SLOW_S)
        alone = len(federation.rounds()) + 1
        federation.wait_for_round(alone + 1, run)
        for line in federation.rounds():
            assert line["seconds"]["total"] < timeout_s + SLOW_S
            assert set(dropped(line)) <= {"south", "west"}
            assert set(dropped(line).values()) <= {"timeout"}
        assert (federation.rounds()[alone]["expected_clients"], federation.rounds()[alone]["good"]) == (1, 1)
        assert time.monotonic() - began > HEARTBEAT_S

        for pid in hung:
            os.kill(pid, signal.SIGCONT)
        cable.mend()
        wait_for(lambda: federation.rounds()[-1]["good"] == 3, "all three are back", 240)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 143
    finally:
        cable.close()


# -------------------------------------------------------------------------------------------- the server's processes


def test_a_run_that_was_killed_interrupted_or_deserted_goes_on_to_the_model_of_an_uninterrupted_run(
    federation: Federation,
) -> None:
    keys = {**EVERYBODY, "rounds": 5, "strategy": "compressed-fedavg"}
    keys["strategy_args"] = "top-k=0.5 bits=8"  # what was left out of an update is kept at its client
    server = federation.started[0]
    federation.wait_until_ready(*[federation.node(site) for site in SITES])

    run = federation.run("--out", "results", **keys)
    federation.wait_for_round(1, run)
    os.kill(member(server, "flwr-serverapp"), signal.SIGKILL)
    assert run.wait(30) == 1
    said, error = (text.splitlines()[-1] for text in federation.output(run))
    assert said == "go on with: fl-app run --resume results"
    what = "the ServerApp ended without a result: it was killed, or crashed"
    assert error == f"error: the run failed: {federation.results}: {what}"

    run = federation.run("--resume", "results")
    federation.wait_for_round(2, run)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    assert federation.output(run)[0].splitlines()[-1] == "go on with: fl-app run --resume results"
    assert (federation.summary()["status"], federation.summary()["stop_reason"]) == ("stopped", "interrupted")
    assert not is_served(federation.results)

    run = federation.run("--resume", "results")
    federation.wait_for_round(3, run)
    run.kill()  # nobody follows the run any more, and it goes on
    run.wait(30)
    refused = federation.call("run", "--resume", "results", status=2)
    assert refused.stderr.startswith(f"error: the run is still going on: {federation.results}: wait for its end, or ")
    os.kill(member(server, "flwr-serverapp"), signal.SIGTERM)
    wait_for(lambda: not is_served(federation.results), "its end")

    played = len(federation.rounds())
    federation.call("run", "--resume", "results")
    summary = federation.summary()
    assert summary["resumed_from"] in (played - 1, played)
    assert [line["round"] for line in federation.rounds()] == [1, 2, 3, 4, 5]
    assert summary["dropped"] == 0
    assert summary["params_sha256"] == federation.simulated(**keys)["params_sha256"]
    for site in SITES:
        assert "is lost" not in log_of(federation, site)


def test_a_run_whose_superlink_was_killed_goes_on_to_the_model_of_an_uninterrupted_run(federation: Federation) -> None:
    keys = {**EVERYBODY, "rounds": 3, "strategy": "scaffold"}  # whose clients keep their control variates
    server = federation.started[0]
    federation.wait_until_ready(*[federation.node(site) for site in SITES])
    run = federation.run("--out", "results", **keys)
    federation.wait_for_round(2, run)
    os.kill(member(server, "flower-superlink"), signal.SIGKILL)
    assert server.wait(60) == 1
    assert "error: the SuperLink was killed: " in federation.output(server)[1]
    assert run.wait(60) == 1
    said, error = (text.splitlines()[-1] for text in federation.output(run))
    assert said == "go on with: fl-app run --resume results"
    assert error.startswith(f"error: the run failed: {federation.results}: Connection to the SuperLink is unavailable.")
    assert (federation.summary()["status"], federation.summary()["rounds"]) == ("failed", 2)

    federation.serve()
    done = federation.call("run", "--resume", "results", "--json")
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["rounds"], summary["resumed_from"]) == ("completed", 3, 2)
    assert summary["params_sha256"] == federation.simulated(**keys)["params_sha256"]
    for site in SITES:
        assert "is lost" not in log_of(federation, site)

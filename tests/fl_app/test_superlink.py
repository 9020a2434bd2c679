"""No process outlives a run, however it ends, and the ending is told truthfully."""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_app.kept_process import KeptProcess, Process, descendants
from fl_app.superlink import LocalSuperLink, flower_environment, scratch_folder

FL_APP = Path(__file__).parents[2] / "fl_app"

# Starts a process that leaves group, session and parent behind, as Flower's and Ray's do; writes its pid; then goes on.
PROGRAM = """
import os, pathlib, subprocess, sys, time
pid_file, then = sys.argv[1:]
sleeper = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], stdout=2, start_new_session=True).pid)"
orphan = subprocess.run([sys.executable, "-c", sleeper], stdout=subprocess.PIPE, text=True).stdout
pathlib.Path(pid_file + ".draft").write_text(f"{os.getpid()} {orphan}")
os.replace(pid_file + ".draft", pid_file)
if then == "wait":
    time.sleep(600)
sys.exit(7)
"""

OWNER = """
import os, pathlib, sys, time
from fl_app.kept_process import KeptProcess
folder = pathlib.Path(sys.argv[1])
command = [sys.executable, "-c", sys.argv[2], str(folder / "pids"), "wait"]
kept = KeptProcess(command, env=dict(os.environ), log_path=folder / "log", scratch=folder / "scratch")
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.02)


@pytest.fixture
def watched() -> Iterator[set[int]]:
    """Pids that a test puts here are killed after it, should they still be alive."""
    pids: set[int] = set()
    yield pids
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)


def kept_program(folder: Path, then: str) -> KeptProcess:
    command = [sys.executable, "-c", PROGRAM, str(folder / "pids"), then]
    return KeptProcess(command, env=os.environ, log_path=folder / "log", scratch=folder / "scratch")


def pids_of_program(folder: Path, watched: set[int]) -> list[int]:
    wait_for((folder / "pids").exists, "the program writes its pids")
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    watched.update(pids)
    return pids


def test_the_end_of_the_context_ends_orphans_in_their_own_session(tmp_path: Path, watched: set[int]) -> None:
    with kept_program(tmp_path, "wait") as kept:
        program, orphan = pids_of_program(tmp_path, watched)
        assert is_alive(orphan)
        assert {process.pid for process in kept.tree()} == {program, orphan}
        assert kept.exit_status() is None
    assert not [pid for pid in watched if is_alive(pid)]
    kept.stop()  # again, without harm


def test_a_program_that_ends_takes_its_orphans_with_it(tmp_path: Path, watched: set[int]) -> None:
    with kept_program(tmp_path, "exit") as kept:
        _, orphan = pids_of_program(tmp_path, watched)
        wait_for(lambda: kept.exit_status() is not None, "the keeper ends with its program")
        assert kept.exit_status() == 7
        assert not is_alive(orphan)


def test_a_program_that_was_killed_is_told_from_one_that_failed(tmp_path: Path, watched: set[int]) -> None:
    with kept_program(tmp_path, "wait") as kept:
        program, _ = pids_of_program(tmp_path, watched)
        os.kill(program, signal.SIGKILL)
        wait_for(lambda: kept.exit_status() is not None, "the keeper ends with its program")
        assert kept.exit_status() == 128 + signal.SIGKILL


def test_the_tree_dies_with_an_owner_that_was_killed(tmp_path: Path, watched: set[int]) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "state").touch()
    environment = {**os.environ, "PYTHONPATH": str(FL_APP.parent)}
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), PROGRAM], env=environment) as owner:
        try:
            pids = pids_of_program(tmp_path, watched)
        finally:
            owner.kill()
    wait_for(lambda: not any(map(is_alive, pids)), "the tree dies with its owner")
    wait_for(lambda: not (tmp_path / "scratch").exists(), "the scratch folder goes")


def test_the_program_dies_with_its_keeper(tmp_path: Path, watched: set[int]) -> None:
    with kept_program(tmp_path, "wait"):
        program, _ = pids_of_program(tmp_path, watched)
        (keeper,) = [process for process in descendants(os.getpid()) if process.parent == os.getpid()]
        os.kill(keeper.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(program), "the program dies")


def test_a_simulation_keeps_freed_memory_unless_the_user_wants_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def not_started(command: object, *, env: dict[str, str], **_: object) -> contextlib.nullcontext[None]:
        given.update(env)
        return contextlib.nullcontext()

    monkeypatch.setattr("fl_app.superlink.KeptProcess", not_started)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    with LocalSuperLink():
        kept = {name: value for name, value in given.items() if name.startswith("MALLOC_")}
    assert kept == {
        "MALLOC_ARENA_MAX": "4", "MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456",
    }  # fmt: skip


def test_each_environment_has_a_token_of_its_own_that_keeps_others_out_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "the user's own")
    one, other = flower_environment(tmp_path), flower_environment(tmp_path)
    assert one["RAY_AUTH_MODE"] == other["RAY_AUTH_MODE"] == "token"
    assert len({one["RAY_AUTH_TOKEN"], other["RAY_AUTH_TOKEN"], "the user's own"}) == 3
    assert len(one["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN_PATH" not in one


def test_the_scratch_folder_is_short_enough_for_sockets_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a-long-name"))
    with scratch_folder() as folder:
        (folder / "file").touch()
        assert len(str(folder)) <= 36
    assert not folder.exists()


class Impostor(http.server.BaseHTTPRequestHandler):
    """Answers as a healthy SuperLink does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.flower
def test_another_server_on_the_port_is_not_taken_for_our_superlink() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Impostor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        taken = server.server_address[1]
        with LocalSuperLink(taken) as superlink:
            assert superlink.wait_until_ready()
            assert superlink.address != f"127.0.0.1:{taken}"
        server.shutdown()
    assert not superlink.home.exists()


def test_what_stays_on_this_machine_goes_through_no_web_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's HTTP client heeds these variables, which are set in many a company, for loopback too."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet.example.org")
    answer = "import httpx, sys; print(httpx.get(sys.argv[1]).status_code)"
    with socketserver.TCPServer(("127.0.0.1", 0), Impostor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", answer, f"http://127.0.0.1:{server.server_address[1]}/"]
        environment = flower_environment(tmp_path)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.stdout == "200\n", done.stderr
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet.example.org,localhost,127.0.0.1,::1"


STAND_IN_PROJECT = """
[project]
name = "stand-in"
version = "1.0.0"
[tool.flwr.app]
publisher = "fl-app"
[tool.flwr.app.components]
serverapp = "fl_app.server_app:app"
clientapp = "fl_app.client_app:app"
[tool.flwr.app.config]
out = ""
rounds = 1
text = ""
rate = 0.0
yes = false
"""

STAND_IN_CLIENT = """
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)
"""

STAND_IN_SERVER = """
import json, os, pathlib, time
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    out = pathlib.Path(context.run_config["out"])
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.02)
    for number in range(context.run_config["rounds"]):
        replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in nodes])
        with (out / "rounds.jsonl").open("a") as rounds:
            rounds.write(json.dumps({"round": number + 1, "good": len(list(replies))}) + "\\n")
    (out / "draft").write_text(json.dumps(dict(context.run_config)))
    os.replace(out / "draft", out / "summary.json")
"""

DRIVER = """
import dataclasses, json, pathlib, sys
from fl_app.flower_engine import run_on_flower
from fl_app.profiles import load_profile

out = pathlib.Path(sys.argv[1])
ending = run_on_flower(
    json.loads(sys.argv[2]), out, load_profile(None, out),
    on_line=lambda line: print(json.dumps(line), flush=True), log_path=out / "flower.log",
)
print(json.dumps(dataclasses.asdict(ending)), flush=True)
"""


class Run:
    """A process that runs the stand-in app as ``fl-app run`` would."""

    def __init__(self, folder: Path, watched: set[int], **config: object) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        self._watched = watched
        project = write_stand_in(folder / "project")
        self.config = {"out": str(self.out), **config}
        # Whether scratch is left is seen here; short, as Ray's sockets are in it.
        self.temp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
        environment = {**os.environ, "PYTHONPATH": str(project), "TMPDIR": str(self.temp)}
        command = [sys.executable, "-c", DRIVER, str(self.out), json.dumps(self.config)]
        self.process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)

    def next_line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended without telling how"
        value: dict[str, Any] = json.loads(line)
        return value

    def tree(self) -> list[Process]:
        tree = descendants(self.process.pid)
        self._watched.update(process.pid for process in tree)
        return tree

    def ending(self) -> dict[str, Any]:
        while "finished" not in (line := self.next_line()):
            pass
        return line

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.temp, ignore_errors=True)


def write_stand_in(project: Path) -> Path:
    for package in ("fl_app", "privacy", "strategies", "tasks"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").touch()
    engine = ("flower_engine", "flower_log", "kept_process", "profiles", "served", "signals", "superlink")
    for name in ("bundle", "caller", "errors", *engine):
        shutil.copy(FL_APP / f"{name}.py", project / "fl_app")
    shutil.copy(FL_APP.parent / "pyproject-flower.toml", project)
    (project / "pyproject.toml").write_text(STAND_IN_PROJECT)
    (project / "fl_app/server_app.py").write_text(STAND_IN_SERVER)
    (project / "fl_app/client_app.py").write_text(STAND_IN_CLIENT)
    for name in ("README.md", "LICENSE"):
        (project / name).touch()
    return project


@pytest.fixture
def start(tmp_path: Path, watched: set[int]) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start_run(**config: object) -> Run:
        runs.append(Run(tmp_path, watched, **config))
        return runs[-1]

    yield start_run
    for run in runs:
        run.close()


def assert_nothing_is_left(run: Run, tree: list[Process]) -> None:
    names = {process.name for process in tree}
    assert {"flower-superlin", "flower-superexe", "flwr-simulation", "raylet", "gcs_server"} <= names, names
    assert not [process for process in tree if is_alive(process.pid)]
    assert not list(run.temp.iterdir())


@pytest.mark.flower
def test_a_run_passes_on_its_rounds_and_gets_its_configuration_literally(start: Callable[..., Run]) -> None:
    run = start(rounds=3, text="a=\"b\" 'c' # d\n\\", rate=1e-05, yes=True)
    assert run.next_line() == {"round": 1, "good": 2}
    tree = run.tree()
    assert [run.next_line()["round"] for _ in range(2)] == [2, 3]
    assert run.ending() == {"finished": True, "interrupted": None, "error": None}
    assert json.loads((run.out / "summary.json").read_text()) == run.config
    assert_nothing_is_left(run, tree)


@pytest.mark.flower
def test_ctrl_c_while_flower_starts_is_obeyed_at_once(start: Callable[..., Run]) -> None:
    run = start(rounds=10_000)
    wait_for(lambda: "flower-superlin" in {process.name for process in run.tree()}, "the SuperLink starts")
    tree = run.tree()
    run.process.send_signal(signal.SIGINT)
    assert run.ending() == {"finished": False, "interrupted": "SIGINT", "error": None}
    assert not [process for process in tree if is_alive(process.pid)]
    assert not list(run.temp.iterdir())


@pytest.mark.flower
def test_a_killed_server_app_is_an_error_and_leaves_nothing(start: Callable[..., Run]) -> None:
    run = start(rounds=10_000)
    run.next_line()
    tree = run.tree()
    (simulation,) = [process for process in tree if process.name == "flwr-simulation"]
    os.kill(simulation.pid, signal.SIGKILL)
    ending = run.ending()
    assert (ending["finished"], ending["interrupted"]) == (False, None)
    assert ending["error"] == "flwr-simulation ended without a result: it was killed, or crashed"
    assert_nothing_is_left(run, tree)


@pytest.mark.flower
def test_a_refused_key_is_named(start: Callable[..., Run]) -> None:
    ending = start(bogus=1).ending()
    assert (ending["finished"], ending["interrupted"]) == (False, None)
    assert "'bogus'" in ending["error"]

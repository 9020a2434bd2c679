"""`fl-app deploy` without a SuperLink: what is refused, what Flower gets, which process is stopped."""

import datetime
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command
from flwr.common.config import parse_config_args
from hospitals import patients, write_csv
from hypothesis import given
from hypothesis import strategies as st

from fl_app.commands import words
from fl_app.deploy import certificates, link, records, serving
from fl_app.deploy.certificates import Pair
from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import DeployFolder, deploy_folder
from fl_app.deploy.programs import NodeSettings, Program, config_text, free_port, superlink, supernode
from fl_app.deploy.records import recorded
from fl_app.deploy.running import run_until_stopped


@pytest.fixture
def fed(fl_app: Command, caller: Path) -> DeployFolder:
    """A folder with certificates and the key of a node, and beside it the node's file."""
    assert fl_app("deploy", "init", "fed", "--san", "fl.example.org", "--node", "north").status == 0
    write_csv(caller / "north.csv", patients(60, 0))
    return deploy_folder(caller / "fed")


def node_words(*others: Any, **changes: Any) -> list[Any]:
    options = {"superlink": "127.0.0.1:1", "data": "north.csv", "label": "outcome", **changes}
    pairs = [
        word for key, value in options.items() if value is not None for word in (f"--{key.replace('_', '-')}", value)
    ]
    return ["deploy", "node", "fed", "north", *pairs, *others]


# --------------------------------------------------------------------------------------------------------------- init


def test_init_takes_many_words_behind_an_option_and_tells_what_it_made(fl_app: Command, caller: Path) -> None:
    done = fl_app("deploy", "init", "fed", "--san", "fl.example.org", "10.0.0.1", "--node", "north", "south")
    assert (done.status, done.err) == (0, "")
    made = {Path(line.removeprefix("made ")).name for line in done.out.splitlines() if line.startswith("made ")}
    keys = {"north", "north.pub", "south", "south.pub"}
    assert made == {"ca.crt", "ca.key", "server.pem", "server.key", "pyproject-flower.toml", *keys}
    assert "server.pem is valid until 20" in done.out
    again = fl_app("deploy", "init", "fed", "--node", "south", "--san", "10.0.0.1")
    assert "all of it is there already" in again.out


def test_init_of_a_site_says_what_goes_where(fl_app: Command) -> None:
    done = fl_app("deploy", "init", "fed", "--site", "--node", "north")
    assert "put the coordinator's ca.crt into" in done.out
    assert "send the .pub file to the coordinator" in done.out


def test_every_command_warns_of_a_certificate_that_expires_soon(fl_app: Command, caller: Path) -> None:
    done = fl_app("deploy", "init", "fed", "--days", "12")
    assert done.status == 0
    assert "warning: " in done.err
    assert "server.pem expires in 1" in done.err
    for others in (["stop", "fed"], ["status", "fed"], ["register", "fed", "north"], ["server", "fed", "--host", "x"]):
        assert "server.pem expires in 1" in fl_app("deploy", *others).err


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["server", "nowhere"], ["no such folder", "fl-app deploy init"]),
        (["server", "fed", "--host", "10.9.9.9"], ["server.pem is not for 10.9.9.9", "fl.example.org"]),
        (["register", "fed", "south"], ["no south.pub"]),
        (["register", "fed", "../north"], ["no name for a node"]),
        (["init", "fed", "--san", "a b"], ["is no host"]),
        (["systemd", "fed", "--label", "y"], ["--label without a node"]),
        (["systemd", "fed", "north", "--label", "y"], ["no --superlink for node north"]),
    ],
)
def test_a_bad_command_is_refused_in_one_line(
    fl_app: Command, fed: DeployFolder, command: list[str], words: list[str]
) -> None:
    refusal = fl_app("deploy", *command).refusal()
    assert all(word in refusal for word in words), refusal


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "south.csv"}, ["no such file", "south.csv"]),
        ({"label": "outcom"}, ["unknown label 'outcom'", "age, dose, smoker, stage, outcome"]),
        ({"test_data": "none.csv"}, ["no such file", "none.csv"]),
        ({"policy": "none.toml"}, ["no such file", "policy"]),
        ({"superlink": "fl.example.org"}, ["no address", "HOST:PORT"]),
        ({"superlink": "https://fl.example.org:8000"}, ["no address", "HOST:PORT"]),
        ({"superlink": "fl.example.org:99999"}, ["no address"]),
        ({"gpus": "first"}, ["GPUs 'first'", "all, none"]),
        ({"client": " "}, ["a client without a name"]),
    ],
)
def test_a_node_with_a_bad_setting_is_refused_before_anything_starts(
    fl_app: Command, fed: DeployFolder, changes: dict[str, Any], words: list[str]
) -> None:
    refusal = fl_app(*node_words(**changes)).refusal()
    assert all(word in refusal for word in words), refusal
    assert not fed.node_state("north").exists()


def test_a_node_without_its_key_or_with_one_that_others_can_read_is_refused(
    fl_app: Command, fed: DeployFolder, caller: Path
) -> None:
    fed.node_key("north").chmod(0o644)
    assert "others can read this private key" in fl_app(*node_words()).refusal()
    fed.node_key("north").chmod(0o600)
    fl_app("deploy", "init", "fed", "--node", "south")
    key = fed.node_key("north").read_bytes()
    fed.node_key("north").write_bytes(fed.node_key("south").read_bytes())
    assert "do not go together" in fl_app(*node_words()).refusal()
    fed.node_key("north").write_bytes(key[:40])
    assert "no OpenSSH key" in fl_app(*node_words()).refusal()
    fed.node_key("north").unlink()
    assert "--site --node north" in fl_app(*node_words()).refusal()
    fed.authority.unlink()
    assert "copy the coordinator's ca.crt there" in fl_app(*node_words()).refusal()


def test_a_file_with_gaps_or_a_label_that_is_a_number_may_be_joined(fed: DeployFolder, caller: Path) -> None:
    rows = [{**row, "dose": ""} if number == 3 else row for number, row in enumerate(patients(50, 1))]
    gaps = write_csv(caller / "gaps.csv", rows)
    for data, label in ((gaps, "outcome"), (caller / "north.csv", "age")):
        settings = NodeSettings("north", "127.0.0.1:1", data, label, "north")
        assert "rows to train on" in serving.check_rows(settings)


def test_a_port_that_is_taken_is_refused(fl_app: Command, fed: DeployFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refusal = fl_app("deploy", "server", "fed", "--port", port).refusal()
    assert "cannot listen there (address already in use)" in refusal
    assert f"--port {port}" in refusal


def test_a_database_that_is_damaged_or_in_use_is_refused_with_what_to_do(fl_app: Command, fed: DeployFolder) -> None:
    path = fed.make(fed.server_state) / "superlink.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE messages (content BLOB)")
        database.executemany("INSERT INTO messages VALUES (?)", [(bytes([n]) * 3000,) for n in range(20)])
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        serving.check_database(fed)
        database.execute("BEGIN IMMEDIATE")
        refusal = fl_app("deploy", "server", "fed", "--port", free_port()).refusal()
        assert f"cannot use the SuperLink's database (database is locked): {path}: end what has it open" in refusal
    good = path.read_bytes()
    for content in (b"garbage " * 1000, good[: len(good) // 2], good[:8192] + bytes(8192) + good[16384:]):
        path.write_bytes(content)
        refusal = fl_app("deploy", "server", "fed", "--port", free_port()).refusal()
        assert "the SuperLink's database is damaged (" in refusal
        assert f"{path}: put a backup there, or move it away and register the nodes anew" in refusal
        assert path.read_bytes() == content


# ------------------------------------------------------------------------------------ what is told of the other side


def failure(done: Any) -> str:
    """The one line of an error that no other command line would mend."""
    assert done.status == 1, done
    (line,) = [line for line in done.err.splitlines() if not line.startswith("#")]
    assert line.startswith("error: ")
    return str(line)


def test_a_superlink_that_is_not_there_is_told(fl_app: Command, fed: DeployFolder) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    assert "cannot be reached (connection refused)" in failure(fl_app(*node_words(superlink=nobody)))
    assert "unknown host nobody.invalid" in failure(fl_app(*node_words(superlink="nobody.invalid:8000")))
    assert "cannot be reached" in failure(fl_app("deploy", "register", "fed", "north"))
    assert "cannot be reached" in failure(fl_app("deploy", "status", "fed"))


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that speaks, but not TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_server_without_tls_is_told(fl_app: Command, fed: DeployFolder, stranger: str) -> None:
    assert "no TLS there" in failure(fl_app(*node_words(superlink=stranger)))


@contextmanager
def serving_tls(pair: Pair, folder: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that shows this certificate and says nothing; its port."""
    (folder / "shown.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "shown.pem")
    with socket.create_server((host, 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection, context.wrap_socket(connection, server_side=True):
                        pass
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def days_ago(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    monkeypatch.setattr(certificates, "_now", lambda: then)


def test_a_node_tells_what_is_wrong_with_the_certificate_of_its_server(
    fl_app: Command, fed: DeployFolder, caller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, foreign = Pair(fed.authority.read_bytes(), fed.authority_key.read_bytes()), certificates.new_authority(365)
    with monkeypatch.context() as earlier:
        days_ago(40, earlier)
        expired = certificates.new_server(own, [], 10)
    with monkeypatch.context() as later:
        days_ago(-40, later)
        coming = certificates.new_server(own, [], 10)
    good = certificates.new_server(own, [], 10)
    for pair, host, told in (
        (expired, "127.0.0.1", "the server's certificate has expired: "),
        (coming, "127.0.0.1", "the server's certificate is of the future: "),
        (certificates.new_server(foreign, [], 10), "127.0.0.1", "is not of the authority in ca.crt ("),
        (good, "127.0.0.2", "the server's certificate is for others (IP address mismatch"),
    ):
        with serving_tls(pair, caller, host) as port:
            assert told in failure(fl_app(*node_words(superlink=f"{host}:{port}")))
    with serving_tls(good, caller) as port:
        link.check_tls(f"127.0.0.1:{port}", fed.authority, "--superlink")


def test_what_flower_says_of_an_ended_node_is_told_as_what_to_do() -> None:
    folder = DeployFolder(Path("/fed"))
    settings = NodeSettings("north", "fl.example.org:8443", Path("north.csv"), "outcome", "north")

    def why(log: str, status: int = 1) -> str:
        found = serving.why_the_node_ended(folder, settings, Path("/fed/log"), log, status)
        assert isinstance(found, Failed)
        return str(found)

    assert "does not know this node's key: /fed/nodes/north" in why("[code: 2004] Failed to activate SuperNode.")
    assert "wants a key" in why("[code: 2001] SuperNode authentication is enabled.")
    assert "set both clocks" in why("Client error '401 Unauthorized' for url")
    assert "its key was withdrawn" in why("INFO: SuperNode terminated gracefully.\nINFO: Shutting down")
    assert "accepted a connection and then said nothing" in why("ERROR: SSL/TLS handshake error detected.\nx")
    assert "the SuperNode was killed: /fed/log: " in why("INFO: x", 137)
    assert "get ca.crt" in why("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert "the SuperNode ended (exit status 1): /fed/log: Port taken." in why("INFO: x\nPort taken.\n\n")


def test_a_program_that_gives_up_and_does_not_end_is_ended(tmp_path: Path) -> None:
    script = "import time\nprint('on', flush=True)\ntime.sleep(0.5)\nprint('I give up', flush=True)\ntime.sleep(600)"
    ready: list[float] = []
    with pytest.raises(Failed, match="ended"):
        run_until_stopped(
            Program((sys.executable, "-c", script), os.environ),
            tmp_path,
            tmp_path / "log",
            about={},
            is_ready=lambda log: "on\n" in log,
            on_ready=lambda: ready.append(time.monotonic()),
            explain=lambda log, status: Failed("ended", "here", "again"),
            gives_up=lambda line: line == "I give up",
        )
    assert time.monotonic() - ready[0] < 60
    assert records.read_record(tmp_path) is None


# ------------------------------------------------------------------------------------------------- what Flower gets


@given(st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_a_node_config_reaches_the_app_literally(values: dict[str, str]) -> None:
    values = {key: value for key, value in values.items() if value.isprintable() or "\n" in value or "\t" in value}
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    assert parse_config_args([config_text(values)]) == values


def test_a_node_gets_what_the_site_says_of_it_and_the_gpus_it_may_see(fed: DeployFolder) -> None:
    path = Path('/data/the "north"/it\'s.csv')
    settings = NodeSettings("north", "fl.example.org:8443", path, "died?", "Nord 1", policy=Path("/p.toml"), gpus="0,1")
    program = supernode(fed, settings, 9999)
    told = words.node_config(program.argv[program.argv.index("--node-config") + 1])
    state = str(fed.node_state("north") / "clients")
    assert told == {"client": "Nord 1", "data": str(path), "label": "died?", "policy": "/p.toml", "state": state}
    assert program.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1" in str(program)  # numbers as nvidia-smi has them
    assert program.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert shlex.split(str(program))[-len(program.argv) :] == list(program.argv)


def test_a_node_looks_for_messages_more_often_than_a_server_for_runs_and_both_keep_what_python_compiles(
    fed: DeployFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # as images of containers often do
    settings = NodeSettings("north", "fl.example.org:8443", Path("north.csv"), "died", "north")
    node, server = supernode(fed, settings, 9999).environment, superlink(fed, "127.0.0.1", 8000).environment
    looks = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
    assert 0.1 < float(node[looks]) < float(server[looks]) <= 1
    assert "PYTHONDONTWRITEBYTECODE" not in {*node, *server}


# -------------------------------------------------------------------------------------------- units and compose files


def test_a_unit_runs_the_same_command_as_one_would_type(fl_app: Command, fed: DeployFolder, caller: Path) -> None:
    server = fl_app("deploy", "systemd", "fed", "--port", "9000", "--user", "fl").out
    assert f"deploy server {fed.path} --host 127.0.0.1 --port 9000\n" in server
    assert "User=fl\n" in server
    data = caller / "100% of it.csv"
    node = fl_app("deploy", "systemd", *node_words(data=data)[2:]).out
    (command,) = [line.removeprefix("ExecStart=") for line in node.splitlines() if line.startswith("ExecStart=")]
    assert [word.replace("%%", "%") for word in shlex.split(command)][-8:] == [
        *("--superlink", "127.0.0.1:1", "--client", "north", "--data", str(data), "--label", "outcome")
    ]
    assert f"ReadWritePaths={fed.path}/state\n" in node
    assert "ProtectSystem=strict\n" in node


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_no_fault_in_the_units(fl_app: Command, fed: DeployFolder, caller: Path) -> None:
    fl_app("deploy", "systemd", "fed", "--out", "units")
    fl_app("deploy", "systemd", *node_words("--out", "units", data="the 100% file.csv")[2:])
    units = sorted(map(str, (caller / "units").iterdir()))
    assert len(units) == 2
    found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)  # noqa: S607
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_units_are_written_to_a_folder_and_never_over_another(fl_app: Command, fed: DeployFolder) -> None:
    assert fl_app("deploy", "systemd", "fed", "--out", "units").status == 0
    assert Path("units/fl-app-server.service").is_file()
    assert "this file is there already" in fl_app("deploy", "systemd", "fed", "--out", "units").refusal()


def test_a_compose_file_publishes_the_server_on_loopback_alone(fl_app: Command, fed: DeployFolder) -> None:
    (name, service), *others = yaml.safe_load(fl_app("deploy", "compose", "fed").out)["services"].items()
    assert (name, others) == ("superlink", [])
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["command"][:4] == ["fl-app", "deploy", "server", "/deploy"]
    assert service["volumes"][0]["source"] == str(fed.path)


def test_a_compose_file_of_a_node_mounts_its_file_for_reading(fl_app: Command, fed: DeployFolder, caller: Path) -> None:
    written = fl_app("deploy", "compose", *node_words(data="a$b.csv", gpus="all")[2:]).out
    service = yaml.safe_load(written)["services"]["node-north"]
    assert "ports" not in service
    mounted = {v["target"]: (v["source"].replace("$$", "$"), v["read_only"]) for v in service["volumes"]}
    assert mounted["/deploy"] == (str(fed.path), False)
    assert mounted["/data/a$$b.csv"] == (str(caller / "a$b.csv"), True)
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert "deploy" not in yaml.safe_load(fl_app("deploy", "compose", *node_words()[2:]).out)["services"]["node-north"]


# ------------------------------------------------------------------------------------------ profiles and `fl-app run`


def test_run_and_compare_take_their_profiles_from_a_folder_that_is_named(
    fl_app: Command, fed: DeployFolder, caller: Path
) -> None:
    assert tomllib.loads(fed.profile.read_text())["superlink"]["deployment"]["root-certificates"] == str(fed.authority)
    for command in ("run", "compare"):
        done = fl_app(command, "deployment", "--profiles", "fed", "--nodes", "2", "-c", "data=csv")
        assert "a number of nodes (2) for a deployment" in done.refusal()
        assert "fl-app deploy init writes one" in fl_app(command, "deployment", "--profiles", "nowhere").refusal()


# ------------------------------------------------------------------------------------------------------ which process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with it."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def write_record(state: Path, pid: int, began: str) -> None:
    state.mkdir(parents=True, exist_ok=True)
    (state / "running.json").write_text(json.dumps({"pid": pid, "began": began, "about": {}}))


def test_a_process_that_took_over_the_number_is_not_stopped(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    write_record(tmp_path, sleeper.pid, "another boot 1234")
    assert records.stop(tmp_path) is False
    assert not (tmp_path / "running.json").exists()
    time.sleep(0.1)
    assert sleeper.poll() is None


def test_what_runs_is_recorded_and_not_started_twice_and_can_be_stopped(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from fl_app.deploy.records import recorded\n"
        "with recorded(pathlib.Path(sys.argv[1]), {'client': 'north'}):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            found = records.read_record(tmp_path)
            assert found is not None
            assert (found.pid, found.about, found.is_alive()) == (process.pid, {"client": "north"}, True)
            with pytest.raises(ValueError, match=f"it runs already, as process {process.pid}"), recorded(tmp_path, {}):
                pass
            stopped: list[bool] = []
            # In a thread, as the process is our child and stays a zombie until it is waited for.
            stopping = threading.Thread(target=lambda: stopped.append(records.stop(tmp_path)))
            stopping.start()
            assert process.wait(60) == -signal.SIGTERM
            stopping.join(60)
            assert stopped == [True]
        finally:
            process.kill()
    assert records.read_record(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", '{"pid": "x", "began": "", "about": {}}', "[]"])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "running.json").write_text(content)
    assert records.read_record(tmp_path) is None
    assert records.stop(tmp_path) is False


def test_stopping_where_nothing_runs_says_so(fl_app: Command, fed: DeployFolder) -> None:
    done = fl_app("deploy", "stop", "fed")
    assert (done.status, done.out) == (0, "nothing was running\n")

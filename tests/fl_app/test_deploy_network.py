"""A server and two sites on networks of their own, set up by docs/deployment.md, and what can be seen from beside.

One run serves all tests: its processes, sockets and packets are watched while it goes on.
"""

import base64
import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from deployment_document import section, steps
from hospitals import COLUMNS, Row, patients, read_json, write_csv
from namespaces import BRIDGE, Machine, NotAllowed, Watch, addressed, machines
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fl_app.audit import read_key

PROJECT = Path(__file__).parents[2]
FL_APP = [sys.executable, "-m", "fl_app.cli"]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
SITES = ("north", "south")
LABORATORY = tuple(f"lab{index}" for index in range(12))
MARKED = "57.18263945"  # the age of one patient at each site
LEAVES = "lab11"  # the name of a column, which sites do tell
ROUNDS = 2
WINDOW = 8  # numbers in a row that no chance brings together

ELSEWHERE = "192.0.2.7"
KNOCK = """
import contextlib, socket, sys
with contextlib.suppress(OSError):
    socket.create_connection((sys.argv[1], 443), timeout=1)
"""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420), pytest.mark.skipif(NGINX is None, reason="no nginx here")]


def rows(seed: int) -> list[Row]:
    """Patients with values of a laboratory, which make the model long enough to look for; one of them is marked."""
    values = np.random.default_rng(seed).normal(size=(120, len(LABORATORY)))
    made = [
        {**patient, **{name: f"{value:.6f}" for name, value in zip(LABORATORY, own, strict=True)}}
        for patient, own in zip(patients(120, seed), values, strict=True)
    ]
    made[40]["age"] = MARKED
    return made


class Deployment:
    """A folder for each machine, and the programs that run there, where plain HTTP is to go through a web proxy."""

    def __init__(self, path: Path, network: dict[str, Machine], watch: Watch) -> None:
        self.path = path
        self.network = network
        self.watch = watch
        self.started: list[subprocess.Popen[bytes]] = []
        for name in network:
            (path / name).mkdir()
        for seed, site in enumerate(SITES):
            write_csv(path / site / f"{site}.csv", rows(seed), (*COLUMNS[:-1], *LABORATORY, COLUMNS[-1]))

    def start(self, name: str, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A program on a machine, in its folder there, with what it prints."""
        out = self.path / name / f"printed-{len(self.started)}"
        with out.open("wb") as printed, out.with_suffix(".err").open("wb") as said:
            process = subprocess.Popen(
                self.network[name].command("env", f"PYTHONPATH={PROJECT}", "http_proxy=http://10.77.0.1:3128", *words),
                cwd=self.path / name,
                stdout=printed,
                stderr=said,
            )
        self.started.append(process)
        return process, out

    def follow(self, name: str, words: list[str]) -> None:
        """A command of the document: to its end, or until it is ready."""
        process, out = self.start(name, *FL_APP, *words)
        stays = words[:2] in (["deploy", "server"], ["deploy", "node"])
        deadline = time.monotonic() + 240
        while process.poll() is None and not (stays and out.read_text() == "ready\n"):
            assert time.monotonic() < deadline, words
            time.sleep(0.05)
        assert (process.returncode is None) if stays else (process.returncode == 0), out.with_suffix(".err").read_text()

    def play(self, settings: list[str]) -> None:
        """The whole document, with a shorter run of these settings."""
        for name, words in steps():
            if name == "then":
                self.carry()
            elif words[0] == "run":
                assert words[-1] == "rounds=20"
                self.follow(name, [*words[:-1], f"rounds={ROUNDS}", "--out", "results", *settings])
            else:
                self.follow(name, words)
            if words[:2] == ["deploy", "server"]:
                self.start_nginx()

    def carry(self) -> None:
        """What the document has people send: public keys to the server, the authority's certificate to the sites."""
        for site in SITES:
            shutil.copy(self.path / site / "fed" / "nodes" / f"{site}.pub", self.path / "server" / "fed" / "nodes")
            shutil.copy(self.path / "server" / "fed" / "ca.crt", self.path / site / "fed")

    def start_nginx(self) -> None:
        """As the document configures it, but for where it keeps its own files."""
        assert NGINX is not None
        folder = self.path / "server" / "nginx"
        folder.mkdir()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        own = "".join(f"    {kind}_temp_path {folder / kind};\n" for kind in kinds)
        recipe = section("Firewall", "nginx").replace("DIR", str(self.path / "server" / "fed"))
        config = folder / "nginx.conf"
        config.write_text(f"user root;\npid {folder / 'pid'};\n" + recipe.replace("http {\n", "http {\n" + own, 1))
        log = str(folder / "error.log")
        process, _ = self.start("server", NGINX, "-c", str(config), "-e", log, "-g", "daemon off;")
        while not (folder / "pid").exists():
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.05)

    def files(self, name: str, *, but: tuple[str, ...] = ()) -> dict[Path, bytes]:
        """All that lies on a machine, but for files of these names."""
        found = (path for path in (self.path / name).rglob("*") if path.is_file() and path.name not in but)
        return {path: path.read_bytes() for path in found}

    def inline(self, out: str, *words: str) -> Path:
        """A run over both files in one process; its model. What it prints and where it works is nobody's concern."""
        folder = self.path / "all"
        folder.mkdir(exist_ok=True)
        for site in SITES:
            shutil.copy(self.path / site / f"{site}.csv", folder)
        command = [*FL_APP, "run", "--engine", "inline", "--out", out, "-c", "data=csv"]
        command += ["-c", "data-args=path=all label=outcome", *words]
        environment = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}
        subprocess.run(command, cwd=self.path, env=environment, capture_output=True, timeout=120, check=True)
        return self.path / out / "model.safetensors"


@dataclass
class Seen:
    """What was there to be seen of the run."""

    deployment: Deployment
    summary: dict[str, Any]
    models: dict[str, NDArray[np.float64]]
    between_machines: bytes
    within_a_site: bytes
    seconds: float

    @property
    def path(self) -> Path:
        return self.deployment.path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """The run of the document, of two rounds and from a model whose numbers are not zero."""
    path = tmp_path_factory.mktemp("network")
    with contextlib.ExitStack() as reap, contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(machines(["server", *SITES], {"fl.example.org": "server"}))
        except NotAllowed as reason:
            pytest.skip(f"no network namespaces here: {reason}")
        watch = Watch(network)
        deployment = Deployment(path, network, watch)
        reap.callback(lambda: [process.wait(30) for process in deployment.started])
        settings = ["-c", "local-epochs=2"]
        deployment.inline("first", "-c", "rounds=1", "-c", "seed=7")
        start = path / "server" / "start.safetensors"
        begun = load_file(path / "first" / "model.safetensors")
        save_file({name: array + 0.125 for name, array in begun.items()}, start)
        settings += ["-c", f"init={start}"]
        models = {
            "initial": start,
            "intermediate": deployment.inline("one", "-c", "rounds=1", *settings),
            "final": deployment.inline("two", "-c", f"rounds={ROUNDS}", *settings),
        }
        watch.start()
        stack.callback(watch.stop)
        with network["server"].captured(BRIDGE, path / "between"), network["north"].captured("lo", path / "within"):
            began = time.monotonic()
            deployment.play(settings)
            seconds = time.monotonic() - began
            network["north"].python(KNOCK, ELSEWHERE)
        summary = read_json(path / "server" / "results" / "summary.json")
        yield Seen(
            deployment,
            summary,
            {name: numbers(model) for name, model in models.items()},
            (path / "between").read_bytes(),
            (path / "within").read_bytes(),
            seconds,
        )


def numbers(model: Path) -> NDArray[np.float64]:
    """All of a model, in the order of its arrays in memory."""
    return np.concatenate([array.ravel() for array in load_file(model).values()])


# ---------------------------------------------------------------------------------------------- what to look for


def as_bytes(values: NDArray[np.float64]) -> list[bytes]:
    """Numbers as memory and messages hold them."""
    return [values.astype(kind).tobytes() for kind in ("<f8", ">f8", "<f4", ">f4")]


def holds(content: bytes, model: NDArray[np.float64]) -> bool:
    """Whether there are eight numbers of a model in a row."""
    windows = (model[start : start + WINDOW] for start in range(len(model) - WINDOW + 1))
    return any(needle in content for window in windows for needle in as_bytes(window))


def spellings(secret: bytes) -> list[bytes]:
    """The bytes themselves, in hexadecimal, and in base64 wherever they begin in it."""
    encoded = []
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret)
        sure = text[4 if before else 0 : len(text) - 4]  # what does not depend on the neighbours
        encoded += [sure, sure.replace(b"+", b"-").replace(b"/", b"_")]
    return [secret, secret.hex().encode(), *encoded]


def tells(content: bytes, secret: bytes) -> bool:
    """Whether it holds a secret, in lines of any length."""
    joined = content.replace(b"\n", b"")
    return any(needle in joined for needle in spellings(secret))


def scalar(path: Path) -> bytes:
    """The number that makes a private key, 48 bytes on P-384."""
    pem = path.read_bytes()
    key: Any = load_ssh_private_key(pem, None) if b"OPENSSH" in pem else load_pem_private_key(pem, None)
    return int(key.private_numbers().private_value).to_bytes(48, "big")


def secrets_of(deployment: Deployment) -> dict[Path, bytes]:
    """Every private key of the deployment, by its file."""
    fed = deployment.path / "server" / "fed"
    keys = [fed / "ca.key", fed / "server.key", *(deployment.path / s / "fed" / "nodes" / s for s in SITES)]
    logs = [path for name in deployment.network for path in (deployment.path / name).rglob("audit*.key")]
    return {**{path: scalar(path) for path in keys}, **{path: read_key(path) for path in logs}}


def test_the_search_finds_eight_numbers_of_a_model_however_they_are_written() -> None:
    model = np.random.default_rng(0).normal(size=20)
    for start in (0, 5, 12):
        for written in as_bytes(model[start : start + 8]):
            assert holds(b"head" + written + b"tail", model)
    assert not holds(model.tobytes()[: 7 * 8], model)
    assert not holds(np.random.default_rng(1).bytes(10_000), model)


# ------------------------------------------------------------------------------------------------------ what is seen


def test_the_commands_of_the_document_train_the_model_of_a_simulation_in_time(seen: Seen) -> None:
    assert seen.seconds < 300
    assert (seen.summary["status"], seen.summary["clients"], seen.summary["rounds"]) == ("completed", 2, ROUNDS)
    assert seen.summary["params_sha256"] == read_json(seen.path / "two" / "summary.json")["params_sha256"]


def test_what_passes_between_machines_holds_no_number_of_a_model(seen: Seen) -> None:
    exchanged = seen.summary["bytes_up"] + seen.summary["bytes_down"]
    assert len(seen.between_machines) > exchanged
    for name, model in seen.models.items():
        assert holds(seen.within_a_site, model), f"{name}: the search would not have found it"
        assert not holds(seen.between_machines, model), name
    assert b"/v1/" in seen.within_a_site
    assert b"/v1/" not in seen.between_machines


def test_no_machine_looks_for_any_address_but_those_of_the_others(seen: Seen) -> None:
    """The last one is the fixture's own doing."""
    assert addressed(seen.between_machines) == {"10.77.0.1", "10.77.0.2", "10.77.0.3", ELSEWHERE}


def test_nothing_listens_beyond_loopback_but_the_proxy(seen: Seen) -> None:
    watch = seen.deployment.watch
    assert ("127.0.0.1", 8000) in watch.listening["server"]
    beyond = {
        name: {(address, port) for address, port in found if not ip_address(address).is_loopback}
        for name, found in watch.listening.items()
    }
    assert beyond == {"server": {("0.0.0.0", 8443)}, "north": set(), "south": set()}  # noqa: S104
    assert all(watch.listening[site] for site in SITES)  # their Runtime API, on loopback


ASK = """
import http.client, ssl, sys
kind, host, port, path, authority = sys.argv[1:]
try:
    if kind == "http":
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
    else:
        connection = http.client.HTTPSConnection(
            host, int(port), timeout=20, context=ssl.create_default_context(cafile=authority)
        )
    connection.request("POST", path, b"", {"Content-Type": "application/protobuf"})
    print(connection.getresponse().status)
except (OSError, http.client.HTTPException) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("machine", "kind", "where", "answer"),
    [
        ("north", "https", "fl.example.org:8443/v1/fleet/activate-node", "401"),
        ("north", "https", "fl.example.org:8443/v1/control/list-nodes", "404"),
        ("north", "http", "fl.example.org:8443/v1/fleet/activate-node", "400"),
        ("north", "https", "fl.example.org:8000/v1/control/list-nodes", "ConnectionRefusedError"),
        ("server", "http", "127.0.0.1:8000/v1/control/list-nodes", "RemoteDisconnected"),
    ],
)
def test_a_site_reaches_the_fleet_api_over_tls_and_nothing_else(
    seen: Seen, machine: str, kind: str, where: str, answer: str
) -> None:
    host, port, path = re.fullmatch(r"(.*?):(\d+)(/.*)", where).groups()  # type: ignore[union-attr]
    authority = str(seen.path / "north" / "fed" / "ca.crt")
    assert seen.deployment.network[machine].python(ASK, kind, host, port, path, authority).strip() == answer


def test_no_private_key_is_in_arguments_environments_logs_bundles_reports_or_messages(seen: Seen) -> None:
    secrets = secrets_of(seen.deployment)
    assert len(secrets) == 4 + 3  # those of certificates and nodes; those of audit logs
    assert any(b"flwr-clientapp" in told for told in seen.deployment.watch.told)
    assert any(b"flwr-serverapp" in told for told in seen.deployment.watch.told)
    places = {
        path: content for name in seen.deployment.network for path, content in seen.deployment.files(name).items()
    }
    assert {"report.html", "superlink.log", "supernode.log", "superlink.db", "client_app.py"} <= {
        p.name for p in places
    }
    seen_elsewhere = [*seen.deployment.watch.told, seen.between_machines, seen.within_a_site]
    for key, secret in secrets.items():
        assert [path for path, content in places.items() if tells(content, secret)] == [key]
        assert not any(tells(content, secret) for content in seen_elsewhere), key


def test_what_is_no_public_certificate_key_or_address_is_its_owners_alone(seen: Seen) -> None:
    for key in secrets_of(seen.deployment):
        assert key.stat().st_mode & 0o777 == 0o600, key
    for name in seen.deployment.network:
        fed = seen.path / name / "fed"
        assert fed.stat().st_mode & 0o777 == 0o700
        others = {path.name for path in fed.rglob("*") if path.stat().st_mode & 0o077}
        assert others <= {"ca.crt", "server.pem", "north.pub", "south.pub", "pyproject-flower.toml", "config.toml"}


def test_no_value_of_a_row_and_no_path_of_a_site_comes_to_the_server_or_into_a_log(seen: Seen) -> None:
    everything_there = seen.deployment.files("server")
    assert any(LEAVES.encode() in content for content in everything_there.values())  # what does come can be found
    number = np.array(float(MARKED))
    values = [MARKED.encode(), number.tobytes(), number.byteswap().tobytes()]
    for site in SITES:
        rows_file = seen.path / site / f"{site}.csv"
        assert MARKED.encode() in rows_file.read_bytes()
        for path, content in everything_there.items():
            assert str(seen.path / site).encode() not in content, path
            assert not any(value in content for value in values), path
        logs = {path: content for path, content in seen.deployment.files(site).items() if path != rows_file}
        assert not [path for path, content in logs.items() if MARKED.encode() in content]

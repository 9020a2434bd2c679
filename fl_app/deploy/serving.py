"""The two long-running programs of a deployment: what is checked before they start, and what their ends mean."""

import os
import re
import shutil
import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path

from fl_app import __version__
from fl_app.assembly import open_data
from fl_app.config import RunConfig
from fl_app.deploy import certificates, link, programs, signatures, trust
from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import DeployFolder
from fl_app.deploy.programs import NodeSettings
from fl_app.deploy.running import last_words, run_until_stopped
from fl_app.errors import Refused, one_line
from fl_app.run_folder import write_atomically
from fl_app.site import own_file

Say = Callable[[str], None]

_HANDSHAKE_FAILED = "SSL/TLS handshake error detected"  # Flower's words
_LAST_LINES = 60  # of a log that may go back for months
_LOCKED_S = 2.0  # so long a database may be busy


# ------------------------------------------------------------------------------------------------------- the server


def serve(folder: DeployFolder, host: str, port: int, *, say: Say, on_ready: Callable[[], None]) -> None:
    """Run the SuperLink in the foreground until it is stopped. Raises Refused and Failed."""
    check_server(folder, host, port)
    check_database(folder)
    address = programs.local_address(host, port)
    state = folder.server_state
    folder.make(state / "home")
    folder.set_address(address)
    link.write_connection(folder)
    program = programs.superlink(folder, host, port)
    log_path = state / "superlink.log"
    if not _is_loopback(host):
        say("warning: whoever reaches this port can submit code: see docs/deployment.md, Firewall")
    say(str(program))
    say(f"log: {log_path}")
    os.umask(0o077)  # a database of models, and what runs write
    os.chdir(folder.path)  # where a run by plain `flwr run` leaves its results when it names no folder
    run_until_stopped(
        program,
        state,
        log_path,
        about={"what": "server", "address": address},
        is_ready=lambda _: link.is_healthy(address, folder.authority),
        on_ready=on_ready,
        explain=lambda log, status: _why_it_ended("SuperLink", log_path, log, status),
    )


def check_server(folder: DeployFolder, host: str, port: int) -> None:
    """Whether a SuperLink can serve there with the folder's certificate. Raises Refused."""
    programs.parted(programs.joined(host, port), "--host and --port")
    folder.read_certificate(folder.authority, f"make one with fl-app deploy init {folder.path}")
    folder.server_pair()
    reached, _ = programs.parted(programs.local_address(host, port), "--host")
    certificate = folder.read_certificate(folder.server, "put the server's certificate there")
    if not certificates.covers(certificate, reached):
        what = f"server.pem is not for {reached}, by which the SuperLink's own programs reach it"
        remedy = f"--host takes one of its names: {', '.join(certificates.hosts_of(certificate)) or 'it has none'}"
        raise Refused(what, f"--host {host}", remedy)
    _check_port(host, port)


def check_database(folder: DeployFolder) -> None:
    """Whether what an earlier SuperLink kept can be used. Raises Refused."""
    path = folder.database
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None)) as database:
            ((found, *_),) = database.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        remedy = "end what has it open (another SuperLink, sqlite3?), or see to the file's owner and the disk"
        raise Refused(f"cannot use the SuperLink's database ({error})", str(path), remedy) from error
    except sqlite3.DatabaseError as error:
        remedy = "put a backup there, or move it away and register the nodes anew; runs go on from their own folders"
        raise Refused(f"the SuperLink's database is damaged ({one_line(str(error))})", str(path), remedy) from error


def _is_loopback(host: str) -> bool:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ip_address(str(address[0])).is_loopback for *_, address in found)


def _check_port(host: str, port: int) -> None:
    try:
        families = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = families[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where, why = f"--host {host} --port {port}", str(error.strerror or error).lower()
        raise Refused(f"cannot listen there ({why})", where, "choose another port or address") from error


# --------------------------------------------------------------------------------------------------------- a node


def run_node(folder: DeployFolder, settings: NodeSettings, *, say: Say, on_ready: Callable[[], None]) -> None:
    """Run a SuperNode in the foreground until it is stopped. Raises Refused and Failed."""
    trust.trusted_keys(folder)  # what is wrong with them is refused before anything is said or made
    say(check_site(folder, settings))
    link.check_tls(settings.superlink, folder.authority, f"--superlink {settings.superlink}")
    state = folder.node_state(settings.name)
    for part in ("home", "clients"):
        folder.make(state / part)
    os.umask(0o077)
    program = programs.supernode(folder, settings, programs.free_port(), _trusted_entities(folder, settings, say))
    log_path = state / "supernode.log"
    say(str(program))
    say(f"log: {log_path}")
    run_until_stopped(
        program,
        state,
        log_path,
        about={"what": "node", "client": settings.client, "app": __version__, "flwr": version("flwr")},
        is_ready=lambda log: "SuperNode ID: " in log,
        on_ready=on_ready,
        explain=lambda log, status: why_the_node_ended(folder, settings, log_path, log, status),
        # Flower tries again for ever, but not where a connection is made and the other side then says nothing.
        gives_up=lambda line: _HANDSHAKE_FAILED in line,
    )


def _trusted_entities(folder: DeployFolder, settings: NodeSettings, say: Say) -> Path | None:
    """The file of the keys whose bundles the node runs; None where it runs any. Raises Refused.

    A node that has checked bundles goes on doing so: keys that are not there any more may be lost, or not mounted yet.
    """
    trusted, state = trust.trusted_keys(folder), folder.node_state(settings.name)
    entities = state / "trusted.yaml"
    if trusted is None:
        if entities.exists():
            remedy = f"put them back; or remove {entities} to have the node run any bundle from now on"
            raise Refused("the keys that this node trusted are gone", str(folder.trusted), remedy)
        say("runs any bundle that the server sends: see docs/deployment.md, Trust")
        return None
    write_atomically(entities, signatures.trusted_entities(trusted.values()).encode())
    # Flower unpacks a bundle once, and does not look at what lies there again: nothing from before may.
    shutil.rmtree(state / "home" / "apps", ignore_errors=True)
    say(f"runs no bundles but those signed by: {', '.join(f'{name} ({key.id})' for name, key in trusted.items())}")
    return entities


def check_site(folder: DeployFolder, settings: NodeSettings) -> str:
    """Whether a node's files can be used; what was found in its data. Raises Refused."""
    programs.parted(settings.superlink, "--superlink")
    folder.read_certificate(folder.authority, "copy the coordinator's ca.crt there")
    key = folder.node_key(settings.name)
    made = f"make it with fl-app deploy init {folder.path} --site --node {settings.name}"
    secret = folder.read_secret(key, made)
    public = folder.node_public_key(settings.name)
    try:
        if public.exists() and not certificates.same_node_key(secret, public.read_bytes()):
            raise Refused("the two files of this node's key do not go together", str(key), "put the right ones there")
    except ValueError as error:
        raise Refused("no OpenSSH key", str(key), made) if not isinstance(error, Refused) else error from error
    if settings.policy is not None and not settings.policy.is_file():
        raise Refused("no such file", f"--policy {settings.policy}", "name the site's policy.toml")
    return check_rows(settings)


def check_rows(settings: NodeSettings) -> str:
    """What a run would read at this site, in a line, by the code that reads it. Raises Refused.

    The run says what it learns, and so whether the label has to be a class or a number: either will do here.
    """
    for path in (settings.data, settings.test_data):
        if path is not None and not path.is_file():
            raise Refused("no such file", str(path), "name a CSV file; see fl-app check")
    own = own_file(settings.node_config(Path("unused")))
    refusal: Refused | None = None
    for task in ("logistic", "linear"):
        config = RunConfig.parse({"task": task, "data": "csv", "data-args": "missing=mean"})
        try:
            division = open_data(config, own).divide(settings.client)
        except ValueError as error:
            if refusal is None:
                where = f"client {settings.client}"
                refusal = error if isinstance(error, Refused) else Refused("the rows cannot be used", where, str(error))
            continue
        counts = f"{len(division.train)} rows to train on, {len(division.test)} to test on"
        return f"client {settings.client}: {counts}, {len(division.train.columns.features)} columns"
    raise refusal or Refused("the rows cannot be used", str(settings.data), "see fl-app check")


def why_the_node_ended(folder: DeployFolder, settings: NodeSettings, log_path: Path, log: str, status: int) -> Failed:
    """Flower's report of a node's end, for the person at the site: the end of its log says why."""
    log = "\n".join(log.splitlines()[-_LAST_LINES:])
    code = re.search(r"\[code: (\d+)\]", log)
    if code and code[1] == "2004":
        remedy = f"at the server: fl-app deploy register DIR {settings.name}, with this node's .pub in DIR/nodes"
        return Failed("the SuperLink does not know this node's key", str(folder.node_key(settings.name)), remedy)
    if code and code[1] == "2001":
        return Failed("the SuperLink wants a key", str(folder.node_key(settings.name)), "register this node there")
    if "401 Unauthorized" in log:
        remedy = "set both clocks: Flower allows five minutes; or the key was withdrawn: register it again"
        return Failed("the SuperLink does not accept this node's signature", settings.superlink, remedy)
    if "CERTIFICATE_VERIFY_FAILED" in log:
        remedy = "get ca.crt from the coordinator of this server"
        return Failed("the server's certificate is not accepted", str(folder.authority), remedy)
    if _HANDSHAKE_FAILED in log:
        remedy = "start it again; it does so by itself as a systemd unit (fl-app deploy systemd)"
        return Failed("the SuperLink accepted a connection and then said nothing", settings.superlink, remedy)
    if "terminated gracefully" in log:  # its answer to an interrupt, which it also sends itself
        remedy = "its key was withdrawn at the server (register it again to go on), or somebody stopped it"
        return Failed("the SuperNode ended by itself", str(log_path), remedy)
    return _why_it_ended("SuperNode", log_path, log, status)


def _why_it_ended(program: str, log_path: Path, log: str, status: int) -> Failed:
    if status == 128 + signal.SIGKILL:
        remedy = "start it again; was this machine out of memory?"
        return Failed(f"the {program} was killed", str(log_path), remedy)
    return Failed(f"the {program} ended (exit status {status})", str(log_path), last_words(log))

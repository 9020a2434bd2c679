"""`fl-app deploy`: the programs of a real deployment, thin over Flower's own."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperCommand

from fl_app.commands import words
from fl_app.commands.trust import trust
from fl_app.deploy import link, records, services, serving
from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import PROFILE, DeployFolder, deploy_folder, node_name
from fl_app.deploy.making import initialise
from fl_app.deploy.programs import NodeSettings, check_gpus, flwr
from fl_app.errors import Refused, one_line

deploy = typer.Typer(
    name="deploy",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Set up and run a real deployment: a SuperLink and its nodes, over TLS.",
)
deploy.add_typer(trust, name="trust")

Host = Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 = every interface")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")]
SuperLink = Annotated[str, typer.Option(metavar="HOST:PORT", help="where the SuperLink is reached")]
Data = Annotated[Path, typer.Option(metavar="F.csv", help="the site's file")]
Label = Annotated[str, typer.Option(help="its label column")]
Client = Annotated[str | None, typer.Option(help="name of the client in reports; default: the node's")]
TestData = Annotated[Path | None, typer.Option(metavar="F.csv", help="its rows to test on")]
Policy = Annotated[Path | None, typer.Option(metavar="F.toml", help="what the site demands of a run")]
Gpus = Annotated[str | None, typer.Option(help="GPUs of the node: all, none, or numbers such as 0,1")]
# Of the commands that write a service: for the server none of them is given, so that none is required.
ServiceNode = Annotated[str | None, typer.Argument(metavar="[NODE]", help="a node; without: the server")]
ServiceSuperLink = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="where a node finds it")]
ServiceData = Annotated[Path | None, typer.Option(metavar="F.csv", help="the node's file")]
ServiceLabel = Annotated[str | None, typer.Option(help="its label column")]
ServiceOut = Annotated[Path | None, typer.Option(metavar="DIR", help="write the file there, not to stdout")]


class _ManyWords(TyperCommand):
    """`DIR --san a b --node c d` means the same as naming the option before each word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The words with the option before each."""
        found: list[str] = []
        option, folder_seen = "", False
        for before, word in pairwise(["", *args]):
            if word.startswith("-"):
                option = word if word in ("--san", "--node") else ""
            elif option and before != option and folder_seen:
                found.append(option)
            elif not before.startswith("-"):
                folder_seen = True
            found.append(word)
        return super().parse_args(ctx, found)


@deploy.command(cls=_ManyWords)
def init(
    folder: words.Folder,
    san: Annotated[list[str] | None, typer.Option(metavar="HOST", help="DNS name or address of the server")] = None,
    node: Annotated[list[str] | None, typer.Option(metavar="NAME", help="make a key for this node")] = None,
    days: Annotated[int, typer.Option(help="how long the server's certificate is valid")] = 365,
    renew: Annotated[bool, typer.Option("--renew", help="a new server certificate; the old one is kept aside")] = False,
    site: Annotated[bool, typer.Option("--site", help="the folder of a site: keys of its nodes and no more")] = False,
    debug: words.Debug = False,
) -> None:
    """Make certificates and keys. What is there stays: call it again with new nodes for their keys."""
    with _failures_in_one_line():
        target = DeployFolder(folder.expanduser().resolve())
        made = initialise(target, _words(san), _words(node), days=days, site=site, renew=renew)
        for path in made:
            print(f"made {path}")
        if not made:
            print("all of it is there already")
        for line in _after_init(target, site):
            print(line)
        _warn(target)


@deploy.command()
def server(
    folder: words.Folder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    debug: words.Debug = False,
) -> None:
    """Run the SuperLink in the foreground; `ready` on stdout once it serves. Ctrl-C or SIGTERM ends it."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        _warn(target)
        serving.serve(target, host, port, say=_say, on_ready=_ready)


@deploy.command()
def register(
    folder: words.Folder,
    name: Annotated[list[str], typer.Argument(metavar="NAME...", help="nodes whose public keys are in DIR/nodes")],
    debug: words.Debug = False,
) -> None:
    """Tell the SuperLink the public keys of nodes. Prints their ids; doing so again changes nothing."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        _warn(target)
        keys = {each: link.public_key(target, each) for each in name}
        for each, key in keys.items():
            _say(str(link.registration(target, each)))
            print(f"{each} {link.register(target, each, key)}", flush=True)


@deploy.command()
def node(
    folder: words.Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="the node, whose key is in DIR/nodes")],
    superlink: SuperLink,
    data: Data,
    label: Label,
    client: Client = None,
    test_data: TestData = None,
    policy: Policy = None,
    gpus: Gpus = None,
    debug: words.Debug = False,
) -> None:
    """Run a SuperNode for a site in the foreground; `ready` on stdout once the SuperLink knows it."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        _warn(target)
        settings = _settings(name, superlink, data, label, client, test_data, policy, gpus)
        serving.run_node(target, settings, say=_say, on_ready=_ready)


@deploy.command()
def status(
    folder: words.Folder,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """List the nodes that the SuperLink knows. What cannot be known here is null, or -."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        _warn(target)
        _say(str(flwr(target, "supernode", "list")))
        found = [each.to_json() for each in link.nodes(target)]
        if as_json:
            print(json.dumps({"nodes": found}, indent=2))
            return
        rows = [["name", "status", "id", "clients", "last seen"]]
        for each in found:
            clients = ", ".join(each["clients"]) if each["clients"] else None
            cells = [each["name"], each["status"], each["id"], clients, each["last_seen"]]
            rows.append([one_line(str(cell)) if cell else "-" for cell in cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@deploy.command()
def stop(folder: words.Folder, debug: words.Debug = False) -> None:
    """End what was started from this folder on this machine: its nodes, then its server."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        _warn(target)
        states = {f"node {path.name}": path for path in sorted((target.path / "state" / "nodes").glob("*"))}
        stopped = [what for what, state in {**states, "server": target.server_state}.items() if records.stop(state)]
        for what in stopped:
            print(f"stopped {what}")
        if not stopped:
            print("nothing was running")


@deploy.command()
def systemd(
    folder: words.Folder,
    name: ServiceNode = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    superlink: ServiceSuperLink = None,
    data: ServiceData = None,
    label: ServiceLabel = None,
    client: Client = None,
    test_data: TestData = None,
    policy: Policy = None,
    gpus: Gpus = None,
    user: Annotated[str | None, typer.Option(help="the account that it runs as")] = None,
    out: ServiceOut = None,
    debug: words.Debug = False,
) -> None:
    """Write a systemd unit that runs the server, or a node, with these settings."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        settings = _settings_of_service(name, superlink, data, label, client, test_data, policy, gpus)
        if settings is None:
            text = services.server_unit(target, host, port, user)
        else:
            text = services.node_unit(target, settings, user)
        _write(text, out, services.unit_name(settings))


@deploy.command()
def compose(
    folder: words.Folder,
    name: ServiceNode = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    superlink: ServiceSuperLink = None,
    data: ServiceData = None,
    label: ServiceLabel = None,
    client: Client = None,
    test_data: TestData = None,
    policy: Policy = None,
    gpus: Gpus = None,
    out: ServiceOut = None,
    debug: words.Debug = False,
) -> None:
    """Write a compose file that runs the server, or a node, with these settings."""
    with _failures_in_one_line():
        target = deploy_folder(folder)
        settings = _settings_of_service(name, superlink, data, label, client, test_data, policy, gpus)
        if settings is None:
            text = services.server_compose(target, host, port)
        else:
            text = services.node_compose(target, settings)
        _write(text, out, "compose.yaml")


@contextmanager
def _failures_in_one_line() -> Iterator[None]:
    """Turn Failed, which no other command line would have prevented, into one line on stderr and exit status 1."""
    try:
        yield
    except Failed as failure:
        if "--debug" in sys.argv:
            raise
        print(f"error: {failure}", file=sys.stderr)
        raise typer.Exit(1) from failure


def _settings(
    name: str,
    superlink: str,
    data: Path,
    label: str,
    client: str | None,
    test_data: Path | None,
    policy: Path | None,
    gpus: str | None,
) -> NodeSettings:
    """What a node is started with. Files are named by absolute paths, as it runs in another folder. Raises Refused."""
    if client is not None and not client.strip():
        raise Refused("a client without a name", '--client ""', "name it, or leave --client out")
    return NodeSettings(
        name=node_name(name),
        superlink=superlink,
        data=data.expanduser().absolute(),
        label=label,
        client=client or name,
        test_data=test_data and test_data.expanduser().absolute(),
        policy=policy and policy.expanduser().absolute(),
        gpus=check_gpus(gpus),
    )


def _settings_of_service(
    name: str | None,
    superlink: str | None,
    data: Path | None,
    label: str | None,
    client: str | None,
    test_data: Path | None,
    policy: Path | None,
    gpus: str | None,
) -> NodeSettings | None:
    """The settings of the node that a service is to run; None where it runs the server. Raises Refused."""
    needed = {"--superlink": superlink, "--data": data, "--label": label}
    others = {"--client": client, "--test-data": test_data, "--policy": policy, "--gpus": gpus}
    given = [option for option, value in {**needed, **others}.items() if value is not None]
    if name is None:
        if given:
            raise Refused(f"{given[0]} without a node", "fl-app deploy", "name the node behind DIR")
        return None
    if superlink is None or data is None or label is None:
        missing = next(option for option, value in needed.items() if value is None)
        raise Refused(f"no {missing} for node {name}", "fl-app deploy", f"add {missing}")
    return _settings(name, superlink, data, label, client, test_data, policy, gpus)


def _after_init(folder: DeployFolder, site: bool) -> list[str]:
    """What comes next, and when what is there expires."""
    if site:
        return [f"next: put the coordinator's ca.crt into {folder.path}, and send the .pub file to the coordinator"]
    lines = []
    for path in (folder.authority, folder.server):
        certificate = folder.read_certificate(path, "put a certificate in PEM there")
        lines.append(f"{path.name} is valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    directory = shlex.quote(str(folder.path))
    return [
        *lines,
        f"next: fl-app deploy server {directory}; fl-app deploy register {directory} NODE...; start the nodes;",
        f"then fl-app run {PROFILE} --profiles {directory}",
    ]


def _write(text: str, out: Path | None, name: str) -> None:
    if out is None:
        print(text, end="")
        return
    target = out.expanduser() / name
    try:
        out.expanduser().mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise Refused("this file is there already", str(target), "remove it, or choose another folder") from error
    except OSError as error:
        raise Refused("cannot write", str(target), f"{error.strerror}: choose another folder") from error
    print(f"made {target}")


def _warn(folder: DeployFolder) -> None:
    for notice in folder.notices():
        print(f"warning: {notice}", file=sys.stderr)


def _say(text: str) -> None:
    """Tell something on stderr that is not the command's result, such as the plain Flower command that it runs."""
    print(f"# {one_line(text)}", file=sys.stderr, flush=True)


def _ready() -> None:
    print("ready", flush=True)


def _words(words: Sequence[str] | None) -> list[str]:
    return list(words or ())

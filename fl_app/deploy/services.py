"""Unit files and compose files that run `fl-app deploy server` and `fl-app deploy node` with the same settings."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_app.deploy.folder import DeployFolder
from fl_app.deploy.programs import NodeSettings, parted

_IN_CONTAINER = "/deploy"
_GPU = {"driver": "nvidia", "capabilities": ["gpu"]}

_UNIT = """\
# Written by `fl-app deploy systemd`. Install: put it into /etc/systemd/system, then
# systemctl daemon-reload && systemctl enable --now {name}
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
{user}ExecStart={command}
# 2 = refused: a missing file or a bad certificate does not mend itself.
RestartPreventExitStatus=2
Restart=on-failure
RestartSec=10
# The main process ends its children itself and in order; the rest of the group is killed if it cannot.
KillMode=mixed
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes
{protection}
[Install]
WantedBy=multi-user.target
"""


def server_words(path: str, host: str, port: int) -> list[str]:
    """The words of `fl-app` that run the server of a folder."""
    return ["deploy", "server", path, "--host", host, "--port", str(port)]


def node_words(path: str, settings: NodeSettings) -> list[str]:
    """The words of `fl-app` that run a node of a folder."""
    words = ["deploy", "node", path, settings.name, "--superlink", settings.superlink, "--client", settings.client]
    words += ["--data", str(settings.data), "--label", settings.label]
    for option, value in (
        ("--test-data", settings.test_data),
        ("--policy", settings.policy),
        ("--gpus", settings.gpus),
    ):
        if value is not None:
            words += [option, str(value)]
    return words


def unit_name(settings: NodeSettings | None) -> str:
    """The file name of a unit."""
    return "fl-app-server.service" if settings is None else f"fl-app-node-{settings.name}.service"


def server_unit(folder: DeployFolder, host: str, port: int, user: str | None) -> str:
    """The unit of the server. Runs write their results where the run says, so that few folders are closed to it."""
    words = server_words(str(folder.path), host, port)
    return _unit(None, "fl-app SuperLink", words, user, "ProtectSystem=full\n")


def node_unit(folder: DeployFolder, settings: NodeSettings, user: str | None) -> str:
    """The unit of a node, which writes to its state folder and nowhere else."""
    state = _systemd_word(str(folder.path / "state"))
    closed = f"PrivateTmp=yes\nProtectSystem=strict\nReadWritePaths={state}\n"
    return _unit(settings, f"fl-app node {settings.name}", node_words(str(folder.path), settings), user, closed)


def _unit(
    settings: NodeSettings | None, description: str, words: Sequence[str], user: str | None, protection: str
) -> str:
    return _UNIT.format(
        name=unit_name(settings),
        description=description,
        user=f"User={user}\n" if user else "",
        command=" ".join(_systemd_word(word) for word in [*_fl_app(), *words]),
        protection=protection,
    )


def _fl_app() -> list[str]:
    """This installation's command line, by its full path."""
    script = Path(sys.executable).parent / "fl-app"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "fl_app.cli"]


def _systemd_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not word or set(escaped) & set(" \t'\"\\;") else escaped


def server_compose(folder: DeployFolder, host: str, port: int) -> str:
    """A compose file with the server, whose port is published on `host` alone."""
    published = f"[{host}]:{port}:{port}" if ":" in host else f"{host}:{port}:{port}"
    service = {
        # In the container it listens on every interface; what reaches it from outside is what is published.
        "command": ["fl-app", *server_words(_IN_CONTAINER, "0.0.0.0", port)],  # noqa: S104
        "ports": [published],
        "volumes": [_volume(folder.path, _IN_CONTAINER, "rw")],
    }
    return _compose("superlink", service)


def node_compose(folder: DeployFolder, settings: NodeSettings) -> str:
    """A compose file with one node. It listens to nothing; its data are mounted for reading."""
    parted(settings.superlink, "--superlink")
    inside = NodeSettings(
        name=settings.name,
        superlink=settings.superlink,
        data=Path("/data") / settings.data.name,
        label=settings.label,
        client=settings.client,
        test_data=settings.test_data and Path("/test") / settings.test_data.name,
        policy=settings.policy and Path("/policy") / settings.policy.name,
        gpus=settings.gpus,
    )
    volumes = [_volume(folder.path, _IN_CONTAINER, "rw")]
    for outer, inner in (
        (settings.data, inside.data),
        (settings.test_data, inside.test_data),
        (settings.policy, inside.policy),
    ):
        if outer is not None:
            volumes.append(_volume(outer, str(inner), "ro"))
    service: dict[str, Any] = {"command": ["fl-app", *node_words(_IN_CONTAINER, inside)], "volumes": volumes}
    if settings.gpus not in (None, "none"):  # a machine without GPUs could not start a service that asks for them
        service["deploy"] = {"resources": {"reservations": {"devices": [{**_GPU, "count": "all"}]}}}
    return _compose(f"node-{settings.name.lower()}", service)


def _volume(outer: Path, inner: str, mode: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(outer), "target": inner, "read_only": mode == "ro"}


def _compose(name: str, service: Mapping[str, Any]) -> str:
    """JSON is YAML; `$` is doubled, as compose would put a variable there."""
    common = {
        "image": "fl-app",
        "user": f"{os.getuid()}:{os.getgid()}",
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": "60s",
    }
    text = json.dumps({"services": {name: {**common, **service}}}, indent=2, ensure_ascii=False)
    return (
        f"# Written by `fl-app deploy compose`; the image is that of docs/deployment.md.\n{text.replace('$', '$$')}\n"
    )

"""A Flower app of a benchmark's own, run in Flower's simulation as `fl-app run` runs the project's."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from fl_app.bundle import write_app_tree
from fl_app.config import RunConfig
from fl_app.profiles import Profile, federation_config, flower_config
from fl_app.superlink import LocalSuperLink, flower_environment

SIMULATION = Profile("benchmark", {"address": ":local:"}, {"client-resources-num-cpus": 1})
RESULT = "result.json"
LOG_LINES_SHOWN = 30


def run_flower_app(source: Path, config: RunConfig, num_supernodes: int) -> Any:
    """What the `server` of the module `source` wrote to `RESULT` in `config.out`, with `client` of it at every node.

    The app is the project's own tree with this module added. It takes the project's run config. Raises RuntimeError
    with the end of Flower's log when there is no result.
    """
    profile = SIMULATION.with_num_supernodes(num_supernodes)
    with LocalSuperLink() as superlink:
        superlink.wait_until_ready()
        home = superlink.home
        (home / "config.toml").write_text(flower_config(profile, superlink.address))
        (home / "run-config.toml").write_text(tomli_w.dumps(config.values()))
        _write_app(home / "app", source)
        command = [sys.executable, "-P", "-c", "from flwr.cli.app import app; app()", "run", str(home / "app")]
        command += [profile.name, "--stream", "--run-config", str(home / "run-config.toml")]
        command += ["--federation-config", federation_config(profile)]
        log = subprocess.run(
            command, env=flower_environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    result = Path(config.out) / RESULT
    if not result.exists():
        raise RuntimeError("\n".join(log.stdout.decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]))
    return json.loads(result.read_text())


def _write_app(app: Path, source: Path) -> None:
    write_app_tree(app)
    shutil.copyfile(source, app / source.name)
    project = tomllib.loads((app / "pyproject.toml").read_text())
    flower = project["tool"]["flwr"]["app"]
    flower["fab-include"].append(source.name)
    flower["components"] = {"serverapp": f"{source.stem}:server", "clientapp": f"{source.stem}:client"}
    (app / "pyproject.toml").write_text(tomli_w.dumps(project))

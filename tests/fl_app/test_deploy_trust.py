"""`fl-app deploy trust`: a site runs the bundles that it, or somebody it trusts, has signed, and no other."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.cli.flower_supernode import _try_obtain_trusted_entities, _validate_public_keys_ed25519
from flwr.supernode.start_client_internal import _verify_fab
from hospitals import patients, write_csv
from test_deploy_runs import Federation, federation  # noqa: F401 - a fixture

from fl_app.bundle import BUNDLED_FILES, PACKAGES, build_bundle
from fl_app.deploy import signatures, trust
from fl_app.deploy.attachment import attachment
from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import DeployFolder, deploy_folder
from fl_app.deploy.signatures import PublicKey, Signature
from fl_app.errors import Refused
from fl_app.profiles import load_profile

# Flower builds with an interface that its own dependency has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

PROJECT = Path(__file__).parents[2]


def another_app(folder: Path, change: str = "") -> Path:
    """An installation of this project in a folder of its own, with a change to what nodes import."""
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fl_app" / "_project").mkdir()
    for name in (*BUNDLED_FILES, "pyproject-flower.toml"):
        shutil.copy(PROJECT / name, folder / "fl_app" / "_project")
    with (folder / "fl_app" / "client_app.py").open("a") as module:
        module.write(change)
    return folder


# ------------------------------------------------------------------------------------------------ on real programs

LEAVES_A_TRACE = """
import os, pathlib
pathlib.Path(os.environ["FLWR_HOME"], "imported").touch()
"""
KEYS = {"data": "csv", "rounds": 1, "num-clients": 3, "min-clients": 2, "enrol-timeout-s": 20}


def site(federation: Federation, name: str, seed: int) -> Path:  # noqa: F811
    """A site's folder, as docs/deployment.md has it made: its own key goes to the server, ca.crt comes from there."""
    federation.call("deploy", "init", name, "--site", "--node", name)
    shutil.copy(federation.path / name / "nodes" / f"{name}.pub", federation.path / "fed" / "nodes")
    shutil.copy(federation.path / "fed" / "ca.crt", federation.path / name)
    write_csv(federation.path / f"{name}.csv", patients(60, seed))
    return federation.path / name


@pytest.mark.flower
@pytest.mark.timeout(420)
def test_sites_that_pinned_a_bundle_refuse_another_unseen_and_train_on_theirs(federation: Federation) -> None:  # noqa: F811
    federation.call("deploy", "init", "fed")
    federation.serve()
    sites = {name: site(federation, name, seed) for seed, name in enumerate(("east", "west", "any"))}
    federation.call("deploy", "register", "fed", *sites)
    for name in ("east", "west"):
        federation.call("deploy", "trust", "sign", name, name, "--pin")
        (signed,) = (sites[name] / "trust" / "own").glob("*.sig")
        assert "the bundle that fl-app" in federation.call("deploy", "trust", "accept", "fed", signed).stdout
    where = ["--superlink", f"127.0.0.1:{federation.port}", "--label", "outcome"]
    nodes = [federation.start("deploy", "node", name, name, *where, "--data", f"{name}.csv") for name in sites]
    for node in nodes:
        federation.wait_until_ready(node)
    told = (federation.path / "out-1.err").read_text()
    assert "--trusted-entities" in told
    assert "runs no bundles but those signed by: east (SHA256:" in told

    words = [word for key, value in KEYS.items() for word in ("-c", f"{key}={value}")]
    run = ["run", "deployment", "--profiles", "fed", "--json", *words]
    honest = federation.environment
    federation.environment = {**honest, "PYTHONPATH": str(another_app(federation.path / "other", LEAVES_A_TRACE))}
    refused = json.loads(federation.call(*run, "--out", "refused", status=1).stdout)
    federation.environment = honest
    homes = {name: folder / "state" / "nodes" / name / "home" for name, folder in sites.items()}
    assert refused["reason"] == "too-few-clients"
    ids = {each["name"]: each["id"] for each in federation.status()}
    for name in ("east", "west"):
        assert f"node {ids[name]}: it does not run this bundle" in refused["error"]
        assert "FAB verification failed" in (sites[name] / "state" / "nodes" / name / "supernode.log").read_text()
    assert [name for name, home in homes.items() if (home / "imported").exists()] == ["any"]
    assert [name for name, home in homes.items() if (home / "apps").exists()] == ["any"]

    summary = json.loads(federation.call(*run, "--out", "accepted").stdout)
    assert (summary["status"], summary["clients"]) == ("completed", 3)
    federation.call("deploy", "stop", "fed")

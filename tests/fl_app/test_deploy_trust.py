"""`fl-app deploy trust`: a site runs the bundles that it, or somebody it trusts, has signed, and no other."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deployment import Federation
from flwr.app import Message
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.cli.flower_supernode import _try_obtain_trusted_entities, _validate_public_keys_ed25519
from flwr.supernode.start_client_internal import FAB_VERIFICATION_ERROR, _verify_fab
from hospitals import patients, write_csv

from fl_app import client_app
from fl_app.bundle import BUNDLED_FILES, PACKAGES, build_bundle
from fl_app.config import RunConfig
from fl_app.deploy import serving, signatures, trust
from fl_app.deploy.attachment import attachment
from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import DeployFolder, deploy_folder
from fl_app.deploy.programs import NodeSettings, supernode
from fl_app.deploy.signatures import PublicKey, Signature
from fl_app.enrolment import Enrolment
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.profiles import load_profile
from strategies.base import TooFewClients

# Flower builds bundles, and opens its database, with interfaces that its own dependencies have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
]

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


@pytest.fixture
def north(fl_app: Command, caller: Path) -> DeployFolder:
    """The folder of a site that has pinned the bundle of the installed version."""
    fl_app("deploy", "init", "north", "--site", "--node", "north")
    done = fl_app("deploy", "trust", "sign", "north", "north", "--pin")
    assert done.status == 0, done
    assert "nodes of this folder run no bundles but those signed by: north" in done.out
    return deploy_folder(caller / "north")


@pytest.fixture
def fed(fl_app: Command, caller: Path) -> DeployFolder:
    """The coordinator's."""
    fl_app("deploy", "init", "fed")
    return deploy_folder(caller / "fed")


@pytest.fixture(scope="module")
def bundle() -> bytes:
    with pytest.warns(DeprecationWarning, match="GitWildMatchPattern"):
        return build_bundle()


def signature_file(site: DeployFolder) -> Path:
    (found,) = site.own_keys.glob("*.sig")
    return found


def signature_of(site: DeployFolder) -> Signature:
    return Signature.read(signature_file(site).read_bytes())


def content(folder: DeployFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------- the bundle


def test_every_installation_of_a_version_has_the_same_bundle_and_a_changed_one_another(
    bundle: bytes, tmp_path: Path
) -> None:
    def built(root: Path) -> bytes:
        program = "import sys, fl_app.bundle; sys.stdout.buffer.write(fl_app.bundle.build_bundle())"
        command = [sys.executable, "-P", "-W", "ignore", "-c", program]
        return subprocess.run(command, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, check=True).stdout

    other = another_app(tmp_path / "other")
    for path in (other / "tasks").rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (0, 10**9))
    (other / "tasks" / "notes.md").touch()
    assert built(other) == bundle
    changed = built(another_app(tmp_path / "changed", "\n"))
    assert trust.differing_files(changed, bundle) == ["fl_app/client_app.py"]


def test_the_bundle_is_written_to_be_read_and_signed(
    fl_app: Command, north: DeployFolder, bundle: bytes, caller: Path
) -> None:
    done = fl_app("deploy", "trust", "bundle", "north", "-o", "app.fab")
    assert (caller / "app.fab").read_bytes() == bundle
    assert f"sha256 {sha256(bundle).hexdigest()}" in done.out
    changed = rewritten(bundle, {"fl_app/server_app.py": b"import os"})
    (caller / "changed.fab").write_bytes(changed)
    sign = ["deploy", "trust", "sign", "north", "north", "--bundle", "changed.fab"]
    before = content(north)
    assert "NOT that of fl-app" in (refusal := fl_app(*sign).refusal())
    assert "1 files differ: fl_app/server_app.py" in refusal
    assert content(north) == before
    assert f"sha256 {sha256(changed).hexdigest()}, NOT that of fl-app" in fl_app(*sign, "--differing").out
    (caller / "changed.fab").write_bytes(rewritten(bundle, {"fl_app/\x1b[2Kx\n.py": b"pass"}))
    assert "\\x1b[2Kx .py" in fl_app(*sign).refusal()
    assert "is there already" in fl_app("deploy", "trust", "bundle", "north", "-o", "changed.fab").refusal()
    (caller / "repacked.fab").write_bytes(rewritten(bundle, {}))
    assert "with the files of fl-app" in fl_app("deploy", "trust", "sign", "north", "x", "--bundle", "repacked.fab").out
    (caller / "none.fab").write_bytes(changed[:-9])
    refusal = fl_app("deploy", "trust", "sign", "north", "y", "--bundle", "none.fab").refusal()
    assert "no app bundle" in refusal
    assert not north.signing_key("y").exists()


def rewritten(bundle: bytes, changes: dict[str, bytes]) -> bytes:
    """Another zip with the same files but for these."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, changes.get(name, source.read(name)))
        for name in changes.keys() - set(source.namelist()):
            archive.writestr(name, changes[name])
    return target.getvalue()


# ------------------------------------------------------------------------------------------- what Flower makes of it


def test_flowers_node_accepts_the_signed_bundle_and_neither_another_nor_one_signed_by_others(
    north: DeployFolder, bundle: bytes, tmp_path: Path
) -> None:
    keys = trust.trusted_keys(north)
    assert keys is not None
    (tmp_path / "trusted.yaml").write_text(signatures.trusted_entities(keys.values()))
    entities = _try_obtain_trusted_entities(tmp_path / "trusted.yaml")
    assert entities is not None
    _validate_public_keys_ed25519(entities)
    stranger = signatures.read_private_key(signatures.new_key())
    foreign = signatures.sign(stranger, "north", bundle, 1)
    own = signature_of(north)
    told = signatures.verifications([foreign, own])
    assert told["valid_license"]
    assert _verify_fab(Fab("", bundle, told), entities)
    assert not _verify_fab(Fab("", bundle[:-1] + b"x", told), entities)
    assert not _verify_fab(Fab("", bundle, signatures.verifications([foreign])), entities)
    renamed = replace(foreign, key=own.key)
    assert not _verify_fab(Fab("", bundle, signatures.verifications([renamed])), entities)


def test_a_node_gets_the_keys_that_its_folder_trusts_and_does_not_start_when_the_last_is_gone(
    fl_app: Command, north: DeployFolder, fed: DeployFolder, caller: Path
) -> None:
    shutil.copy(fed.authority, north.path)
    write_csv(caller / "north.csv", patients(60, 0))
    words = "--superlink 127.0.0.1:1 --data north.csv --label outcome"
    node = ["deploy", "node", "north", "north", *words.split()]
    settings = NodeSettings("north", "127.0.0.1:1", caller / "north.csv", "outcome", "north")
    assert supernode(north, settings, 9999, Path("/t.yaml")).argv[-2:] == ("--trusted-entities", "/t.yaml")
    assert "--trusted-entities" not in supernode(north, settings, 9999).argv
    (north.trusted / "north.pub").unlink()
    assert "no trusted key is left" in fl_app(*node).refusal()
    north.trusted.rmdir()
    assert trust.trusted_keys(north) is None
    assert "cannot be reached" in fl_app(*node).err


def test_a_node_that_checked_bundles_runs_no_others_because_its_keys_are_not_there(
    north: DeployFolder, caller: Path
) -> None:
    settings = NodeSettings("north", "127.0.0.1:1", caller / "north.csv", "outcome", "north")
    said: list[str] = []
    unpacked = north.make(north.node_state("north") / "home" / "apps" / "fl-app.0123abcd")
    entities = serving._trusted_entities(north, settings, said.append)
    assert entities is not None
    assert signature_of(north).public_key.id in entities.read_text()
    assert "runs no bundles but those signed by: north" in said[-1]
    assert not unpacked.exists()  # Flower would run what lies there without looking at it again
    north.trusted.rename(caller / "keys")
    north.trusted.symlink_to("/not/mounted")
    with pytest.raises(Refused, match="no trusted key is left"):
        trust.trusted_keys(north)
    north.trusted.unlink()
    with pytest.raises(Refused, match="the keys that this node trusted are gone"):
        serving._trusted_entities(north, settings, said.append)
    entities.unlink()
    assert serving._trusted_entities(north, settings, said.append) is None
    assert "runs any bundle that the server sends" in said[-1]


@pytest.mark.parametrize("damage", [lambda path: path.symlink_to("/nowhere"), Path.mkdir])
def test_a_key_that_cannot_be_read_is_refused_by_name(north: DeployFolder, damage: Callable[[Path], None]) -> None:
    damage(north.trusted / "other.pub")
    with pytest.raises(Refused, match=r"other\.pub"):
        trust.trusted_keys(north)


@pytest.mark.parametrize("damage", [b"\xff" * 40, b""])
def test_a_damaged_bundle_is_refused(bundle: bytes, tmp_path: Path, damage: bytes) -> None:
    packed = rewritten(bundle, {})
    (tmp_path / "a.fab").write_bytes(packed[:200] + damage + packed[240:])
    with pytest.raises(Refused, match="no app bundle"):
        trust.read_bundle(tmp_path / "a.fab")


# ------------------------------------------------------------------------------------------------- keys of one's own


def test_a_signing_key_is_its_owners_alone_and_never_written_over(fl_app: Command, north: DeployFolder) -> None:
    key = north.signing_key("north")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    before = key.read_bytes()
    assert key.read_bytes() not in {value for path, value in content(north).items() if path != key}
    assert fl_app("deploy", "trust", "sign", "north", "north").status == 0
    assert key.read_bytes() == before
    assert signature_of(north).public_key == PublicKey.read((north.own_keys / "north.pub").read_bytes())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda key: key.chmod(0o640), "others can read this private key"),
        (lambda key: key.write_text("no key"), "this key cannot sign bundles"),
        (lambda key: key.write_bytes((key.parents[2] / "nodes" / "north").read_bytes()), "another kind than Ed25519"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_and_nothing_is_signed(
    fl_app: Command, north: DeployFolder, damage: Callable[[Path], Any], words: str
) -> None:
    damage(north.signing_key("north"))
    before = content(north)
    assert words in fl_app("deploy", "trust", "sign", "north", "north").refusal()
    assert content(north) == before


def test_a_name_that_none_can_have_is_refused(fl_app: Command, north: DeployFolder) -> None:
    for name in ("../north", "north.pub", ""):
        assert "is no name for a key" in fl_app("deploy", "trust", "sign", "north", name).refusal()


# --------------------------------------------------------------------------------------------------- what others send


def test_a_signature_is_kept_by_the_coordinator_and_listed_with_its_bundle(
    fl_app: Command, north: DeployFolder, fed: DeployFolder, bundle: bytes
) -> None:
    own = signature_of(north)
    for _ in range(2):  # again changes nothing
        done = fl_app("deploy", "trust", "accept", "fed", signature_file(north))
        assert f"north has signed {own.bundle}: the bundle that fl-app" in done.out
        assert trust.held_signatures(fed) == [own]
    listed = json.loads(fl_app("deploy", "trust", "list", "fed", "--json").out)
    entry = {"name": "north", "key": own.public_key.id, "bundle": own.bundle, "signed_at": own.signed_at}
    assert listed == {"bundle": sha256(bundle).hexdigest(), "trusted": None, "signatures": [entry]}
    assert "nodes of this folder run any bundle" in fl_app("deploy", "trust", "list", "fed").out
    assert "signed by: north (" in fl_app("deploy", "trust", "list", "north").out
    key = signatures.read_private_key(north.signing_key("north").read_bytes())
    (north.path / "old.sig").write_bytes(signatures.sign(key, "north", b"an old bundle", 1).content())
    told = fl_app("deploy", "trust", "accept", "fed", north.path / "old.sig").out
    assert f"north has signed {sha256(b'an old bundle').hexdigest()}: NOT the bundle that fl-app" in told
    assert len(trust.held_signatures(fed)) == 2


def test_a_site_trusts_another_signer_by_the_public_key(
    fl_app: Command, north: DeployFolder, fed: DeployFolder
) -> None:
    fl_app("deploy", "trust", "sign", "fed", "auditor")
    public = fed.own_keys / "auditor.pub"
    assert "signed by: auditor, north" in fl_app("deploy", "trust", "accept", "north", public).out
    fl_app("deploy", "init", "other")
    fl_app("deploy", "trust", "sign", "other", "auditor")
    refusal = fl_app("deploy", "trust", "accept", "north", "other/trust/own/auditor.pub").refusal()
    assert "another key of this name is trusted" in refusal


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps(json.loads(text) | changes).encode()


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (edited(bundle="0" * 64), "n.sig", "no valid signature"),
        (edited(signed_at=1), "n.sig", "no valid signature"),
        (edited(signed_at=-1), "n.sig", "no valid signature"),
        (edited(signature="A" * 86), "n.sig", "no valid signature"),
        (edited(name="../n"), "n.sig", "no valid signature"),
        (edited(key="ssh-ed25519 AAAA"), "n.sig", "no valid signature"),
        (
            edited(key=signatures.PublicKey(Ed25519PrivateKey.generate().public_key()).text),
            "n.sig",
            "no valid signature",
        ),
        (lambda text: text[:-9], "n.sig", "no valid signature"),
        (lambda text: text, "n.pub", "no key that signs bundles"),
        (lambda text: text, "n.txt", "neither a key nor a signature"),
    ],
)
def test_what_is_no_signature_is_refused_and_nothing_of_the_others_kept(
    fl_app: Command, north: DeployFolder, fed: DeployFolder, change: Callable[[bytes], bytes], name: str, words: str
) -> None:
    good = signature_file(north)
    bad = good.with_name(name)
    bad.write_bytes(change(good.read_bytes()))
    assert words in fl_app("deploy", "trust", "accept", "fed", good, bad).refusal()
    assert trust.held_signatures(fed) == []
    assert "no n.sig" in fl_app("deploy", "trust", "accept", "fed", "n.sig").refusal()


def test_a_nodes_own_key_signs_no_bundles(fl_app: Command, north: DeployFolder) -> None:
    refusal = fl_app("deploy", "trust", "accept", "north", north.node_public_key("north")).refusal()
    assert "no key that signs bundles (it is of another kind than Ed25519)" in refusal


# --------------------------------------------------------------------------------------------- signatures go with runs


def opened(database: Path) -> Any:
    """The state of a SuperLink, made where there is none."""
    database.parent.mkdir(parents=True, exist_ok=True)
    path = str(database)
    return LinkStateFactory(path, NoOpFederationManager(), ObjectStoreFactory(path)).state()


def superlink_with_a_run(fed: DeployFolder, sent: bytes) -> tuple[Any, str]:
    """The SuperLink's database after a run of this bundle was started, and the run's id."""
    state = opened(fed.database)
    digest = state.store_fab(Fab("", sent, {}))
    run = state.create_run("fl-app/fl-app", "1", digest, {}, NOOP_FEDERATION_ID, None, "none", TaskType.SERVER_APP)
    return state, str(run)


@pytest.mark.parametrize("signed", [True, False])
def test_a_run_takes_the_signatures_of_its_own_bundle_along(
    north: DeployFolder, fed: DeployFolder, bundle: bytes, signed: bool
) -> None:
    sent = bundle if signed else b"another bundle"
    state, run = superlink_with_a_run(fed, sent)
    trust.accept(fed, [signature_file(north)])
    attach = attachment(load_profile("deployment", fed.path))
    assert attach is not None
    attach(run)
    stored = state.get_fab(sha256(sent).hexdigest())
    assert stored.content == sent
    assert (signature_of(north).public_key.id in stored.verifications) is signed
    with pytest.raises(Failed, match="run 123 is of another SuperLink than these signatures"):
        attach("123")


def test_signatures_without_the_superlinks_database_are_refused_before_a_run(
    fl_app: Command, north: DeployFolder, fed: DeployFolder, caller: Path
) -> None:
    profile = load_profile("deployment", fed.path)
    assert attachment(profile) is None
    trust.accept(fed, [signature_file(north)])
    done = fl_app("run", "deployment", "--profiles", "fed", "-c", "data=csv", "-c", "num-clients=2", "--out", "r")
    assert "this folder holds signatures, and not the SuperLink's database" in done.refusal()
    assert not (caller / "r").exists()
    fed.make(fed.server_state)
    fed.database.write_text("no database")
    with pytest.raises(Failed, match="the signatures cannot be put into the SuperLink's database"):
        attachment(profile)
    (held,) = fed.signatures.iterdir()
    held.write_text("{}")
    with pytest.raises(Refused, match="no valid signature of a bundle"):
        attachment(profile)


class Pinned(InlineGrid):
    """The first node does not run this bundle, as Flower says it, and is silent when it is asked again."""

    def _work(self, message: Message) -> Message:
        if message.metadata.dst_node_id == next(iter(self.get_node_ids())):
            return Message(FAB_VERIFICATION_ERROR, reply_to=message)
        return super()._work(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [] if len(list(message_ids)) == 1 else super().pull_messages(message_ids)


def test_the_coordinator_is_told_which_node_does_not_run_the_bundle(small_config: Callable[..., RunConfig]) -> None:
    config = small_config(min_clients=4, enrol_timeout_s=0.3)
    with pytest.raises(TooFewClients) as ending:
        Enrolment(config).open(Pinned(client_app.app, config.values(), 2))
    assert "it does not run this bundle, which no key that it trusts has signed: see fl-app deploy trust" in str(
        ending.value
    )


class Repinned(InlineGrid):
    """The first node was restarted with other keys once it had enrolled."""

    def _work(self, message: Message) -> Message:
        reply = super()._work(message)
        first = message.metadata.dst_node_id == next(iter(self.get_node_ids()))
        if first and message.metadata.message_type == "train":
            return Message(FAB_VERIFICATION_ERROR, reply_to=message)
        return reply


def test_a_node_that_refuses_the_bundle_in_a_round_has_declined(serve: Callable[..., Any]) -> None:
    run = serve(grid=Repinned, rounds=1)
    (report,) = run.folder.read_rounds(1)
    assert {each.reason for each in report.dropped} == {"declined"}
    assert run.summary["client_updates"] == 2


# ------------------------------------------------------------------------------------------------ on real programs

LEAVES_A_TRACE = """
import os, pathlib
pathlib.Path(os.environ["FLWR_HOME"], "imported").touch()
"""
KEYS = {"data": "csv", "rounds": 1, "num-clients": 3, "min-clients": 2}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, ("north", "south"))
    yield made
    made.close()


def site(federation: Federation, name: str, seed: int) -> Path:
    """A site's folder, as docs/deployment.md has it made: its own key goes to the server, ca.crt comes from there."""
    federation.call("deploy", "init", name, "--site", "--node", name)
    shutil.copy(federation.path / name / "nodes" / f"{name}.pub", federation.path / "fed" / "nodes")
    shutil.copy(federation.path / "fed" / "ca.crt", federation.path / name)
    write_csv(federation.path / f"{name}.csv", patients(60, seed))
    return federation.path / name


@pytest.mark.flower
@pytest.mark.timeout(600)
def test_sites_that_pinned_a_bundle_refuse_another_unseen_and_train_on_theirs(federation: Federation) -> None:
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

    def run(folder: str, out: str, wait_s: int = 120, status: int = 0) -> dict[str, Any]:
        words = [word for key, value in KEYS.items() for word in ("-c", f"{key}={value}")]
        where = ["--profiles", folder, "--out", out, "--json", "-c", f"enrol-timeout-s={wait_s}"]
        summary: dict[str, Any] = json.loads(federation.call("run", "deployment", *where, *words, status=status).stdout)
        return summary

    honest = federation.environment
    federation.environment = {**honest, "PYTHONPATH": str(another_app(federation.path / "other", LEAVES_A_TRACE))}
    refused = run("fed", "refused", wait_s=30, status=1)
    federation.environment = honest
    homes = {name: folder / "state" / "nodes" / name / "home" for name, folder in sites.items()}
    assert refused["stop_reason"] == "too-few-clients"
    ids = {each["name"]: each["id"] for each in federation.status()}
    for name in ("east", "west"):
        assert f"node {ids[name]}: it does not run this bundle" in refused["error"]
        assert "FAB verification failed" in (sites[name] / "state" / "nodes" / name / "supernode.log").read_text()
    assert [name for name, home in homes.items() if (home / "imported").exists()] == ["any"]
    assert [name for name, home in homes.items() if (home / "apps").exists()] == ["any"]

    elsewhere = federation.path / "elsewhere"  # signatures beside the database of another SuperLink
    shutil.copytree(federation.path / "fed" / "trust", elsewhere / "trust")
    shutil.copy(federation.path / "fed" / "pyproject-flower.toml", elsewhere)
    opened(elsewhere / "state" / "server" / "superlink.db")
    lost = run("elsewhere", "lost", status=1)
    assert "is of another SuperLink than these signatures" in lost["error"]
    statuses = opened(federation.path / "fed" / "state" / "server" / "superlink.db").get_run_info()
    log = (federation.path / "lost" / "flower.log").read_text()
    assert sorted(each.status.sub_status for each in statuses) == ["failed", "stopped"], log

    summary = run("fed", "accepted")
    assert (summary["status"], summary["clients"]) == ("completed", 3)
    federation.call("deploy", "stop", "fed")

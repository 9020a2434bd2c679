"""A log in which nothing can be changed, removed, reordered or cut off without showing."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from grids import at_sites, recorded, site
from hospitals import SCHEMA, hospitals, patients

from fl_app import audit, client_app
from fl_app.audit import AuditLog, Head, key_beside, read_key, verify
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.receipts import _parts
from fl_app.server_app import serve
from strategies import wire
from strategies.base import TooFewClients

Lines = list[bytes]


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with ten entries, 0 to 9."""
    path = tmp_path / "site" / "audit.jsonl"
    written(path, range(1, 10))
    return path


def written(path: Path, numbers: Any) -> list[Head]:
    return [AuditLog(path).append({"kind": "asked", "round": number})[0] for number in numbers]


def found(path: Path, against: Path | None = None) -> Any:
    return verify(path, read_key(key_beside(path)), against)


def problem(path: Path, against: Path | None = None) -> tuple[int, str] | None:
    said = found(path, against).problem
    return None if said is None else (said.entry, said.what)


# ----------------------------------------------------------------------------------------------------- what is written


def test_entries_are_numbered_and_chained_and_a_log_as_it_was_written_is_intact(path: Path) -> None:
    assert [entry["seq"] for entry in entries(path)] == list(range(10))
    assert [entry["kind"] for entry in entries(path)] == ["opened"] + ["asked"] * 9
    assert len({entry["mac"] for entry in entries(path)}) == 10
    said = found(path)
    assert (said.entries, said.recovered, said.problem) == (10, 0, None)
    last = entries(path)[-1]
    assert said.head == Head(last["log"], 9, last["mac"])


def test_log_and_key_are_their_owners_alone_and_no_key_is_like_another(path: Path, tmp_path: Path) -> None:
    for each in (path, key_beside(path)):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    written(tmp_path / "other" / "audit.jsonl", [1])
    assert read_key(key_beside(path)) != read_key(tmp_path / "other" / "audit.key")
    assert len(read_key(key_beside(path))) == 32
    assert read_key(key_beside(path)).hex() not in path.read_text()


def test_an_entry_is_on_the_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    written(path, [10])
    assert synced == [path.stat().st_size]


def test_several_entries_at_once_have_a_head_each(path: Path) -> None:
    heads = AuditLog(path).append({"kind": "asked"}, {"kind": "asked"})
    assert [head.seq for head in heads] == [10, 11]
    assert [head.mac for head in heads] == [entry["mac"] for entry in entries(path)[-2:]]


def test_a_log_that_others_could_have_written_the_key_of_is_not_written_to(path: Path) -> None:
    key_beside(path).chmod(0o640)
    with pytest.raises(Refused, match="others can read the key of the audit log"):
        written(path, [10])
    assert problem(path) is None  # verifying may be done with a copy


def test_a_log_without_its_key_is_not_written_to_and_no_new_key_is_made(path: Path) -> None:
    key_beside(path).unlink()
    with pytest.raises(Refused, match="without its key a log can be neither written nor verified"):
        written(path, [10])
    assert not key_beside(path).exists()
    key_beside(path).write_text("no key")
    key_beside(path).chmod(0o600)
    with pytest.raises(Refused, match="this is no key of an audit log"):
        written(path, [10])


def test_a_file_that_is_no_log_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("one line\nand another\n")
    with pytest.raises(Refused, match="this is no audit log"):
        written(path, [1])
    assert path.read_text() == "one line\nand another\n"


def test_those_who_write_at_once_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write_many(_: int) -> None:  # a file's lock is between those who opened it: threads are as good as processes
        for number in range(25):
            AuditLog(path).append({"kind": "asked", "round": number}, {"kind": "answered", "round": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_many, range(4)))
    assert problem(path) is None
    assert found(path).entries == 1 + 4 * 25 * 2
    assert [entry["kind"] for entry in entries(path)[1:]] == ["asked", "answered"] * 100


# --------------------------------------------------------------------------------------------------- what is found out


def edited(lines: Lines) -> Lines:
    return [*lines[:5], lines[5].replace(b'"round": 5', b'"round": 6'), *lines[6:]]


def spaced(lines: Lines) -> Lines:
    return [*lines[:5], lines[5].replace(b", ", b",  ", 1), *lines[6:]]


def renumbered(lines: Lines) -> Lines:
    """Entry 5 is gone, and those behind it are numbered anew."""
    later = [line.replace(b'"seq": %d' % n, b'"seq": %d' % (n - 1)) for n, line in enumerate(lines) if n > 5]
    return [*lines[:5], *later]


def remade(lines: Lines) -> Lines:
    """Entry 5 is another one, with a hash over it and the one before, by somebody without the key."""
    content = json.loads(lines[5])
    content["round"] = 50
    content["mac"] = audit._mac(b"", json.dumps(content).encode())
    return [*lines[:5], json.dumps(content).encode(), *lines[6:]]


TAMPERED: dict[str, tuple[Callable[[Lines], Lines], int, str]] = {
    "an edited entry": (edited, 5, "edited"),
    "an edited first entry": (
        lambda lines: [lines[0].replace(b'"schema": 1', b'"schema": 2'), *lines[1:]],
        0,
        "edited",
    ),
    "an edited last entry": (lambda lines: [*lines[:9], lines[9].replace(b'"round": 9', b'"round": 8')], 9, "edited"),
    "an edited time": (lambda lines: [*lines[:5], lines[5].replace(b'"at": "2', b'"at": "3'), *lines[6:]], 5, "edited"),
    "a line written otherwise": (spaced, 5, "edited"),
    "an entry that says more": (
        lambda lines: [*lines[:5], lines[5].replace(b'"mac"', b'"more": 1, "mac"'), *lines[6:]],
        5,
        "edited",
    ),
    "an entry with a number that is none": (
        lambda lines: [*lines[:5], lines[5].replace(b'"mac"', b'"more": 1e999, "mac"'), *lines[6:]],
        5,
        "edited",
    ),
    "a line without end": (lambda lines: [*lines[:5], b"[" * 200_000, *lines[6:]], 5, "edited"),
    "an entry with a hash of one's own": (remade, 5, "edited"),
    "a line that is none": (lambda lines: [*lines[:5], b"", *lines[6:]], 5, "edited"),
    "garbage between": (lambda lines: [*lines[:5], b"garbage", *lines[5:]], 5, "edited"),
    "garbage behind": (lambda lines: [*lines, b"garbage"], 10, "cut off"),
    "a removed entry": (lambda lines: lines[:5] + lines[6:], 5, "removed"),
    "two removed entries": (lambda lines: lines[:5] + lines[7:], 5, "removed"),
    "a removed entry, the others numbered anew": (renumbered, 5, "edited"),
    "the first removed": (lambda lines: lines[1:], 0, "wrong key"),
    "reordered entries": (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], 5, "reordered"),
    "an entry moved to the end": (lambda lines: [*lines[:5], *lines[6:], lines[5]], 5, "reordered"),
    "an entry replayed": (lambda lines: [*lines[:6], lines[5], *lines[6:]], 6, "replayed"),
    "the whole log replayed": (lambda lines: lines + lines, 10, "replayed"),
    "a last line cut off": (lambda lines: [*lines[:9], lines[9][:20]], 9, "cut off"),
    "nothing left": (lambda lines: [], 0, "cut off"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_done_to_a_log_is_named_with_the_first_entry_it_was_done_to(path: Path, how: str) -> None:
    tamper, entry, what = TAMPERED[how]
    lines = tamper(path.read_bytes().splitlines())
    path.write_bytes(b"\n".join(lines) + b"\n" if lines else b"")
    if how == "a last line cut off":
        path.write_bytes(path.read_bytes()[:-1])
    assert problem(path) == (entry, what)


def test_another_key_is_told_from_an_edited_log(path: Path, tmp_path: Path) -> None:
    written(tmp_path / "other" / "audit.jsonl", [1])
    said = verify(path, read_key(tmp_path / "other" / "audit.key")).problem
    assert said is not None
    assert (said.entry, said.what) == (0, "wrong key")


def test_an_entry_of_another_log_with_the_same_key_is_found_out(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "audit.jsonl"
    other.parent.mkdir()
    shutil.copy(key_beside(path), key_beside(other))
    written(other, range(1, 10))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], other.read_bytes().splitlines(keepends=True)[5], *lines[6:]]))
    assert problem(path) == (5, "edited")


# ------------------------------------------------------------------------------------------------ what the other keeps


@pytest.fixture
def other(path: Path, tmp_path: Path) -> Path:
    """A log of the other side, which was shown entries 3, 6 and 9 of the first."""
    other = tmp_path / "server" / "audit.jsonl"
    for place in (3, 6, 9):
        their = {key: entries(path)[place][key] for key in ("log", "seq", "mac")}
        AuditLog(other).append({"kind": "received", "their": their}, {"kind": "received", "their": None})
    return other


def test_the_heads_that_the_other_side_kept_are_those_of_an_intact_log(path: Path, other: Path) -> None:
    said = found(path, other)
    assert (said.problem, said.shown) == (None, 3)
    written(path, [10])  # what it was not shown yet
    assert problem(path, other) is None


@pytest.mark.parametrize(("left", "first"), [(9, 9), (8, 9), (7, 9), (6, 6), (4, 6), (3, 3)])
def test_a_log_without_its_end_is_intact_by_itself_and_not_for_the_other_side(
    path: Path, other: Path, left: int, first: int
) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    assert problem(path) is None
    assert problem(path, other) == (first, "cut off")


def test_a_log_that_was_cut_off_and_went_on_is_found_out(path: Path, other: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    written(path, range(5, 12))
    assert problem(path) is None
    assert problem(path, other) == (6, "rewritten")


def test_who_has_the_key_cannot_write_the_log_anew_unnoticed(path: Path, other: Path) -> None:
    kept = entries(path)[0]["log"]
    path.unlink()
    written(path, range(1, 10))
    assert problem(path) is None
    assert problem(path, other) == (0, "not known to the other side")
    text = path.read_text().replace(entries(path)[0]["log"], kept)
    assert problem(path) is None
    path.write_text(text)
    assert problem(path) is not None  # another id is another log


def test_an_entry_from_before_the_log_was_cut_off_does_not_fit_into_what_came_after(path: Path) -> None:
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(before[:5]))
    written(path, range(50, 55))
    after = path.read_bytes().splitlines(keepends=True)
    assert (json.loads(before[7])["seq"], json.loads(after[7])["seq"]) == (7, 7)
    path.write_bytes(b"".join([*after[:7], before[7], *after[8:]]))
    assert problem(path) == (7, "edited")


def test_a_log_that_is_gone_is_followed_by_another_one_with_the_same_key(path: Path) -> None:
    log, key = entries(path)[0]["log"], read_key(key_beside(path))
    path.unlink()
    written(path, [1])
    assert read_key(key_beside(path)) == key
    assert entries(path)[0]["log"] != log


def test_a_broken_log_is_broken_where_it_is_whatever_the_other_side_was_shown(path: Path, other: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(edited(lines)))
    assert problem(path, other) == (5, "edited")


# ------------------------------------------------------------------------------------------------------ after a crash


@pytest.mark.parametrize("kept", [1, 30, -2])
def test_what_a_crash_left_of_an_entry_stays_and_is_accounted_for(path: Path, kept: int) -> None:
    whole = path.read_bytes()
    last = whole.splitlines()[-1]
    path.write_bytes(whole[: -len(last) - 1] + last[:kept])
    assert problem(path) == (9, "cut off")
    (head,) = written(path, [9])
    assert head.seq == 10
    assert problem(path) is None
    assert (found(path).entries, found(path).recovered) == (11, 1)
    assert path.read_bytes().splitlines()[9] == last[:kept]


def test_a_crash_while_a_crash_is_accounted_for_is_accounted_for(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"seq": 10, "lo')
    before = path.stat().st_size
    written(path, [10])
    recovering = path.read_bytes()[before:].splitlines()[1]
    os.truncate(path, before + 1 + len(recovering) // 2)
    written(path, [10])
    assert problem(path) is None
    assert found(path).recovered == 1
    os.truncate(path, path.stat().st_size - 1)  # an entry is whole that lacks the end of its line alone
    assert problem(path) == (11, "cut off")
    written(path, [11])
    assert problem(path) is None
    assert (found(path).entries, found(path).recovered) == (13, 1)


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_log_of_whose_first_entry_a_crash_left_a_part_begins_anew(path: Path, kept: int) -> None:
    os.truncate(path, kept)
    written(path, [1])
    assert problem(path) is None
    assert found(path).entries == 2


def test_what_a_crash_left_cannot_be_changed_later(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"seq": 10, "kind": "asked", "ro')
    written(path, [10])
    path.write_bytes(path.read_bytes().replace(b'"asked", "ro\n', b'"asked", "oo\n'))
    assert problem(path) == (10, "edited")


def test_the_end_of_a_log_is_found_however_long_its_lines_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "TAIL_BYTES", 7)
    with path.open("ab") as file:
        file.write(b"torn " * 100)
    written(path, [10, 11])
    assert problem(path) is None


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_says_that_a_log_is_intact_and_what_that_does_not_show(
    path: Path, other: Path, fl_app: Any
) -> None:
    outcome = fl_app("audit", "verify", path)
    assert outcome.status == 0
    assert outcome.out.startswith("intact: 10 entries, whether its end is missing shows with --against")
    outcome = fl_app("audit", "verify", path, "--against", other, "--json")
    told = json.loads(outcome.out)
    assert (outcome.status, told["intact"], told["entries"], told["shown"]) == (0, True, 10, 3)
    assert told["head"]["seq"] == 9


def test_the_command_ends_with_1_and_names_the_entry(path: Path, fl_app: Any) -> None:
    path.write_bytes(b"".join(edited(path.read_bytes().splitlines(keepends=True))))
    outcome = fl_app("audit", "verify", path)
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: entry 5 is edited: {path}: ")
    outcome = fl_app("audit", "verify", path, "--json")
    told = json.loads(outcome.out)
    assert (outcome.status, told["intact"]) == (1, False)
    assert told["problem"] | {"detail": ""} == {"entry": 5, "what": "edited", "detail": ""}


def test_the_command_takes_a_key_from_elsewhere_and_refuses_what_is_not_there(
    path: Path, tmp_path: Path, fl_app: Any
) -> None:
    key_beside(path).rename(tmp_path / "kept.key")
    assert "cannot be read" in fl_app("audit", "verify", path).refusal()
    assert fl_app("audit", "verify", path, "--key", tmp_path / "kept.key").status == 0
    assert "the log cannot be read" in fl_app("audit", "verify", "no.jsonl", "--key", tmp_path / "kept.key").refusal()


# --------------------------------------------------------------------------------------------- what is in it, of a run

CLIENTS = ("bern", "oslo")


class Deployment:
    """Two sites, each with a state folder of its own, and a server."""

    def __init__(self, folder: Path) -> None:
        hospitals(folder / "data", rows=60)
        (folder / "schema.json").write_text(json.dumps(SCHEMA))
        self.folder, self.seen = folder, []
        self.nodes = [site(folder / "data", c, state=str(folder / f"state-{c}")) for c in CLIENTS]

    def log(self, client: str) -> Path:
        return self.folder / f"state-{client}" / "audit" / "audit.jsonl"

    @property
    def server_log(self) -> Path:
        return self.folder / "out" / "audit.jsonl"

    def run(self, **keys: Any) -> dict[str, Any]:
        usual = {"data": "csv", "rounds": 2, "local-epochs": 1, "num-clients": 2, "enrol-timeout-s": 0.5}
        changes = {key.replace("_", "-"): value for key, value in keys.items()}
        config = RunConfig.parse({**usual, "out": str(self.folder / "out"), **changes})
        grid = recorded(at_sites(*self.nodes), self.seen)
        return serve(grid(client_app.app, config.values(), 2), config, on_line=lambda line: None)

    def private(self, strategy: str, args: str, **keys: Any) -> dict[str, Any]:
        schema = str(self.folder / "schema.json")
        return self.run(strategy=strategy, strategy_args=args, schema=schema, **keys)


@pytest.fixture
def sites(tmp_path: Path, deployed: None) -> Deployment:
    return Deployment(tmp_path)


def test_both_sides_keep_what_was_asked_and_sent_and_the_others_head_with_every_message(sites: Deployment) -> None:
    sites.run()
    for client in CLIENTS:
        assert problem(sites.log(client), sites.server_log) is None
        told = entries(sites.log(client))
        kinds = [(entry["kind"], entry.get("message"), entry.get("round")) for entry in told]
        exchanges = [("query.enrol", None), ("train", 1), ("train", 2), ("evaluate", 2), ("query.survey", 0)]
        expected = [(kind, *exchange) for exchange in exchanges for kind in ("asked", "answered")]
        assert kinds == [("opened", None, None), *expected]
        assert found(sites.log(client), sites.server_log).shown == len(exchanges)
        asked = told[3]
        assert (asked["run"]["task"], asked["run"]["strategy"], asked["run"]["rounds"]) == ("logistic", "fedavg", 2)
        config = RunConfig.parse(
            {"data": "csv", "rounds": 2, "local-epochs": 1, "num-clients": 2, "enrol-timeout-s": 0.5}
        )
        assert asked["config_sha256"] == config.sha256()
        assert asked["job"] == told[5]["job"]
        assert all(entry["bytes"] > 100 and len(entry["sent"]) == 64 for entry in told if entry["kind"] == "answered")
    assert problem(sites.server_log, sites.log("bern")) is None
    assert found(sites.server_log, sites.log("oslo")).shown == 5


def test_the_receipt_of_a_reply_is_the_head_of_its_entry(sites: Deployment) -> None:
    sites.run()
    by_log = {entries(sites.log(client))[0]["log"]: entries(sites.log(client)) for client in CLIENTS}
    for message, reply in sites.seen:
        receipt = Head.of(dict(reply.content["receipt"]))
        assert receipt is not None
        entry = by_log[receipt.log][receipt.seq]
        assert (entry["kind"], entry["mac"]) == ("answered", receipt.mac)
        order = Head.of(dict(message.content["audit"]))
        assert by_log[receipt.log][receipt.seq - 1]["their"] == (order and order.values())


def test_the_hash_of_what_was_sent_is_of_that_and_needs_the_key(sites: Deployment) -> None:
    sites.run()
    changed = 0
    for _, reply in sites.seen:
        receipt = dict(reply.content.pop("receipt"))
        path = next(sites.log(c) for c in CLIENTS if entries(sites.log(c))[0]["log"] == receipt["log"])
        entry = entries(path)[int(receipt["seq"])]
        assert entry["sent"] == AuditLog(path).keyed(_parts(reply.content))
        assert entry["bytes"] == wire.message_bytes(reply)
        other = next(sites.log(c) for c in CLIENTS if sites.log(c) != path)
        assert entry["sent"] != AuditLog(other).keyed(_parts(reply.content))
        for array in (a for record in reply.content.array_records.values() for a in record.values() if array_size(a)):
            array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
            assert entry["sent"] != AuditLog(path).keyed(_parts(reply.content))
            changed += 1
    assert changed > 4


def array_size(array: Any) -> int:
    return int(np.prod(array.shape))


def test_no_log_holds_counts_names_paths_or_metrics(sites: Deployment) -> None:
    summary = sites.run()
    for path in (sites.server_log, *map(sites.log, CLIENTS)):
        text = path.read_text()
        for word in (
            *patients(1, 0)[0],
            *CLIENTS,
            "alive",
            "dead",
            "csv",
            "accuracy",
            "num-examples",
            sites.folder.name,
        ):
            assert not re.search(rf"\b{word}\b", text), word
        for value in summary["metrics"].values():
            assert repr(value)[:8] not in text
        chain = {"seq", "log", "at", "kind", "mac", "their", "schema", "key"}
        about = {"message", "round", "job", "node", "run", "config_sha256", "promise", "bytes", "sent", "received"}
        for entry in entries(path):
            assert set(entry) <= chain | about


def test_what_a_round_costs_and_what_the_run_promises_is_in_the_log(sites: Deployment) -> None:
    sites.private("dp-fedavg", "noise-multiplier=2 delta=1e-5 sampling=none")
    told = entries(sites.log("bern"))
    asked = next(entry for entry in told if entry.get("round") == 1)
    assert (asked["cost"]["noise-multiplier"], asked["cost"]["sampling"]) == (2.0, "none")
    promise = next(entry["promise"] for entry in told if entry["kind"] == "answered" and entry.get("round") == 1)
    assert promise["unit"] == "client"
    assert (promise["noise_multiplier"], promise["delta"], promise["noise_by_client"]) == (2.0, 1e-5, False)
    assert entries(sites.server_log)[1]["promise"] == promise


def test_a_declined_message_is_in_the_log_of_the_site_with_its_clause_and_nowhere_else(
    sites: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "policy.toml").write_text("[privacy]\nrequired = true\n")
    sites.nodes[0]["policy"] = str(tmp_path / "policy.toml")
    sites.run(min_clients=1)
    told = [entry for entry in entries(sites.log("bern")) if entry["kind"] == "declined"]
    assert [entry["clause"] for entry in told] == ["privacy.required"]
    assert not [entry for entry in entries(sites.log("bern")) if entry.get("message") == "train"]
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path != sites.log("bern")]
    assert not [path for path in others if b"privacy.required" in path.read_bytes()]
    assert problem(sites.log("bern"), sites.server_log) is None


def test_a_message_that_could_not_be_answered_is_in_the_log_without_what_went_wrong(
    sites: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("Smith, John")

    monkeypatch.setattr(client_app.local_round, "train", fail)
    with pytest.raises(TooFewClients):
        sites.run()
    for client in CLIENTS:
        failed = [entry for entry in entries(sites.log(client)) if entry["kind"] == "failed"]
        assert [(entry["round"], entry["error"]) for entry in failed] == [(1, "KeyError")] * 2
        assert "Smith" not in sites.log(client).read_text()
        assert problem(sites.log(client), sites.server_log) is None
    assert "Smith" not in sites.server_log.read_text()


def test_where_the_draw_is_secret_the_servers_log_does_not_tell_who_was_drawn_or_how_many(sites: Deployment) -> None:
    sites.private("dp-fedavg", "noise-multiplier=2 delta=1e-5", clients_per_round=1, rounds=6, min_clients=1)
    told = [entry for entry in entries(sites.server_log) if entry.get("message") == "train"]
    assert {entry["kind"] for entry in told} <= {"asked"}
    assert len({entry["round"] for entry in told}) == len(told) <= 6  # one a round, however many were drawn
    for entry in told:
        assert not set(entry) & {"node", "bytes", "sent", "received", "their"}
    for client in CLIENTS:  # which know themselves
        assert problem(sites.log(client), sites.server_log) is None
        heads = {
            (e["their"]["seq"], e["their"]["mac"])
            for e in entries(sites.log(client))
            if e.get("message") == "train" and e["kind"] == "asked"
        }
        assert heads <= {(entry["seq"], entry["mac"]) for entry in told}


def test_a_node_that_cannot_write_its_log_does_nothing(sites: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    sites.run()
    key_beside(sites.log("bern")).chmod(0o644)
    sites.seen.clear()
    with pytest.raises(TooFewClients, match="1 of 2 clients enrolled"):
        sites.run(out=str(sites.folder / "second"), enrol_timeout_s=0.1)
    assert all(reply.has_error() or "oslo" in reply.content["enrolment"]["clients"] for _, reply in sites.seen)


@pytest.mark.usefixtures("deployed")
def test_a_simulation_keeps_no_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    seen: list[tuple[Message, Message]] = []
    grid = recorded(InlineGrid, seen)
    values = {
        "data": "synthetic",
        "data-args": "features=2",
        "num-clients": 2,
        "rounds": 1,
        "out": str(tmp_path / "out"),
    }
    config = RunConfig.parse(values)
    serve(grid(client_app.app, config.values(), 2), config, on_line=lambda line: None)
    assert seen
    assert not list(tmp_path.rglob("audit*"))
    assert not [reply for _, reply in seen if "receipt" in reply.content]


def test_a_side_that_keeps_no_log_or_sends_what_is_no_head_is_put_up_with(sites: Deployment) -> None:
    for values in (None, {}, {"log": "x", "seq": 1, "mac": "y"}, {"log": "0" * 16, "seq": -1, "mac": "0" * 64}, [1]):
        assert Head.of(values) is None
    assert Head.of({"log": "0" * 16, "seq": True, "mac": "0" * 64}) is None

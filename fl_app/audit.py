"""An audit log: a file of JSON lines that only grows, in which a changed, removed or reordered line shows.

Every line holds a number, what happened, and an HMAC-SHA256 over it and the HMAC of the line before. The key is made at
the first use, lies beside the log and never travels; who has it can write another log. So the last HMAC, the *head*,
goes to the other side with every message and is kept in the log there: a log that was cut off, or written anew, does
not hold what it once showed.

What a process wrote in part when it died stays, and the next entry, `recovered`, accounts for it.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fl_app.errors import Refused

if sys.platform != "win32":
    import fcntl

SCHEMA = 1
KEY_BYTES = 32
TAIL_BYTES = 2**16  # in which the last entry is found; doubled where it is longer

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a log: which log, its number, its HMAC."""

    log: str
    seq: int
    mac: str

    def values(self) -> dict[str, str | int]:
        """As they stand in messages and logs."""
        return {"log": self.log, "seq": self.seq, "mac": self.mac}

    @classmethod
    def of(cls, values: object) -> "Head | None":
        """The inverse of `values`; None where `values` is no head, as from a side that keeps no log."""
        if not isinstance(values, Mapping):
            return None
        log, seq, mac = (values.get(key) for key in ("log", "seq", "mac"))
        if type(seq) is not int or seq < 0 or not isinstance(log, str) or not isinstance(mac, str):
            return None
        return cls(log, seq, mac) if re.fullmatch("[0-9a-f]{16}", log) and re.fullmatch("[0-9a-f]{64}", mac) else None


class AuditLog:
    """The log of one side. Its processes write one after the other; each entry is on the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, *entries: Entry) -> tuple[Head, ...]:
        """Write entries, which JSON can hold; the head after each.

        Raises Refused where log or key are not as they were left, and OSError where they cannot be written: then what
        was to be entered must not be done.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked() as file:
            end = _end(file, self._path)
            if end is None:  # nothing, or a part of the first line, of which nobody was ever shown the head
                file.truncate(0)
                key, head, text = _made_key(key_beside(self._path)), Head(secrets.token_hex(8), -1, ""), b""
                added: tuple[Entry, ...] = ({"kind": "opened", "schema": SCHEMA, "key": _fingerprint(key)}, *entries)
            else:
                key, head, text = read_key(key_beside(self._path), private=True), end.head, end.gap
                added = ({"kind": "recovered", "torn": _mac(key, end.torn)}, *entries) if end.torn else entries
            heads = []
            for entry in added:
                line, head = _written(key, head, entry)
                text += line
                heads.append(head)
            file.seek(0, os.SEEK_END)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return tuple(heads[-len(entries) :])

    def keyed(self, parts: Iterable[bytes | memoryview]) -> str:
        """A hash that cannot be computed without the log's key. The log must have been written to."""
        return _mac(read_key(key_beside(self._path), private=True), *parts)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file


# ---------------------------------------------------------------------------------------------------------- verifying


@dataclass(frozen=True, slots=True)
class Problem:
    """The first entry of a log that is not as it was written."""

    entry: int
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a log holds.

    `recovered`: how many entries account for a line that a crash left unfinished. `shown`: how many heads of this log
    the other side's log holds; None where there was none to compare with.
    """

    entries: int
    recovered: int
    head: Head | None
    shown: int | None
    problem: Problem | None


def verify(path: Path, key: bytes, against: Path | None = None) -> Findings:
    """Read a log from its first entry to its last, and compare it with the heads that another log has kept of it.

    Raises Refused for files that cannot be read.
    """
    text = _read(path)
    found = _Reading(key)
    lines = text.split(b"\n")
    torn = lines.pop()  # what stands behind the last end of a line
    for place, line in enumerate(lines):
        found.take(line, lines[place + 1 :])
        if found.problem is not None:
            break
    if found.problem is None and (torn or found.torn or not found.heads):
        end = "it has no entry" if not text else "its last line is not finished: by a crash, or cut off by hand"
        found.problem = Problem(len(found.heads), "cut off", end)
    shown = None
    if against is not None:
        kept = _kept(against, found.heads[0].log if found.heads else "")
        shown = len(kept)
        found.problem = _earlier(found.problem, _compared(found.heads, kept, against))
    return Findings(len(found.heads), found.recovered, found.heads[-1] if found.heads else None, shown, found.problem)


@dataclass
class _Reading:
    """A log as far as it has been read, and was good."""

    key: bytes
    heads: list[Head] = field(default_factory=list)
    recovered: int = 0
    torn: list[bytes] = field(default_factory=list)
    problem: Problem | None = None

    def take(self, line: bytes, rest: list[bytes]) -> None:
        """The next line. `rest`, those behind it, tell whether an entry is gone or elsewhere."""
        content = _parsed(line)
        if content is None:
            self.torn.append(line)
            return
        number = len(self.heads)
        before = self.heads[-1] if self.heads else Head(str(content.get("log")), -1, "")
        said = {name: value for name, value in content.items() if name not in ("seq", "log", "at", "mac")}
        try:
            good = _line(self.key, before, content["at"], said) == line + b"\n"
        except ValueError:  # numbers that no entry holds
            good = False
        if self.torn and not (
            good and said["kind"] == "recovered" and said["torn"] == _mac(self.key, _joined(self.torn))
        ):
            self.problem = Problem(number, "edited", "its line is no entry")
        elif good:
            self.torn.clear()
            self.recovered += said["kind"] == "recovered"
            self.heads.append(Head(before.log, content["seq"], content["mac"]))
        elif not number and content.get("key") != _fingerprint(self.key):
            self.problem = Problem(0, "wrong key", "the log was written with another key, or its first entry is edited")
        else:
            self.problem = self._explained(number, content["seq"], rest)

    def _explained(self, number: int, found: int, rest: list[bytes]) -> Problem:
        later = {content["seq"] for line in rest if (content := _parsed(line)) is not None}
        if found < number:
            return Problem(number, "replayed", f"entry {found} stands here once more")
        if found > number and number in later:
            return Problem(number, "reordered", f"entry {found} stands before it")
        if found > number:
            return Problem(number, "removed", f"the next one is {found}")
        return Problem(number, "edited", "it is not what was written, or is of another log")


def _kept(path: Path, log: str) -> list[Head]:
    """The heads of a log that another one has kept. That other one is not verified: its key is not here."""
    contents = (_parsed(line) for line in _read(path).split(b"\n"))
    heads = (Head.of(content.get("their")) for content in contents if content is not None)
    return [head for head in heads if head is not None and head.log == log]


def _compared(heads: list[Head], kept: list[Head], path: Path) -> Problem | None:
    if not kept:
        return Problem(0, "not known to the other side", f"{path} holds no head of this log")
    for head in sorted(kept, key=lambda head: head.seq):
        if head.seq >= len(heads):
            return Problem(head.seq, "cut off", "the other side was shown it, and it is not here")
        if heads[head.seq].mac != head.mac:
            return Problem(head.seq, "rewritten", "the other side was shown another one")
    return None


def _earlier(one: Problem | None, other: Problem | None) -> Problem | None:
    """The problem with the earlier entry: a log counts as broken from there on, and later faults may follow from it."""
    if one is None or other is None:
        return one or other
    return other if other.entry < one.entry else one


# --------------------------------------------------------------------------------------------------------------- lines


def _written(key: bytes, before: Head, entry: Entry) -> tuple[bytes, Head]:
    """The line of an entry, and the head that it makes."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = _line(key, before, now, entry)
    return line, Head(before.log, before.seq + 1, json.loads(line)["mac"])


def _line(key: bytes, before: Head, at: Any, entry: Entry) -> bytes:
    content = {"seq": before.seq + 1, "log": before.log, "at": at, **entry}
    mac = _mac(key, before.mac.encode(), json.dumps(content, allow_nan=False).encode())
    return json.dumps({**content, "mac": mac}).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it has the form of an entry."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or type(content.get("seq")) is not int or not isinstance(content.get("mac"), str):
        return None
    return content if {"log", "at", "kind"} <= set(content) else None


@dataclass(frozen=True, slots=True)
class _End:
    """How a log ends: its head, unfinished lines behind it, and what is to be written before the next line."""

    head: Head
    torn: bytes
    gap: bytes


def _end(file: BinaryIO, path: Path) -> _End | None:
    """None where there is no whole line yet. Raises Refused for a file that is no audit log."""
    size, length = file.seek(0, os.SEEK_END), TAIL_BYTES
    while True:
        start = max(0, size - length)
        file.seek(start)
        lines = file.read(size - start).split(b"\n")
        gap = b"\n" if lines[-1] else b""
        torn: list[bytes] = []
        while len(lines) > (1 if start else 0):  # the first may begin before what was read
            line = lines.pop()
            if (content := _parsed(line)) is not None:
                return _End(Head(str(content["log"]), content["seq"], content["mac"]), _joined(torn), gap)
            torn.insert(0, line)
        if not start:
            break
        length *= 2
    if len(torn) > 1:
        raise Refused("this is no audit log", str(path), "move it away, and see who wrote it")
    return None


def _joined(torn: list[bytes]) -> bytes:
    """Unfinished lines as they are hashed."""
    return b"\n".join(torn).removesuffix(b"\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused("the log cannot be read", str(path), error.strerror or str(error)) from error


# ---------------------------------------------------------------------------------------------------------------- keys


def key_beside(path: Path) -> Path:
    """Where the key of a log is."""
    return path.with_suffix(".key")


def read_key(path: Path, *, private: bool = False) -> bytes:
    """Raises Refused for a file that holds none; with `private` also for one that others may read."""
    try:
        text, mode = path.read_text(encoding="ascii").strip(), path.stat().st_mode
        key = bytes.fromhex(text)
    except OSError as error:
        remedy = f"{error.strerror or error}: without its key a log can be neither written nor verified"
        raise Refused("the key of the audit log cannot be read", str(path), remedy) from error
    except ValueError as error:
        raise Refused("this is no key of an audit log", str(path), "restore it from a copy") from error
    if len(key) != KEY_BYTES:
        raise Refused("this is no key of an audit log", str(path), "restore it from a copy")
    if private and sys.platform != "win32" and stat.S_IMODE(mode) & 0o077:
        raise Refused("others can read the key of the audit log", str(path), f"chmod 600 {path}")
    return key


def _made_key(path: Path) -> bytes:
    """The key, which is made where there is none: whole or not at all. The lock of its log is held."""
    if path.exists():
        return read_key(path, private=True)
    scratch = path.with_name(f".{path.name}.writing")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    return read_key(path, private=True)


def _fingerprint(key: bytes) -> str:
    """By which one knows whether a key is that of a log."""
    return _mac(key, b"fl-app audit key")[:16]


def _mac(key: bytes, *parts: bytes | memoryview) -> str:
    made = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        made.update(part)
    return made.hexdigest()

"""The ledger of a run on disk: what has been released, written down before it is.

A file of JSON lines that only grows, readable by its owner alone. The first line says whom it protects and by what,
each further one is a release. A release counts as spent once its line is on the disk, whether or not it took place.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from privacy.accounting import Relation, Release, Sampling, Unit

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Terms:
    """What all entries of a ledger have in common. `mechanism` is free, in what JSON can hold. Raises ValueError."""

    unit: Unit
    relation: Relation
    delta: float
    mechanism: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.unit not in ("client", "record"):
            raise ValueError(f"expected unit client or record, got {self.unit!r}")
        if self.relation not in ("add-remove", "replace-one"):
            raise ValueError(f"expected relation add-remove or replace-one, got {self.relation!r}")
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"expected a delta between 0 and 1, got {self.delta}")
        _json(self.mechanism)

    def check_same(self, found: "Terms", where: Path) -> None:
        """Raises ValueError naming the first field that differs, and both values."""
        mine, theirs = _flat(self), _flat(found)
        for field in [*mine, *(field for field in theirs if field not in mine)]:
            if field not in mine or field not in theirs or mine[field] != theirs[field]:
                was, now = (json.dumps(terms[field]) if field in terms else "absent" for terms in (theirs, mine))
                raise ValueError(
                    f"{where} is the ledger of another mechanism: {field} was {was} there and is {now} here"
                )


@dataclass(frozen=True, slots=True)
class Entry:
    """A release, and the round and attempt that it belongs to; round 0 precedes the first. Raises ValueError."""

    round: int
    attempt: int
    release: Release

    def __post_init__(self) -> None:
        if self.round < 0 or self.attempt < 0:
            raise ValueError(f"expected a round and an attempt of 0 or more, got {self.round} and {self.attempt}")


class Ledger:
    """An open ledger. One process at a time writes to it; a second one is found out, and refused."""

    def __init__(self, path: Path, terms: Terms, entries: Sequence[Entry], size: int, seal: str) -> None:
        self._path, self._terms, self._entries, self._size, self._seal = path, terms, list(entries), size, seal

    @classmethod
    def open(cls, path: Path, terms: Terms) -> Self:
        """The ledger of this file, which is created where there is none.

        A last line without its end is that of a process that died while writing it, before it released: it is cut off.
        Raises ValueError for a ledger with other terms, and for one that is damaged anywhere else.
        """
        if not path.exists():
            _create(path, terms)
        ledger = cls.read(path)
        terms.check_same(ledger.terms, path)
        if path.stat().st_size > ledger._size:
            os.truncate(path, ledger._size)
            _sync(path)
        return ledger

    @classmethod
    def read(cls, path: Path) -> Self:
        """The ledger as it stands, without what an unfinished last line says. Changes nothing. Raises ValueError."""
        *lines, _ = path.read_bytes().split(b"\n")
        if not lines:
            raise ValueError(f"{path} is no ledger: its first line is missing or unfinished: restore it from a copy")
        contents: list[Any] = []
        seal = ""
        for number, line in enumerate(lines, 1):
            try:
                content, seal = _opened(line, seal)
                contents.append(_entry(content) if contents else _terms(content))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged at line {number}: {error}: restore it from a copy") from error
        terms, *entries = contents
        return cls(path, terms, entries, sum(len(line) + 1 for line in lines), seal)

    @property
    def terms(self) -> Terms:
        """What the first line says."""
        return self._terms

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries in the order of writing."""
        return tuple(self._entries)

    @property
    def releases(self) -> tuple[Release, ...]:
        """What has been spent, for `privacy.accounting.spent`."""
        return tuple(entry.release for entry in self._entries)

    def by_round(self) -> tuple[tuple[Release, ...], ...]:
        """What each round released, for `privacy.accounting.curve`: all its attempts; in the first also round 0."""
        last = max((max(entry.round, 1) for entry in self._entries), default=0)
        rounds: list[list[Release]] = [[] for _ in range(last)]
        for entry in self._entries:
            rounds[max(entry.round, 1) - 1].append(entry.release)
        return tuple(map(tuple, rounds))

    def append(self, round_: int, attempt: int, *releases: Release) -> None:
        """Write down what is about to be released. Only when this has returned may it be.

        Raises ValueError where the file is not as this process left it, and OSError where it cannot be written; then
        nothing may be released, and the ledger must be opened anew.
        """
        new = [Entry(round_, attempt, release) for release in releases]
        text, seal = b"", self._seal
        for entry in new:
            line, seal = _sealed(_entry_json(entry), seal)
            text += line
        with self._path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) != self._size:
                raise ValueError(f"{self._path} has changed since it was opened: is another process writing to it?")
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._entries += new
        self._size, self._seal = self._size + len(text), seal


# ------------------------------------------------------------------------------------------------------- lines of text


def _sealed(content: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """A line, and its seal: a hash over it and the seal of the line before, against damage (not against forgery)."""
    text = _json(content)
    seal = hashlib.sha256((before + text).encode()).hexdigest()[:16]
    return (_json({**content, "seal": seal}) + "\n").encode(), seal


def _opened(line: bytes, before: str) -> tuple[dict[str, Any], str]:
    """What a line says, and its seal. Raises ValueError or a relative where it is not as it was written."""
    content = json.loads(line)
    if not isinstance(content, dict) or "seal" not in content:
        raise ValueError("no line of a ledger")
    found = content.pop("seal")
    if found != _sealed(content, before)[1]:
        raise ValueError("it, or the line before it, is not as it was written")
    return content, found


def _json(content: Any) -> str:
    """Raises ValueError for what JSON cannot hold."""
    try:
        return json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a ledger holds what JSON can: {error}") from error


def _terms_json(terms: Terms) -> dict[str, Any]:
    mechanism = dict(terms.mechanism)
    return {
        "schema": SCHEMA,
        "unit": terms.unit,
        "relation": terms.relation,
        "delta": terms.delta,
        "mechanism": mechanism,
    }


def _terms(content: Mapping[str, Any]) -> Terms:
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
    return Terms(content["unit"], content["relation"], content["delta"], content["mechanism"])


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {"round": entry.round, "attempt": entry.attempt, **asdict(entry.release)}


def _entry(content: Mapping[str, Any]) -> Entry:
    sampling = Sampling(**content["sampling"])
    release = Release(content["what"], content["noise_multiplier"], sampling, content["count"])
    return Entry(content["round"], content["attempt"], release)


def _flat(terms: Terms) -> dict[str, Any]:
    """Its fields as JSON holds them, those of the mechanism one by one."""
    content = json.loads(_json(_terms_json(terms)))
    mechanism = content.pop("mechanism")
    return {**content, **{f"mechanism.{name}": value for name, value in mechanism.items()}}


# -------------------------------------------------------------------------------------------------------- on the disk


def _create(path: Path, terms: Terms) -> None:
    """A ledger without entries, whole or not at all, on the disk when this returns."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_sealed(_terms_json(terms), "")[0])
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """A file or a folder as it is now, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

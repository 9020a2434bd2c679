"""What the rows of a site have cost over all runs: one ledger for each client and run, on the site's own disk.

    <state>/privacy/<client>/<job>.jsonl

An entry is written before the client trains, so a round that breaks off counts as spent.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from fl_app.client_state import file_name
from privacy.accounting import Relation, Release, Unit, spent
from privacy.ledger import Ledger, Terms
from strategies.protection import Protection

if sys.platform != "win32":
    import fcntl

FOLDER = "privacy"


@dataclass(frozen=True)
class SiteLedgers:
    """The ledgers of one run below the site's state folder."""

    state: Path
    job: str

    def enter(self, client: str, round: int, protection: Protection, release: Release) -> None:
        """Charge a client for what it is about to take part in. Raises ValueError for a ledger that is damaged."""
        path = self.path(client)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = {"client": client, "mechanism": protection.mechanism, "clip_norm": protection.clip_norm}
        terms = Terms(protection.unit, protection.relation, protection.promise.delta, about)
        Ledger.open(path, terms).append(round, 0, release)

    def path(self, client: str) -> Path:
        """That of a client in this run."""
        return self.state / FOLDER / file_name(client) / f"{file_name(self.job)}.jsonl"

    def in_run(self, client: str) -> list[tuple[int, Release]]:
        """What a client was charged in this run, with the rounds. Raises ValueError for a ledger that is damaged."""
        path = self.path(client)
        return [(entry.round, entry.release) for entry in Ledger.read(path).entries] if path.exists() else []

    def of(self, client: str) -> dict[Path, Ledger]:
        """Those of a client in all runs. Raises ValueError for one that is damaged."""
        return {path: Ledger.read(path) for path in sorted(self.path(client).parent.glob("*.jsonl"))}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes of the site from charging at the same time."""
        folder = self.state / FOLDER
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / ".lock").open("ab") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def cost(unit: Unit, charged: Iterable[tuple[int, Release]]) -> list[Release]:
    """All that a client spent in a run, given the rounds that it took part in and what each released.

    Where clients are sampled in secret, the lower cost of a round already counts on a client being left out of some
    rounds. So the rounds in which this client was not drawn cost as much as those in which it was, up to the last round
    that the site knows of, be it by its metrics alone. Rows are different: a client samples its own rows, and only in
    the rounds that it takes part in.
    """
    pairs = list(charged)
    drawn = {round_: release for round_, release in pairs if unit == "client" and release.sampling.rate < 1}
    spending = [release for _, release in pairs]
    if drawn and (missed := max(round_ for round_, _ in pairs) - len(drawn)) > 0:
        last = drawn[max(drawn)]
        spending.append(replace(last, count=last.count * missed))
    return spending


def cost_of(book: Ledger) -> list[Release]:
    """The same of what a client's ledger of a run holds."""
    return cost(book.terms.unit, [(entry.round, entry.release) for entry in book.entries])


@dataclass(frozen=True, slots=True)
class Cost:
    """What one client's rows have cost over all runs that protect the same unit under the same relation."""

    client: str
    unit: Unit
    relation: Relation
    runs: int
    epsilon: float

    def to_json(self) -> dict[str, Any]:
        """An epsilon without bound is null."""
        return {**asdict(self), "epsilon": self.epsilon if isfinite(self.epsilon) else None}


def costs_of(state: Path, delta: float) -> list[Cost]:
    """Of every client of a site, by name. Raises ValueError for a ledger that is damaged."""
    found: dict[tuple[str, Unit, Relation], list[Ledger]] = {}
    for path in sorted((state / FOLDER).glob("*/*.jsonl")):
        ledger = Ledger.read(path)
        terms = ledger.terms
        found.setdefault((str(terms.mechanism["client"]), terms.unit, terms.relation), []).append(ledger)
    return [
        Cost(*key, len(ledgers), spent([r for ledger in ledgers for r in cost_of(ledger)], key[2], delta).epsilon)
        for key, ledgers in sorted(found.items())
    ]

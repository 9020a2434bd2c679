"""Before round 1, and for every node that joins later: which clients a node hosts and what their data look like.

One QUERY a node. The answer holds the versions there, the clients with their numbers of training rows, the columns,
and for global standardisation the count, mean and squared deviations of each client's features, merged at the server
in the order of the client ids: the same to the bit however clients are spread over nodes.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fl_app import __version__
from fl_app.assembly import open_data
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.rows import Statistics
from fl_app.site import hosted_clients
from strategies import wire
from strategies.base import TooFewClients
from strategies.exchange import Exchange
from strategies.roster import Member, Roster
from tasks.base import Schema
from tasks.data.preprocessing import Moments, Standardizer

QUERY = "query.enrol"
POLL_S = 0.1


# ------------------------------------------------------------------------------------------------ the node's half


def answer(config: RunConfig, node_config: Any, question: RecordDict) -> RecordDict:
    """What a node says of itself. Versions come first and are all that a server of another version reads."""
    versions = ConfigRecord({"wire": wire.VERSION, "app": __version__})
    asked = wire.read_config(question)
    if (asked["wire"], asked["app"]) != (wire.VERSION, __version__):
        return RecordDict({"versions": versions})
    data, clients = open_data(config), hosted_clients(config, node_config)
    shards = [data.shard(client) for client in clients]
    enrolment = ConfigRecord(
        {
            "clients": list(clients),
            "num-examples": [len(shard.train) for shard in shards],
            "population": len(data.clients),
            "features": list(data.schema.features),
            "label": data.schema.label,
            "classes": list(data.schema.classes),
        }
    )
    content = RecordDict({"versions": versions, "enrolment": enrolment})
    if asked["moments"]:
        # The mean and variance of a few rows are those rows: too small a client sends none.
        large = [shard for shard in shards if len(shard.train) >= config.min_examples]
        enrolment["moments"] = [shard.client for shard in large]
        columns = zip(*(Moments.of(shard.train.x).to_arrays() for shard in large), strict=True)
        content["moments"] = ArrayRecord.from_numpy_ndarrays([np.stack(column) for column in columns])
    return content


# ---------------------------------------------------------------------------------------------- the server's half


@dataclass
class Enrolment:
    """The clients that have enrolled: a `RosterSource` that asks every node once, also those that come later.

    `statistics` are merged when `open` returns, and frozen: who joins later uses them as they are.
    """

    config: RunConfig
    wants_moments: bool
    schema: Schema | None = None
    _members: dict[str, Member] = field(default_factory=dict)
    _moments: dict[str, Moments] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)
    _refused: dict[str, str] = field(default_factory=dict)  # client (or node) -> why
    _population: int = 0

    def open(self, grid: Grid) -> None:
        """Wait until all clients are there, at most `enrol-timeout-s`; then go on with those that are.

        Raises TooFewClients when they are fewer than min-clients.
        """
        deadline = time.monotonic() + self.config.enrol_timeout_s
        while True:
            self._ask(grid, max(POLL_S, deadline - time.monotonic()))
            expected = self._population or self.config.num_clients or self.config.min_clients
            if len(self._members) + len(self._refused) >= expected or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
        here = len(self._members)
        reasons = "".join(f"; {who}: {why}" for who, why in list(self._refused.items())[:3])
        if here < self.config.min_clients:
            raise TooFewClients(
                f"{here} of {expected} clients enrolled within {self.config.enrol_timeout_s:g} s"
                f", min-clients={self.config.min_clients}{reasons}"
            )
        if here < expected:
            log(WARNING, "going on with %d of %d clients%s", here, expected, reasons)
        log(INFO, "%d clients on %d nodes have enrolled", here, len({m.node for m in self._members.values()}))
        self.wants_moments = False

    def current(self, grid: Grid) -> Roster:
        """The enrolled clients whose nodes are connected now; nodes that have joined since are asked first."""
        self._ask(grid, self.config.enrol_timeout_s)
        connected = set(grid.get_node_ids())
        return Roster(member for member in self._members.values() if member.node in connected)

    def __len__(self) -> int:
        return len(self._members)

    def statistics(self) -> Statistics:
        """Mean and scale of each feature over the training rows of all clients that sent theirs. Raises Refused."""
        if not self._moments:
            raise Refused(
                "no client sent statistics",
                f"none has min-examples={self.config.min_examples} training rows",
                "lower min-examples, use fewer clients, or set standardize=local",
            )
        merged = Moments.merge([moments for _, moments in sorted(self._moments.items())])
        scaling = Standardizer.of(merged)
        return tuple(scaling.mean.tolist()), tuple(scaling.scale.tolist())

    def _ask(self, grid: Grid, timeout_s: float) -> None:
        new = sorted(set(grid.get_node_ids()) - self._asked)
        if not new:
            return
        config = ConfigRecord({"wire": wire.VERSION, "app": __version__, "moments": self.wants_moments})
        question = RecordDict({"config": config})
        messages = [Message(question, node, QUERY, group_id=str(node)) for node in new]
        entries: list[tuple[_Entry, int]] = []
        for reply in Exchange(grid, messages, timeout_s):
            node = int(reply.metadata.group_id)
            self._asked.add(node)
            if reply.has_error():
                self._refuse([f"node {node}"], f"gave no answer ({reply.error.reason})")
                continue
            try:
                entries.append((_Entry.read(reply.content), node))
            except wire.WireError as error:
                self._refuse([f"node {node}"], str(error))
        for entry, node in sorted(entries, key=lambda item: item[0].clients):  # not in the order of the replies
            self._admit(node, entry)

    def _admit(self, node: int, entry: "_Entry") -> None:
        if self.schema is None and entry.clients:
            self.schema = entry.schema
        if self.schema is not None and entry.schema != self.schema:
            self._refuse(entry.clients, _difference(entry.schema, self.schema))
            return
        try:
            moments = entry.moments() if self.wants_moments else {}
        except ValueError as error:  # a WireError, or moments that cannot be
            self._refuse(entry.clients, str(error))
            return
        self._population = max(self._population, entry.population)
        for client, examples in zip(entry.clients, entry.num_examples, strict=True):
            if client in self._members:
                self._refuse([f"{client} on node {node}"], "another node hosts a client of this name: rename one")
            elif examples < 1:
                self._refuse([client], "it has no training rows")
            else:
                self._members[client] = Member(client, node, examples)
                if client in moments:
                    self._moments[client] = moments[client]

    def _refuse(self, who: Iterable[str], why: str) -> None:
        for name in who:
            self._refused[name] = why
            log(WARNING, "%s does not take part: %s", name, why)


@dataclass(frozen=True)
class _Entry:
    """What a node said of itself, parsed."""

    content: RecordDict
    clients: tuple[str, ...]
    num_examples: Sequence[int]
    population: int
    schema: Schema

    @classmethod
    def read(cls, content: RecordDict) -> "_Entry":
        """Raises WireError, naming both versions where they differ."""
        versions = wire.get_record(content, "versions", ConfigRecord)
        for name, key, here in (("fl-app", "app", __version__), ("wire format", "wire", wire.VERSION)):
            if versions.get(key) != here:
                there = versions.get(key)
                raise wire.WireError(f"{name} {there!s} there, {here} here: install the same version on both")
        entry = wire.get_record(content, "enrolment", ConfigRecord)
        clients, counts = wire.get_strings(entry, "clients"), wire.get_value(entry, "num-examples", list)
        if len(clients) != len(counts) or not all(isinstance(count, int) for count in counts):
            raise wire.WireError(f"{len(clients)} clients and {len(counts)} numbers of examples")
        schema = Schema(
            wire.get_strings(entry, "features"),
            wire.get_value(entry, "label", str),
            wire.get_strings(entry, "classes"),
        )
        return cls(content, clients, counts, wire.get_value(entry, "population", int), schema)

    def moments(self) -> dict[str, Moments]:
        """Those of the clients that sent theirs, one row an array. Raises ValueError for what cannot be moments."""
        senders = wire.get_strings(wire.get_record(self.content, "enrolment", ConfigRecord), "moments")
        if not senders:
            return {}
        columns = wire.read_arrays(self.content, "moments")
        shapes = [(len(senders), 1)] + [(len(senders), len(self.schema.features))] * 3
        if [(array.shape, array.dtype.kind) for array in columns] != list(zip(shapes, "ifff", strict=True)):
            raise wire.WireError(f"its statistics are not those of {len(senders)} clients and these columns")
        rows = zip(*columns, strict=True)
        return {client: Moments.from_arrays(arrays) for client, arrays in zip(senders, rows, strict=True)}


def _difference(theirs: Schema, ours: Schema) -> str:
    """The first difference between two schemas, in words."""
    if theirs.label != ours.label:
        return f"its label is {theirs.label!r}, that of the first client {ours.label!r}: give both the same label"
    if theirs.classes != ours.classes:
        return f"its classes are {', '.join(theirs.classes)}, those of the first client {', '.join(ours.classes)}"
    for theirs_name, ours_name in zip(theirs.features, ours.features, strict=False):
        if theirs_name != ours_name:
            return f"its column {theirs_name!r} stands where the first client has {ours_name!r}: order them alike"
    return f"it has {len(theirs.features)} features, the first client {len(ours.features)}: drop or add columns"

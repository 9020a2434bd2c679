"""Before round 1, and for every node that joins later: which clients a node hosts and what their data look like.

One QUERY a node. The answer holds the versions there, the clients with their numbers of training rows, the columns,
and for global standardisation the count, mean and squared deviations of each client's features, merged at the server
in the order of the client ids: the same to the bit however clients are spread over nodes.
"""

import time
from collections import Counter
from collections.abc import Iterable
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
from fl_app.rows import Statistics, prepared_rows
from fl_app.site import hosted_clients
from strategies import wire
from strategies.base import TooFewClients
from strategies.roster import Member, Roster
from tasks.base import Schema
from tasks.data.preprocessing import Moments, Standardizer

QUERY = "query.enrol"
POLL_S = 0.1
ASKED_AT_MOST = 3
LONGEST_NAME = 200
LARGEST_MOMENT = 1e60  # their squares still add up; NaN and infinity are refused by Moments


# ------------------------------------------------------------------------------------------------ the node's half


def answer(config: RunConfig, node_config: Any, question: RecordDict) -> RecordDict:
    """What a node says of itself. Versions come first and are all that a server of another version reads."""
    versions = ConfigRecord({"wire": wire.VERSION, "app": __version__})
    asked = wire.read_config(question)
    if (asked["wire"], asked["app"]) != (wire.VERSION, __version__):
        return RecordDict({"versions": versions})
    data = open_data(config)
    # Unscaled rows are made once: they stay at hand for training.
    shard_of = prepared_rows(config, None).shard if config.standardize == "none" else data.shard
    present: list[tuple[str, int, Moments]] = []
    unreadable: list[str] = []
    for client in hosted_clients(config, node_config):
        try:
            train = shard_of(client).train
            present.append((client, len(train), Moments.of(train.x if asked["moments"] else train.x[:0])))
        except Exception as error:  # whatever is wrong with one client's rows is not its neighbours' concern
            log(WARNING, "the rows of client %s cannot be used: %s: %s", client, type(error).__name__, error)
            unreadable.append(client)
    # The mean and variance of a few rows are those rows: too small a client sends none.
    senders = [(client, moments) for client, n, moments in present if asked["moments"] and n >= config.min_examples]
    enrolment = ConfigRecord(
        {
            "clients": [client for client, _, _ in present],
            "num-examples": [n for _, n, _ in present],
            "unreadable": unreadable,
            "population": len(data.clients),
            "features": list(data.schema.features),
            "label": data.schema.label,
            "classes": list(data.schema.classes),
            "moments": [client for client, _ in senders],
        }
    )
    content = RecordDict({"versions": versions, "enrolment": enrolment})
    if asked["moments"]:
        columns = zip(*(moments.to_arrays() for _, moments in senders), strict=True)
        content["moments"] = ArrayRecord.from_numpy_ndarrays([np.stack(column) for column in columns])
    return content


# ---------------------------------------------------------------------------------------------- the server's half


@dataclass
class Enrolment:
    """The clients that have enrolled: a `RosterSource` that asks every node, also those that come later.

    `schema` and `known`, the client ids, are given where the server has the data too; nobody else is admitted then.
    Otherwise the schema is that of the most clients. `statistics` are merged from what is here when `open` returns;
    who joins later uses them as they are.

    Nodes are never waited for one by one: a node that does not answer keeps nobody else out.
    """

    config: RunConfig
    wants_moments: bool
    schema: Schema | None = None
    known: frozenset[str] | None = None
    _members: dict[str, Member] = field(default_factory=dict)
    _moments: dict[str, Moments] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)  # client or node -> why
    _asked: dict[int, int] = field(default_factory=dict)  # node -> how often
    _flying: dict[str, int] = field(default_factory=dict)  # message id -> node
    _population: int = 0

    def open(self, grid: Grid) -> None:
        """Wait until all clients are there, at most `enrol-timeout-s`; then go on with those that are.

        Raises TooFewClients when they are fewer than min-clients.
        """
        deadline = time.monotonic() + self.config.enrol_timeout_s
        while True:
            self._poll(grid)
            expected = self.config.num_clients or self._population or self.config.min_clients
            if len(self._members) >= expected or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
        here = len(self._members)
        self._refuse((f"node {node}" for node in self._flying.values()), "it has not answered yet")
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
        """The enrolled clients whose nodes are connected; nodes that have joined are asked, and not waited for."""
        self._poll(grid)
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

    def _poll(self, grid: Grid) -> None:
        """Ask the nodes that have not been asked, or failed to answer, and take in what answers are there."""
        connected = set(grid.get_node_ids())
        waiting = set(self._flying.values())
        new = [n for n in sorted(connected) if n not in waiting and self._asked.get(n, 0) < ASKED_AT_MOST]
        config = ConfigRecord({"wire": wire.VERSION, "app": __version__, "moments": self.wants_moments})
        messages = [Message(RecordDict({"config": config}), node, QUERY) for node in new]
        delivered = set(grid.push_messages(messages)) if messages else set()
        for message in messages:
            if message.metadata.message_id in delivered:
                self._flying[message.metadata.message_id] = message.metadata.dst_node_id
        entries: list[tuple[_Entry, int]] = []
        while replies := list(grid.pull_messages(list(self._flying))) if self._flying else []:
            for reply in replies:
                node = self._flying.pop(reply.metadata.reply_to_message_id)
                entries += [(entry, node) for entry in self._read(node, reply)]
        if self.schema is None and entries:
            votes = Counter({entry.schema: 0 for entry, _ in entries})
            for entry, _ in sorted(entries, key=lambda item: item[0].clients):
                votes[entry.schema] += len(entry.clients)
            self.schema = votes.most_common(1)[0][0]
        for entry, node in sorted(entries, key=lambda item: item[0].clients):  # not in the order of the replies
            self._admit(node, entry, connected)

    def _read(self, node: int, reply: Message) -> "list[_Entry]":
        self._asked[node] = self._asked.get(node, 0) + 1
        if reply.has_error():  # its text may quote data, so it is not repeated
            self._refuse([f"node {node}"], "it could not answer: see its log")
            return []
        self._asked[node] = ASKED_AT_MOST
        self._refused.pop(f"node {node}", None)
        try:
            return [_Entry.read(reply.content)]
        except wire.WireError as error:
            self._refuse([f"node {node}"], str(error))
            return []

    def _admit(self, node: int, entry: "_Entry", connected: set[int]) -> None:
        if self.schema is not None and entry.schema != self.schema:
            self._refuse(entry.clients, _difference(entry.schema, self.schema))
            return
        try:
            moments = entry.moments() if self.wants_moments else {}
        except ValueError as error:  # a WireError, or moments that cannot be
            self._refuse(entry.clients, str(error))
            return
        self._refuse(entry.unreadable, "its rows cannot be used: see the log of its node")
        self._population = max(self._population, entry.population)
        for client, examples in zip(entry.clients, entry.num_examples, strict=True):
            member = self._members.get(client)
            if self.known is not None and client not in self.known:
                self._refuse([client], "the data have no such client")
            elif member is not None and member.node in connected:
                self._refuse([f"{client} on node {node}"], "another node hosts a client of this name: rename one")
            elif member is None and self.config.num_clients and len(self._members) >= self.config.num_clients:
                self._refuse([client], f"num-clients={self.config.num_clients} are here already")
            elif examples < 1:
                self._refuse([client], "it has no training rows")
            else:
                self._members[client] = Member(client, node, examples)
                self._refused.pop(client, None)
                if client in moments:
                    self._moments[client] = moments[client]

    def _refuse(self, who: Iterable[str], why: str) -> None:
        for name in who:
            if self._refused.get(name) != why:
                log(WARNING, "%s does not take part: %s", name, why)
            self._refused[name] = why


@dataclass(frozen=True)
class _Entry:
    """What a node said of itself, parsed."""

    content: RecordDict
    clients: tuple[str, ...]
    num_examples: tuple[int, ...]
    unreadable: tuple[str, ...]
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
        unreadable, features = wire.get_strings(entry, "unreadable"), wire.get_strings(entry, "features")
        label, classes = wire.get_value(entry, "label", str), wire.get_strings(entry, "classes")
        for name in (*clients, *unreadable, *features, label, *classes):
            if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
                raise wire.WireError(f"a name is empty, over {LONGEST_NAME} characters or not printable: {name[:20]!r}")
        population = wire.get_value(entry, "population", int)
        return cls(content, clients, tuple(counts), unreadable, population, Schema(features, label, classes))

    def moments(self) -> dict[str, Moments]:
        """Those of the clients that sent theirs, one row an array. Raises ValueError for what cannot be moments."""
        senders = wire.get_strings(wire.get_record(self.content, "enrolment", ConfigRecord), "moments")
        if not senders:
            return {}
        columns = wire.read_arrays(self.content, "moments")
        shapes = [(len(senders), 1)] + [(len(senders), len(self.schema.features))] * 3
        if [(array.shape, array.dtype.kind) for array in columns] != list(zip(shapes, "ifff", strict=True)):
            raise wire.WireError(f"its statistics are not those of {len(senders)} clients and these columns")
        announced = dict(zip(self.clients, self.num_examples, strict=True))
        if [int(n) for n in columns[0][:, 0]] != [announced.get(client) for client in senders]:
            raise wire.WireError("its statistics are of other numbers of rows than it announced")
        if any(np.abs(array).max(initial=0.0) > LARGEST_MOMENT for array in columns[1:]):
            raise wire.WireError(f"its statistics hold values above {LARGEST_MOMENT:g}: is one a code for 'missing'?")
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

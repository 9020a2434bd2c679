"""Before round 1, and for every node that joins later: which clients a node hosts and what their data look like.

One QUERY a node. The answer holds the versions there and, of each client, its description: the number of training rows,
the columns with their kinds and categories, and where means are needed the count, mean and squared deviations of each
number, the label included. What comes of them does not depend on the order of the answers, nor on how clients are
spread over nodes. Where privacy is promised the answer is that of fl_app/eligibility.py.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import accumulate, pairwise
from logging import INFO, WARNING
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid
from pydantic import TypeAdapter, ValidationError

from fl_app import __version__, eligibility
from fl_app.assembly import build_dataset, build_strategy, open_data, rules
from fl_app.config import RunConfig
from fl_app.errors import Refused, one_line
from fl_app.own_files import OwnFiles
from fl_app.policy import Policy, asked_policy
from fl_app.site import check_reading, hosted_clients, own_file, own_ledgers, simulated, state_folder
from fl_app.variants import named
from strategies import wire
from strategies.base import TooFewClients
from strategies.roster import Member, Roster
from strategies.update import Arrays
from tasks.data.agreement import (
    LONGEST_NAME,
    Description,
    agree,
    check_names,
    check_rows,
    describe,
    misfit,
    sort_out,
    tells_persons,
)
from tasks.data.design import Design
from tasks.data.moments import Moments
from tasks.data.table import Columns

QUERY = "query.enrol"
FLOWER = ".".join(version("flwr").split(".")[:2])
VERSIONS: Mapping[str, int | str] = {"wire": wire.VERSION, "app": __version__, "flwr": FLOWER}
"""What has to be the same at the server and at all nodes; of Flower the numbers that its interfaces go by."""
POLL_S = 0.1
ASKED_AT_MOST = 3
LONGEST_REASON = 300
MOST_EXAMPLES = 2**40  # of one client: sums over a million clients still fit an int64
LARGEST_MOMENT = 1e60  # their squares still add up; NaN and infinity are refused by Moments

_UNSIGNED = "it does not run this bundle, which no key that it trusts has signed: see fl-app deploy trust"
_COLUMNS = TypeAdapter(Columns)
_MISSING = TypeAdapter(list[tuple[str, ...]])


# ------------------------------------------------------------------------------------------------ the node's half


def answer(config: RunConfig, node_config: Any, question: RecordDict, node: int = 0) -> RecordDict:
    """What a node, by its id, says of itself. Versions come first and are all that a server of another version reads.

    Raises Declined where the site's policy forbids the run.
    """
    versions = ConfigRecord({**VERSIONS})
    asked = wire.read_config(question)
    if (asked["wire"], asked["app"]) != (wire.VERSION, __version__):
        return RecordDict({"versions": versions})
    policy = asked_policy(config, node_config, "enrol", own_ledgers(config, "", node_config))
    check_reading(config, node_config)
    own = own_file(node_config)
    if own is not None:
        OwnFiles(own, state_folder(config, node_config), str(asked["job"]), node).note()
    data, agreed = open_data(config, own), rules(config)
    if (protection := build_strategy(config).protection) is not None:
        fewest = config.min_examples if protection.unit == "record" else 1
        told_nothing = eligibility.answer(asked, data, hosted_clients(config, node_config), agreed, fewest)
        return RecordDict({"versions": versions, **told_nothing})
    if asked["agreed"] or (policy is not None and not policy.release.statistics):  # names and kinds are enough
        agreed = replace(agreed, min_examples=MOST_EXAMPLES)
    told: dict[str, Description] = {}
    unreadable: list[str] = []
    for client in hosted_clients(config, node_config):
        try:
            division = data.divide(client)
            check_rows(division.test, agreed)
            told[client] = describe(division.train, agreed)
        except Exception as error:  # whatever is wrong with one client's rows is not its neighbours' concern
            log(WARNING, "the rows of client %s cannot be used: %s: %s", client, type(error).__name__, error)
            unreadable.append(client)
    content = descriptions_record(told)
    content["enrolment"]["unreadable"] = unreadable
    # A site knows of itself alone.
    content["enrolment"]["population"] = len(data.clients) if own is None else 0
    content["enrolment"]["anywhere"] = simulated()
    if policy is not None:
        _withhold(content["enrolment"], policy)
    return RecordDict({"versions": versions, **content})


def _withhold(told: ConfigRecord, policy: Policy) -> None:
    """What the site's policy keeps back of an answer."""
    if not policy.release.counts:  # the run does not weigh by them, else it was declined
        told["num-examples"] = [min(1, count) for count in cast(list[int], told["num-examples"])]
    told["unmeasured"] = not policy.release.metrics


def declined() -> RecordDict:
    """The answer of a node whose site's policy forbids the run, which says no more than that."""
    return RecordDict({"versions": ConfigRecord({**VERSIONS}), "declined": ConfigRecord({"declined": True})})


def descriptions_record(told: Mapping[str, Description]) -> dict[str, Any]:
    """Descriptions as records; clients of one node mostly have the same columns, which are sent once."""
    place: dict[Columns, int] = {}
    columns_of = [place.setdefault(description.columns, len(place)) for description in told.values()]
    senders = {client: d.moments for client, d in told.items() if d.moments is not None}
    of_labels = {client: d.label for client, d in told.items() if d.label is not None}
    enrolment = ConfigRecord(
        {
            "clients": list(told),
            "num-examples": [description.num_examples for description in told.values()],
            "columns": [_COLUMNS.dump_json(columns).decode() for columns in place],
            "columns-of": columns_of,
            "missing": json.dumps([description.missing for description in told.values()]),
            "moments": list(senders),
            "label-moments": list(of_labels),
        }
    )
    return {
        "enrolment": enrolment,
        "moments": _end_to_end(senders.values()),
        "label-moments": _end_to_end(of_labels.values()),
    }


def _end_to_end(moments: Iterable[Moments]) -> ArrayRecord:
    parts = zip(*(each.to_arrays() for each in moments), strict=True)
    return ArrayRecord.from_numpy_ndarrays([np.concatenate(part) for part in parts])


# ---------------------------------------------------------------------------------------------- the server's half


@dataclass
class Enrolment:
    """The clients that have enrolled: a `RosterSource` that asks every node, also those that come later.

    `known`, the client ids, is given where the server has the data too; nobody else is admitted then. The `design` is
    that of an earlier run, declared, or agreed from the descriptions that are here when `open` returns; who joins later
    uses it as it is. `job` is what the sites know the run by, over all resumes. `variant` is the run's number where
    several are played in one. `private`: the design is declared, and clients tell no more than whether they are
    eligible. `population`: how many there are, where that is known. `unmeasured`: a site does not let its clients
    measure the model. `anywhere`: all nodes are simulated, so that each can work for any client.

    Nodes are never waited for one by one: a node that does not answer keeps nobody else out.
    """

    config: RunConfig
    known: frozenset[str] | None = None
    design: Design | None = None
    job: str = ""
    variant: int | None = None
    private: bool = False
    population: int = 0
    unmeasured: bool = False
    anywhere: bool = True
    _members: dict[str, Member] = field(default_factory=dict)
    _told: dict[str, Description] = field(default_factory=dict)  # until there is a design
    _refused: dict[str, str] = field(default_factory=dict)  # client or node -> why
    _asked: dict[int, int] = field(default_factory=dict)  # node -> how often
    _flying: dict[str, int] = field(default_factory=dict)  # message id -> node
    _rivals: dict[int, "_Entry"] = field(default_factory=dict)  # node -> its answer: another node hosts its client

    def open(self, grid: Grid) -> Design:
        """Wait until all clients are there, at most `enrol-timeout-s`; then go on with those whose columns agree.

        Raises TooFewClients when they are fewer than min-clients, Refused where they come to no design.
        """
        deadline = time.monotonic() + self.config.enrol_timeout_s
        while True:
            self._poll(grid)
            expected = self.config.num_clients or self.population or self.config.min_clients
            if len(self._members) >= expected or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
        good = self._sort_out() if self.design is None else {}
        here = len(self._members)
        silent = {f"node {node}" for node in self._flying.values()} - set(self._refused)
        self._refuse(sorted(silent), "it has not answered yet")
        reasons = "".join(f"; {who}: {why}" for who, why in list(self._refused.items())[:3])
        if here < self.config.min_clients:
            raise TooFewClients(
                f"{here} of {expected} clients enrolled within {self.config.enrol_timeout_s:g} s"
                f", min-clients={self.config.min_clients}{reasons}"
            )
        if here < expected:
            log(WARNING, "going on with %d of %d clients%s", here, expected, reasons)
        log(INFO, "%d clients on %d nodes have enrolled", here, len({m.node for m in self._members.values()}))
        if self.design is None:
            try:
                self.design = agree(good, rules(self.config))
            except ValueError as error:
                raise Refused("the clients cannot agree on their columns", "enrolment", str(error)) from error
            _warn_of_identifiers(self.design, sum(told.num_examples for told in good.values()))
            self._told.clear()
        return self.design

    def current(self, grid: Grid) -> Roster:
        """The enrolled clients whose nodes are connected; nodes that have joined are asked, and not waited for.

        Only where fewer than min-clients are here it waits for them to come back, at most `enrol-timeout-s`.
        """
        roster, deadline = self._online(grid), time.monotonic() + self.config.enrol_timeout_s
        if len(roster) < self.config.min_clients:
            log(WARNING, "%d clients are online, min-clients=%d: waiting", len(roster), self.config.min_clients)
        while len(roster) < self.config.min_clients and time.monotonic() < deadline:
            time.sleep(POLL_S)
            roster = self._online(grid)
        return roster

    def _online(self, grid: Grid) -> Roster:
        self._poll(grid)
        connected = set(grid.get_node_ids())
        online = (member for member in self._members.values() if member.node in connected)
        return Roster(online, anywhere=self.anywhere)

    @property
    def clients(self) -> tuple[str, ...]:
        """All that have enrolled, sorted."""
        return tuple(sorted(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def _sort_out(self) -> dict[str, Description]:
        """Leave out the clients whose columns do not go with those of most."""
        if not self._told:
            return {}
        good, refused = sort_out(self._told)
        for client, why in refused.items():
            self._members.pop(client, None)
            self._refuse([client], why)
        return good

    def _poll(self, grid: Grid) -> None:
        """Ask the nodes that have not been asked, or failed to answer, and take in what answers are there."""
        connected = set(grid.get_node_ids())
        waiting = set(self._flying.values())
        new = [n for n in sorted(connected) if n not in waiting and self._asked.get(n, 0) < ASKED_AT_MOST]
        agreed = self.design is not None
        declared = eligibility.question(self.design) if self.private and self.design is not None else {}
        asked = {**VERSIONS, "job": self.job, "agreed": agreed, **named(self.variant), **declared}
        config = ConfigRecord(asked)
        messages = [Message(RecordDict({"config": config}), node, QUERY) for node in new]
        delivered = set(grid.push_messages(messages)) if messages else set()
        for message in messages:
            if message.metadata.message_id in delivered:
                self._flying[message.metadata.message_id] = message.metadata.dst_node_id
        entries = [(entry, node) for node, entry in self._rivals.items() if node in connected]
        while replies := list(grid.pull_messages(list(self._flying))) if self._flying else []:
            for reply in replies:
                node = self._flying.pop(reply.metadata.reply_to_message_id)
                entries += [(entry, node) for entry in self._read(node, reply)]
        for entry, node in sorted(entries, key=lambda item: list(item[0].told)):  # not in the order of the replies
            self._admit(node, entry, connected)

    def _read(self, node: int, reply: Message) -> "list[_Entry]":
        self._asked[node] = self._asked.get(node, 0) + 1
        if reply.has_error():  # its text may quote data, so it is not repeated
            unsigned = reply.error.code == ErrorCode.INVALID_FAB
            self._refuse([f"node {node}"], _UNSIGNED if unsigned else "it could not answer: see its log")
            return []
        self._asked[node] = ASKED_AT_MOST
        self._refused.pop(f"node {node}", None)
        try:
            entry = _Entry.read(reply.content, self.design if self.private else None)
        except ValueError as error:  # a WireError, or moments that cannot be
            self._refuse([f"node {node}"], str(error))
            return []
        spoken_for = len({*entry.told, *entry.faults, *entry.unreadable})
        if spoken_for > 1 and self._one_a_site:
            self._refuse([f"node {node}"], f"it speaks for {spoken_for} clients: a site with a file is one client")
            return []
        return [entry]

    @property
    def _one_a_site(self) -> bool:
        """Whether every node has a file of its own, and so one client: else one site could be the whole cohort."""
        dataset = build_dataset(self.config)
        return dataset.at_sites and not dataset.names_files

    def _admit(self, node: int, entry: "_Entry", connected: set[int]) -> None:
        self._rivals.pop(node, None)
        self._refuse(entry.unreadable, "its rows cannot be used: see the log of its node")
        for client, fault in entry.faults.items():
            self._refuse([client], fault)
        self.population = max(self.population, entry.population)
        self.unmeasured = self.unmeasured or entry.unmeasured
        self.anywhere = self.anywhere and entry.anywhere
        for client, description in entry.told.items():
            member = self._members.get(client)
            if self.known is not None and client not in self.known:
                self._refuse([client], "the data have no such client")
            elif member is not None and member.node != node and member.node in connected:
                self._refuse([f"{client} on node {node}"], "another node hosts a client of this name: rename one")
                self._rivals[node] = entry  # the other may be gone, and is missed only after some heartbeats
            elif member is None and self.config.num_clients and len(self._members) >= self.config.num_clients:
                self._refuse([client], f"num-clients={self.config.num_clients} are here already")
            elif description.num_examples < 1:
                self._refuse([client], "it has no training rows")
            elif why := self._too_late(description):
                self._refuse([client], why)
            else:
                if member is not None and member.node != node:
                    self._asked.pop(member.node, None)  # it may come back, and is asked again then
                self._members[client] = Member(client, node, description.num_examples)
                self._refused.pop(client, None)
                if self.design is None:
                    self._told[client] = description

    def _too_late(self, description: Description) -> str | None:
        """Why a client does not fit the design that is frozen already."""
        if self.design is None:
            return None
        return misfit(self.design, description.columns)

    def _refuse(self, who: Iterable[str], why: str) -> None:
        why = one_line(why)[:LONGEST_REASON]  # it may quote what a node sent
        for name in who:
            if self._refused.get(name) != why:
                log(WARNING, "%s does not take part: %s", name, why)
            self._refused[name] = why


@dataclass(frozen=True)
class _Entry:
    """What a node said of itself, parsed. faults: why a client's description cannot be used."""

    told: Mapping[str, Description]
    faults: Mapping[str, str]
    unreadable: tuple[str, ...]
    population: int
    unmeasured: bool = False
    anywhere: bool = False

    @classmethod
    def read(cls, content: RecordDict, declared: Design | None = None) -> "_Entry":
        """Raises WireError, naming both versions where they differ, and ValueError for moments that cannot be.

        `declared` is the design of a run that promises privacy.
        """
        versions = wire.get_record(content, "versions", ConfigRecord)
        for name, key in (("fl-app", "app"), ("wire format", "wire"), ("Flower", "flwr")):
            if versions.get(key) != (here := VERSIONS[key]):
                there = versions.get(key)
                raise wire.WireError(f"{name} {there!s} there, {here} here: install the same version on both")
        if "declined" in content:
            raise wire.WireError("declined by its policy")
        if declared is not None:
            verdicts = eligibility.read(content, declared)
            _check_client_names(verdicts)
            nothing = Description(declared.raw_columns, num_examples=1)
            told = {client: nothing for client, good in verdicts.items() if good}
            return cls(told, {}, tuple(client for client, good in verdicts.items() if not good), 0)
        entry = wire.get_record(content, "enrolment", ConfigRecord)
        clients, unreadable = wire.get_strings(entry, "clients"), wire.get_strings(entry, "unreadable")
        _check_client_names((*clients, *unreadable))
        told, faults = _descriptions(content, entry, clients)
        population = wire.get_value(entry, "population", int)
        flags = (entry.get(flag) is True for flag in ("unmeasured", "anywhere"))
        return cls(told, faults, unreadable, population, *flags)


def _check_client_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise wire.WireError(f"the name {name[:60]!r} of a client is empty, too long or not printable")


def _descriptions(
    content: RecordDict, entry: ConfigRecord, clients: tuple[str, ...]
) -> tuple[dict[str, Description], dict[str, str]]:
    """By client, and why those of others cannot be. Raises WireError for an answer that is not well formed."""
    counts, which = wire.get_value(entry, "num-examples", list), wire.get_value(entry, "columns-of", list)
    try:
        distinct = [_COLUMNS.validate_json(text, strict=True) for text in wire.get_strings(entry, "columns")]
        missing = _MISSING.validate_json(wire.get_value(entry, "missing", str))
    except ValidationError as error:
        raise wire.WireError("its description of its columns cannot be read") from error
    lists_fit = len(set(clients)) == len(clients) == len(counts) == len(which) == len(missing)
    if not lists_fit or not all(isinstance(n, int) for n in (*counts, *which)):
        raise wire.WireError(f"its description of {len(clients)} clients is incomplete")
    if not all(0 <= index < len(distinct) for index in which):
        raise wire.WireError("it names columns that it does not describe")
    columns_of = {client: distinct[index] for client, index in zip(clients, which, strict=True)}
    arrays = _moments(content, entry, "moments", {client: len(own.features) for client, own in columns_of.items()})
    of_labels = _moments(content, entry, "label-moments", dict.fromkeys(clients, 1))
    told: dict[str, Description] = {}
    faults: dict[str, str] = {}
    for client, examples, gaps in zip(clients, counts, missing, strict=True):
        try:
            known = arrays.get(client), of_labels.get(client)
            told[client] = _description(columns_of[client], examples, gaps, *known)
        except ValueError as error:
            faults[client] = str(error)
    return told, faults


def _description(
    columns: Columns, examples: int, gaps: tuple[str, ...], arrays: Arrays | None, of_label: Arrays | None
) -> Description:
    """Raises ValueError for what no rows can give."""
    check_names(columns)
    if not 0 <= examples <= MOST_EXAMPLES:
        raise ValueError(f"it announces {examples} rows: expected 0 to {MOST_EXAMPLES}")
    if of_label is not None and columns.classes:
        raise ValueError(f"it sends the mean of its label {columns.label!r}, which has classes")
    label = _checked(of_label, examples)
    if label is not None and label.n[0] != examples:
        raise ValueError("the statistics of its label are not of all its rows")
    return Description(columns, examples, gaps, _checked(arrays, examples), label)


def _checked(arrays: Arrays | None, examples: int) -> Moments | None:
    if arrays is None:
        return None
    if any(np.abs(array).max(initial=0.0) > LARGEST_MOMENT for array in arrays[1:]):
        raise ValueError(f"its statistics hold values above {LARGEST_MOMENT:g}: is one a code for 'missing'?")
    moments = Moments(*arrays)
    if (moments.n > examples).any():
        raise ValueError("its statistics are of more rows than it announced")
    return moments


def _moments(content: RecordDict, entry: ConfigRecord, key: str, widths_of: Mapping[str, int]) -> dict[str, Arrays]:
    """Those of the clients that sent theirs, end to end in each array. Raises WireError for other lengths."""
    senders = wire.get_strings(entry, key)
    if not senders:
        return {}
    if not set(senders) <= set(widths_of) or len(set(senders)) != len(senders):
        raise wire.WireError("it sends statistics of clients that it does not name, or twice")
    arrays = wire.read_arrays(content, key)
    widths = [widths_of[client] for client in senders]
    if [(array.shape, array.dtype.kind) for array in arrays] != [((sum(widths),), kind) for kind in "ifff"]:
        raise wire.WireError(f"its statistics are not those of {len(senders)} clients and these columns")
    ends = pairwise(accumulate(widths, initial=0))
    return {
        client: tuple(array[start:end] for array in arrays) for client, (start, end) in zip(senders, ends, strict=True)
    }


def _warn_of_identifiers(design: Design, rows: int) -> None:
    for term in design.terms:
        if tells_persons(len(term.categories), rows):
            log(
                WARNING,
                "column '%s' has %d categories in %d rows, all named in the model: leave identifiers out with drop=%s",
                term.name,
                len(term.categories),
                rows,
                term.name,
            )

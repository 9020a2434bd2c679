"""Enrolment: before round 1, and for every node that joins later, which clients a node hosts and what data they have.

The server sends each node one QUERY message. The answer holds the versions that the node runs and, for each of its
clients, a description: the number of training rows, the columns with their kinds and categories, and, where features
are scaled or gaps filled, the count, mean and squared deviations of each number, the label included
(fl_app/descriptions.py). The design that the server makes of the descriptions depends neither on the order of the
answers nor on how clients are spread over nodes. Where privacy is promised a client only says whether it can take part
(fl_app/eligibility.py).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from logging import INFO, WARNING
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid

from fl_app import __version__, descriptions, eligibility
from fl_app.assembly import build_dataset, build_strategy, open_data, rules
from fl_app.config import RunConfig
from fl_app.errors import Refused, one_line
from fl_app.own_files import OwnFiles
from fl_app.policy import Policy, checked_policy
from fl_app.site import check_reading, hosted_clients, own_file, own_ledgers, simulated, state_folder
from fl_app.variants import variant_entry
from strategies import wire
from strategies.base import TooFewClients
from strategies.roster import Member, Roster
from tasks.data.agreement import LONGEST_NAME, Description, agree, check_rows, describe, misfit, sort_out, tells_persons
from tasks.data.design import Design

QUERY = "query.enrol"
FLOWER = ".".join(version("flwr").split(".")[:2])
VERSIONS: Mapping[str, int | str] = {"wire": wire.VERSION, "app": __version__, "flwr": FLOWER}
"""What has to be the same at the server and at all nodes; of Flower the numbers that its interfaces go by."""
POLL_S = 0.1
ASKED_AT_MOST = 3
LONGEST_REASON = 300

_UNSIGNED = "it does not run this bundle, which no key that it trusts has signed: see fl-app deploy trust"


# ------------------------------------------------------------------------------------------------ the node's half


def answer(config: RunConfig, node_config: Any, question: RecordDict, node: int = 0) -> RecordDict:
    """The node's answer to `question`. `node` is its id.

    A server of another version is told the versions here and nothing else. Raises Declined where the site's policy
    forbids the run.
    """
    versions = ConfigRecord({**VERSIONS})
    asked = wire.read_config(question)
    if (asked["wire"], asked["app"]) != (wire.VERSION, __version__):
        return RecordDict({"versions": versions})
    policy = checked_policy(config, node_config, "enrol", own_ledgers(config, "", node_config))
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
        agreed = replace(agreed, min_examples=descriptions.MOST_EXAMPLES)
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
    records = descriptions.to_records(told)
    about = cast(ConfigRecord, records["enrolment"])
    about["unreadable"] = unreadable
    about["population"] = len(data.clients) if own is None else 0  # a site knows of itself alone
    about["anywhere"] = simulated()
    if policy is not None:
        _withhold(about, policy)
    return RecordDict({"versions": versions, **records})


def _withhold(told: ConfigRecord, policy: Policy) -> None:
    """Take out of an answer what the site's policy does not release."""
    if not policy.release.counts:  # the run does not weigh by them, else it was declined
        told["num-examples"] = [min(1, count) for count in cast(list[int], told["num-examples"])]
    told["unmeasured"] = not policy.release.metrics


def declined() -> RecordDict:
    """The answer of a node whose site's policy forbids the run, which says no more than that."""
    return RecordDict({"versions": ConfigRecord({**VERSIONS}), "declined": ConfigRecord({"declined": True})})


# ---------------------------------------------------------------------------------------------- the server's half


@dataclass
class Enrolment:
    """The clients that have enrolled: a `RosterSource` that asks every node, also nodes that join later.

    Nodes are never waited for one by one: a node that does not answer keeps nobody else out.
    """

    config: RunConfig
    known: frozenset[str] | None = None
    """The ids of all clients, where the server holds the data too; no other client is then admitted."""
    design: Design | None = None
    """The design of an earlier part of the run, or a declared one. With None, `open` makes it from the descriptions
    that have come by then; clients that join later use it as it is."""
    job: str = ""
    """The name by which the sites know the run. It stays the same over all resumes."""
    variant: int | None = None
    """The number of this run where several are played in one (fl_app/variants.py)."""
    private: bool = False
    """Whether the run promises privacy: its design is declared, and clients only say whether they are eligible."""
    population: int = 0
    """How many clients there are; 0 where that is not known."""
    unmeasured: bool = False
    """Whether the policy of some site keeps its clients from measuring the model. Found out by asking."""
    anywhere: bool = True
    """Whether all nodes are simulated, so that each can work for any client. Found out by asking."""
    _members: dict[str, Member] = field(default_factory=dict)
    _told: dict[str, Description] = field(default_factory=dict)  # until there is a design
    _refused: dict[str, str] = field(default_factory=dict)  # client or "node N" -> why
    _asked: dict[int, int] = field(default_factory=dict)  # node -> how often
    _flying: dict[str, int] = field(default_factory=dict)  # message id -> node
    _rivals: dict[int, "_Entry"] = field(default_factory=dict)  # node -> its answer: another node hosts its client

    def open(self, grid: Grid) -> Design:
        """Wait for all clients, at most `enrol-timeout-s`, and return the design of those whose columns agree.

        Raises TooFewClients where these are fewer than min-clients, Refused where no design can be made of their
        descriptions.
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
        """The enrolled clients whose nodes are connected. Nodes that have just joined are asked, but not waited for.

        Where fewer than min-clients are connected, waits for more, at most `enrol-timeout-s`.
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
        asked = {**VERSIONS, "job": self.job, "agreed": agreed, **variant_entry(self.variant), **declared}
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
        """Whether every node has a file of its own, and so exactly one client.

        A node that claimed several could then be a whole cohort by itself.
        """
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
        """Why a client does not fit the design, where there is one already; None where it fits or there is none."""
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
    """A node's answer, parsed and checked.

    told: the descriptions of its clients. faults: why the descriptions of others cannot be used. unreadable: clients
    whose rows the node itself could not use. The others are as in `Enrolment`.
    """

    told: Mapping[str, Description]
    faults: Mapping[str, str]
    unreadable: tuple[str, ...]
    population: int
    unmeasured: bool = False
    anywhere: bool = False

    @classmethod
    def read(cls, content: RecordDict, declared: Design | None = None) -> "_Entry":
        """Parse an answer. `declared` is the design of a run that promises privacy.

        Raises WireError, naming both versions where they differ, and ValueError for moments that no rows can have.
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
        told, faults = descriptions.from_records(content)
        population = wire.get_value(entry, "population", int)
        flags = (entry.get(flag) is True for flag in ("unmeasured", "anywhere"))
        return cls(told, faults, unreadable, population, *flags)


def _check_client_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise wire.WireError(f"the name {name[:60]!r} of a client is empty, too long or not printable")


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

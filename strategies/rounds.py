"""A round in progress: what was asked of whom, and which of the answers may enter the sum."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.common.constant import ErrorCode

from strategies import exchange, wire
from strategies.exchange import Exchange
from strategies.history import Dropped, MetricSpec
from strategies.roster import Roster
from strategies.transform import Domain, Pipeline, Round
from strategies.update import Arrays, DropReason, InvalidUpdate, Template, Update
from strategies.work import check_template

WAVE_BYTES = 64 * 2**20  # replies that cannot be folded come in messages of at most this size

LARGEST_METRIC = 2**80  # sums of a million of these still travel (wire.LARGEST_SUM)

ERROR_REASONS: Mapping[int, DropReason] = {
    exchange.UNDELIVERED: "timeout",
    exchange.LATE: "timeout",
    exchange.MISMATCHED: "keys",
    ErrorCode.NODE_UNAVAILABLE: "timeout",
    ErrorCode.MESSAGE_UNAVAILABLE: "timeout",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "timeout",
    ErrorCode.INVALID_FAB: "declined",  # the bundle is not signed by anybody whom the node trusts
}


class Broadcast(Protocol):
    """The model of a round as it is sent."""

    def records(self, node: int) -> wire.ModelRecords:
        """For the messages to a node."""

    def bytes_for(self, client: str) -> int:
        """How many bytes of it a client takes, as if it had a node of its own."""


class Plain:
    """The same params for everybody."""

    def __init__(self, params: ArrayRecord) -> None:
        self._params, self._bytes = params, wire.record_bytes(params)

    def records(self, node: int) -> wire.ModelRecords:
        """The params."""
        return {"params": self._params}

    def bytes_for(self, client: str) -> int:
        """All of them."""
        return self._bytes


@dataclass
class OpenRound:
    """One round from the drawing of its cohort to its report. Counts cover all attempts and the evaluation."""

    roster: Roster
    cohort: tuple[str, ...]
    info: Round
    pipeline: Pipeline
    attempts: int = 0
    good: int = 0
    dropped: tuple[Dropped, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    payload_up: int = 0
    payload_down: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("send", "wait", "fold", "evaluate"), 0.0))
    clipped: set[str] = field(default_factory=set)  # clients whose updates were longer than honest ones can be
    left_out: set[str] = field(default_factory=set)  # clients whose good updates the aggregate does without
    following: set[int] = field(default_factory=set)  # nodes that answered with the model of this round
    lost: set[int] = field(default_factory=set)  # nodes that could not make it of what they were sent
    _asked: dict[str, tuple[str, ...]] = field(default_factory=dict)  # group id of a message -> its clients
    _nodes: dict[str, int] = field(default_factory=dict)  # group id of a message -> its node
    _answered: set[str] = field(default_factory=set)
    _failed: dict[str, DropReason] = field(default_factory=dict)

    @property
    def roster_weight(self) -> int:
        """The most that the clients of the roster weigh together."""
        return sum(self.pipeline.max_weight(self.roster[client].num_examples) for client in self.roster.clients)

    def failures(self) -> tuple[Dropped, ...]:
        """The clients that gave nothing good in the exchange just held."""
        return tuple(Dropped(client, reason) for client, reason in sorted(self._failed.items()))

    # ---------------------------------------------------------------------------------------------- orders

    def ask_train(
        self, model: Broadcast, config: ConfigRecord, order: wire.Order, returned: Template, beside: ArrayRecord
    ) -> list[Message]:
        """Messages for the cohort: one a node, or waves of bounded size where nodes may not fold."""
        return self._ask("train", self.cohort, model, config, order, returned, beside)

    def ask_survey(
        self, params: ArrayRecord, config: ConfigRecord, order: wire.Order, returned: Template
    ) -> list[Message]:
        """The same for the last exchange of a run (strategies/survey.py)."""
        return self._ask("query.survey", self.cohort, Plain(params), config, order, returned)

    def ask_means(self, config: ConfigRecord, order: wire.Order, returned: Template) -> list[Message]:
        """The same for the means of the features, before the first round (strategies/private_means.py)."""
        nothing = Plain(wire.params_record(()))
        return self._ask("query.means", self.cohort, nothing, config, order, returned)

    def ask_evaluate(
        self, params: ArrayRecord, config: ConfigRecord, order: wire.Order, returned: Template = ()
    ) -> list[Message]:
        """One message a node, for all clients of the roster. `returned`: arrays, where it is not metric sums."""
        return self._ask("evaluate", self.roster.clients, Plain(params), config, order, returned)

    def _ask(
        self,
        kind: str,
        clients: Sequence[str],
        model: Broadcast,
        config: ConfigRecord,
        order: wire.Order,
        returned: Template,
        beside: ArrayRecord | None = None,
    ) -> list[Message]:
        self._asked.clear()
        self._answered.clear()
        self._failed.clear()
        self._drop([client for client in clients if client not in self.roster], "timeout")
        clients = [client for client in clients if client in self.roster]
        used = dict(zip(order.clients, order.used_rounds, strict=True))
        messages = []
        for node, hosted in self.roster.by_node(clients).items():
            wave, fold = self._wave(len(hosted), order, returned)
            for start in range(0, len(hosted), wave):
                members = hosted[start : start + wave]
                group = f"{kind}/{order.round}/{node}/{start}"
                self._asked[group], self._nodes[group] = members, node
                own = replace(
                    order,
                    clients=members,
                    used_rounds=tuple(used.get(client, 0) for client in members),
                    timeout_s=order.timeout_s * wave / max(wave, len(hosted)),  # waves share the time
                    fold=fold,
                )
                content = wire.order_content(own, model.records(node), config, beside)
                messages.append(Message(content, node, kind, group_id=group))
        always = wire.record_bytes(beside) if beside else 0
        self.payload_down += sum(model.bytes_for(client) + always for client in clients)
        return messages

    def _wave(self, hosted: int, order: wire.Order, returned: Template) -> tuple[int, bool]:
        """How many of a node's clients a message asks for, and whether the node is to add up their updates: where it
        may, and the sum is not larger than what they would send one by one, encoded."""
        each = template_bytes(self.pipeline.encodes(returned)) if returned else 0
        summed = template_bytes(on_grid(self.pipeline.opened(returned))) if returned else 0
        if not returned or (order.fold and summed <= hosted * each):
            return hosted, order.fold
        return max(1, WAVE_BYTES // max(1, each)), False

    # --------------------------------------------------------------------------------------------- answers

    def admit(
        self, replies: Iterable[Message], metrics: MetricSpec | None, returned: Template = ()
    ) -> Iterator[Update]:
        """The updates that were asked for and are well formed; everything else is dropped with its reason.

        `metrics`: those that have to come with them. Without `returned` the replies are evaluations: metric sums and no
        arrays.
        """
        for reply in replies:
            asked = self._asked[reply.metadata.group_id]
            if reply.has_error():
                self._drop(asked, ERROR_REASONS.get(reply.error.code, "raised"))
                continue
            try:
                answer = wire.read_answer(reply.content)
            except wire.WireError:
                self._drop(asked, "keys")
                continue
            self._note(reply.metadata.group_id, asked, answer)
            for dropped in answer.dropped:
                if dropped.client in asked and dropped.client not in self._answered:
                    self._drop([dropped.client], dropped.reason)
            for update in answer.updates:
                members = set(update.clients)
                # An update that speaks for clients it was not asked for, or twice, is nobody's.
                if members and len(members) == len(update.clients) and members <= set(asked) - self._answered:
                    self._answered |= members
                    with self.dropping(update):
                        yield self._checked(update, metrics, returned)
            self._drop(set(asked) - self._answered, "keys")

    def close(self) -> None:
        """Nobody is waited for any more: who was asked and has not answered is late, whatever comes afterwards."""
        self._drop({client for asked in self._asked.values() for client in asked} - self._answered, "late")

    def _note(self, group: str, asked: Sequence[str], answer: wire.Answer) -> None:
        """Whether the node had the model. One that did not says so of all its clients."""
        undecoded = {dropped.client for dropped in answer.dropped if dropped.reason == "decode"}
        (self.lost if undecoded >= set(asked) else self.following).add(self._nodes[group])

    @contextmanager
    def dropping(self, update: Update) -> Iterator[None]:
        """Turns an InvalidUpdate inside the block into a note of who was dropped and why."""
        try:
            yield
        except InvalidUpdate as error:
            self._drop(update.clients, error.reason)

    def _drop(self, clients: Iterable[str], reason: DropReason) -> None:
        for client in clients:
            self._answered.add(client)
            self._failed[client] = reason

    def _checked(self, update: Update, metrics: MetricSpec | None, returned: Template) -> Update:
        check_metrics(update.metric_sums, metrics)
        if not returned:
            check_template(update.arrays, ())
            return update
        heaviest = sum(self.pipeline.max_weight(self.roster[client].num_examples) for client in update.clients)
        if not 1 <= update.weight <= heaviest:
            raise InvalidUpdate("weight", f"weight {update.weight}, expected 1 to {heaviest}")
        if not update.on_grid:
            if len(update.clients) != 1:
                raise InvalidUpdate("keys", f"{len(update.clients)} clients in an update that is no sum")
            update = replace(update, payload_bytes=wire.encoded_bytes(update.arrays))
            update = self.pipeline.decode_each(update, self.info)
        opened = self.pipeline.opened(returned)
        if update.on_grid:
            check_template(update.arrays, on_grid(opened))
            if not 0 <= update.payload_bytes <= 2 * len(update.clients) * template_bytes(opened):
                raise InvalidUpdate("decode", f"a payload of {update.payload_bytes} bytes")
            if self.pipeline.gives is Domain.REAL:
                self.info.grid.check_sum(update.arrays, update.weight, len(update.clients))
        else:
            check_template(update.arrays, opened)
        held = self.pipeline.limit(update, self.info)
        if held.arrays is not update.arrays and self.pipeline.exceeds(update, self.info):
            self.clipped.update(update.clients)
        return held

    def count_bytes(self, replies: Exchange) -> None:
        """Enter what an exchange sent and received."""
        self.bytes_up += replies.bytes_up
        self.bytes_down += replies.bytes_down


def check_metrics(sums: Mapping[str, Fraction], expected: MetricSpec | None) -> None:
    """Raises InvalidUpdate("metrics") for sums of other names, or that no rows can have."""
    names = expected.metric_names if expected else ()
    if set(sums) != set(names):
        raise InvalidUpdate("metrics", f"metric sums {', '.join(sorted(sums))}, expected {', '.join(sorted(names))}")
    if any(abs(value) > LARGEST_METRIC for value in sums.values()):
        raise InvalidUpdate("metrics", f"a metric sum above {LARGEST_METRIC}")
    if expected:
        try:
            expected.check_sums(sums)
        except ValueError as error:
            raise InvalidUpdate("metrics", str(error)) from error


def template_bytes(template: Template) -> int:
    """The bytes of arrays with this template on the wire."""
    return wire.encoded_bytes(tuple(np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in template))


def on_grid(template: Template) -> Template:
    """The template of a sum of arrays with this template."""
    return tuple((shape, np.dtype(np.int64)) for shape, _ in template)


def relative_change(before: Arrays, after: Arrays) -> float:
    """||after - before|| / max(||before||, 1) in float64."""
    moved = np.sqrt(sum(_square_sum(np.subtract(a, b, dtype=np.float64)) for a, b in zip(after, before, strict=True)))
    return float(moved / max(np.sqrt(sum(_square_sum(b) for b in before)), 1.0))


def _square_sum(array: np.ndarray) -> float:
    flat = array.reshape(-1).astype(np.float64, copy=False)
    return float(flat @ flat)

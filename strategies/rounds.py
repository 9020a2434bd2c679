"""A round in progress: which clients were asked for what, and which of their answers may enter the sum."""

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
    """The model of a round, in the form in which it is sent to nodes."""

    def records(self, node: int) -> wire.ModelRecords:
        """The records that hold the model in messages to this node."""

    def bytes_for(self, client: str) -> int:
        """How many bytes the model would take if this client had a node of its own."""


class Plain:
    """The params themselves, the same for every node."""

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
    """One round, from the drawing of its cohort to its report. Bytes and seconds are of all attempts and evaluation."""

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
    left_out: set[str] = field(default_factory=set)  # clients whose good updates the aggregator did not use
    following: set[int] = field(default_factory=set)  # nodes that have decoded the model of this round
    lost: set[int] = field(default_factory=set)  # nodes that could not decode it
    _asked: dict[str, tuple[str, ...]] = field(default_factory=dict)  # group id of a message -> its clients
    _nodes: dict[str, int] = field(default_factory=dict)  # group id of a message -> its node
    _answered: set[str] = field(default_factory=set)
    _failed: dict[str, DropReason] = field(default_factory=dict)

    @property
    def roster_weight(self) -> int:
        """The largest weight that all clients of the roster together can have."""
        return sum(self.pipeline.max_weight(self.roster[client].num_examples) for client in self.roster.clients)

    def failures(self) -> tuple[Dropped, ...]:
        """The clients that gave no good update in the last exchange, and why."""
        return tuple(Dropped(client, reason) for client, reason in sorted(self._failed.items()))

    # ---------------------------------------------------------------------------------------------- orders

    def ask_train(
        self, model: Broadcast, config: ConfigRecord, order: wire.Order, returned: Template, beside: ArrayRecord
    ) -> list[Message]:
        """Messages for the cohort: one to each node, or several (waves) where the replies cannot be folded.

        `returned`: shapes and dtypes of the arrays that fit returns. `beside`: what is sent with the model.
        """
        return self._ask("train", self.cohort, model, config, order, returned, beside)

    def ask_survey(
        self, params: ArrayRecord, config: ConfigRecord, order: wire.Order, returned: Template
    ) -> list[Message]:
        """Likewise for the last exchange of a run (strategies/survey.py)."""
        return self._ask("query.survey", self.cohort, Plain(params), config, order, returned)

    def ask_means(self, config: ConfigRecord, order: wire.Order, returned: Template) -> list[Message]:
        """Likewise for the means of the features, before the first round (strategies/private_means.py)."""
        nothing = Plain(wire.params_record(()))
        return self._ask("query.means", self.cohort, nothing, config, order, returned)

    def ask_evaluate(
        self, params: ArrayRecord, config: ConfigRecord, order: wire.Order, returned: Template = ()
    ) -> list[Message]:
        """One message to each node, for all clients of the roster.

        `returned`: shapes and dtypes of the arrays that come back; () where it is metric sums alone.
        """
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
        """For how many of a node's clients one message asks, and whether the node is to add up their updates.

        It is to where it may, and where the sum takes no more bytes than the clients' encoded updates one by one.
        """
        each = template_bytes(self.pipeline.encodes(returned)) if returned else 0
        summed = template_bytes(on_grid(self.pipeline.opened(returned))) if returned else 0
        if not returned or (order.fold and summed <= hosted * each):
            return hosted, order.fold
        return max(1, WAVE_BYTES // max(1, each)), False

    # --------------------------------------------------------------------------------------------- answers

    def admit(
        self, replies: Iterable[Message], metrics: MetricSpec | None, returned: Template = ()
    ) -> Iterator[Update]:
        """The updates that were asked for and are well formed, opened as far as each can be opened by itself.

        The clients of all others are dropped, with a reason. `metrics`: the sums that have to come with an update.
        `returned`: as it was asked with; without it the replies are evaluations, which hold metric sums and no arrays.
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
                # An update of a client that was not asked, has answered already or is named twice is not used.
                if members and len(members) == len(update.clients) and members <= set(asked) - self._answered:
                    self._answered |= members
                    with self.dropping(update):
                        yield self._checked(update, metrics, returned)
            self._drop(set(asked) - self._answered, "keys")

    def close(self) -> None:
        """Stop waiting: every client that was asked and has not answered by now is dropped as late."""
        self._drop({client for asked in self._asked.values() for client in asked} - self._answered, "late")

    def _note(self, group: str, asked: Sequence[str], answer: wire.Answer) -> None:
        """Note whether the node could decode the model: one that could not says so of every client in its order."""
        undecoded = {dropped.client for dropped in answer.dropped if dropped.reason == "decode"}
        (self.lost if undecoded >= set(asked) else self.following).add(self._nodes[group])

    @contextmanager
    def dropping(self, update: Update) -> Iterator[None]:
        """Turns an InvalidUpdate inside the block into dropping the clients of `update`."""
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
        """Add the bytes that an exchange has sent and received."""
        self.bytes_up += replies.bytes_up
        self.bytes_down += replies.bytes_down


def check_metrics(sums: Mapping[str, Fraction], expected: MetricSpec | None) -> None:
    """Raises InvalidUpdate("metrics") for sums of other names than expected, and for values that no rows can have."""
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
    """How many bytes arrays with these shapes and dtypes take on the wire."""
    return wire.encoded_bytes(tuple(np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in template))


def on_grid(template: Template) -> Template:
    """Shapes and dtypes of an exact sum of arrays that have these."""
    return tuple((shape, np.dtype(np.int64)) for shape, _ in template)


def relative_change(before: Arrays, after: Arrays) -> float:
    """||after - before|| / max(||before||, 1) in float64."""
    moved = np.sqrt(sum(_square_sum(np.subtract(a, b, dtype=np.float64)) for a, b in zip(after, before, strict=True)))
    return float(moved / max(np.sqrt(sum(_square_sum(b) for b in before)), 1.0))


def _square_sum(array: np.ndarray) -> float:
    flat = array.reshape(-1).astype(np.float64, copy=False)
    return float(flat @ flat)

"""A round in progress: what was asked of whom, and which of the answers may enter the sum."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.common.constant import ErrorCode

from strategies import exchange, wire
from strategies.exchange import Exchange
from strategies.history import Dropped
from strategies.roster import Roster
from strategies.transform import Domain, Pipeline, Round
from strategies.update import Arrays, DropReason, InvalidUpdate, Update
from strategies.work import Template, check_template

WAVE_BYTES = 64 * 2**20  # replies that cannot be folded come in messages of at most this size

ERROR_REASONS: Mapping[int, DropReason] = {
    exchange.UNDELIVERED: "timeout",
    exchange.LATE: "timeout",
    exchange.MISMATCHED: "keys",
    ErrorCode.NODE_UNAVAILABLE: "timeout",
    ErrorCode.MESSAGE_UNAVAILABLE: "timeout",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "timeout",
}


@dataclass
class OpenRound:
    """One round from the drawing of its cohort to its report. Counts cover both attempts and the evaluation."""

    roster: Roster
    cohort: tuple[str, ...]
    info: Round
    pipeline: Pipeline
    good: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    payload_up: int = 0
    payload_down: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("send", "wait", "fold", "evaluate"), 0.0))
    _asked: dict[str, tuple[str, ...]] = field(default_factory=dict)  # group id of a message -> its clients
    _answered: set[str] = field(default_factory=set)
    _dropped: dict[str, DropReason] = field(default_factory=dict)

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """The clients of the last exchange whose updates were not used."""
        return tuple(Dropped(client, reason) for client, reason in sorted(self._dropped.items()))

    # ---------------------------------------------------------------------------------------------- orders

    def ask_train(
        self, params: ArrayRecord, config: ConfigRecord, order: wire.Order, returned: Template
    ) -> list[Message]:
        """Messages for the cohort: one a node, or waves of bounded size where nodes may not fold."""
        self._dropped.clear()
        size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in returned)
        wave = len(self.cohort) if order.fold else max(1, WAVE_BYTES // max(1, size))
        return self._ask("train", self.cohort, params, config, order, wave)

    def ask_evaluate(self, params: ArrayRecord, config: ConfigRecord, order: wire.Order) -> list[Message]:
        """One message a node, for all clients of the roster."""
        return self._ask("evaluate", self.roster.clients, params, config, order, len(self.roster))

    def _ask(
        self,
        kind: str,
        clients: Sequence[str],
        params: ArrayRecord,
        config: ConfigRecord,
        order: wire.Order,
        wave: int,
    ) -> list[Message]:
        self._asked.clear()
        self._answered.clear()
        used = dict(zip(order.clients, order.used_rounds, strict=True))
        messages = []
        for node, hosted in self.roster.by_node(clients).items():
            for start in range(0, len(hosted), wave):
                members = hosted[start : start + wave]
                group = f"{kind}/{order.round}/{node}/{start}"
                self._asked[group] = members
                own = replace(order, clients=members, used_rounds=tuple(used.get(client, 0) for client in members))
                messages.append(Message(wire.order_content(own, params, config), node, kind, group_id=group))
        self.payload_down += len(clients) * wire.record_bytes(params)
        return messages

    # --------------------------------------------------------------------------------------------- answers

    def admit(
        self, replies: Iterable[Message], metric_names: tuple[str, ...], returned: Template = ()
    ) -> Iterator[Update]:
        """The updates that were asked for and are well formed; everything else is dropped with its reason.

        Without `returned` the replies are evaluations: metric sums and no arrays.
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
            for dropped in answer.dropped:
                if dropped.client in asked and dropped.client not in self._answered:
                    self._drop([dropped.client], dropped.reason)
            for update in answer.updates:
                members = set(update.clients)
                # An update that speaks for clients it was not asked for, or twice, is nobody's.
                if members and len(members) == len(update.clients) and members <= set(asked) - self._answered:
                    self._answered |= members
                    with self.dropping(update):
                        yield self._checked(update, metric_names, returned)
            self._drop(set(asked) - self._answered, "keys")

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
            self._dropped[client] = reason

    def _checked(self, update: Update, metric_names: tuple[str, ...], returned: Template) -> Update:
        if set(update.metric_sums) != set(metric_names):
            raise InvalidUpdate("metrics", f"metric sums {sorted(update.metric_sums)}, expected {sorted(metric_names)}")
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
        if update.on_grid:
            check_template(update.arrays, on_grid(returned))
            if self.pipeline.gives is Domain.REAL:
                self.info.grid.check_sum(update.arrays, update.weight, len(update.clients))
        else:
            check_template(update.arrays, returned)
        return update

    def count_bytes(self, replies: Exchange) -> None:
        """Enter what an exchange sent and received."""
        self.bytes_up += replies.bytes_up
        self.bytes_down += replies.bytes_down


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

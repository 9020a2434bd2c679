"""What goes into the audit logs about each message, and the receipts that travel with messages.

An order carries the head of the server's log, in the record "audit"; an answer carries the head of the node's log, in
"receipt"; each side enters the other's head into its own log. A side that keeps no log, as in a simulation, sends no
head and is not asked for one.

About a run a log holds the hash of its configuration and the keys that name no path, column or client. About what is
sent it holds the number of bytes, and a hash that only the holder of the log's key can compute. It never holds counts
of rows, names or metrics.
"""

from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_app.assembly import build_dataset, build_strategy
from fl_app.audit import AuditLog, Entry, Head
from fl_app.config import RunConfig
from fl_app.policy import Declined
from fl_app.site import own_file, state_folder
from fl_app.variants import variant_config, variant_of
from strategies import wire
from strategies.protection import Protection

ORDER, RECEIPT = "audit", "receipt"
NODE_LOG, SERVER_LOG = Path("audit", "audit.jsonl"), Path("audit.jsonl")
"""Below the site's state folder, and below the run's."""
LONGEST = 500  # of what others wrote

TOLD_KEYS = frozenset(
    {
        "task",
        "strategy",
        "strategy-args",
        "standardize",
        "rounds",
        "local-epochs",
        "local-steps",
        "batch-size",
        "clients-per-round",
        "min-clients",
        "min-examples",
    }
)


class NodeLog:
    """The log of one node, for one message."""

    def __init__(self, log: AuditLog, message: Message, context: Context) -> None:
        self._log, self._message, self._run_config = log, message, context.run_config

    @classmethod
    def of(cls, message: Message, context: Context) -> "NodeLog | None":
        """The log of the node that received a message; None where it has no file of its own, as in a simulation.

        Raises Refused.
        """
        if own_file(context.node_config) is None:
            return None
        return cls(AuditLog(state_folder(RunConfig.parse({}), context.node_config) / NODE_LOG), message, context)

    def asked(self) -> None:
        """Enter what the message asks, and the head of the server's log. Called before anything is done."""
        config = self._config()
        run = {} if config is None else _about_run(config)
        self._log.append({"kind": "asked", **_about(self._message), **run, **_their(self._message.content, ORDER)})

    def answered(self, reply: Message, declined: Declined | None = None) -> None:
        """Enter the reply that is about to be sent, and put the receipt into it."""
        entry = {"kind": "answered", **_about(self._message), "bytes": wire.message_bytes(reply)}
        entry["sent"] = self._log.keyed(_parts(reply.content))
        if declined is not None:
            entry |= {"kind": "declined", "clause": declined.clause}
        elif (config := self._config()) is not None:
            entry["promise"] = _promise(build_strategy(config).protection)
        reply.content[RECEIPT] = _record(self._log.append(entry)[-1])

    def failed(self, error: Exception) -> None:
        """Enter that there is no reply. The error's text may quote data, so it stands in the node's other log alone."""
        self._log.append({"kind": "failed", **_about(self._message), "error": type(error).__name__})

    def _config(self) -> RunConfig | None:
        """The run's configuration; None where it cannot be read."""
        try:
            return variant_config(self._run_config, variant_of(wire.read_config(self._message.content)))
        except (ValueError, TypeError):  # Refused and WireError are ValueErrors
            return None


def audited(grid: Grid, config: RunConfig, folder: Path) -> Grid:
    """The grid of a run, with a log of what goes through it where the clients are sites with files of their own."""
    dataset = build_dataset(config)
    if not dataset.at_sites or dataset.names_files:
        return grid
    strategy, journal = build_strategy(config), AuditLog(folder / SERVER_LOG)
    journal.append({"kind": "began", **_about_run(config), "promise": _promise(strategy.protection)})
    return AuditedGrid(grid, journal, secret=strategy.sampler.secret)


class AuditedGrid(Grid):
    """A Grid that enters what goes through it into the server's log.

    `secret`: the log must not tell who was drawn for a round. Then it says that a round was sent, and neither to whom
    nor to how many, and keeps no receipts of it.
    """

    def __init__(self, grid: Grid, journal: AuditLog, *, secret: bool) -> None:
        self._grid, self._log, self._secret = grid, journal, secret
        self._waiting: dict[str, Entry | None] = {}  # message id -> what was asked; None where that is secret

    def set_run(self, run: Run) -> None:
        """That of the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """That of the grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Those of the grid."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Enter what is about to be sent, and send it with the head of the log."""
        batch = list(messages)
        if not batch:
            return []
        asked = [None if self._hides(message) else _asked(message) for message in batch]
        if any(entry is None for entry in asked):  # the rounds of an exchange are all secret, or none is
            heads = self._log.append({"kind": "asked", **_about(batch[0])}) * len(batch)
        else:
            hashes: dict[int, str] = {}
            sent = [
                {**(entry or {}), **self._sent(message, hashes)} for entry, message in zip(asked, batch, strict=True)
            ]
            heads = self._log.append(*sent)
        for message, head in zip(batch, heads, strict=True):
            message.content[ORDER] = _record(head)
        delivered = list(self._grid.push_messages(batch))
        for message, entry in zip(batch, asked, strict=True):
            self._waiting[message.metadata.message_id] = entry
        return delivered

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Enter what has come, with its receipts, before anybody sees it."""
        replies = list(self._grid.pull_messages(message_ids))
        asked = [self._waiting.pop(reply.metadata.reply_to_message_id, None) for reply in replies]
        known = [(reply, entry) for reply, entry in zip(replies, asked, strict=True) if entry is not None]
        if known:
            self._log.append(*(self._received(reply, entry) for reply, entry in known))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not for audited runs, whose messages are pushed and pulled. Raises NotImplementedError."""
        raise NotImplementedError("what is sent so would not be in the log")

    def _hides(self, message: Message) -> bool:
        return self._secret and message.metadata.message_type == "train"

    def _sent(self, message: Message, hashes: dict[int, str]) -> dict[str, Any]:
        """`hashes`: of the records that the messages of a batch share, by identity."""
        records = list(message.content.array_records.values())
        for record in records:
            if id(record) not in hashes:
                hashes[id(record)] = self._log.keyed(_array_parts(record))
        return {"bytes": wire.message_bytes(message), "sent": [hashes[id(record)] for record in records]}

    def _received(self, reply: Message, asked: Entry) -> Entry:
        if reply.has_error():
            return {**asked, "kind": "failed", "code": int(reply.error.code)}
        entry = {**asked, "kind": "received", "bytes": wire.message_bytes(reply)}
        return {**entry, "received": self._log.keyed(_parts(reply.content)), **_their(reply.content, RECEIPT)}


# ------------------------------------------------------------------------------------------------- what an entry says


def _asked(message: Message) -> Entry:
    return {"kind": "asked", "node": str(message.metadata.dst_node_id), **_about(message)}


def _about(message: Message) -> dict[str, Any]:
    """What kind of message it is, of which job and round, and what the round is said to cost."""
    order, config = (message.content.get(key) for key in ("order", "config"))
    about: dict[str, Any] = {"message": message.metadata.message_type}
    if isinstance(config, ConfigRecord) and isinstance(job := config.get("job"), str):
        about["job"] = job[:LONGEST]
    if isinstance(order, ConfigRecord):
        about["round"] = number if type(number := order.get("round")) is int else None
        cost = {key: value for key, value in order.items() if key.startswith("public.privacy.")}
        told = {key.removeprefix("public.privacy."): _plain(value) for key, value in cost.items()}
        about |= {"cost": told} if told else {}
    return about


def _about_run(config: RunConfig) -> dict[str, Any]:
    run = {key: _plain(value) for key, value in config.values().items() if key in TOLD_KEYS}
    return {"config_sha256": config.sha256(), "run": run}


def _promise(protection: Protection | None) -> dict[str, Any] | None:
    if protection is None:
        return None
    promise = protection.promise
    return {
        "unit": protection.unit,
        "relation": protection.relation,
        "noise_by_client": protection.by_clients,
        "target_epsilon": promise.target_epsilon or None,
        "noise_multiplier": promise.noise_multiplier or None,
        "delta": promise.delta,
        "clip_norm": protection.clip_norm,
    }


def _plain(value: Any) -> str | int | float | bool | None:
    """A value that JSON can hold, whoever has sent it."""
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    return value if isinstance(value, int) else str(value)[:LONGEST]


def _their(content: RecordDict, key: str) -> dict[str, Any]:
    """The head that the other side has sent; None where it keeps no log, or sends what is none."""
    record = content.get(key)
    head = Head.of(dict(record)) if isinstance(record, ConfigRecord) else None
    return {"their": None if head is None else head.values()}


def _record(head: Head) -> ConfigRecord:
    return ConfigRecord(dict(head.values()))


# ------------------------------------------------------------------------------------------------------ what is hashed


def _parts(content: RecordDict) -> Iterator[bytes]:
    """All of a message's content, in order."""
    for key, record in content.items():
        yield f"{key}\0".encode()
        if isinstance(record, ArrayRecord):
            yield from _array_parts(record)
        else:
            yield recorddict_to_proto(RecordDict({key: record})).SerializeToString(deterministic=True)


def _array_parts(record: ArrayRecord) -> Iterator[bytes]:
    for name, array in record.items():
        yield f"{name}\0{array.dtype}\0{list(array.shape)}\0{len(array.data)}\0".encode()
        yield array.data

"""Orders and answers as Flower records: the only record keys of the project.

A train or evaluate message carries the params, the order and the run's common config; where the server optimiser
broadcasts more than the params, also that:

    {"params": ArrayRecord, "order": ConfigRecord, "config": ConfigRecord, "beside": ArrayRecord}

Where the way down is compressed (strategies/downlink.py) the params may be those of an earlier round and the steps
since then:

    {"model": ConfigRecord, "params": ArrayRecord} or {"model": ConfigRecord, "steps": ArrayRecord}

and its answer one pair of records for each update, a sum of several clients or one client's own:

    {"answer": ConfigRecord, "update-0": ArrayRecord, "about-0": ConfigRecord, "update-1": ...}

"order" and "answer" hold the version of this format. What does not parse raises WireError. What parses is still not
trusted: `strategies.rounds` compares it with what was asked.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import array_to_proto, recorddict_to_proto
from flwr.common.serde_utils import error_to_proto, metadata_to_proto
from numpy.typing import NDArray

from strategies.history import Dropped
from strategies.transform import Public
from strategies.update import DROP_REASONS, Arrays, Update

VERSION = 1
MAX_METRICS = 64
MAX_FRACTION_DIGITS = 1_000  # the sum of 2**60 doubles has fewer than 700 digits over and under the line
LARGEST_SUM = 2**100
DYADIC = re.compile(r"(-?[0-9]+)/([0-9]+)")

T = TypeVar("T")
ModelRecords = Mapping[str, ArrayRecord | ConfigRecord]
"""The records of a message that hold the model."""


class WireError(ValueError):
    """A message that is not what this version of the project writes."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the server asks of one node: work for some of its clients.

    `used_rounds` holds, for each client, the last round in which its update was used (0 = none): the node starts from
    the state that the client had after that round. `fraction_bits` is that of the round's grid (`FixedPoint`).
    `timeout_s` counts from when the node begins. `fold`: the node may add up its clients' updates. `public` is what the
    pipeline announces.
    """

    round: int
    clients: tuple[str, ...]
    used_rounds: tuple[int, ...]
    fraction_bits: int
    timeout_s: float
    fold: bool
    public: Public


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node sends back: good updates, and the clients whose updates it dropped with the reasons."""

    updates: tuple[Update, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The step from the reconstruction of round `round` - 1 to that of `round`: encoded, and what decoding it needs."""

    round: int
    arrays: Arrays
    public: tuple[tuple[str, bool | int | float | str | bytes], ...] = ()

    @property
    def size(self) -> int:
        """Its bytes on the wire."""
        return encoded_bytes(self.arrays)


@dataclass(frozen=True, slots=True)
class Sent:
    """What one node is sent: the model, or the steps since round `since`. `sha256` is of the model it ends with."""

    round: int
    sha256: str
    model: Arrays = ()
    since: int = 0
    steps: tuple[Step, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of its arrays on the wire."""
        return encoded_bytes(self.model) + sum(step.size for step in self.steps)


def params_record(params: Arrays) -> ArrayRecord:
    """The params as sent to clients; share it between the messages of a round."""
    return _array_record(params)


def read_params(content: RecordDict) -> Arrays:
    """The params of a message, read-only."""
    return read_arrays(content, "params")


def model_records(sent: Sent) -> ModelRecords:
    """What a node is sent of the model; share it between the messages of a round that send the same."""
    about = ConfigRecord({"round": sent.round, "sha256": sent.sha256, "since": sent.since})
    if sent.model:
        return {"model": about, "params": params_record(sent.model)}
    about["rounds"] = [step.round for step in sent.steps]
    about["sizes"] = [len(step.arrays) for step in sent.steps]
    for place, step in enumerate(sent.steps):
        about.update({f"public-{place}.{name}": value for name, value in step.public})
    return {"model": about, "steps": _array_record(tuple(array for step in sent.steps for array in step.arrays))}


def read_model(content: RecordDict) -> Sent | None:
    """The inverse of `model_records`; None for a message with plain params. Raises WireError."""
    if "model" not in content:
        return None
    about = get_record(content, "model", ConfigRecord)
    found = Sent(get_value(about, "round", int), get_value(about, "sha256", str))
    if "params" in content:
        return replace(found, model=read_params(content))
    rounds, sizes = get_value(about, "rounds", list), get_value(about, "sizes", list)
    arrays = read_arrays(content, "steps")
    if len(rounds) != len(sizes) or min(sizes, default=0) < 0 or sum(sizes) != len(arrays):
        raise WireError("the steps of the model do not fit together")
    ends = list(accumulate(sizes))
    steps = tuple(
        Step(number, arrays[end - size : end], _public_of(about, place))
        for place, (number, size, end) in enumerate(zip(rounds, sizes, ends, strict=True))
    )
    return replace(found, since=get_value(about, "since", int), steps=steps)


def _public_of(about: ConfigRecord, place: int) -> tuple[tuple[str, Any], ...]:
    prefix = f"public-{place}."
    return tuple((name.removeprefix(prefix), value) for name, value in about.items() if name.startswith(prefix))


def read_beside(content: RecordDict) -> Arrays:
    """What came beside the params, read-only; nothing where nothing did."""
    return read_arrays(content, "beside") if "beside" in content else ()


def order_content(
    order: Order,
    model: ModelRecords,
    config: ConfigRecord,
    beside: ArrayRecord | None = None,
) -> RecordDict:
    """The content of a train or evaluate message. `model`: {"params": ...}, or as `model_records` gives it."""
    record = ConfigRecord(
        {
            "version": VERSION,
            "round": order.round,
            "clients": list(order.clients),
            "used-rounds": list(order.used_rounds),
            "fraction-bits": order.fraction_bits,
            "timeout-s": order.timeout_s,
            "fold": order.fold,
            **{f"public.{name}": value for name, value in order.public.items()},
        }
    )
    content = RecordDict({**model, "order": record, "config": config})
    if beside:
        content["beside"] = beside
    return content


def read_order(content: RecordDict) -> Order:
    """The inverse of `order_content`. Raises WireError."""
    record = get_record(content, "order", ConfigRecord)
    _check_version(record)
    clients = get_strings(record, "clients")
    if len(set(clients)) < len(clients):  # each would be charged for its privacy as if it were the only one
        raise WireError("the order names a client twice")
    return Order(
        round=get_value(record, "round", int),
        clients=clients,
        used_rounds=tuple(get_value(record, "used-rounds", list)),
        fraction_bits=get_value(record, "fraction-bits", int),
        timeout_s=get_value(record, "timeout-s", float),
        fold=get_value(record, "fold", bool),
        public={k.removeprefix("public."): cast(Any, v) for k, v in record.items() if k.startswith("public.")},
    )


def read_config(content: RecordDict) -> Mapping[str, Any]:
    """The run's common config of a message."""
    return dict(get_record(content, "config", ConfigRecord))


def answer_content(answer: Answer) -> RecordDict:
    """The content of a reply."""
    content = RecordDict(
        {
            "answer": ConfigRecord(
                {
                    "version": VERSION,
                    "updates": len(answer.updates),
                    "dropped": [d.client for d in answer.dropped],
                    "reasons": [str(d.reason) for d in answer.dropped],
                }
            )
        }
    )
    for index, update in enumerate(answer.updates):
        content[f"update-{index}"] = _array_record(update.arrays)
        content[f"about-{index}"] = ConfigRecord(
            {
                "clients": list(update.clients),
                "weight": update.weight,
                "num-examples": update.num_examples,
                "payload-bytes": update.payload_bytes,
                "on-grid": update.on_grid,
                "metrics": list(update.metric_sums),
                "metric-sums": [f"{v.numerator}/{v.denominator}" for v in update.metric_sums.values()],
            }
        )
    return content


def read_answer(content: RecordDict) -> Answer:
    """The inverse of `answer_content`. Raises WireError."""
    header = get_record(content, "answer", ConfigRecord)
    _check_version(header)
    clients, reasons = get_strings(header, "dropped"), get_strings(header, "reasons")
    if len(clients) != len(reasons) or not set(reasons) <= set(DROP_REASONS):
        raise WireError("the dropped clients and their reasons do not fit together")
    count = get_value(header, "updates", int)
    if not 0 <= count <= len(content):
        raise WireError(f"{count} updates announced in {len(content)} records")
    return Answer(
        updates=tuple(_read_update(content, index) for index in range(count)),
        dropped=tuple(Dropped(c, cast(Any, r)) for c, r in zip(clients, reasons, strict=True)),
    )


def _read_update(content: RecordDict, index: int) -> Update:
    about = get_record(content, f"about-{index}", ConfigRecord)
    names, sums = get_strings(about, "metrics"), get_strings(about, "metric-sums")
    if len(names) != len(sums) or len(names) > MAX_METRICS:
        raise WireError(f"{len(names)} metric names and {len(sums)} sums, expected as many, at most {MAX_METRICS}")
    return Update(
        arrays=read_arrays(content, f"update-{index}"),
        clients=get_strings(about, "clients"),
        weight=get_value(about, "weight", int),
        num_examples=get_value(about, "num-examples", int),
        metric_sums={name: _dyadic(text) for name, text in zip(names, sums, strict=True)},
        payload_bytes=get_value(about, "payload-bytes", int),
        on_grid=get_value(about, "on-grid", bool),
    )


def encoded_bytes(arrays: Arrays) -> int:
    """The bytes of arrays on the wire: Flower sends each in numpy's file format, a header and the elements."""
    return sum(array.nbytes + _header_bytes(array.dtype.str, array.shape) for array in arrays)


def record_bytes(record: ArrayRecord) -> int:
    """The bytes of arrays that are encoded already."""
    return sum(len(array.data) for array in record.values())


@lru_cache(maxsize=1_024)
def _header_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return len(buffer.getvalue())


def message_bytes(message: Message) -> int:
    """The length of a message as Flower serialises it, computed: to serialise it copies every array five times."""
    size = _field_bytes(metadata_to_proto(message.metadata).ByteSize())
    if message.has_error():
        size += _field_bytes(error_to_proto(message.error).ByteSize())
    if message.has_content():
        size += _field_bytes(sum(_entry_bytes(key, record) for key, record in message.content.items()))
    return int(size)


def _entry_bytes(key: str, record: Any) -> int:
    if not isinstance(record, ArrayRecord):
        return int(recorddict_to_proto(RecordDict({key: record})).ByteSize())
    arrays = sum(_field_bytes(_named_bytes(name, _array_bytes(array))) for name, array in record.items())
    return _field_bytes(_named_bytes(key, arrays))


def _named_bytes(name: str, size: int) -> int:
    return _field_bytes(len(name.encode())) + _field_bytes(size)


def _array_bytes(array: Array) -> int:
    about = array_to_proto(Array(array.dtype, array.shape, array.stype, b"")).ByteSize()
    return int(about) + _field_bytes(len(array.data))


def _field_bytes(size: int) -> int:
    """A field of a protocol buffer: one byte for its number, its size in groups of 7 bits, and its content."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def _array_record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({str(i): Array(np.asarray(array, order="C")) for i, array in enumerate(arrays)})


def read_arrays(content: RecordDict, key: str) -> Arrays:
    """The arrays of a record, in order, read-only. Raises WireError, also for bytes that are no array."""
    arrays = get_record(content, key, ArrayRecord)
    if list(arrays) != [str(i) for i in range(len(arrays))]:
        raise WireError(f"{key}: arrays named {', '.join(list(arrays)[:5])}, expected 0, 1, 2, ...")
    return tuple(_decode(array) for array in arrays.values())


def _decode(array: Array) -> NDArray[Any]:
    """An array in numpy's file format as a read-only view of its bytes.

    Nothing is allocated that the sender did not send, whatever the header claims, and nothing is unpickled.
    """
    buffer = BytesIO(array.data)
    try:
        if np.lib.format.read_magic(buffer) != (1, 0):
            raise ValueError("not format 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(buffer)
        size, offset = math.prod(shape), buffer.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or dtype.itemsize * size != len(array.data) - offset:
            raise ValueError(f"shape {shape} and dtype {dtype} in {len(array.data)} bytes")
        return np.frombuffer(array.data, dtype, size, offset).reshape(shape, order="F" if fortran_order else "C")
    except Exception as error:  # the header is Python text, and numpy raises whatever parsing it does
        raise WireError(f"an array does not decode: {type(error).__name__}") from error


def get_record(content: RecordDict, key: str, kind: type[T]) -> T:
    """A record of a message. Raises WireError where it is missing or of another kind."""
    record = content.get(key)
    if not isinstance(record, kind):
        raise WireError(f"no {kind.__name__} {key!r} among {', '.join(list(content)[:5])}")
    return record


def get_value(record: ConfigRecord, key: str, kind: type[T]) -> T:
    """A value of exactly this type. Raises WireError."""
    value = record.get(key)
    if type(value) is not kind:
        raise WireError(f"{key}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def get_strings(record: ConfigRecord, key: str) -> tuple[str, ...]:
    """A list of str. Raises WireError."""
    values: Sequence[Any] = get_value(record, key, list)
    if not all(isinstance(value, str) for value in values):
        raise WireError(f"{key}: expected a list of str")
    return tuple(values)


def _check_version(record: ConfigRecord) -> None:
    version = record.get("version")
    if version != VERSION:
        raise WireError(f"wire format {version!r}, expected {VERSION}: install the same version on server and nodes")


def _dyadic(text: str) -> Fraction:
    """A sum of floats: an integer over a power of two. Bounded, so that no text costs time or memory."""
    match = DYADIC.fullmatch(text) if len(text) <= MAX_FRACTION_DIGITS else None
    if match is None or not int(match[2]):
        raise WireError("a metric sum is not an integer over a power of two")
    value = Fraction(int(match[1]), int(match[2]))
    if value.denominator & (value.denominator - 1) or abs(value) > LARGEST_SUM:
        raise WireError("a metric sum is not an integer over a power of two, or too large")
    return value

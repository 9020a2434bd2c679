"""What a node tells of its clients' columns at enrolment, as Flower records: written at the node, read at the server.

This is the answer of a run that promises no privacy; the answer of one that does is in `fl_app/eligibility.py`. The
server believes nothing of it: what is malformed refuses the whole node, and what no rows can give refuses that client.

    "enrolment"      names, numbers of rows, columns as JSON, each distinct set of columns once
    "moments"        of each number, for the clients that sent them, end to end
    "label-moments"  of a label that is a number, likewise
"""

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import TypeAdapter, ValidationError

from strategies import wire
from strategies.update import Arrays
from tasks.data.agreement import Description, check_names
from tasks.data.moments import Moments
from tasks.data.table import Columns

MOST_EXAMPLES = 2**40  # of one client: sums over a million clients still fit an int64
LARGEST_MOMENT = 1e60  # their squares still add up; NaN and infinity are refused by Moments

_COLUMNS = TypeAdapter(Columns)
_MISSING = TypeAdapter(list[tuple[str, ...]])


def to_records(told: Mapping[str, Description]) -> dict[str, ConfigRecord | ArrayRecord]:
    """The descriptions of a node's clients as records of its answer. Columns that clients share are sent once."""
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


def from_records(content: RecordDict) -> tuple[dict[str, Description], dict[str, str]]:
    """The descriptions by client; and, for each client whose description no rows can give, the reason.

    Raises WireError for an answer that is malformed as a whole.
    """
    entry = wire.get_record(content, "enrolment", ConfigRecord)
    clients = wire.get_strings(entry, "clients")
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
    """One client's description. Raises ValueError for what no rows can give."""
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
    """Moments from the arrays that a client sent. Raises ValueError where its rows cannot have them."""
    if arrays is None:
        return None
    if any(np.abs(array).max(initial=0.0) > LARGEST_MOMENT for array in arrays[1:]):
        raise ValueError(f"its statistics hold values above {LARGEST_MOMENT:g}: is one a code for 'missing'?")
    moments = Moments(*arrays)
    if (moments.n > examples).any():
        raise ValueError("its statistics are of more rows than it announced")
    return moments


def _moments(content: RecordDict, entry: ConfigRecord, key: str, widths_of: Mapping[str, int]) -> dict[str, Arrays]:
    """The arrays of each client that sent moments, cut out of the records in which they stand end to end.

    `widths_of`: how many columns each client has. Raises WireError where the lengths do not fit.
    """
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

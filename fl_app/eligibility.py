"""Enrolment where privacy is promised: a client says its name and whether it can take part, and nothing of its rows.

The columns are declared (`assembly.agreed_beforehand`), so the question holds the design, and there is nothing to agree
on. Whether a client is eligible does follow from its rows; what it is missing stays in the log of its node.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from logging import WARNING
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.common.logger import log

from strategies import wire
from tasks.data.agreement import Rules, check_rows, misfit
from tasks.data.base import DataSource
from tasks.data.design import Design

DESIGN, RECORD = "design", "eligibility"


def question(design: Design) -> dict[str, Any]:
    """What is added to the question of enrolment."""
    return {DESIGN: zlib.compress(_text(design))}


def answer(
    asked: Mapping[str, Any], data: DataSource, clients: Iterable[str], rules: Rules, fewest_rows: int
) -> RecordDict:
    """Of each client whether it is eligible: its columns are those of the design, its rows can be used, and there are
    at least `fewest_rows` of them."""
    design = Design.from_json(json.loads(zlib.decompress(asked[DESIGN])))
    eligible = {}
    for client in clients:
        try:
            division = data.divide(client)
            for table in (division.train, division.test):
                check_rows(table, rules)
                if why := misfit(design, table.columns):
                    raise ValueError(why)
            if len(division.train) < fewest_rows:
                raise ValueError(f"{len(division.train)} training rows, min-examples={fewest_rows}")
            eligible[client] = True
        except Exception as error:  # whatever is wrong with one client's rows is not its neighbours' concern
            log(WARNING, "client %s cannot take part: %s: %s", client, type(error).__name__, error)
            eligible[client] = False
    record = ConfigRecord({"clients": list(eligible), "eligible": list(eligible.values())})
    record["schema-sha256"] = _sha256(design)
    return RecordDict({RECORD: record})


def read(content: RecordDict, design: Design) -> dict[str, bool]:
    """{client: eligible}. Raises WireError for what is no such answer, or one about another design."""
    record = wire.get_record(content, RECORD, ConfigRecord)
    if wire.get_value(record, "schema-sha256", str) != _sha256(design):
        raise wire.WireError("it has understood another schema: install the same version on both")
    clients, eligible = wire.get_strings(record, "clients"), wire.get_value(record, "eligible", list)
    if len(set(clients)) != len(clients) or len(clients) != len(eligible):
        raise wire.WireError("its list of clients does not fit together")
    return {client: bool(verdict) for client, verdict in zip(clients, eligible, strict=True)}


def _text(design: Design) -> bytes:
    return json.dumps(design.to_json(), sort_keys=True).encode()


def _sha256(design: Design) -> str:
    return hashlib.sha256(_text(design)).hexdigest()

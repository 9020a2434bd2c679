"""What a run would find at a site: its file, its columns, what it would tell, one local epoch."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from fl_app.assembly import begin, build_task, fit_config, open_data, rules
from fl_app.config import RunConfig
from fl_app.console import short_number
from fl_app.errors import Refused
from fl_app.policy import Policy, verdicts
from fl_app.site import hosted_clients, own_file, own_ledgers
from tasks.base import KeepsState, Shard
from tasks.data.agreement import RARE, Description, Rules, agree, describe, tells_persons
from tasks.data.base import DataSource
from tasks.data.design import Design
from tasks.data.table import Division, Table

NUMBERED = 50  # rows, from which on it is no chance that measured whole numbers all differ
NAMED = 8  # columns, classes or categories that a line names


def examine(config: RunConfig, node_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every client of a node, as if it were alone. Raises Refused, with the remedy, for what would keep it out."""
    said = _policy(config, node_config)
    data = open_data(config, own_file(node_config))
    return [{**_examine(config, data, client), "policy": said} for client in hosted_clients(config, node_config)]


def _policy(config: RunConfig, node_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the site demands, and what it would say to each message of the run; None where it demands nothing.

    Raises Refused for a policy that is broken.
    """
    if not (path := str(node_config.get("policy", ""))):
        return None
    policy = Policy.of(Path(path).expanduser())
    said = verdicts(policy, config, node_config, own_ledgers(config, "", node_config))
    return {"demands": policy.demands(), "verdicts": {ask: asdict(verdict) for ask, verdict in said.items()}}


def _examine(config: RunConfig, data: DataSource, client: str) -> dict[str, Any]:
    agreed = rules(config)
    try:
        division = data.divide(client)
        told = describe(division.train, agreed)
        # Alone, a client needs its own statistics, even those of too few rows to be told.
        alone = replace(agreed, min_examples=1)
        design = agree({division.client: describe(division.train, alone)}, alone)
        shard = Shard(division.client, *design.prepare(division.train, division.test))
    except ValueError as error:
        raise Refused("the rows cannot be used", f"client {client}", str(error)) from error
    # With one class here others may have more, so that this is no fault; but there is nothing to train alone.
    training = None if len(design.classes) == 1 else _one_epoch(config, design, shard)
    return {**_of_the_rows(division), **_told(told, agreed), "training": training}


def _of_the_rows(division: Division) -> dict[str, Any]:
    train, columns = division.train, division.train.columns
    gaps = np.isnan(train.x).sum(axis=0).tolist()
    counts = Counter(columns.classes[index] for index in train.y.tolist()) if columns.classes else {}
    return {
        "client": division.client,
        "rows": {"train": len(train), "test": len(division.test)},
        "groups": {name: _groups(table) for name, table in (("train", train), ("test", division.test))},
        "label": columns.label,
        "classes": {name: counts.get(name, 0) for name in columns.classes},
        "kinds": {feature.name: feature.kind for feature in columns.features},
        "missing": {name: count for name, count in zip(columns.names, gaps, strict=True) if count},
        "constant": _constant(train),
        "identifying": _identifying(train),
    }


def _groups(table: Table) -> int | None:
    """How many there are; None where every row stands for itself."""
    return None if table.groups is None else len(np.unique(table.groups))


def _constant(table: Table) -> list[str]:
    """Columns of which a model can learn nothing here."""
    known = (column[~np.isnan(column)] for column in table.x.T)
    return [name for name, cells in zip(table.columns.names, known, strict=True) if len(set(cells.tolist())) < 2]


def _identifying(table: Table) -> list[str]:
    """Columns that may tell persons apart: a category in few rows each, or in every row another whole number."""
    found = []
    for feature, column in zip(table.columns.features, table.x.T, strict=True):
        cells = column[~np.isnan(column)]
        values = len(np.unique(cells))
        numbered = feature.kind == "number" and values == len(cells) >= NUMBERED and bool((cells % 1 == 0).all())
        if numbered or (feature.kind == "category" and tells_persons(values, len(table))):
            found.append(feature.name)
    return found


def _told(told: Description, agreed: Rules) -> dict[str, Any]:
    """`rare`: the categories of which no value is told, though this client has rows enough to tell some."""
    categories = {f.name: list(f.levels) for f in told.columns.features if f.kind == "category"}
    statistics = {"statistics": told.moments is not None, "label": told.label is not None}
    rare = [name for name, levels in categories.items() if not levels and told.num_examples >= agreed.min_examples]
    return {"told": {**statistics, "categories": categories, "rare": rare, "missing": list(told.missing)}}


def _one_epoch(config: RunConfig, design: Design, shard: Shard) -> dict[str, Any]:
    task, arrays = begin(build_task(config, design.schema), config, "")
    asked = {**fit_config(config, 1, "train", seed=config.seed), "local-epochs": 1, "local-steps": 0}
    began = time.monotonic()
    client = task.make_client(shard)
    trained = tuple(client.fit(list(arrays), asked)[0])
    if task.personal_names:
        trained += cast(KeepsState, client).state
    seconds = time.monotonic() - began
    before, after = (task.evaluate(params, shard.test) if len(shard.test) else None for params in (arrays, trained))
    return {
        "parameters": sum(array.size for array in arrays),
        "before": before,
        "after": after,
        "seconds": seconds,
    }


def check_lines(site: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    rows, told, training = site["rows"], site["told"], site["training"]
    train, test = (_of_groups(count) for count in site["groups"].values())
    kinds = Counter(site["kinds"].values())
    classes = _few([f"{name} {count}" for name, count in site["classes"].items()]) or "a number"
    lines = [
        f"client {site['client']}: {rows['train']} rows{train} to train on, {rows['test']}{test} to test on",
        f"label {site['label']}: {classes}",
        f"{len(site['kinds'])} columns",
    ]
    for kind in kinds:
        lines.append(f"  {kind}: {_few([name for name, own in site['kinds'].items() if own == kind])}")
    if told["rare"]:
        lines.append(f"not used, since all their values are rare: {_few(told['rare'])}")
    if site["identifying"]:
        what = "identifiers, dates or free text, as it seems, which are to be left out with drop, or named as group"
        lines.append(f"{what}: {_few(site['identifying'])}")
    if site["missing"]:
        lines.append("missing cells: " + _few([f"{name} {count}" for name, count in site["missing"].items()]))
    if site["constant"]:
        lines.append(f"columns with one value, of no use here: {_few(site['constant'])}")
    lines += _told_lines(told, bool(site["classes"]))
    lines += _policy_lines(site["policy"]) if site["policy"] is not None else []
    if training is None:
        return [*lines, "one class here: a run needs another one somewhere; no local epoch was tried"]
    change = ""
    if training["before"] and training["after"]:
        name = next(iter(training["before"]))
        values = [short_number(training[when][name]) for when in ("before", "after")]
        change = f": {name} {values[0]} before, {values[1]} after"
    lines.append(f"one local epoch, {training['parameters']} parameters, {training['seconds']:.2f} s{change}")
    return lines


def _of_groups(count: int | None) -> str:
    return "" if count is None else f" of {count} group{'' if count == 1 else 's'}"


def _told_lines(told: Mapping[str, Any], classes: bool) -> list[str]:
    """What leaves the site before round 1."""
    categories = {name: levels for name, levels in told["categories"].items() if levels}
    parts = [
        f"the number of rows, the names and kinds of the columns{', the classes' if classes else ''}",
        _statistics(told),
        f"the categories that {RARE} rows or more have" if categories else "no categories",
    ]
    if told["missing"]:
        parts.append("which columns have missing cells")
    lines = [f"a run would be told {', '.join(parts[:-1])} and {parts[-1]}"]
    return lines + [f"  categories of {name}: {_few(levels)}" for name, levels in categories.items()]


def _policy_lines(policy: Mapping[str, Any]) -> list[str]:
    """What the site's own demands make of that."""
    demands = [f"{key} = {json.dumps(value)}" for key, value in policy["demands"].items()]
    lines = ["the policy of this site:", *(f"  {demand}" for demand in demands)]
    for ask, verdict in policy["verdicts"].items():
        said = f"declined by {verdict['clause']}: {verdict['detail']}" if verdict["clause"] else "allowed"
        lines.append(f"such a run would be told, when it asks to {ask}: {said}")
    return lines


def _statistics(told: Mapping[str, Any]) -> str:
    if not told["statistics"]:
        return "the count, mean and variance of the label" if told["label"] else "no statistics of numbers"
    return f"the count, mean and variance of each number{', the label too' if told['label'] else ''}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

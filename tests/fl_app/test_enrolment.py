"""Enrolment: who takes part is known before round 1, who does not is named with the reason, and nobody waits for ever.

What a node says wrongly is said here by ClientApps that change the true answer on its way.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from grids import at_sites, site
from hospitals import hospitals
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import __version__, client_app, descriptions, enrolment
from fl_app.assembly import local_design, open_data, rules
from fl_app.config import RunConfig
from fl_app.enrolment import Enrolment
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.run_folder import RunFolder
from fl_app.site import hosted_clients
from strategies import wire
from strategies.base import TooFewClients
from tasks.data.agreement import Description, agree, describe
from tasks.data.base import DataSource, Split
from tasks.data.bundled import BreastCancer
from tasks.data.table import Columns, Division

Make = Callable[..., Any]
Change = Callable[[RecordDict, int], None]
QUICK = 0.3
FLOWER = ".".join(version("flwr").split(".")[:2])
MISFIT = 1  # the partition id of the node that answers wrongly


def app_with(change: Change) -> ClientApp:
    """The project's ClientApp, but `change(content, partition id)` is done to each enrolment."""
    app = ClientApp()

    @app.query("enrol")
    def enrol(message: Message, context: Context) -> Message:
        config = RunConfig.parse(context.run_config)
        content = enrolment.answer(config, context.node_config, message.content)
        change(content, int(context.node_config["partition-id"]))
        return Message(content, reply_to=message)

    app.train()(client_app.train)
    app.evaluate()(client_app.evaluate)
    return app


def at_misfit(edit: Callable[[RecordDict], None]) -> ClientApp:
    return app_with(lambda content, partition: edit(content) if partition == MISFIT else None)


def enrolled(config: RunConfig, nodes: int = 2, app: ClientApp = client_app.app, grid: Any = InlineGrid) -> Enrolment:
    found = Enrolment(config)
    found.open(grid(app, config.values(), nodes))
    return found


def roster(found: Enrolment, grid: InlineGrid) -> tuple[str, ...]:
    return found.current(grid).clients


# --------------------------------------------------------------------------------------------------- what is sent


@given(st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=30)
def test_every_client_lives_on_exactly_one_node_and_enrols_with_its_training_rows(
    small_config: Make, nodes: int, clients: int
) -> None:
    config = small_config(num_clients=clients, min_clients=1)
    grid = InlineGrid(client_app.app, config.values(), nodes)
    found = Enrolment(config)
    found.open(grid)
    members = found.current(grid)
    data = open_data(config)
    assert members.clients == data.clients
    assert len(found) == clients
    assert [members[client].num_examples for client in data.clients] == [
        len(data.divide(client).train) for client in data.clients
    ]
    assert found.design is not None
    assert found.design.schema == local_design(config).schema


def test_a_node_that_does_not_say_which_clients_it_hosts_is_refused_with_the_remedy(small_config: Make) -> None:
    with pytest.raises(Refused, match=r"no 'partition-id' in its node config.*--node-config"):
        hosted_clients(small_config(), {})


def question(**changes: Any) -> RecordDict:
    asked = {"wire": wire.VERSION, "app": __version__, "agreed": False} | changes
    return RecordDict({"config": ConfigRecord(asked)})


NODE = {"partition-id": 0, "num-partitions": 1}


@pytest.mark.parametrize("other", [{"app": "0.0.1"}, {"wire": wire.VERSION + 1}])
def test_a_server_of_another_version_is_told_the_version_and_nothing_else(
    small_config: Make, other: dict[str, Any]
) -> None:
    content = enrolment.answer(small_config(), NODE, question(**other))
    assert list(content) == ["versions"]
    assert dict(content["versions"]) == {"wire": wire.VERSION, "app": __version__, "flwr": FLOWER}


def test_clients_with_too_few_rows_send_no_moments(small_config: Make) -> None:
    config = small_config(num_clients=12, data_args="features=3 examples=30 size-skew=1", min_examples=20)
    data = open_data(config)
    large = [client for client in data.clients if len(data.divide(client).train) >= 20]
    assert 0 < len(large) < 12
    content = enrolment.answer(config, NODE, question())
    assert content["enrolment"]["moments"] == large
    assert [array.numpy().shape for array in content["moments"].values()] == [(3 * len(large),)] * 4
    # Not a number of the small ones is anywhere in the message.
    sent = np.concatenate([array.numpy() for array in list(content["moments"].values())[1:]])
    for client in set(data.clients) - set(large):
        assert not np.isin(data.divide(client).train.x.mean(axis=0), sent).any()


def test_clients_with_too_few_rows_tell_names_and_kinds_of_their_columns_and_nothing_of_their_cells(
    small_config: Make,
) -> None:
    config = small_config(**MIXED, num_clients=12, partition="by-size")
    data = open_data(config)
    small = [client for client in data.clients if len(data.divide(client).train) < config.min_examples]
    assert 0 < len(small) < 12
    enrolled_as = enrolment.answer(config, NODE, question())["enrolment"]
    columns = [json.loads(enrolled_as["columns"][index]) for index in enrolled_as["columns-of"]]
    missing = json.loads(enrolled_as["missing"])
    for client, told, gaps in zip(enrolled_as["clients"], columns, missing, strict=True):
        assert [feature["name"] for feature in told["features"]] == ["seen", "age", "smoker", "place"]
        levels = [level for feature in told["features"] for level in feature["levels"]]
        assert client not in small or (levels, gaps) == ([], [])
        assert set(levels) <= {"ward", "ICU", "at home", "elsewhere"}
    assert any(missing)
    assert any(feature["levels"] for told in columns for feature in told["features"])
    assert set(enrolled_as["moments"]) == set(data.clients) - set(small)


def test_clients_with_the_same_columns_send_them_once(small_config: Make) -> None:
    content = enrolment.answer(small_config(num_clients=12), NODE, question())["enrolment"]
    assert len(content["columns"]) == 1
    assert content["columns-of"] == [0] * 12


def test_descriptions_of_many_clients_are_put_together_without_comparing_them_pairwise(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(num_clients=12)
    client = describe(open_data(config).divide("00").train, rules(config))
    alike = {f"{i:03}": replace(client, columns=replace(client.columns, label=f"y{i % 100}")) for i in range(300)}
    compared = 0
    true_eq = Columns.__eq__

    def counted(self: Columns, other: object) -> bool:
        nonlocal compared
        compared += 1
        return bool(true_eq(self, other))

    monkeypatch.setattr(Columns, "__eq__", counted)
    record = descriptions.to_records(alike)["enrolment"]
    assert len(record["columns"]) == 100
    assert record["columns-of"] == [*range(100)] * 3
    assert compared < 1000


@pytest.mark.parametrize("missing", ["mean", "indicator"])
def test_once_the_design_is_frozen_nodes_tell_names_kinds_and_classes_and_no_more(
    small_config: Make, missing: str
) -> None:
    config = small_config(**{**MIXED, "data_args": f"missing={missing}"}, num_clients=4)
    before, later = (enrolment.answer(config, NODE, question(agreed=agreed)) for agreed in (False, True))
    assert len(before["moments"]) == 4
    assert len(later["moments"]) == 0
    first, second = before["enrolment"], later["enrolment"]
    assert (len(first["moments"]), second["moments"]) == (4, [])
    assert (any(json.loads(first["missing"])), any(json.loads(second["missing"]))) == (True, False)
    assert [first[key] for key in ("clients", "num-examples")] == [second[key] for key in ("clients", "num-examples")]
    told = [json.loads(text) for text in second["columns"]]
    assert told == [
        {
            "features": [
                {"name": "seen", "kind": "number", "levels": []},
                {"name": "age", "kind": "number", "levels": []},
                {"name": "smoker", "kind": "boolean", "levels": []},
                {"name": "place", "kind": "category", "levels": []},
            ],
            "label": "outcome",
            "classes": ["alive", "dead"],
        }
    ]
    assert any(feature["levels"] for text in first["columns"] for feature in json.loads(text)["features"])


@pytest.mark.parametrize("agreed", [False, True])
def test_what_a_server_asks_of_a_node_says_whether_there_is_a_design(small_config: Make, agreed: bool) -> None:
    config = small_config()
    asked: list[Any] = []
    app = ClientApp()

    @app.query("enrol")
    def enrol(message: Message, context: Context) -> Message:
        asked.append(message.content["config"]["agreed"])
        return Message(enrolment.answer(config, context.node_config, message.content), reply_to=message)

    Enrolment(config, design=local_design(config) if agreed else None).open(InlineGrid(app, config.values(), 2))
    assert asked == [agreed, agreed]


@pytest.mark.parametrize("standardize", ["local", "none"])
def test_no_moments_are_sent_where_none_are_needed(small_config: Make, standardize: str) -> None:
    content = enrolment.answer(small_config(standardize=standardize), NODE, question())
    assert content["enrolment"]["moments"] == []
    assert len(content["moments"]) == 0


def test_without_any_large_client_global_scaling_is_refused_with_the_remedies(small_config: Make) -> None:
    with pytest.raises(Refused, match=r"min-examples=1000 .*standardize=local"):
        enrolled(small_config(min_examples=1000))


# ----------------------------------------------------------------------------------------------------- statistics

MIXED = {"data": "extensions:Mixed", "data_args": "", "min_examples": 10}


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_pooled_training_rows(small_config: Make, seed: int) -> None:
    law = "features=3 examples=40 size-skew=0.8 feature-shift=100"
    config = small_config(num_clients=9, data_args=law, seed=seed)
    data = open_data(config)
    shards = [data.divide(client).train.x for client in data.clients]
    pooled = np.concatenate([x for x in shards if len(x) >= config.min_examples])
    assert len(pooled) < sum(map(len, shards))
    terms = enrolled(config).design.terms
    np.testing.assert_allclose([term.mean for term in terms], pooled.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose([term.scale for term in terms], pooled.std(axis=0), rtol=1e-12)


class Backwards(InlineGrid):
    """Replies come in the opposite order."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[::-1])


@given(st.integers(0, 2**32), st.integers(2, 12))
@settings(max_examples=15)
def test_neither_nodes_nor_the_order_of_answers_change_a_bit_of_the_statistics(
    small_config: Make, seed: int, nodes: int
) -> None:
    config = small_config(num_clients=7, seed=seed, data_args="features=5 examples=40 feature-shift=1e6")
    one = repr(enrolled(config, 1).design)
    data = open_data(config)
    told = {client: describe(data.divide(client).train, rules(config)) for client in data.clients}
    assert repr(agree(told, rules(config))) == one
    assert repr(enrolled(config, nodes).design) == one
    assert repr(enrolled(config, nodes, grid=Backwards).design) == one


@given(st.integers(0, 2**32), st.integers(2, 9), st.sampled_from(["mean", "indicator"]))
@settings(max_examples=15)
def test_nor_do_they_change_categories_gaps_and_the_order_of_columns(
    small_config: Make, seed: int, nodes: int, missing: str
) -> None:
    config = small_config(**{**MIXED, "data_args": f"missing={missing}"}, num_clients=7, seed=seed)
    design = enrolled(config, 1).design
    categories = design.terms[3].categories
    assert [name for name in categories if name != "elsewhere"] == ["ICU", "at home", "ward"]
    assert list(categories) == sorted(categories)
    assert [term.indicator for term in design.terms] == [missing == "indicator"] * 4
    assert repr(enrolled(config, nodes).design) == repr(design)
    assert repr(enrolled(config, nodes, grid=Backwards).design) == repr(design)


# ---------------------------------------------------------------------------------------------- who is not let in


def names(edit: Callable[[ConfigRecord], None]) -> Callable[[RecordDict], None]:
    return lambda content: edit(content["enrolment"])


def columns(edit: Callable[[dict[str, Any]], None]) -> Callable[[RecordDict], None]:
    """`edit` is done to every description of columns."""

    def change(content: RecordDict) -> None:
        told = [json.loads(text) for text in content["enrolment"]["columns"]]
        for description in told:
            edit(description)
        content["enrolment"]["columns"] = [json.dumps(description) for description in told]

    return change


def replace_column(told: dict[str, Any]) -> None:
    told["features"][1]["name"] = "blood pressure"


def drop_column(told: dict[str, Any]) -> None:
    del told["features"][2]


def without_last_column(content: RecordDict) -> None:
    """Of two clients' three columns the last, and its moments."""
    columns(drop_column)(content)
    record = content["moments"]
    content["moments"] = ArrayRecord({key: Array(array.numpy()[[0, 1, 3, 4]]) for key, array in record.items()})


def other_kind(told: dict[str, Any]) -> None:
    told["features"][0] |= {"kind": "category", "levels": ["low", "high"]}


def rename_label(told: dict[str, Any]) -> None:
    told["label"] = "outcome"


def other_classes(told: dict[str, Any]) -> None:
    told["classes"] = ["no", "yes"]


def number_label(told: dict[str, Any]) -> None:
    told["classes"] = []


def other_app(content: RecordDict) -> None:
    content["versions"]["app"] = "9.9.9"


def other_wire(content: RecordDict) -> None:
    content["versions"]["wire"] = wire.VERSION + 1


def other_flower(content: RecordDict) -> None:
    content["versions"]["flwr"] = "1.40"


MISMATCHES = {
    "another column": (columns(replace_column), ["01", "03", "'blood pressure' is none of the others': rename"]),
    "a column less": (without_last_column, ["01", "03", "no column 'x2', which the others have", "add it"]),
    "another kind": (columns(other_kind), ["01", "03", "'x0' is a category, that of the others a number", "alike"]),
    "another label": (columns(rename_label), ["01", "03", "'outcome'", "'class'", "the same label"]),
    "other classes": (columns(other_classes), ["01", "03", "'no' or 'yes', that of the others whole numbers", "alike"]),
    "a label that is a number": (
        columns(number_label),
        ["01", "03", "is a number, that of the others whole numbers", "alike"],
    ),
    "another version": (other_app, ["node", "9.9.9 there", f"{__version__} here", "same version"]),
    "another Flower": (other_flower, ["node", "Flower 1.40 there", f"{FLOWER} here", "same version"]),
    "another wire format": (other_wire, ["node", f"wire format {wire.VERSION + 1}", "same version"]),
}


@pytest.mark.parametrize(("edit", "words"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_node_that_does_not_fit_is_named_with_both_sides_and_the_others_go_on(
    serve: Make, log: Callable[[], str], edit: Callable[[RecordDict], None], words: list[str]
) -> None:
    run = serve(app=at_misfit(edit), enrol_timeout_s=QUICK)
    assert (run.summary["status"], run.summary["clients"]) == ("completed", 2)
    said = log()
    assert [word for word in words if word not in said] == []
    assert "going on with 2 of 4 clients" in said


@pytest.mark.parametrize(("edit", "words"), MISMATCHES.values(), ids=MISMATCHES)
def test_where_too_few_remain_the_error_says_why(
    small_config: Make, edit: Callable[[RecordDict], None], words: list[str]
) -> None:
    with pytest.raises(TooFewClients) as error:
        enrolled(small_config(min_clients=3, enrol_timeout_s=QUICK), app=at_misfit(edit))
    said = str(error.value)
    assert said.startswith("2 of 4 clients enrolled")
    assert [word for word in words if word not in said] == []


def test_a_client_on_two_nodes_is_taken_once_and_named(small_config: Make, log: Callable[[], str]) -> None:
    def claim(record: ConfigRecord) -> None:
        record["clients"] = record["moments"] = ["00", "03"]

    config = small_config(enrol_timeout_s=QUICK)
    grid = InlineGrid(at_misfit(names(claim)), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    members = found.current(grid)
    assert members.clients == ("00", "02", "03")
    first, second = grid.get_node_ids()
    assert (members["00"].node, members["03"].node) == (first, second)
    assert f"00 on node {second} does not take part: another node hosts a client of this name" in log()


@pytest.mark.parametrize(
    ("examples", "why"),
    [
        (0, "it has no training rows"),
        (-1, "it announces -1 rows: expected 0 to 1099511627776"),
        (2**40 + 1, "it announces 1099511627777 rows: expected 0 to 1099511627776"),
        (2**62, "it announces 4611686018427387904 rows: expected 0 to 1099511627776"),
    ],
)
def test_a_client_without_rows_or_with_impossibly_many_is_not_taken_and_its_neighbour_is(
    small_config: Make, log: Callable[[], str], examples: int, why: str
) -> None:
    config = small_config(enrol_timeout_s=QUICK, standardize="none")
    grid = InlineGrid(at_misfit(set_key("num-examples", [examples, 24])), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert found.current(grid).clients == ("00", "02", "03")
    assert f"01 does not take part: {why}" in log()


def test_a_client_may_have_as_many_rows_as_can_be_counted(small_config: Make) -> None:
    config = small_config(standardize="none")
    grid = InlineGrid(at_misfit(set_key("num-examples", [2**40, 24])), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert found.current(grid)["01"].num_examples == 2**40


def moments(*arrays: np.ndarray) -> Callable[[RecordDict], None]:
    def edit(content: RecordDict) -> None:
        content["moments"] = ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})

    return edit


def cut_moments(content: RecordDict) -> None:
    del content["moments"]


def set_key(key: str, value: Any) -> Callable[[RecordDict], None]:
    return names(lambda record: record.__setitem__(key, value))


def set_columns(key: str, value: Any) -> Callable[[RecordDict], None]:
    return columns(lambda told: told.__setitem__(key, value))


def feature(**changes: Any) -> Callable[[RecordDict], None]:
    """Something else is said of the second feature."""
    return columns(lambda told: told["features"][1].update(changes))


def two_descriptions(content: RecordDict) -> None:
    content["enrolment"]["columns"] *= 2
    content["enrolment"]["columns-of"] = [0, 2]


COUNT, SIX = np.full(6, 24), np.ones(6)
ABSURD = {
    "no moments": (cut_moments, "no ArrayRecord 'moments'"),
    "moments of three arrays": (moments(COUNT, SIX, SIX), "not those of 2 clients"),
    "moments of five arrays": (moments(COUNT, SIX, SIX, SIX, SIX), "not those of 2 clients"),
    "moments of one client": (moments(COUNT[:3], SIX[:3], SIX[:3], SIX[:3]), "not those of 2 clients"),
    "moments of fewer columns": (moments(COUNT[:4], SIX[:4], SIX[:4], SIX[:4]), "not those of 2 clients"),
    "moments of other lengths": (moments(COUNT, SIX, SIX[:5], SIX), "not those of 2 clients"),
    "moments without dimensions": (moments(np.array(1), *[np.array(1.0)] * 3), "not those of 2 clients"),
    "moments of two dimensions": (moments(*[a.reshape(2, 3) for a in (COUNT, SIX, SIX, SIX)]), "not those of 2"),
    "moments that are text": (moments(COUNT, *[np.full(6, "x")] * 3), "not those of 2 clients"),
    "counts that are floats": (moments(SIX, SIX, SIX, SIX), "not those of 2 clients"),
    "moments of clients it does not host": (set_key("moments", ["01", "02"]), "clients that it does not name"),
    "moments of clients that are numbers": (set_key("moments", [1, 3]), "moments: expected a list of str"),
    "clients that are numbers": (set_key("clients", [1, 2]), "clients: expected a list of str"),
    "one client twice": (set_key("clients", ["01", "01"]), "description of 2 clients is incomplete"),
    "clients of unprintable names": (
        set_key("clients", ["01", "0\n3"]),
        "name '0.n3' of a client is empty, too long or not printable",
    ),
    "clients without a name": (set_key("clients", ["01", ""]), "name '' of a client is empty, too long"),
    "clients of endless names": (set_key("clients", ["01", "3" * 201]), "name '3{60}' of a client is empty, too long"),
    "unreadable clients of unprintable names": (set_key("unreadable", ["\x1b[2J"]), "not printable"),
    "fewer counts than clients": (set_key("num-examples", [24]), "incomplete"),
    "counts that are no integers": (set_key("num-examples", [24.5, 1.0]), "incomplete"),
    "counts that are one number": (set_key("num-examples", 24), "num-examples: expected list, got int"),
    "a population that is text": (set_key("population", "four"), "population: expected int, got str"),
    "columns that are no json": (set_key("columns", ["{"]), "cannot be read"),
    "columns that are a list": (set_key("columns", ["[]"]), "cannot be read"),
    "columns that are nothing": (set_key("columns", ["{}"]), "cannot be read"),
    "columns that are one text": (set_key("columns", "x0"), "columns: expected list, got str"),
    "columns that are numbers": (set_key("columns", [1]), "columns: expected a list of str"),
    "no columns": (set_key("columns", []), "names columns that it does not describe"),
    "columns of no description": (set_key("columns-of", [0, 1]), "names columns that it does not describe"),
    "columns of a negative place": (set_key("columns-of", [-1, 0]), "names columns that it does not describe"),
    "columns of the third of two": (two_descriptions, "names columns that it does not describe"),
    "columns of one client": (set_key("columns-of", [0]), "incomplete"),
    "columns at places that are no integers": (set_key("columns-of", [0.0, 0.0]), "incomplete"),
    "features that are one text": (set_columns("features", "x0"), "cannot be read"),
    "a feature of an unknown kind": (feature(kind="date"), "cannot be read"),
    "a feature whose name is a number": (feature(name=3), "cannot be read"),
    "levels that are numbers": (feature(kind="category", levels=[1, 2]), "cannot be read"),
    "a label that is nothing": (set_columns("label", None), "cannot be read"),
    "classes that are numbers": (set_columns("classes", [0, 1]), "cannot be read"),
    "gaps that are no json": (set_key("missing", "[["), "cannot be read"),
    "gaps that are names": (set_key("missing", '["x0", "x1"]'), "cannot be read"),
    "gaps of one client": (set_key("missing", '[["x0"]]'), "incomplete"),
    "gaps that are nothing": (set_key("missing", "null"), "cannot be read"),
    "no enrolment": (lambda content: content.__delitem__("enrolment"), "no ConfigRecord 'enrolment'"),
    "no versions": (lambda content: content.__delitem__("versions"), "no ConfigRecord 'versions'"),
    "nothing": (lambda content: content.clear(), "no ConfigRecord 'versions'"),
}


@pytest.mark.parametrize(("edit", "why"), ABSURD.values(), ids=ABSURD)
def test_a_node_that_answers_nonsense_is_named_with_the_reason_and_the_others_go_on(
    small_config: Make, log: Callable[[], str], edit: Callable[[RecordDict], None], why: str
) -> None:
    config = small_config(enrol_timeout_s=QUICK / 3)
    grid = InlineGrid(at_misfit(edit), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "02")
    node = list(grid.get_node_ids())[MISFIT]
    assert re.search(f"node {node} does not take part: .*{why}", log()), log()
    assert "could not answer" not in log()  # it did, and the server saw through it


def second(array: np.ndarray, value: float) -> np.ndarray:
    """The array of two clients and three columns with another value in the last column of the second client."""
    return np.where(np.arange(6) == 5, value, array).astype(array.dtype)


def only_second(edit: Callable[[dict[str, Any]], None]) -> Callable[[RecordDict], None]:
    """`edit` is done to the columns of the second client of a node alone."""

    def change(content: RecordDict) -> None:
        record = content["enrolment"]
        told = json.loads(record["columns"][0])
        edit(told)
        record["columns"] = [record["columns"][0], json.dumps(told)]
        record["columns-of"] = [0, 1]

    return change


def second_feature(**changes: Any) -> Callable[[RecordDict], None]:
    return only_second(lambda told: told["features"][1].update(changes))


def second_columns(key: str, value: Any) -> Callable[[RecordDict], None]:
    return only_second(lambda told: told.__setitem__(key, value))


ODD = "a name that is empty, over 200 characters or not printable: rename it"
FAULTS = {
    "a count that is negative": (moments(second(COUNT, -1), SIX, SIX, SIX), "whole numbers of 0 or more"),
    "a count of more rows than announced": (moments(second(COUNT, 25), SIX, SIX, SIX), "of more rows than it announc"),
    "a mean that is nan": (moments(COUNT, second(SIX, np.nan), SIX, SIX), "not finite"),
    "a mean that is infinite": (moments(COUNT, second(SIX, np.inf), SIX, SIX), "hold values above 1e+60: is one a"),
    "a mean that is absurd": (moments(COUNT, second(SIX, -1e61), SIX, SIX), "hold values above 1e+60: is one a"),
    "an m2 that is negative": (moments(COUNT, SIX, second(SIX, -1), SIX), "m2 is negative"),
    "an m2 that is infinite": (moments(COUNT, SIX, second(SIX, np.inf), SIX), "hold values above 1e+60: is one a"),
    "a tail that is nan": (moments(COUNT, SIX, SIX, second(SIX, np.nan)), "not finite"),
    "features of one name": (second_feature(name="x0"), "the table has the column 'x0' twice: rename one"),
    "a feature called as the label": (second_feature(name="class"), "the table has the column 'class' twice"),
    "a feature without a name": (second_feature(name=""), f"the table has the column '', {ODD}"),
    "a feature of an unprintable name": (second_feature(name="x\r\n1"), rf"the table has the column 'x\r\n1', {ODD}"),
    "a feature of an endless name": (second_feature(name="x" * 201), f"the table has the column '{'x' * 60}', {ODD}"),
    "unprintable levels": (
        second_feature(kind="category", levels=["a", "\0"]),
        rf"column 'x1' has the category '\x00', {ODD}",
    ),
    "levels of one name": (
        second_feature(kind="category", levels=["a", "a"]),
        "column 'x1' has the category 'a' twice: rename one",
    ),
    "an unprintable label": (second_columns("label", "cl\tass"), rf"the table has the column 'cl\tass', {ODD}"),
    "classes of one name": (second_columns("classes", ["0", "0"]), "label 'class' has the class '0' twice"),
    "unprintable classes": (
        second_columns("classes", ["0", "\u202e1"]),
        rf"label 'class' has the class '\u202e1', {ODD}",
    ),
}


@pytest.mark.parametrize(("edit", "why"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_in_one_clients_description_refuses_it_and_not_its_neighbour(
    small_config: Make, log: Callable[[], str], edit: Callable[[RecordDict], None], why: str
) -> None:
    config = small_config(enrol_timeout_s=QUICK / 3)
    grid = InlineGrid(at_misfit(edit), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "01", "02")
    said = [line for line in log().splitlines() if "does not take part" in line]
    assert re.search(f"^03 does not take part: .*{re.escape(why)}", "\n".join(said), re.MULTILINE), said
    assert [line for line in said if not line.startswith("03 ")] == []


def test_a_fault_in_every_description_of_a_node_leaves_out_all_of_its_clients(
    small_config: Make, log: Callable[[], str]
) -> None:
    config = small_config(enrol_timeout_s=QUICK / 3)
    grid = InlineGrid(at_misfit(moments(COUNT, SIX * np.nan, SIX, SIX)), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "02")
    assert {line.split()[0] for line in log().splitlines() if "not finite" in line} >= {"01", "03"}


def test_the_model_is_that_of_the_others_where_a_node_answers_nonsense(serve: Make) -> None:
    run = serve(app=at_misfit(moments(COUNT, SIX * np.nan, SIX, SIX)), enrol_timeout_s=QUICK, rounds=1)
    assert (run.summary["status"], run.summary["clients"]) == ("completed", 2)


def test_a_node_that_claims_absurdly_many_rows_does_not_end_the_run(small_config: Make, log: Callable[[], str]) -> None:
    def claim(content: RecordDict) -> None:
        content["enrolment"]["num-examples"] = [2**62, 2**62]
        moments(np.full(6, 2**62), SIX, SIX, SIX)(content)

    config = small_config(enrol_timeout_s=QUICK, num_clients=6)
    app = app_with(lambda content, partition: claim(content) if partition else None)
    grid = InlineGrid(app, config.values(), 3)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "03")
    assert log().count("does not take part: it announces 4611686018427387904 rows") >= 4


# ------------------------------------------------------------------------------------------- rows to test on


class GapsInTests(BreastCancer):
    """Breast cancer; one client's test rows have a gap, its training rows none."""

    faulty: ClassVar[str] = "02"
    value: ClassVar[float] = np.nan

    def open(self, split: Split) -> DataSource:
        source = super().open(split)
        true_divide = source.divide

        def divide(client: str) -> Division:
            division = true_divide(client)
            if client == self.faulty:
                division.test.x[1, 4] = self.value
            return division

        source.divide = divide
        return source


class HugeInTests(GapsInTests):
    """The same with a value that is infinite."""

    value = np.inf


class GapsInTestsOfClients(GapsInTests):
    """The same where the server may not open the data."""

    server_held = False


BAD_TESTS = {
    "GapsInTests": "column 'mean smoothness' has missing cells: fill them, or add missing=mean or missing=indicator "
    "to data-args",
    "HugeInTests": "column 'mean smoothness' has a value beyond 1e+30: correct it, or leave the cell empty",
}


@pytest.mark.parametrize("data", BAD_TESTS)
def test_test_rows_that_cannot_be_used_are_refused_before_a_run_starts(
    fl_app_run: Make, caller: Path, data: str
) -> None:
    told = fl_app_run(data=f"{__name__}:{data}", data_args="").refusal()  # exit status 2
    assert told == f"error: the rows cannot be used: client 02: {BAD_TESTS[data]}"
    assert list(caller.iterdir()) == []


def test_a_client_whose_test_rows_cannot_be_used_stays_out_and_its_neighbours_take_part(
    small_config: Make, log: Callable[[], str]
) -> None:
    config = small_config(data=f"{__name__}:GapsInTestsOfClients", data_args="", enrol_timeout_s=QUICK)
    grid = InlineGrid(client_app.app, config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "01", "03")
    assert "02 does not take part: its rows cannot be used: see the log of its node" in log()
    assert f"the rows of client 02 cannot be used: ValueError: {BAD_TESTS['GapsInTests']}" in log()


# --------------------------------------------------------------------------------- clients with columns of their own


def test_clients_of_one_node_may_have_different_columns_and_only_those_who_do_not_fit_stay_out(
    small_config: Make, log: Callable[[], str]
) -> None:
    config = small_config(data="extensions:Uneven", data_args="", num_clients=10, enrol_timeout_s=QUICK)
    designs = []
    for nodes in (1, 3, 10):
        grid = InlineGrid(client_app.app, config.values(), nodes)
        found = Enrolment(config)
        designs.append(repr(found.open(grid)))
        assert roster(found, grid) == ("00", "01", "02", "04", "06", "08", "09")
    assert designs == designs[:1] * 3
    said = log()
    assert "03 does not take part: it has no column 'mean area', which the others have: add it" in said
    assert "05 does not take part: its column 'mean aera' is none of the others': rename or drop it" in said
    assert (
        "07 does not take part: in the label 'diagnosis' it writes 'Malignant' where others write 'malignant'" in said
    )


def test_a_client_whose_columns_stand_in_another_order_changes_nothing(small_config: Make) -> None:
    def statistics(data: str) -> Any:
        config = small_config(data=data, data_args="", num_clients=3, enrol_timeout_s=QUICK)
        return repr(enrolled(config).design)

    assert statistics("extensions:Uneven") == statistics("extensions:HeldByClients")


@pytest.mark.parametrize("edit", [replace_column, other_kind, rename_label, other_classes])
def test_where_one_client_of_a_node_does_not_fit_its_neighbour_takes_part(
    small_config: Make, log: Callable[[], str], edit: Callable[[dict[str, Any]], None]
) -> None:
    config = small_config(enrol_timeout_s=QUICK)
    grid = InlineGrid(at_misfit(only_second(edit)), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "01", "02")
    assert "03 does not take part: " in log()
    assert "01 does not take part" not in log()


def test_clients_who_come_to_no_design_are_refused_with_what_is_wrong(small_config: Make) -> None:
    def rare(told: dict[str, Any]) -> None:
        for feature in told["features"]:
            feature |= {"kind": "category", "levels": []}

    config = small_config(standardize="none")
    with pytest.raises(Refused, match="the clients cannot agree on their columns: enrolment: no column is left"):
        enrolled(config, app=app_with(lambda content, partition: columns(rare)(content)))


def test_a_node_that_raises_is_left_out_and_the_others_go_on(serve: Make, log: Callable[[], str]) -> None:
    def fail(content: RecordDict) -> None:
        raise RuntimeError("no data here")

    run = serve(app=at_misfit(fail), enrol_timeout_s=QUICK, rounds=1)
    assert run.summary["clients"] == 2
    assert "it could not answer: see its log" in log()


# ------------------------------------------------------------------------------------------------------- deadlines


class Silent(InlineGrid):
    """The second node takes messages and never answers."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        silent = list(self.get_node_ids())[1]
        ids = list(super().push_messages(messages))
        self.unanswered = getattr(self, "unanswered", set())
        self.unanswered |= {m.metadata.message_id for m in messages if m.metadata.dst_node_id == silent}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages([i for i in message_ids if i not in self.unanswered])


class Empty(InlineGrid):
    """No node has joined yet."""

    def get_node_ids(self) -> Iterable[int]:
        return []


@pytest.mark.parametrize(
    ("grid", "start"), [(Silent, "2 of 4 clients enrolled within 0.3 s"), (Empty, "0 of 4 clients enrolled")]
)
def test_fewer_clients_than_needed_end_the_wait_at_the_deadline_and_the_numbers_are_told(
    small_config: Make, grid: type[InlineGrid], start: str
) -> None:
    began = time.monotonic()
    with pytest.raises(TooFewClients, match=f"^{start}.*, min-clients=3"):
        enrolled(small_config(min_clients=3, enrol_timeout_s=QUICK), grid=grid)
    assert QUICK <= time.monotonic() - began < QUICK + 2


def test_fewer_clients_than_promised_but_enough_go_on_after_the_deadline(serve: Make, log: Callable[[], str]) -> None:
    run = serve(grid=Silent, enrol_timeout_s=QUICK)
    assert (run.summary["status"], run.summary["clients"]) == ("completed", 2)
    assert "going on with 2 of 4 clients" in log()
    assert "it has not answered yet" in log()


def test_nobody_waits_once_all_are_there(small_config: Make) -> None:
    began = time.monotonic()
    assert len(enrolled(small_config(enrol_timeout_s=60.0))) == 4
    assert time.monotonic() - began < 5


def test_a_federation_without_enough_clients_fails_the_run_with_its_reason(serve: Make, tmp_path: Path) -> None:
    with pytest.raises(TooFewClients):
        serve("few", grid=Silent, enrol_timeout_s=QUICK, min_clients=3)
    summary = RunFolder(tmp_path / "few").read_summary()
    assert (summary["status"], summary["stop_reason"]) == ("failed", "too-few-clients")
    assert summary["error"].startswith("2 of 4 clients enrolled within 0.3 s")


# ------------------------------------------------------------------------------------------------- joining, leaving


class Changing(InlineGrid):
    """A grid whose nodes come and go: `connected` says which positions are there."""

    connected: tuple[int, ...] = (0,)

    def get_node_ids(self) -> Iterable[int]:
        nodes = list(super().get_node_ids())
        return [nodes[position] for position in self.connected]


def changing(plan: dict[int, tuple[int, ...]]) -> tuple[type[Changing], Callable[[Any], None], list[Any]]:
    """A grid class, an observer that changes it after the rounds of `plan`, and the lines that it saw."""
    seen: list[Any] = []

    class Planned(Changing):
        pass

    def on_line(line: Any) -> None:
        seen.append(line)
        Planned.connected = plan.get(line["round"], Planned.connected)

    return Planned, on_line, seen


def test_a_node_that_joins_in_round_2_is_enrolled_and_takes_part(serve: Make) -> None:
    grid, on_line, seen = changing({1: (0, 1)})
    run = serve(grid=grid, on_line=on_line, enrol_timeout_s=QUICK)
    assert run.summary["status"] == "completed"
    assert [(line["expected_clients"], line["good"]) for line in seen] == [(2, 2), (4, 4), (4, 4)]


def test_a_node_that_leaves_is_not_asked_and_comes_back_as_it_was(serve: Make) -> None:
    grid, on_line, seen = changing({1: (0,), 2: (0, 1)})
    grid.connected = (0, 1)
    serve(grid=grid, on_line=on_line)
    assert [(line["expected_clients"], line["good"]) for line in seen] == [(4, 4), (2, 2), (4, 4)]


def joined_later(config: RunConfig, app: ClientApp = client_app.app) -> tuple[Enrolment, tuple[str, ...]]:
    """Node 0 is there when the design is agreed; node 1 comes then. Who takes part in the end."""
    grid = Changing(app, config.values(), 2)
    found = Enrolment(config)
    before = found.open(grid)
    assert roster(found, grid) == ("00", "02")
    grid.connected = (0, 1)
    clients = roster(found, grid)
    assert found.design is before
    return found, clients


def test_who_joins_later_changes_no_statistics(small_config: Make) -> None:
    _, clients = joined_later(small_config(enrol_timeout_s=QUICK))
    assert clients == ("00", "01", "02", "03")


def test_who_joins_later_sends_no_statistics(small_config: Make) -> None:
    sent: list[int] = []
    app = app_with(lambda content, partition: sent.append(len(content["enrolment"]["moments"])))
    joined_later(small_config(enrol_timeout_s=QUICK), app)
    assert sent == [2, 0]


LATE = MISMATCHES | {
    "one more class": (set_columns("classes", ["0", "1", "2"]), ["01", "03", "the class '2', which the model has not"]),
    "a class of another spelling": (set_columns("classes", ["0", "1.0"]), ["the class '1.0', which the model has not"]),
}


@pytest.mark.parametrize(("edit", "words"), LATE.values(), ids=LATE)
def test_who_joins_later_and_does_not_fit_the_frozen_design_is_refused_with_the_reason(
    small_config: Make, log: Callable[[], str], edit: Callable[[RecordDict], None], words: list[str]
) -> None:
    _, clients = joined_later(small_config(enrol_timeout_s=QUICK), at_misfit(edit))
    assert clients == ("00", "02")
    said = log()
    assert [word for word in words if word not in said] == []


def some_class(told: dict[str, Any]) -> None:
    told["classes"] = ["1"]


def other_levels(told: dict[str, Any]) -> None:
    told["features"][3]["levels"] = ["prison", "ward"]


def nothing_in_a_column(told: dict[str, Any]) -> None:
    told["features"][0] |= {"kind": "empty", "levels": []}


@pytest.mark.parametrize(
    ("keys", "edit"),
    [({}, some_class), ({}, nothing_in_a_column), (MIXED, other_levels), (MIXED, nothing_in_a_column)],
)
def test_who_joins_later_may_know_less_or_have_categories_of_its_own(
    small_config: Make, keys: dict[str, Any], edit: Callable[[dict[str, Any]], None]
) -> None:
    _, clients = joined_later(small_config(**keys, enrol_timeout_s=QUICK), at_misfit(columns(edit)))
    assert clients == ("00", "01", "02", "03")


def test_who_joins_later_writes_categories_as_the_others_do(small_config: Make, log: Callable[[], str]) -> None:
    def shout(told: dict[str, Any]) -> None:
        told["features"][3]["levels"] = ["WARD"]

    _, clients = joined_later(small_config(**MIXED, enrol_timeout_s=QUICK), at_misfit(columns(shout)))
    assert clients == ("00", "02")
    assert "01 does not take part: in column 'place' it writes 'WARD' where others write 'ward'" in log()


def test_a_run_that_goes_on_keeps_its_design_and_refuses_whom_it_does_not_fit(
    small_config: Make, log: Callable[[], str]
) -> None:
    config = small_config(enrol_timeout_s=QUICK)
    design = replace(local_design(config), classes=("0", "2"))
    found = Enrolment(config, design=design)
    with pytest.raises(TooFewClients, match="has the class '1', which the model has not learned"):
        found.open(InlineGrid(client_app.app, config.values(), 2))
    again = Enrolment(config, design=local_design(config))
    assert again.open(InlineGrid(client_app.app, config.values(), 2)) is again.design
    assert len(again) == 4


def test_every_node_is_asked_once(small_config: Make) -> None:
    asked: list[int] = []
    app = app_with(lambda content, partition: asked.append(partition))
    config = small_config()
    grid = InlineGrid(app, config.values(), 3)
    found = Enrolment(config)
    found.open(grid)
    for _ in range(3):
        found.current(grid)
    assert sorted(asked) == [0, 1, 2]


def test_a_round_waits_for_clients_to_come_back_where_too_few_are_online(serve: Make, log: Callable[[], str]) -> None:
    grid, on_line, seen = changing({1: (0,)})
    grid.connected = (0, 1)
    timer = threading.Timer(1.0, setattr, (grid, "connected", (0, 1)))
    began = time.monotonic()
    serve(grid=grid, on_line=lambda line: (on_line(line), line["round"] == 1 and timer.start()), min_clients=3)
    assert time.monotonic() - began > 1
    assert [(line["online"], line["good"], line["attempts"]) for line in seen] == [(4, 4, 1)] * 3
    assert "2 clients are online, min-clients=3: waiting" in log()


def test_where_nobody_comes_back_in_time_the_run_ends_and_keeps_its_model(serve: Make, tmp_path: Path) -> None:
    grid, on_line, _ = changing({2: ()})
    grid.connected = (0, 1)
    with pytest.raises(TooFewClients, match="round 3: 0 of 0 clients"):
        serve("gone", grid=grid, on_line=on_line, enrol_timeout_s=QUICK)
    assert RunFolder(tmp_path / "gone").read_summary()["rounds"] == 2


class Restarted(InlineGrid):
    """The second node dies with its first order, and is there again under another id when the round is tried anew."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            message = self._messages.get(message_id)
            node = message.metadata.dst_node_id if message else 0
            if message and message.metadata.message_type == "train" and node == list(self._contexts)[-1] != 99:
                self._contexts[99] = self._contexts.pop(node)
                error = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
                return [Message(error, reply_to=self._messages.pop(message_id))]
        return super().pull_messages(message_ids)


def test_a_round_that_is_tried_again_finds_the_clients_of_its_cohort_where_they_are_now(serve: Make) -> None:
    lines: list[Any] = []
    run = serve("again", grid=Restarted, on_line=lines.append, min_clients=4)
    assert [(line["good"], line["attempts"], line["dropped"]) for line in lines] == [(4, 2, []), (4, 1, []), (4, 1, [])]
    assert run.summary["params_sha256"] == serve("plain").summary["params_sha256"]


def entry_of(config: RunConfig, client: str) -> enrolment._Entry:
    """What a node says that has this client, of 30 rows."""
    return enrolment._Entry({client: Description(open_data(config).divide(client).train.columns, 30)}, {}, (), 0)


def test_a_node_that_was_gone_while_another_had_its_client_is_asked_again(small_config: Make) -> None:
    """Node 1 goes, node 2 takes over its client; node 1 comes back, node 2 goes."""
    config = small_config(num_clients=4, min_clients=1)
    found = Enrolment(config)
    grid = Changing(client_app.app, config.values(), 2)
    grid.connected = (0, 1)
    found.open(grid)
    mine, other = grid.get_node_ids()
    (client, *_) = (c for c in found.clients if found.current(grid)[c].node == mine)
    grid.connected = (1,)
    found._admit(other, entry_of(config, client), {other})
    assert found.current(grid)[client].node == other
    grid.connected = (0,)
    assert found.current(grid)[client].node == mine


class Reaching(InlineGrid):
    """The first site speaks for five clients, and says much."""

    def _work(self, message: Message) -> Message:
        reply = super()._work(message)
        if message.metadata.dst_node_id == next(iter(self._contexts)) and "enrolment" in reply.content:
            reply.content["enrolment"]["unreadable"] = ["a", "b", "c", "d"]
        elif "versions" in reply.content:
            reply.content["versions"]["app"] = "\x1b[2J\nWARNING: forged" + 100_000 * "A"
        return reply


def test_a_site_is_one_client_and_says_no_more_than_fits_on_a_line(tmp_path: Path, log: Callable[[], str]) -> None:
    hospitals(tmp_path, rows=40)
    config = RunConfig.parse({"data": "csv", "num-clients": 2, "enrol-timeout-s": QUICK})
    sites = at_sites(site(tmp_path, "bern"), site(tmp_path, "oslo"))

    class Grid(Reaching, sites):  # type: ignore[misc, valid-type]  # mypy takes no variable as a base
        pass

    with pytest.raises(TooFewClients, match="0 of 2 clients") as ending:
        Enrolment(config).open(Grid(client_app.app, config.values(), 2))
    assert "it speaks for 5 clients: a site with a file is one client" in str(ending.value)
    assert "\\x1b[2J WARNING: forged" in str(ending.value)
    assert all(len(line) < 2 * enrolment.LONGEST_REASON for line in log().splitlines())
    assert "\x1b" not in log()


class Coming(InlineGrid):
    """Node 0 never answers; the others connect only after the first look, and may come back under another id."""

    looks = 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        nodes = list(super().get_node_ids())
        return nodes[:1] if self.looks == 1 else nodes

    def pull_messages(self, message_ids: Any) -> Any:
        silent = next(iter(self._contexts))
        return super().pull_messages(
            [i for i in message_ids if i in self._messages and self._messages[i].metadata.dst_node_id != silent]
        )

    def rename(self, old: int, new: int) -> None:
        self._contexts[new] = self._contexts.pop(old)


def test_a_silent_node_keeps_no_later_one_out_and_a_node_may_come_back_under_another_id(small_config: Make) -> None:
    config = small_config(num_clients=6, enrol_timeout_s=1.0)
    grid = Coming(client_app.app, config.values(), 3)
    found = Enrolment(config)
    found.open(grid)
    before = found.current(grid)
    assert before.clients == ("01", "02", "04", "05")
    grid.rename(before["02"].node, 99)
    after = found.current(grid)
    assert after.clients == before.clients
    assert (after["02"].node, after["05"].node, after["01"].node) == (99, 99, before["01"].node)


def test_a_client_that_comes_back_with_another_key_is_taken_once_its_old_node_is_missed(
    small_config: Make, log: Callable[[], str]
) -> None:
    """Flower calls a dead node connected for another minute."""
    config = small_config(num_clients=2)
    grid = Changing(client_app.app, config.values(), 2)
    for context in grid._contexts.values():
        context.node_config |= {"partition-id": 0, "num-partitions": 1}
    found = Enrolment(config)
    found.open(grid)
    old = found.current(grid)["00"].node
    grid.connected = (0, 1)
    assert found.current(grid)["00"].node == old
    said = log()
    assert "another node hosts a client of this name" in said
    assert found.current(grid)["00"].node == old
    assert log() == said
    grid.connected = (1,)
    now = found.current(grid)
    assert now.clients == ("00", "01")
    assert now["00"].node == now["01"].node != old
    assert found.current(grid).clients == now.clients


# ------------------------------------------------------------------------------------------- labels that are numbers

PRICE = {"task": "linear", "data_args": "features=3 examples=30"}


def label_moments(*arrays: np.ndarray) -> Callable[[RecordDict], None]:
    def edit(content: RecordDict) -> None:
        content["label-moments"] = ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})

    return edit


@pytest.mark.parametrize(("standardize", "features"), [("global", 12), ("local", 0)])
def test_the_moments_of_a_label_that_is_a_number_are_sent_and_no_other_number_of_it(
    small_config: Make, standardize: str, features: int
) -> None:
    config = small_config(**PRICE, standardize=standardize)
    content = enrolment.answer(config, NODE, question())
    data = open_data(config)
    assert content["enrolment"]["label-moments"] == list(data.clients)
    n, mean, m2, _ = (array.numpy() for array in content["label-moments"].values())
    y = [data.divide(client).train.y for client in data.clients]
    assert n.tolist() == [24] * 4
    np.testing.assert_allclose(mean, [own.mean() for own in y])
    np.testing.assert_allclose(m2, [own.var() * 24 for own in y])
    assert sum(array.numpy().size for array in content["moments"].values()) == 4 * features
    assert enrolled(config).design.label_mean == pytest.approx(np.concatenate(y).mean())


@pytest.mark.parametrize(
    "changes", [{"min_examples": 25, "standardize": "local"}, {"standardize": "none"}, {"task": "logistic"}]
)
def test_no_moments_of_a_label_are_sent_by_few_rows_without_need_or_of_classes(
    small_config: Make, changes: dict[str, Any]
) -> None:
    content = enrolment.answer(small_config(**{**PRICE, **changes}), NODE, question())
    assert content["enrolment"]["label-moments"] == []
    assert len(content["label-moments"]) == 0


@given(st.integers(0, 100), st.integers(1, 7))
@settings(max_examples=10)
def test_neither_nodes_nor_the_order_of_answers_change_a_bit_of_the_labels_scale(
    small_config: Make, seed: int, nodes: int
) -> None:
    config = small_config(**PRICE, num_clients=7, seed=seed)
    one = repr(enrolled(config, 1).design)
    assert "label_mean=None" not in one
    assert repr(enrolled(config, nodes).design) == one
    assert repr(enrolled(config, nodes, grid=Backwards).design) == one


ONE, TWICE = np.ones(2), np.array([24, 24])


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (label_moments(TWICE, ONE, ONE * [1, -1], ONE), "m2 is negative"),
        (label_moments(TWICE, ONE * [1, np.inf], ONE, ONE), "above 1e"),
        (label_moments(TWICE, ONE * [1, np.nan], ONE, ONE), "not finite"),
        (label_moments(np.array([24, 25]), ONE, ONE, ONE), "more rows than it announced"),
        (label_moments(np.array([24, 7]), ONE, ONE, ONE), "not of all its rows"),
        (label_moments(np.array([24, -1]), ONE, ONE, ONE), "counts"),
    ],
)
def test_label_moments_that_no_rows_give_refuse_that_client_and_not_its_neighbour(
    small_config: Make, log: Callable[[], str], edit: Callable[[RecordDict], None], why: str
) -> None:
    config = small_config(**PRICE, enrol_timeout_s=QUICK / 3)
    grid = InlineGrid(at_misfit(edit), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "01", "02")
    assert re.search(f"03 does not take part: .*{why}", log()), log()


@pytest.mark.parametrize(
    "edit",
    [
        label_moments(TWICE, ONE, ONE),
        label_moments(TWICE[:1], ONE[:1], ONE[:1], ONE[:1]),
        label_moments(ONE, ONE, ONE, ONE),
        set_key("label-moments", ["01", "02"]),
        set_key("label-moments", ["01", "01"]),
        set_key("label-moments", 3),
        lambda content: content.pop("label-moments"),
    ],
)
def test_label_moments_that_are_not_well_formed_refuse_the_node(
    small_config: Make, log: Callable[[], str], edit: Callable[[RecordDict], None]
) -> None:
    config = small_config(**PRICE, enrol_timeout_s=QUICK / 3)
    grid = InlineGrid(at_misfit(edit), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "02")
    assert "could not answer" not in log()


def test_moments_of_a_label_with_classes_refuse_their_client(small_config: Make, log: Callable[[], str]) -> None:
    def claim(content: RecordDict) -> None:
        label_moments(TWICE, ONE, ONE, ONE)(content)
        content["enrolment"]["label-moments"] = ["01", "03"]

    config = small_config(enrol_timeout_s=QUICK / 3)
    grid = InlineGrid(at_misfit(claim), config.values(), 2)
    found = Enrolment(config)
    found.open(grid)
    assert roster(found, grid) == ("00", "02")
    assert "which has classes" in log()

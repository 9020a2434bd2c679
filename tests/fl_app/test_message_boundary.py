"""What leaves a node in a run that promises privacy, seen at the message boundary: names, verdicts, versions, and
arrays that are clipped or noised. No metric, no count, no label, no value of a row, whatever the server asks for."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hospitals import patients, write_csv
from private_runs import FOUR, SCHEMA, Exchanged, private_run

from fl_app import client_app
from fl_app.assembly import declared_design
from fl_app.caller import CALLER
from fl_app.checkpoint import Checkpoint
from fl_app.enrolment import VERSIONS
from fl_app.inline import InlineGrid
from fl_app.site import Common
from strategies import STRATEGIES, wire
from strategies.transforms.clipping import norm
from tasks.logistic import LogisticTask

CLIENTS = [f"ward {letter}" for letter in "abcdefgh"]
FAILS = "ward c"
COMPRESSED = "compressed-dp-fedavg"
PRIVATE_WORDS = (
    "age",
    "dose",
    "smoker",
    "stage",
    "outcome",
    "alive",
    "dead",
    "II",
    "III",
    "examples",
    "loss",
    "correct",
)


class OneFails(LogisticTask):
    """Logistic regression in which FAILS raises, and quotes a row."""

    def make_client(self, shard):
        return Quoting() if shard.client == FAILS else super().make_client(shard)


class Quoting:
    def fit(self, parameters, config):
        raise RuntimeError("age 81.25 is dead")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Files of clients with very different numbers of rows, and a schema; the keys of a run on them."""
    monkeypatch.setenv(CALLER, str(tmp_path))
    for index, client in enumerate(CLIENTS):
        write_csv(tmp_path / "data" / f"{client}.csv", patients(30 + 37 * index, index))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    return {
        "data": "csv",
        "data_args": f"path={tmp_path / 'data'} label=outcome",
        "schema": str(tmp_path / "schema.json"),
        "num_clients": 0,
        "clients_per_round": 8,
        "task": "test_message_boundary:OneFails",
        "rounds": 3,
    }


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="flwr")


def texts(content):
    """All names and texts in a reply."""
    for name, record in content.items():
        yield name
        for key, value in record.items():
            yield key
            if isinstance(record, ConfigRecord):
                yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str))


def said(reply):
    """A reply's records but for the arrays: {record: {key: value}}."""
    return {k: dict(v) for k, v in reply.content.items() if isinstance(v, ConfigRecord)}


# ---------------------------------------------------------------------------------------------------- honest servers


@pytest.mark.parametrize("name", [*FOUR, COMPRESSED])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "one by one"])
def test_replies_hold_what_they_must_and_nothing_else(tmp_path, keys, name, fold, monkeypatch):
    exchanged = Exchanged()
    if not fold:
        monkeypatch.setattr("strategies.base.ComposedStrategy.nodes_may_fold", False)
    private_run(tmp_path / "out", name, **keys, grid=exchanged.grid)
    kinds = [message.metadata.message_type for message, _ in exchanged.pairs]
    assert set(kinds) == {"query.enrol", "train"}  # nothing is measured at the clients
    for message, reply in exchanged.pairs:
        assert not reply.has_error()
        assert not any(isinstance(record, MetricRecord) for record in reply.content.values())
        if message.metadata.message_type == "train":
            check_trained(name, message, reply, fold)
        else:
            check_enrolled(reply)
        for text in texts(reply.content):
            assert text not in PRIVATE_WORDS, text
            assert "81.25" not in text


def check_enrolled(reply):
    content = said(reply)
    assert set(reply.content) == set(content) == {"versions", "eligibility"}
    assert content["versions"] == VERSIONS
    verdict = content["eligibility"]
    assert set(verdict) == {"clients", "eligible", "schema-sha256"}
    assert set(verdict["clients"]) < set(CLIENTS)
    assert verdict["eligible"] == [True] * 4
    assert len(verdict["schema-sha256"]) == 64


def check_trained(name, message, reply, fold):
    content, asked = said(reply), message.content["order"]["clients"]
    updates = [key for key in reply.content if isinstance(reply.content[key], ArrayRecord)]
    assert set(reply.content) == {"answer", *updates, *(key.replace("update", "about") for key in updates)}
    answer = content["answer"]
    assert set(answer) == {"version", "updates", "dropped", "reasons"}
    assert (answer["dropped"], answer["reasons"]) == (([FAILS], ["raised"]) if FAILS in asked else ([], []))
    clients = []
    for key in updates:
        about = content[key.replace("update", "about")]
        assert set(about) == {"clients", "weight", "num-examples", "payload-bytes", "on-grid", "metrics", "metric-sums"}
        assert (about["num-examples"], about["metrics"], about["metric-sums"]) == (0, [], [])
        assert about["weight"] == len(about["clients"])
        assert about["on-grid"] is fold
        assert len(about["clients"]) == 1 or fold
        clients += about["clients"]
        arrays = [array.numpy() for array in reply.content[key].values()]
        step = 2.0 ** -message.content["order"]["fraction-bits"] if fold else 1.0
        most = len(about["clients"]) * (np.sqrt(1 + 0.01 / 0.99) if "adaptive" in name else 1.0)
        if name != "local-dp-fedavg" and (fold or name != COMPRESSED):
            assert norm(arrays) * step <= most * (1 + 1e-6)
        if name != COMPRESSED:
            assert about["payload-bytes"] == len(about["clients"]) * payload_bytes(arrays)
    assert sorted(clients) == sorted(set(asked) - {FAILS})


def payload_bytes(arrays):
    """A matter of the shapes alone: int64 sums and float64 updates are of one size."""
    return wire.encoded_bytes(tuple(np.zeros(array.shape, np.float64) for array in arrays))


def test_two_clients_that_differ_in_everything_but_their_name_answer_alike_but_for_their_arrays(tmp_path, keys):
    """Other rows, other numbers of them, other labels: the replies differ in nothing but clipped arrays."""
    seen = []
    for number, rows in enumerate((25, 400)):
        for index, client in enumerate(CLIENTS):
            write_csv(
                tmp_path / "data" / f"{client}.csv", patients(rows + index, 7 * number + index, shift=9.0 * number)
            )
        exchanged = Exchanged()
        changes = {"clients_per_round": 8, "task": "logistic", "rounds": 1}
        private_run(tmp_path / str(number), "dp-fedavg", **{**keys, **changes}, grid=exchanged.grid)
        seen.append([said(reply) for _, reply in exchanged.pairs])
    assert seen[0] == seen[1]


# -------------------------------------------------------------------------------------------------- dishonest servers


@pytest.fixture
def node(tmp_path, keys):
    """ask(kind, content): a reply of a node of such a run; with it what an honest server would have sent."""
    exchanged = Exchanged()
    changes = {**keys, "task": "logistic", "rounds": 1}
    _, folder = private_run(tmp_path / "out", "dp-fedavg", **changes, grid=exchanged.grid)
    config = Checkpoint.read(folder.checkpoint).config
    grid = InlineGrid(client_app.app, config.values(), 2)
    honest = exchanged.of("train")[0][0]

    def ask(kind, **changes):
        content = RecordDict({**honest.content, **changes})
        (reply,) = grid.send_and_receive([Message(content, honest.metadata.dst_node_id, kind)])
        return reply

    return ask, honest.content, config


def with_metrics(content):
    """The common config of a server that wants metrics with the updates."""
    return ConfigRecord(replace(Common.of(dict(content["config"])), train_metrics=True).values())


def test_a_server_that_asks_for_exact_metrics_gets_an_error(node):
    ask, honest, _ = node
    surveyed = ConfigRecord({**honest["config"], "curvature": True, "kinds": ["common"]})
    uncurved = ConfigRecord({**honest["config"], "curvature": False, "kinds": ["common", "finetuned"]})
    for kind, config in (
        ("evaluate", honest["config"]),
        ("evaluate", with_metrics(honest)),
        ("query.survey", surveyed),
        ("query.survey", uncurved),
    ):
        reply = ask(kind, config=config)
        assert reply.has_error(), kind
        assert reply.error.reason == "see the log of the node"


def test_a_server_that_asks_for_metrics_with_the_updates_gets_updates_alone(node):
    ask, honest, _ = node
    for fold in (True, False):
        order = ConfigRecord({**honest["order"], "fold": fold})
        reply = ask("train", config=with_metrics(honest), order=order)
        abouts = [record for key, record in said(reply).items() if key.startswith("about")]
        assert abouts
        assert all((about["num-examples"], about["metrics"]) == (0, []) for about in abouts)
        assert all(about["weight"] == len(about["clients"]) for about in abouts)


def test_a_server_that_asks_for_descriptions_of_the_rows_gets_verdicts_or_an_error(node):
    ask, _, config = node
    for question in (
        {**VERSIONS, "agreed": False},
        {**VERSIONS, "agreed": True},
        {**VERSIONS, "agreed": False, "design": b"nonsense"},
    ):
        reply = ask("query.enrol", config=ConfigRecord(question))
        assert reply.has_error()
    assert declared_design(config) is not None


def test_a_server_that_announces_a_huge_clip_norm_gets_no_longer_update(tmp_path, keys):
    """The norm of dp-fedavg is the run's; that of dp-fedavg-adaptive is announced, but updates are in units of it."""
    exchanged = Exchanged()
    changes = {**keys, "task": "logistic", "rounds": 1}
    _, folder = private_run(tmp_path / "out", "dp-fedavg-adaptive", **changes, grid=exchanged.grid)
    honest = exchanged.of("train")[0][0]
    config = Checkpoint.read(folder.checkpoint).config
    grid = InlineGrid(client_app.app, config.values(), 2)
    for announced in (1e-6, 0.1, 1e6):
        order = ConfigRecord({**honest.content["order"], "fold": False, "public.clip-norm": announced})
        content = RecordDict({**honest.content, "order": order})
        (reply,) = grid.send_and_receive([Message(content, honest.metadata.dst_node_id, "train")])
        for key, record in reply.content.items():
            if key.startswith("update"):
                assert norm([array.numpy() for array in record.values()]) <= np.sqrt(1 + 0.01 / 0.99) * (1 + 1e-6)


def test_local_noise_is_there_before_anything_leaves_the_node_and_no_announcement_lowers_it(tmp_path, keys):
    exchanged = Exchanged()
    changes = {**keys, "task": "logistic", "rounds": 1}
    _, folder = private_run(
        tmp_path / "out", "local-dp-fedavg", "noise-multiplier=1000", **changes, grid=exchanged.grid
    )
    honest = exchanged.of("train")[0][0]
    grid = InlineGrid(client_app.app, Checkpoint.read(folder.checkpoint).config.values(), 2)
    order = {**honest.content["order"], "fold": False, "public.privacy.noise-multiplier": 1e-9}
    content = RecordDict({**honest.content, "order": ConfigRecord(order)})
    replies = [
        grid.send_and_receive([Message(content, honest.metadata.dst_node_id, "train")])[0].content for _ in range(2)
    ]
    for key in (key for key in replies[0] if key.startswith("update")):
        first, second = (np.concatenate([a.numpy().ravel() for a in reply[key].values()]) for reply in replies)
        assert 200 < np.std(first) < 5000
        assert 200 < np.std(first - second) < 8000


def test_every_strategy_that_promises_privacy_for_clients_is_looked_at():
    assert {*FOUR, COMPRESSED} == {name for name in STRATEGIES if "dp-" in name and not name.startswith("record-")}

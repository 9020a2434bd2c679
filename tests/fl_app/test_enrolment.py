"""Enrolment: who takes part is known before round 1, who does not is named with the reason, and nobody waits for ever.

What a node says wrongly is said here by ClientApps that change the true answer on its way.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import __version__, client_app, enrolment
from fl_app.assembly import open_data
from fl_app.config import RunConfig
from fl_app.enrolment import Enrolment
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.run_folder import RunFolder
from fl_app.site import hosted_clients
from strategies import wire
from strategies.base import TooFewClients

Make = Callable[..., Any]
Change = Callable[[RecordDict, int], None]
QUICK = 0.3
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
    found = Enrolment(config, wants_moments=True)
    found.open(grid(app, config.values(), nodes))
    return found


def roster(found: Enrolment, grid: InlineGrid) -> tuple[str, ...]:
    return found.current(grid).clients


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What the server logged as a warning; Flower's logger does not propagate."""
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    flower.removeHandler(caplog.handler)


# --------------------------------------------------------------------------------------------------- what is sent


@given(st.integers(1, 9), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_every_client_lives_on_exactly_one_node_and_enrols_with_its_training_rows(
    small_config: Make, nodes: int, clients: int
) -> None:
    config = small_config(num_clients=clients, min_clients=1)
    grid = InlineGrid(client_app.app, config.values(), nodes)
    found = Enrolment(config, wants_moments=False)
    found.open(grid)
    members = found.current(grid)
    data = open_data(config)
    assert members.clients == data.clients
    assert len(found) == clients
    assert [members[client].num_examples for client in data.clients] == [
        len(data.shard(client).train) for client in data.clients
    ]
    assert found.schema == data.schema


def test_a_node_that_does_not_say_which_clients_it_hosts_is_refused_with_the_remedy(small_config: Make) -> None:
    with pytest.raises(Refused, match=r"no 'partition-id' in its node config.*--node-config"):
        hosted_clients(small_config(), {})


def question(**changes: Any) -> RecordDict:
    asked = {"wire": wire.VERSION, "app": __version__, "moments": True} | changes
    return RecordDict({"config": ConfigRecord(asked)})


NODE = {"partition-id": 0, "num-partitions": 1}


@pytest.mark.parametrize("other", [{"app": "0.0.1"}, {"wire": wire.VERSION + 1}])
def test_a_server_of_another_version_is_told_the_version_and_nothing_else(
    small_config: Make, other: dict[str, Any]
) -> None:
    content = enrolment.answer(small_config(), NODE, question(**other))
    assert list(content) == ["versions"]
    assert dict(content["versions"]) == {"wire": wire.VERSION, "app": __version__}


def test_clients_with_too_few_rows_send_no_moments(small_config: Make) -> None:
    config = small_config(num_clients=12, data_args="features=3 examples=30 size-skew=1", min_examples=20)
    data = open_data(config)
    large = [client for client in data.clients if len(data.shard(client).train) >= 20]
    assert 0 < len(large) < 12
    content = enrolment.answer(config, NODE, question())
    assert content["enrolment"]["moments"] == large
    assert [len(array.numpy()) for array in content["moments"].values()] == [len(large)] * 4
    # Not a number of the small ones is anywhere in the message.
    sent = np.concatenate([array.numpy().ravel() for array in list(content["moments"].values())[1:]])
    for client in set(data.clients) - set(large):
        assert not np.isin(data.shard(client).train.x.mean(axis=0), sent).any()


def test_no_moments_are_sent_where_none_are_asked_for(small_config: Make) -> None:
    content = enrolment.answer(small_config(), NODE, question(moments=False))
    assert set(content) == {"versions", "enrolment"}
    assert content["enrolment"]["moments"] == []


def test_without_any_large_client_global_scaling_is_refused_with_the_remedies(small_config: Make) -> None:
    found = enrolled(small_config(min_examples=1000))
    assert len(found) == 4
    with pytest.raises(Refused, match=r"min-examples=1000 .*standardize=local"):
        found.statistics()


# ----------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_pooled_training_rows(small_config: Make, seed: int) -> None:
    law = "features=3 examples=40 size-skew=0.8 feature-shift=100"
    config = small_config(num_clients=9, data_args=law, seed=seed)
    data = open_data(config)
    shards = [data.shard(client).train.x for client in data.clients]
    pooled = np.concatenate([x for x in shards if len(x) >= config.min_examples])
    assert len(pooled) < sum(map(len, shards))
    mean, scale = enrolled(config).statistics()
    np.testing.assert_allclose(mean, pooled.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale, pooled.std(axis=0), rtol=1e-12)


class Backwards(InlineGrid):
    """Replies come in the opposite order."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[::-1])


@given(st.integers(0, 2**32), st.integers(2, 12))
@settings(deadline=None, max_examples=15)
def test_neither_nodes_nor_the_order_of_answers_change_a_bit_of_the_statistics(
    small_config: Make, seed: int, nodes: int
) -> None:
    config = small_config(num_clients=7, seed=seed, data_args="features=5 examples=40 feature-shift=1e6")
    one = enrolled(config, 1).statistics()
    assert enrolled(config, nodes).statistics() == one
    assert enrolled(config, nodes, grid=Backwards).statistics() == one


# ---------------------------------------------------------------------------------------------- who is not let in


def names(edit: Callable[[ConfigRecord], None]) -> Callable[[RecordDict], None]:
    return lambda content: edit(content["enrolment"])


def replace_column(record: ConfigRecord) -> None:
    record["features"] = ["x0", "blood pressure", "x2"]


def drop_column(record: ConfigRecord) -> None:
    record["features"] = ["x0", "x1"]


def rename_label(record: ConfigRecord) -> None:
    record["label"] = "outcome"


def other_classes(record: ConfigRecord) -> None:
    record["classes"] = ["no", "yes"]


def other_app(content: RecordDict) -> None:
    content["versions"]["app"] = "9.9.9"


def other_wire(content: RecordDict) -> None:
    content["versions"]["wire"] = wire.VERSION + 1


MISMATCHES = [
    (names(replace_column), ["01", "03", "'blood pressure'", "'x1'"]),
    (names(drop_column), ["01", "03", "2 features", "3"]),
    (names(rename_label), ["01", "03", "'outcome'", "'class'"]),
    (names(other_classes), ["01", "03", "no, yes", "0, 1"]),
    (other_app, ["node", "9.9.9 there", f"{__version__} here", "same version"]),
    (other_wire, ["node", f"wire format {wire.VERSION + 1}", "same version"]),
]


@pytest.mark.parametrize(("edit", "words"), MISMATCHES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_node_that_does_not_fit_is_named_with_both_sides_and_the_others_go_on(
    serve: Make, warnings: Callable[[], str], edit: Callable[[RecordDict], None], words: list[str]
) -> None:
    run = serve(app=at_misfit(edit), enrol_timeout_s=QUICK)
    assert (run.summary["status"], run.summary["clients"]) == ("completed", 2)
    said = warnings()
    assert [word for word in words if word not in said] == []
    assert "going on with 2 of 4 clients" in said


@pytest.mark.parametrize(("edit", "words"), MISMATCHES, ids=lambda value: getattr(value, "__name__", ""))
def test_where_too_few_remain_the_error_says_why(
    small_config: Make, edit: Callable[[RecordDict], None], words: list[str]
) -> None:
    with pytest.raises(TooFewClients) as error:
        enrolled(small_config(min_clients=3, enrol_timeout_s=QUICK), app=at_misfit(edit))
    said = str(error.value)
    assert said.startswith("2 of 4 clients enrolled")
    assert [word for word in words if word not in said] == []


def test_a_client_on_two_nodes_is_taken_once_and_named(small_config: Make, warnings: Callable[[], str]) -> None:
    def claim(record: ConfigRecord) -> None:
        record["clients"] = record["moments"] = ["00", "03"]

    config = small_config(enrol_timeout_s=QUICK)
    grid = InlineGrid(at_misfit(names(claim)), config.values(), 2)
    found = Enrolment(config, wants_moments=True)
    found.open(grid)
    members = found.current(grid)
    assert members.clients == ("00", "02", "03")
    first, second = grid.get_node_ids()
    assert (members["00"].node, members["03"].node) == (first, second)
    assert f"00 on node {second} does not take part: another node hosts a client of this name" in warnings()


@pytest.mark.parametrize("examples", [0, -5])
def test_a_client_without_rows_is_not_taken(small_config: Make, warnings: Callable[[], str], examples: int) -> None:
    def empty(record: ConfigRecord) -> None:
        record["num-examples"] = [examples, 24]

    config = small_config(enrol_timeout_s=QUICK)
    grid = InlineGrid(at_misfit(names(empty)), config.values(), 2)
    found = Enrolment(config, wants_moments=False)
    found.open(grid)
    assert found.current(grid).clients == ("00", "02", "03")
    assert "01 does not take part: it has no training rows" in warnings()


def moments(*arrays: np.ndarray) -> Callable[[RecordDict], None]:
    def edit(content: RecordDict) -> None:
        content["moments"] = ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})

    return edit


def cut_moments(content: RecordDict) -> None:
    del content["moments"]


def set_key(key: str, value: Any) -> Callable[[RecordDict], None]:
    return names(lambda record: record.__setitem__(key, value))


ONE, THREE = np.ones((2, 1), np.int64), np.ones((2, 3))
ABSURD = {
    "no moments": cut_moments,
    "moments of three arrays": moments(ONE, THREE, THREE),
    "moments of one client": moments(ONE[:1], THREE[:1], THREE[:1], THREE[:1]),
    "moments that are nan": moments(ONE, THREE * np.nan, THREE, THREE),
    "moments with a negative m2": moments(ONE, THREE, -THREE, THREE),
    "moments of fewer columns": moments(ONE, THREE[:, :2], THREE[:, :2], THREE[:, :2]),
    "moments without dimensions": moments(*[np.array(1.0)] * 4),
    "moments that are text": moments(ONE, *[np.full((2, 3), "x")] * 3),
    "moments of other shapes": moments(ONE, THREE, THREE[:, :2], THREE),
    "clients that are numbers": set_key("clients", [1, 2]),
    "fewer counts than clients": set_key("num-examples", [24]),
    "counts that are no integers": set_key("num-examples", [24.5, 1.0]),
    "a population that is text": set_key("population", "four"),
    "features that are one text": set_key("features", "x0"),
    "no enrolment": lambda content: content.__delitem__("enrolment"),
    "no versions": lambda content: content.__delitem__("versions"),
    "nothing": lambda content: content.clear(),
}


@pytest.mark.parametrize("edit", ABSURD.values(), ids=ABSURD.keys())
def test_a_node_that_answers_nonsense_is_left_out_and_the_others_go_on(
    serve: Make, warnings: Callable[[], str], edit: Callable[[RecordDict], None]
) -> None:
    run = serve(app=at_misfit(edit), enrol_timeout_s=QUICK, rounds=1)
    assert (run.summary["status"], run.summary["clients"]) == ("completed", 2)
    assert "does not take part" in warnings()
    assert "could not answer" not in warnings()  # it did, and the server saw through it


def test_a_node_that_raises_is_left_out_and_the_others_go_on(serve: Make, warnings: Callable[[], str]) -> None:
    def fail(content: RecordDict) -> None:
        raise RuntimeError("no data here")

    run = serve(app=at_misfit(fail), enrol_timeout_s=QUICK, rounds=1)
    assert run.summary["clients"] == 2
    assert "it could not answer: see its log" in warnings()


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


def test_fewer_clients_than_promised_but_enough_go_on_after_the_deadline(
    serve: Make, warnings: Callable[[], str]
) -> None:
    run = serve(grid=Silent, enrol_timeout_s=QUICK)
    assert (run.summary["status"], run.summary["clients"]) == ("completed", 2)
    assert "going on with 2 of 4 clients" in warnings()
    assert "it has not answered yet" in warnings()


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


def test_who_joins_later_changes_no_statistics_and_sends_none(small_config: Make) -> None:
    sent: list[bool] = []
    app = app_with(lambda content, partition: sent.append("moments" in content))
    config = small_config(enrol_timeout_s=QUICK)
    grid = Changing(app, config.values(), 2)
    found = Enrolment(config, wants_moments=True)
    found.open(grid)
    before = found.statistics()
    grid.connected = (0, 1)
    assert found.current(grid).clients == ("00", "01", "02", "03")
    assert found.statistics() == before
    assert sent == [True, False]


def test_every_node_is_asked_once(small_config: Make) -> None:
    asked: list[int] = []
    app = app_with(lambda content, partition: asked.append(partition))
    config = small_config()
    grid = InlineGrid(app, config.values(), 3)
    found = Enrolment(config, wants_moments=False)
    found.open(grid)
    for _ in range(3):
        found.current(grid)
    assert sorted(asked) == [0, 1, 2]


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
    found = Enrolment(config, wants_moments=True)
    found.open(grid)
    before = found.current(grid)
    assert before.clients == ("01", "02", "04", "05")
    grid.rename(before["02"].node, 99)
    after = found.current(grid)
    assert after.clients == before.clients
    assert (after["02"].node, after["05"].node, after["01"].node) == (99, 99, before["01"].node)

"""The inline engine behaves as Flower's grid does, in one process."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from fl_app.inline import InlineGrid

Make = Callable[..., Any]
KIND = "query.echo"

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """What came, which node this is, and how often it has been asked."""
    asked = dict(message.content["config"])
    if asked.get("fail"):
        raise RuntimeError("failed as told")
    count = context.state.config_records.setdefault("count", ConfigRecord({"n": 0}))
    count["n"] = int(count["n"]) + 1
    about = {"partition": context.node_config["partition-id"], "of": context.node_config["num-partitions"]}
    about |= {"key": context.run_config["key"], "n": count["n"], "node": context.node_id}
    return Message(RecordDict({"config": ConfigRecord({**asked, **about})}), reply_to=message)


@pytest.fixture
def grid() -> InlineGrid:
    return InlineGrid(app, {"key": "value"}, nodes=3)


def message(node: int, group: str = "", **asked: Any) -> Message:
    return Message(RecordDict({"config": ConfigRecord(asked)}), node, KIND, group_id=group)


def answer(reply: Message) -> dict[str, Any]:
    return dict(reply.content["config"])


def test_every_node_has_its_own_partition_and_the_same_run_config(grid: InlineGrid) -> None:
    nodes = list(grid.get_node_ids())
    replies = [answer(reply) for reply in grid.send_and_receive([message(node) for node in nodes])]
    assert [reply["partition"] for reply in replies] == [0, 1, 2]
    assert {(reply["of"], reply["key"]) for reply in replies} == {(3, "value")}
    assert [reply["node"] for reply in replies] == nodes


def test_a_node_keeps_its_context_between_messages_and_shares_it_with_none(grid: InlineGrid) -> None:
    first, second, _ = grid.get_node_ids()
    counts = [answer(r)["n"] for node in (first, first, second, first) for r in grid.send_and_receive([message(node)])]
    assert counts == [1, 2, 1, 3]


def test_replies_refer_to_their_messages(grid: InlineGrid) -> None:
    messages = [message(node, group=f"g{node}", word=str(node)) for node in grid.get_node_ids()]
    ids = list(grid.push_messages(messages))
    assert len(set(ids)) == 3
    for message_id, sent in reversed(list(zip(ids, messages, strict=True))):
        (reply,) = grid.pull_messages([message_id])
        assert reply.metadata.reply_to_message_id == message_id
        assert reply.metadata.group_id == sent.metadata.group_id
        assert reply.metadata.src_node_id == sent.metadata.dst_node_id
        assert answer(reply)["word"] == str(sent.metadata.dst_node_id)


def test_a_reply_is_handed_over_once_and_one_at_a_time(grid: InlineGrid) -> None:
    ids = list(grid.push_messages([message(node) for node in grid.get_node_ids()]))
    got = [reply.metadata.reply_to_message_id for _ in range(3) for reply in grid.pull_messages(ids)]
    assert got == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_message_to_a_node_that_is_not_there_is_not_delivered(grid: InlineGrid) -> None:
    first = next(iter(grid.get_node_ids()))
    assert len(list(grid.push_messages([message(12345), message(first)]))) == 1


def test_ids_that_nobody_sent_bring_nothing(grid: InlineGrid) -> None:
    assert list(grid.pull_messages(["77", "x"])) == []
    assert list(grid.pull_messages([])) == []


def test_a_client_app_that_raises_gives_an_error_reply_and_goes_on_working(grid: InlineGrid) -> None:
    first = next(iter(grid.get_node_ids()))
    failed, worked = grid.send_and_receive([message(first, fail=True), message(first)])
    assert failed.has_error()
    assert "failed as told" in failed.error.reason
    assert answer(worked)["n"] == 1


def test_a_message_of_a_kind_that_the_app_does_not_know_gives_an_error_reply(grid: InlineGrid) -> None:
    first = next(iter(grid.get_node_ids()))
    unknown = Message(RecordDict(), first, "query.other")
    (reply,) = grid.send_and_receive([unknown])
    assert reply.has_error()


def test_messages_may_be_made_by_the_grid_and_the_run_be_set(grid: InlineGrid) -> None:
    first = next(iter(grid.get_node_ids()))
    made = grid.create_message(RecordDict({"config": ConfigRecord({})}), KIND, first, "group")
    (reply,) = grid.send_and_receive([made])
    assert reply.metadata.group_id == "group"
    grid.set_run(Run.create_empty(5))
    assert grid.run.run_id == 5


@pytest.mark.parametrize("strategy", ["fedavg", "fedsgd", "fednewton"])
def test_the_model_does_not_depend_on_the_number_of_nodes(serve: Make, strategy: str) -> None:
    one, *others = (serve(f"{nodes}", nodes=nodes, strategy=strategy).summary for nodes in (1, 2, 5, 9))
    for other in others:
        assert other["params_sha256"] == one["params_sha256"]
        assert other["metrics"] == one["metrics"]
        assert (other["payload_up"], other["payload_down"]) == (one["payload_up"], one["payload_down"])


def test_rounds_are_observed_as_they_are_written(serve: Make) -> None:
    seen: list[Any] = []
    run = serve(on_line=seen.append)
    assert [json.loads(line) for line in run.folder.rounds.read_text().splitlines()] == seen
    assert len(seen) == 3


def test_two_runs_in_one_process_do_not_touch_each_other(serve: Make) -> None:
    first = serve("first", seed=1)
    serve("between", seed=2, strategy="fednewton")
    again = serve("again", seed=1)
    assert again.summary["params_sha256"] == first.summary["params_sha256"]

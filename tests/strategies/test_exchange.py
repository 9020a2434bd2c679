"""Every message gets exactly one reply, a node works on one message at a time, and nobody waits for ever."""

import time

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_app.inline import InlineGrid
from strategies import exchange
from strategies.exchange import Exchange

NODES = 3


def client_app():
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    @app.query("fail")
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError("no")

    return app


class Recording(InlineGrid):
    """Notes how many messages each node has in flight; loses or delays those it is told to."""

    def __init__(self, lost=(), silent=()):
        super().__init__(client_app(), {}, NODES)
        self.lost, self.silent = set(lost), set(silent)
        self.flying: dict[str, int] = {}
        self.most = 0

    def push_messages(self, messages):
        ids = list(super().push_messages([m for m in messages if m.metadata.group_id not in self.lost]))
        for message in messages:
            if message.metadata.message_id:
                self.flying[message.metadata.message_id] = message.metadata.dst_node_id
        nodes = list(self.flying.values())
        self.most = max([self.most, *(nodes.count(node) for node in nodes)])
        return ids

    def pull_messages(self, message_ids):
        answering = [i for i in message_ids if self.flying[i] not in self.silent]
        replies = super().pull_messages(answering[-1:])  # the last first: order must not matter
        for reply in replies:
            del self.flying[reply.metadata.reply_to_message_id]
        return replies


def messages(grid, count, kind="query.echo"):
    nodes = list(grid.get_node_ids())
    return [Message(RecordDict(), nodes[i % len(nodes)], kind, group_id=str(i)) for i in range(count)]


def groups(replies):
    return sorted(int(reply.metadata.group_id) for reply in replies)


def test_each_message_gets_one_reply_and_a_node_has_one_in_flight():
    grid = Recording()
    replies = list(Exchange(grid, messages(grid, 10), 10))
    assert groups(replies) == list(range(10))
    assert not any(reply.has_error() for reply in replies)
    assert grid.most == 1


def test_what_cannot_be_delivered_is_an_error_reply_and_the_next_message_still_goes_out():
    grid = Recording(lost={"0", "3"})
    replies = list(Exchange(grid, messages(grid, 7), 10))
    assert groups(replies) == list(range(7))
    assert {r.metadata.group_id: r.error.code for r in replies if r.has_error()} == {
        "0": exchange.UNDELIVERED,
        "3": exchange.UNDELIVERED,
    }


def test_a_silent_node_is_given_up_at_the_deadline_with_all_its_messages():
    grid = Recording(silent={list(Recording().get_node_ids())[1]})
    began = time.monotonic()
    replies = list(Exchange(grid, messages(grid, 6), 0.3))
    assert 0.25 < time.monotonic() - began < 5
    assert {r.metadata.group_id: r.error.code for r in replies if r.has_error()} == {
        "1": exchange.LATE,
        "4": exchange.LATE,
    }
    assert groups(replies) == list(range(6))


class Clock:
    """Time that passes only where it is spent."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Distant(Recording):
    """Takes `cost_s` to be asked, and has nothing to say before `ready_s`."""

    def __init__(self, clock, cost_s, ready_s):
        super().__init__()
        self.clock, self.cost_s, self.ready_s, self.asked = clock, cost_s, ready_s, 0

    def pull_messages(self, message_ids):
        self.clock.now += self.cost_s
        self.asked += 1
        return super().pull_messages(message_ids) if self.clock.now >= self.ready_s else []


@pytest.mark.parametrize("ready_s", [0.1, 1.0, 6.0])
def test_a_reply_is_seen_soon_where_asking_costs_nothing(ready_s, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    list(Exchange(Distant(clock, 0.0, ready_s), messages(Recording(), 1), 60))
    assert ready_s <= clock.now <= ready_s + 0.006


@pytest.mark.parametrize("cost_s", [0.005, 0.02])
def test_where_asking_takes_time_little_of_the_wait_goes_into_it(cost_s, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    grid = Distant(clock, cost_s, ready_s=6.0)
    list(Exchange(grid, messages(grid, 2), 60))
    assert 6.0 <= clock.now <= 6.0 + exchange.LONGEST_POLL_S + 2 * cost_s
    assert grid.asked * cost_s <= 0.06 * clock.now


def test_an_app_that_raises_is_an_error_reply_that_says_which_message_it_was():
    grid = Recording()
    replies = list(Exchange(grid, messages(grid, 4, "query.fail"), 10))
    assert groups(replies) == [0, 1, 2, 3]
    assert all(reply.has_error() for reply in replies)


class Forging(Recording):
    """Answers with the group id of another message, and hides which node failed, as a SuperLink does."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            reply.metadata.__dict__["_group_id"] = "0"
        return replies


def test_a_reply_that_claims_another_exchange_is_refused():
    grid = Forging()
    replies = list(Exchange(grid, messages(grid, 2), 10))
    assert groups(replies) == [0, 1]
    assert {r.metadata.group_id: r.error.code for r in replies if r.has_error()} == {"1": exchange.MISMATCHED}


def test_bytes_are_those_of_the_serialised_messages():
    from flwr.common.serde import message_to_proto

    grid = Recording()
    sent = messages(grid, 5)
    run = Exchange(grid, sent, 10)
    received = list(run)
    assert run.bytes_down == sum(len(message_to_proto(m).SerializeToString()) for m in sent)
    assert run.bytes_up == sum(len(message_to_proto(m).SerializeToString()) for m in received)


def test_no_messages_are_no_replies():
    assert list(Exchange(Recording(), [], 10)) == []


def test_replies_are_handed_over_one_by_one():
    grid = Recording()
    replies = iter(Exchange(grid, messages(grid, 6), 10))
    next(replies)
    assert len(grid.flying) >= 2  # the others have not been pulled yet
    assert len(list(replies)) == 5


def test_our_error_codes_are_not_flowers():
    from flwr.common.constant import ErrorCode

    flowers = {value for name, value in vars(ErrorCode).items() if name.isupper()}
    assert not flowers & {exchange.UNDELIVERED, exchange.LATE, exchange.MISMATCHED}
    assert Error(exchange.LATE, "x").code == exchange.LATE

"""One exchange with many nodes: messages out, replies in as they come."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

from flwr.app import Error, Message
from flwr.serverapp import Grid

from strategies.wire import message_bytes

UNDELIVERED, LATE, MISMATCHED = 1_001, 1_002, 1_003  # our own error codes; Flower's are below 1,000

SHORTEST_POLL_S, LONGEST_POLL_S = 0.005, 0.5
# At most this share of the waiting time is spent on asking for replies. In a deployment asking takes time, and nodes on
# the same machine need the cores. And Flower keeps whoever asks while a reply is on its way waiting for a second.
ASKING_SHARE = 0.05


class Exchange:
    """Sends messages and iterates over exactly one reply to each.

    A node has one message in flight at a time, since two would race on its context: its next message is sent when the
    reply to the one before has come. A message that cannot be delivered, fails, or is not answered within `timeout_s`
    yields an error reply. A reply has the `group_id` of the message that it answers. Replies are handed over one by one
    and never collected, so that only one is in memory.
    """

    def __init__(self, grid: Grid, messages: Iterable[Message], timeout_s: float) -> None:
        self._grid = grid
        self._deadline = time.monotonic() + timeout_s
        self._waiting: defaultdict[int, deque[Message]] = defaultdict(deque)
        for message in messages:
            self._waiting[message.metadata.dst_node_id].append(message)
        self._flying: dict[str, Message] = {}
        self.bytes_up = 0
        self.bytes_down = 0
        self.send_s = 0.0
        self.wait_s = 0.0

    def __iter__(self) -> Iterator[Message]:
        yield from self._send(list(self._waiting))
        while self._flying and time.monotonic() < self._deadline:
            began = time.monotonic()
            replies = list(self._grid.pull_messages(list(self._flying)))
            if not replies:
                asked = time.monotonic()
                poll_s = max(SHORTEST_POLL_S, (asked - began) / ASKING_SHARE)
                time.sleep(max(0.0, min(poll_s, LONGEST_POLL_S, self._deadline - asked)))
            self.wait_s += time.monotonic() - began
            while replies:
                reply = replies.pop()  # released before the next is looked at
                sent = self._flying.pop(reply.metadata.reply_to_message_id)
                yield self._checked(reply, sent)
                del reply
                yield from self._send([sent.metadata.dst_node_id])
        yield from self._give_up()

    def _send(self, nodes: Iterable[int]) -> Iterator[Message]:
        began = time.monotonic()
        batch = [self._waiting[node].popleft() for node in nodes if self._waiting[node]]
        delivered = set(self._grid.push_messages(batch)) if batch else set()
        lost: list[Message] = []
        for message in batch:
            if message.metadata.message_id in delivered:
                self._flying[message.metadata.message_id] = message
                self.bytes_down += message_bytes(message)
            else:
                lost.append(message)
        self.send_s += time.monotonic() - began
        for message in lost:
            yield Message(Error(UNDELIVERED, "the message could not be delivered"), reply_to=message)
            yield from self._send([message.metadata.dst_node_id])

    def _checked(self, reply: Message, sent: Message) -> Message:
        if reply.has_error():
            # Flower's own error replies come from the SuperLink and do not say which node failed.
            return Message(Error(reply.error.code, reply.error.reason), reply_to=sent)
        self.bytes_up += message_bytes(reply)
        if reply.metadata.group_id != sent.metadata.group_id:
            return Message(Error(MISMATCHED, "the reply belongs to another exchange"), reply_to=sent)
        return reply

    def _give_up(self) -> Iterator[Message]:
        unanswered = [*self._flying.values(), *(m for queue in self._waiting.values() for m in queue)]
        self._flying.clear()
        self._waiting.clear()
        for message in unanswered:
            yield Message(Error(LATE, "no reply before the deadline"), reply_to=message)

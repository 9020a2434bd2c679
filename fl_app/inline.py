"""The inline engine: the same ServerApp and ClientApp in one process, without Ray, SuperLink or network.

For debugging, since a breakpoint works everywhere, and for tests, since a run takes milliseconds.
"""

from collections.abc import Iterable, Mapping
from itertools import count
from logging import WARNING
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1


class InlineGrid(Grid):
    """A Flower Grid whose nodes live in this process. A message is worked on when its reply is pulled.

    Each node has a context of its own, as Flower keeps one; a ClientApp that raises gives an error reply.
    """

    def __init__(self, client_app: ClientApp, run_config: Mapping[str, Any], nodes: int) -> None:
        # Messages take the identity of their sender from the process.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, SUPERLINK_NODE_ID
        self._client_app = client_app
        self._contexts = {
            SUPERLINK_NODE_ID + 1 + index: Context(
                run_id=RUN_ID,
                node_id=SUPERLINK_NODE_ID + 1 + index,
                node_config={"partition-id": index, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for index in range(nodes)
        }
        self._messages: dict[str, Message] = {}
        self._ids = count(1)
        self._run = Run.create_empty(RUN_ID)

    def set_run(self, run: Run) -> None:
        """Accepts any run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run of this grid."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes, all of them from the start."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; those to unknown nodes are not delivered."""
        delivered = []
        for message in messages:
            if message.metadata.dst_node_id in self._contexts:
                message.metadata.__dict__["_message_id"] = str(next(self._ids))
                self._messages[message.metadata.message_id] = message
                delivered.append(message.metadata.message_id)
        return delivered

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the first of these messages be worked on, and return the reply to it."""
        for message_id in message_ids:
            if message_id in self._messages:
                return [self._work(self._messages.pop(message_id))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies to all messages; `timeout` has nothing to wait for."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

    def _work(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower: whatever a ClientApp raises becomes an error reply
            log(WARNING, "the ClientApp raised", exc_info=error)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)

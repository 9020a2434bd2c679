"""Inline grids whose nodes are configured, listened to or cut off, for the tests that need them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message

from fl_app.inline import InlineGrid


def at_sites(*node_configs: Mapping[str, Any]) -> type[InlineGrid]:
    """A grid whose nodes have these configs."""

    class SitesGrid(InlineGrid):
        def __init__(self, app: Any, run_config: Mapping[str, Any], nodes: int) -> None:
            super().__init__(app, run_config, len(node_configs))
            for context, node_config in zip(self._contexts.values(), node_configs, strict=True):
                context.node_config = dict(node_config)

    return SitesGrid


def site(folder: Path, client: str, **others: Any) -> dict[str, Any]:
    """The config of a node with the file of a client, as `hospitals` writes it."""
    return {
        "client": client,
        "data": str(folder / f"{client}.csv"),
        "label": "outcome",
        "state": str(folder / "state"),
        **others,
    }


def recorded(grid: type[InlineGrid], seen: list[tuple[Message, Message]]) -> type[InlineGrid]:
    """The grid, which adds every message that reaches a node to `seen`, with the node's reply."""

    class Recorded(grid):  # type: ignore[misc, valid-type]  # mypy takes no variable as a base
        def _work(self, message: Message) -> Message:
            reply = super()._work(message)
            seen.append((message, reply))
            return reply

    return Recorded


def losing_a_reply(lost: list[str]) -> type[InlineGrid]:
    """A grid that loses the first reply to round 2's training, after the node has saved its clients' state.

    The group id of the message then stands in `lost`.
    """

    class Losing(InlineGrid):
        def _work(self, message: Message) -> Message:
            reply = super()._work(message)
            if message.metadata.group_id.startswith("train/2/") and not lost:
                lost.append(message.metadata.group_id)
                reply.metadata.__dict__["_group_id"] = "lost"
            return reply

    return Losing

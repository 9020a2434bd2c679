"""Which client lives on which node."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle


@dataclass(frozen=True, slots=True)
class Member:
    """A client as it enrolled."""

    client: str
    node: int
    num_examples: int


class Roster:
    """The clients that can be asked for work. `anywhere`: any node can work for any of them, as in a simulation."""

    def __init__(self, members: Iterable[Member], *, anywhere: bool = False) -> None:
        self._anywhere = anywhere
        self._members: Mapping[str, Member] = {m.client: m for m in sorted(members, key=lambda m: m.client)}

    @property
    def clients(self) -> tuple[str, ...]:
        """All client ids, sorted."""
        return tuple(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, client: object) -> bool:
        return client in self._members

    def __getitem__(self, client: str) -> Member:
        return self._members[client]

    def by_node(self, clients: Iterable[str]) -> dict[int, tuple[str, ...]]:
        """The given clients, in their order, grouped by the node that works for them.

        That is the one that hosts a client; where any can, each in turn: those drawn are rarely hosted evenly.
        """
        turn = cycle(sorted({member.node for member in self._members.values()}))
        groups: defaultdict[int, list[str]] = defaultdict(list)
        for client in clients:
            groups[next(turn) if self._anywhere else self._members[client].node].append(client)
        return {node: tuple(group) for node, group in groups.items()}

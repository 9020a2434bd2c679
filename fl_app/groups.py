"""Clients that are trained together, a group before the turn of its first."""

import time
from collections.abc import Callable, Sequence
from logging import WARNING

from flwr.common.logger import log

from fl_app.deadline import Worker
from tasks.base import Fit

LARGEST = 256  # clients: more gain nothing
MOST_BYTES = 2**28  # of results that wait for their turn
SHARE_OF_TIME = 0.125  # of what a group may take, as foreseen: it is given up when it takes eight times as long

Train = Callable[[Sequence[str]], Sequence[Fit | Exception]]


class Groups:
    """What `Task.fit_many` gives for the clients of an order, each at its turn.

    The first group is one client; the next ones are as large as the time that the one before took allows. That changes
    no bit of a result: `fit_many` promises so. A group that raises or overruns is given up, and its clients are trained
    one by one, each with a deadline of its own, so that a bad client costs its neighbours nothing but time.
    """

    def __init__(self, train: Train, clients: Sequence[str], bytes_per_client: int) -> None:
        self._train, self._clients = train, tuple(clients)
        self._largest = min(LARGEST, MOST_BYTES // max(1, bytes_per_client))
        self._begun = 0
        self._seconds_per_client = float("inf")
        self._trained: dict[str, Fit | Exception] = {}

    def prepare(self, client: str, worker: Worker, left_s: float) -> None:
        """Train the group that begins with `client`, in at most `left_s`; nothing where it was in an earlier one."""
        if self._clients[self._begun : self._begun + 1] != (client,):
            return
        foreseen = min(self._largest, int(SHARE_OF_TIME * left_s / max(self._seconds_per_client, 1e-6)))
        group = self._clients[self._begun : self._begun + max(1, foreseen)]
        self._begun += len(group)
        began = time.monotonic()
        try:
            results = worker.call(lambda: self._train(group), left_s)
            self._trained.update(zip(group, results, strict=True))
        except Exception as error:  # of one of them, or of all; each is tried alone
            if len(group) == 1:
                self._trained[client] = error
            else:  # not how many: the size of a cohort may be secret
                log(WARNING, "clients are trained one by one: %s: %s", type(error).__name__, error)
        self._seconds_per_client = (time.monotonic() - began) / len(group)

    def take(self, client: str) -> Fit:
        """What fit of this client returned, trained now where its group was given up; or raises what it raised."""
        result = self._trained.pop(client) if client in self._trained else self._train((client,))[0]
        if isinstance(result, Exception):
            raise result
        return result

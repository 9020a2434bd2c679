"""Small runs that promise privacy, and a recorder of all that crosses the boundary between server and nodes."""

import json
import logging
import os
import random
from contextlib import contextmanager

from runs import run

from fl_app.inline import InlineGrid
from privacy.accounting import Release, Sampling, spent
from privacy.ledger import Ledger

SMALL = {
    "data": "synthetic",
    "data_args": "features=4 classes=2 examples=30",
    "num_clients": 12,
    "clients_per_round": 4,
    "rounds": 4,
    "min_clients": 1,
    "local_epochs": 1,
    "batch_size": 8,
}

SCHEMA = {
    "label": "outcome",
    "classes": ["alive", "dead"],
    "features": [
        {"name": "age", "range": [18, 100]},
        {"name": "dose", "mean": 1e-3, "scale": 4e-4},
        {"name": "smoker", "kind": "boolean"},
        {"name": "stage", "categories": ["I", "II", "III"]},
    ],
}
"""Columns of patients, with ranges for the numbers, as a run can declare them."""

POISSON, ALL = Sampling("poisson", 4 / 12), Sampling("none")

# name -> strategy, strategy-args, and what `rounds` rounds of it release: relation, noise, sampling, how often
PRIVATE = {
    "dp-fedavg": ("dp-fedavg", "noise-multiplier=1.5", "add-remove", 1.5, POISSON, lambda rounds: rounds),
    "dp-fedavg fixed": (
        "dp-fedavg",
        "noise-multiplier=3 sampling=fixed delta=1e-4",
        "replace-one",
        3.0,
        Sampling("fixed", size=4, population=12),
        lambda rounds: rounds,
    ),
    "dp-fedavg none": ("dp-fedavg", "noise-multiplier=4 sampling=none", "add-remove", 4.0, ALL, lambda rounds: rounds),
    "dp-fedavg-adaptive": (
        "dp-fedavg-adaptive",
        "noise-multiplier=2",
        "add-remove",
        2.0,
        POISSON,
        lambda rounds: rounds,
    ),
    "compressed-dp-fedavg": (
        "compressed-dp-fedavg",
        "noise-multiplier=1.5 top-k=0.5 bits=8",
        "add-remove",
        1.5,
        POISSON,
        lambda rounds: rounds,
    ),
    "dp-ftrl": ("dp-ftrl", "noise-multiplier=2", "add-remove", 2.0, ALL, lambda rounds: -(-rounds // 3)),
    "local-dp-fedavg": ("local-dp-fedavg", "noise-multiplier=5", "replace-one", 5.0, ALL, lambda rounds: rounds),
}
FOUR = ["dp-fedavg", "dp-fedavg-adaptive", "dp-ftrl", "local-dp-fedavg"]


def private_run(out, name="dp-fedavg", args="", **keys):
    """One run: its summary and its folder. `args` comes behind the arguments of PRIVATE, or stands for them."""
    strategy, usual = PRIVATE[name][:2]
    return run(out, **{**SMALL, "strategy": strategy, "strategy_args": args or usual, **keys})


def costs(name, rounds, delta=None):
    """What that many rounds of PRIVATE[name] cost, by privacy.accounting called directly."""
    _, args, relation, noise, sampling, count = PRIVATE[name]
    delta = delta or (1e-4 if "delta=1e-4" in args else 1e-5)
    return spent([Release("any", noise, sampling, count(rounds))], relation, delta)


def lines(folder):
    """The lines of rounds.jsonl."""
    return [json.loads(line) for line in folder.rounds.read_text().splitlines()]


def entries(folder):
    """The rounds of the ledger's entries."""
    return [entry.round for entry in Ledger.read(folder.ledger).entries]


def foreseen(monkeypatch, seed=0):
    """The operating system's entropy, here: bytes that repeat."""
    repeating = random.Random(seed).randbytes
    monkeypatch.setattr(os, "urandom", repeating)  # noise: privacy.entropy
    monkeypatch.setattr(random, "_urandom", repeating)  # cohorts: random.SystemRandom


class Exchanged:
    """What a recording grid has seen: pairs of a message and its reply, in order."""

    def __init__(self):
        self.pairs = []
        self.at_node = False

    @property
    def grid(self):
        """A grid that records here."""
        exchanged = self

        class Recording(InlineGrid):
            def _work(self, message):
                exchanged.at_node = True
                try:
                    reply = super()._work(message)
                finally:
                    exchanged.at_node = False
                exchanged.pairs.append((message, reply))
                return reply

        return Recording

    def of(self, kind):
        """The pairs of one kind of messages."""
        return [pair for pair in self.pairs if pair[0].metadata.message_type == kind]

    def asked(self):
        """{round: the clients that were asked to train}."""
        found = {}
        for message, _ in self.of("train"):
            order = message.content["order"]
            found.setdefault(order["round"], []).extend(order["clients"])
        return {number: sorted(clients) for number, clients in found.items()}

    @contextmanager
    def server_log(self):
        """The records that are logged inside the block while no node is at work."""
        records = []

        class Keep(logging.Handler):
            def emit(handler, record):  # noqa: N805
                if not self.at_node:
                    records.append(record)

        handler, flower = Keep(), logging.getLogger("flwr")
        level = flower.level  # a run by the command line in this process may have quietened it
        flower.addHandler(handler)
        flower.setLevel(logging.INFO)
        try:
            yield records
        finally:
            flower.setLevel(level)
            flower.removeHandler(handler)


class Crash(BaseException):
    """The process dies."""


def crashing_in(round_):
    """A grid on which the server dies while this round's messages are out."""

    class Crashing(InlineGrid):
        def _work(self, message):
            if message.metadata.message_type == "train" and message.content["order"]["round"] == round_:
                raise Crash
            return super()._work(message)

    return Crashing

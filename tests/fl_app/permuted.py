"""Clients that agree on what they see and not on what to call it: one model cannot suit all of them."""

from dataclasses import replace

import numpy as np
from torch import nn

from tasks.data.base import PartitionedTable, TableDataset
from tasks.data.table import Columns, Feature, Table

CLASSES = ("red", "green", "blue")


class PermutedSource(PartitionedTable):
    """Client n calls class k by the name of class k + n, and measures everything n higher."""

    def _divide(self, client):
        division = super()._divide(client)
        turn = int(client)
        return replace(
            division, train=_turned(division.train, turn, self._shift), test=_turned(division.test, turn, self._shift)
        )

    _shift = 0.0


class ShiftedSource(PermutedSource):
    """And measures everything higher."""

    _shift = 1.0


class Permuted(TableDataset):
    """Three clouds of points in the plane."""

    source = PermutedSource

    def table(self):
        rng = np.random.default_rng(0)
        y = np.arange(360) % 3
        angle = 2 * np.pi * y / 3
        x = np.column_stack([np.cos(angle), np.sin(angle)]) * 2 + rng.normal(scale=0.5, size=(360, 2))
        return Table(x, y, Columns((Feature("a"), Feature("b")), "colour", CLASSES))

    def open(self, split):
        return self.source(self.table(), split)


class Shifted(Permuted):
    """The same, each client's elsewhere."""

    source = ShiftedSource


def net(features, outputs):
    """A network with normalisation."""
    return nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, outputs))


def _turned(table, turn, shift):
    return replace(table, x=table.x + shift * turn, y=(table.y + turn) % 3)

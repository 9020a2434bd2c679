"""Training many clients of a node at once: what all ways of doing so have in common.

A client's result must not depend on who is trained beside it, to the bit. So clients share steps and Python's overhead,
never a product of matrices: `np.matmul` on stacks of matrices calls BLAS for each of them in turn, with the same shapes
and so the same order of additions whatever the length of the stack. `torch.bmm` does not keep that promise: MKL takes
other paths for a stack of one and for other alignments.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays, Fit, Rows, Scalar, Shard, Task
from tasks.fit_config import FitConfig

Array = NDArray[Any]
Trained = Arrays | Exception
Train = Callable[[Sequence[Rows], Sequence[int]], Sequence[Trained]]
Batch = Array | slice

CACHE_BYTES = 2**21
"""What a block of clients works on at a time: twice the second-level cache of a core, measured."""
MAX_BLOCK = 64


class Scratch:
    """Memory for one array after the other: fresh pages cost a small model more than its arithmetic."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array with whatever is there; it takes the memory of the one before."""
        size = dtype.itemsize * math.prod(shape)
        if size > self._bytes.size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)


def fit_in_blocks(
    task: Task,
    params: Arrays,
    shards: Sequence[Shard],
    seeds: Sequence[int],
    config: FitConfig,
    train: Train,
    *,
    cached: bool = True,
) -> list[Fit | Exception]:
    """What `Task.fit_many` returns, from a function that trains a block of clients which have rows.

    Clients with similar numbers of rows come into one block, since they do the same steps; a block is as large as the
    cache allows, or without `cached` all that there are.
    """
    if config.record is not None:
        raise ValueError("clients with record-level privacy are trained one at a time: call fit of each")
    outcomes: list[Fit | Exception] = [RuntimeError("not trained")] * len(shards)
    metrics: dict[int, dict[str, Scalar]] = {}
    for index, shard in enumerate(shards):
        try:
            task.make_client(shard)  # refuses rows that do not fit
            if not len(shard.train):
                raise ValueError(f"client {shard.client!r} has no training rows: give it data or leave it out")
            metrics[index] = {**task.measure(params, shard.test)} if config.metrics else {}
        except Exception as error:  # of this client alone
            outcomes[index] = error
    waiting = sorted(metrics, key=lambda index: len(shards[index].train))
    for block in _blocks(waiting, params, shards, config) if cached else [waiting]:
        results = train([shards[index].train for index in block], [seeds[index] for index in block])
        for index, result in zip(block, results, strict=True):
            if isinstance(result, Exception):
                outcomes[index] = result
            else:
                outcomes[index] = list(result), len(shards[index].train), metrics[index]
    return outcomes


def _blocks(waiting: Sequence[int], params: Arrays, shards: Sequence[Shard], config: FitConfig) -> Iterator[list[int]]:
    """Runs of `waiting`, whose clients have ever more rows."""
    model = 2 * sum(array.nbytes for array in params)  # and its gradient
    block: list[int] = []
    for index in waiting:
        x = shards[index].train.x
        needed = model + params[0].itemsize * x.shape[1] * batch_rows(config, len(x))
        if block and (len(block) == MAX_BLOCK or (len(block) + 1) * needed > CACHE_BYTES):
            yield block
            block = []
        block.append(index)
    if block:
        yield block


def batch_rows(config: FitConfig, num_rows: int) -> int:
    """How many of a client's rows a step takes, if not the last one of an epoch."""
    return num_rows if config.solver == "gd" else min(config.batch_size or num_rows, num_rows)


def side_by_side(
    xs: Sequence[Array], ys: Sequence[Array], batches: Sequence[Iterator[Batch]], scratch: Scratch
) -> Iterator[tuple[slice, Array, Array]]:
    """The steps of a block of clients, in which neighbours whose batches have one size go together.

    xs: (n_i, d) each, ys: (n_i,). `batches`: the rows of a client's steps, as `solvers.batches` gives them, none larger
    than the first. Yields which clients step, their x (c, m, d), which the next step may overwrite, and their y (c, m).
    """
    buffer: Array | None = None
    while True:
        picked = [next(stream, None) for stream in batches]
        sizes = [_size(rows, len(y)) for rows, y in zip(picked, ys, strict=True)]
        if not any(sizes):
            return
        first = buffer is None
        if buffer is None:
            shape = (len(xs), max(sizes), xs[0].shape[1])
            buffer = xs[0][None] if _whole(picked) else scratch.empty(shape, xs[0].dtype)
        for size, run in groupby(range(len(xs)), key=sizes.__getitem__):
            clients = list(run)
            if not size:
                continue
            for index in clients:
                rows = picked[index]
                if isinstance(rows, np.ndarray):
                    xs[index].take(rows, axis=0, out=buffer[index, :size], mode="clip")
                elif first and len(xs) > 1:  # the whole shard, in every step
                    buffer[index, :size] = xs[index]
            which = slice(clients[0], clients[-1] + 1)
            yield which, buffer[which, :size], np.stack([ys[index][picked[index]] for index in clients])


def _whole(picked: Sequence[Batch | None]) -> bool:
    """Whether there is one client, which takes all of its rows: they need not be copied."""
    return len(picked) == 1 and isinstance(picked[0], slice)


def _size(rows: Batch | None, num_rows: int) -> int:
    if rows is None:
        return 0
    return num_rows if isinstance(rows, slice) else len(rows)

"""Compression of the model on its way down: clients train from a reconstruction, which they follow in encoded steps.

Let x be the server's params and r the reconstruction that clients hold. Before a round the server encodes the step
x - r, decodes it as every node will, and adds it: r <- r + decode(encode(x - r)). What the encoding lost is part of the
next x - r: this is error feedback at the server. All clients of a round train from the same r, also those that missed
rounds before: a node that holds an earlier r is sent the steps since then where these are smaller than the model, else
the model.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from strategies import wire
from strategies.sampling import derive_seed
from strategies.transform import Opens, Pipeline, Round
from strategies.update import Arrays, FixedPoint, InvalidUpdate, Update
from strategies.wire import ModelRecords, Sent, Step
from strategies.work import check_template, template_of

MOST_STEPS = 8
NO_GRID = FixedPoint(0)


def model_sha256(arrays: Arrays) -> str:
    """Of the bytes of the arrays, little-endian, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class StepCodec:
    """Encodes and decodes steps by a pipeline, whose transforms can be opened without a sum and keep no state.

    Raises ValueError for another pipeline.
    """

    pipeline: Pipeline

    def __post_init__(self) -> None:
        for transform in self.pipeline.transforms:
            if transform.opens is Opens.SUM or transform.num_state_arrays or transform.num_server_arrays:
                raise ValueError(f"{type(transform).__name__} cannot encode the way down, where there is no sum")

    def encode(self, step: Arrays, number: int, seed: int) -> Step:
        """One step as it is sent."""
        info = self._round(number, derive_seed(seed, "down", number), step)
        info = replace(info, public=self.pipeline.announce((), info))
        update, _ = self.pipeline.encode(Update(step, ()), (), info)
        return Step(number, update.arrays, tuple(info.public.items()))

    def apply(self, model: Arrays, step: Step) -> Arrays:
        """The reconstruction after a step, in the dtypes of the model. Raises InvalidUpdate for what is no step."""
        info = replace(self._round(step.round, 0, model), public=dict(step.public))
        update = self.pipeline.decode(Update(step.arrays, ()), info)
        check_template(update.arrays, template_of(model))
        return tuple(np.asarray(old + new) for old, new in zip(model, update.arrays, strict=True))

    def _round(self, number: int, seed: int, like: Arrays) -> Round:
        return Round(number, seed, NO_GRID, template=template_of(like))


@dataclass
class Downlink:
    """The server's side in one run: the last steps, and for each node the round whose reconstruction it holds.

    Nothing of this has to survive a restart: every node is then sent the model once.
    """

    codec: StepCodec
    seed: int
    _steps: deque[Step] = field(default_factory=lambda: deque(maxlen=MOST_STEPS))
    _held: dict[int | str, int] = field(default_factory=dict)  # node or client -> the round whose reconstruction it has
    _current: Sent | None = None
    _records: dict[int, ModelRecords] = field(default_factory=dict)

    def advance(self, number: int, params: Arrays, reconstruction: Arrays) -> Arrays:
        """The reconstruction that clients train from in round `number`; the params themselves in the first."""
        if not reconstruction:
            after = params
            self._steps.clear()
        else:
            missing = tuple(np.asarray(x - r) for x, r in zip(params, reconstruction, strict=True))
            step = self.codec.encode(missing, number, self.seed)
            after = self.codec.apply(reconstruction, step)
            self._steps.append(step)
        self._current = Sent(number, model_sha256(after), model=after)
        self._records.clear()
        return after

    def for_holder(self, holder: int | str) -> Sent:
        """What is to be sent in this round to a node (int), or to a client (str) if it had a node of its own."""
        if self._current is None:
            raise RuntimeError("no round has begun: advance comes first")
        held = self._held.get(holder)
        if held is None:
            return self._current
        missed = tuple(step for step in self._steps if step.round > held)
        follows = [step.round for step in missed] == list(range(held + 1, self._current.round + 1))
        if not follows or sum(step.size for step in missed) >= self._current.size:
            return self._current
        return replace(self._current, model=(), since=held, steps=missed)

    def records(self, node: int) -> ModelRecords:
        """For the messages to a node."""
        sent = self.for_holder(node)
        key = sent.since if not sent.model else -1
        if key not in self._records:
            self._records[key] = wire.model_records(sent)
        return self._records[key]

    def bytes_for(self, client: str) -> int:
        """How many bytes of the model a client takes, as if it had a node of its own."""
        return self.for_holder(client).size

    def settle(self, following: Iterable[int], lost: Iterable[int], clients: Iterable[str]) -> None:
        """Note who holds the reconstruction of this round once the answers are in.

        `following` are nodes that have it, `lost` nodes that could not decode it, `clients` those whose updates were
        good.
        """
        if self._current is None:
            raise RuntimeError("no round has begun: advance comes first")
        self._held.update(dict.fromkeys((*following, *clients), self._current.round))
        for node in lost:
            self._held.pop(node, None)


def follow(codec: StepCodec, sent: Sent, held: Arrays, held_round: int) -> Arrays:
    """The node's side: the reconstruction of `sent.round`, from a whole model or by steps from the one that it holds.

    A node may be further than the server knows, where its reply was lost; it then skips the steps that it has taken.
    Raises InvalidUpdate("decode") where the steps do not lead to the model that the server meant.
    """
    model = sent.model
    if not model:
        if not held or not sent.since <= held_round <= sent.round:
            raise InvalidUpdate("decode", f"steps from round {sent.since} on, while round {held_round} is held")
        model = held
        for step in _after(sent.steps, held_round):
            model = codec.apply(model, step)
    if model_sha256(model) != sent.sha256:
        raise InvalidUpdate("decode", "the model that the steps lead to is another one than the server's")
    return model


def _after(steps: Iterable[Step], number: int) -> Iterator[Step]:
    return (step for step in steps if step.round > number)

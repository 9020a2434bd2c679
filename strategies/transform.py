"""Steps on the way of an update from client to server, and the rules by which they chain.

A transform holds both halves of one mechanism (clipping, noise, compression, masking): `encode` runs at the client,
`decode_each` or `decode_sum` at the server. A pipeline applies its transforms left to right at the client and right to
left at the server. `chain` refuses an order that cannot be right, when it is built and not in round 1.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import accumulate
from types import MappingProxyType
from typing import ClassVar

from strategies.protection import Protection
from strategies.update import Arrays, FixedPoint, Template, Update

ANY_NUMBER_OF_EXAMPLES = 2**62

Public = Mapping[str, bool | int | float | str | bytes]


class Opens(Enum):
    """Where the server half of a transform can act."""

    EACH = "each reply"
    SUM = "the sum"
    EITHER = "each reply or the sum"


class Domain(Enum):
    """What the arrays of an update are."""

    REAL = "real numbers"
    RING = "integers modulo 2**64"
    CIPHER = "ciphertexts"


@dataclass(frozen=True, slots=True)
class Round:
    """What both halves of a transform may know of a round.

    `seed` is derived: at the client from (run seed, round, client), at the server from (run seed, round). `template`:
    shapes and dtypes of the arrays that a step's `encode` takes, and that its server half has to give back.
    """

    number: int
    seed: int
    grid: FixedPoint
    public: Public = field(default_factory=lambda: MappingProxyType({}))
    template: Template = ()


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """Gaussian noise that a transform adds: the L2 sensitivity it is made for, and the promise that it keeps."""

    sensitivity: float
    protection: Protection

    @property
    def stddev(self) -> float:
        """Of the noise in every element. Only where the noise is known: not at a node (see `Protection`)."""
        return self.sensitivity * self.protection.noise_multiplier


class Transform(ABC):  # noqa: B024  (every method has a meaningful default: the identity)
    """One step on the update path. Subclasses are frozen: state is passed in and out."""

    opens: ClassVar[Opens] = Opens.EITHER
    takes: ClassVar[Domain] = Domain.REAL
    gives: ClassVar[Domain] = Domain.REAL
    num_state_arrays: ClassVar[int] = 0
    num_server_arrays: ClassVar[int] = 0

    def begin(self) -> Arrays:
        """The server's state before the first round: `num_server_arrays` arrays."""
        return ()

    def kept(self, state: Arrays) -> Arrays:
        """What of the server's state a checkpoint holds, and an interrupted run goes on with."""
        return state

    def announce(self, state: Arrays, round: Round) -> Public:
        """What the server tells every client of the round in the clear; `state` is the server's."""
        return {}

    def encodes(self, template: Template) -> Template:
        """Shapes and dtypes of what `encode` makes of arrays with this template; the largest, where they vary."""
        return template

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """The client half: what goes on towards the wire, and the client's next state.

        `state` has `num_state_arrays` arrays, or none before the client's first update that was used.
        """
        return update, state

    def decode_each(self, update: Update, round: Round) -> Update:
        """The server half on one client's update. Raises InvalidUpdate("decode") for what is no encoding."""
        return update

    def limit(self, update: Update, round: Round) -> Update:
        """What of a received update, one client's or a sum of several, the server lets into the round's sum.

        A step whose `encode` keeps a bound at honest clients enforces it here again, for all. The arrays are those
        whose sum `decode_sum` gets. Raises InvalidUpdate where the update cannot be brought within the bound.
        """
        return update

    def exceeds(self, update: Update, round: Round) -> bool:
        """Whether an update that came is beyond the bound of honest clients, so that `limit` has to change it."""
        return False

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """The server half on the exact sum of the round, and the server's next state."""
        return total, state

    def settle(self, params: Arrays, state: Arrays, round: Round) -> tuple[Arrays, Arrays]:
        """Change the params after the server's step, as pruning does; and the server's next state."""
        return params, state

    def headroom(self) -> float:
        """How far `decode_sum` may move an element of the sum, by noise. The grid of the sum leaves room for it."""
        return 0.0

    def max_weight(self, num_examples: int, before: int) -> int:
        """The largest weight of a client with `num_examples` rows after this step, given the largest before it."""
        return before

    def bound(self, before: float | None) -> float | None:
        """L2 bound on one client's contribution after this step, given the bound before it; None = unbounded."""
        return before

    def privacy_event(self) -> PrivacyEvent | None:
        """The noise this step adds, if any."""
        return None

    def chooses(self) -> bool:
        """Whether it sends some coordinates of an update only."""
        return False

    def tells_length(self) -> bool:
        """Whether the length of what it sends depends on the values in it, and so tells something of them."""
        return False


class IllegalChain(ValueError):
    """Transforms, or other parts of a strategy, that cannot work together in this order."""


@dataclass(frozen=True)
class Pipeline:
    """Transforms in order: left = nearest the model, right = nearest the wire. Built by `chain`."""

    transforms: tuple[Transform, ...] = ()

    @property
    def gives(self) -> Domain:
        """What the arrays that travel are."""
        return self.transforms[-1].gives if self.transforms else Domain.REAL

    @property
    def sensitivity(self) -> float | None:
        """By how much (L2) one client may move the sum, where a step adds noise to the sum; None where none does."""
        noisy = (t.privacy_event() for t in self.transforms if t.opens is Opens.SUM)
        return next((event.sensitivity for event in noisy if event is not None), None)

    @property
    def protection(self) -> Protection | None:
        """The promise that the noise of a step keeps, if one adds noise."""
        events = (t.privacy_event() for t in self.transforms)
        return next((event.protection for event in events if event is not None), None)

    @property
    def seals(self) -> bool:
        """Whether the server learns the sum only, never one client's update."""
        return any(t.opens is Opens.SUM and t.privacy_event() is None for t in self.transforms)

    @property
    def opens_sum(self) -> bool:
        """Whether a step is undone on the sum only: a single update, as it is received, is then no contribution yet."""
        return any(type(t).decode_sum is not Transform.decode_sum for t in self.transforms[: self._first_each])

    @property
    def stateful(self) -> bool:
        """Whether clients keep state between rounds."""
        return any(t.num_state_arrays for t in self.transforms)

    @property
    def _first_each(self) -> int:
        """The index of the first transform that is opened reply by reply; those to its left are opened on the sum."""
        each = (i for i, t in enumerate(self.transforms) if t.opens is Opens.EACH)
        return next(each, len(self.transforms))

    def begin(self) -> Arrays:
        """The server's state before the first round: that of the steps, one after the other."""
        return tuple(array for transform in self.transforms for array in transform.begin())

    def kept(self, state: Arrays) -> Arrays:
        """What of the server's state a checkpoint holds, and an interrupted run goes on with."""
        states = zip(self.transforms, self._server_states(state), strict=True)
        return tuple(array for transform, own in states for array in transform.kept(own))

    def announce(self, state: Arrays, round: Round) -> Public:
        """The public material of all steps. Raises IllegalChain when two steps announce one name."""
        public: dict[str, bool | int | float | str | bytes] = {}
        for transform, own in zip(self.transforms, self._server_states(state), strict=True):
            for name, value in transform.announce(own, round).items():
                if name in public:
                    raise IllegalChain(f"two steps announce {name!r}; the second is {_name(transform)}")
                public[name] = value
        return public

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Left to right; `state` is the concatenation of the steps' states."""
        kept: list[Arrays] = []
        for transform, template in zip(self.transforms, self._templates(round), strict=True):
            own = state[: transform.num_state_arrays]
            state = state[transform.num_state_arrays :]
            update, own = transform.encode(update, own, replace(round, template=template))
            kept.append(own)
        return update, tuple(array for own in kept for array in own)

    def encodes(self, template: Template) -> Template:
        """Shapes and dtypes of what travels."""
        return self._through(self.transforms, template)

    def opened(self, template: Template) -> Template:
        """Shapes and dtypes of what is added up, after `decode_each`."""
        return self._through(self.transforms[: self._first_each], template)

    def decode_each(self, update: Update, round: Round) -> Update:
        """Right to left, the steps that are opened reply by reply."""
        return self._decoded(update, round, self._first_each)

    def decode(self, update: Update, round: Round) -> Update:
        """Right to left, all steps: for what is not going to be summed."""
        return self._decoded(update, round, 0)

    def limit(self, update: Update, round: Round) -> Update:
        """Right to left, the steps that are opened on the sum, on what is about to enter it."""
        for transform in reversed(self.transforms[: self._first_each]):
            update = transform.limit(update, round)
        return update

    def exceeds(self, update: Update, round: Round) -> bool:
        """Whether an update is longer than honest clients' can be.

        Always False where a step is opened reply by reply: a lossy code may lengthen what an honest client has clipped.
        """
        return self._first_each == len(self.transforms) and any(t.exceeds(update, round) for t in self.transforms)

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Right to left, the steps that are opened on the sum; and the server's next state."""
        states, templates = self._server_states(state), self._templates(round)
        for index in reversed(range(self._first_each)):
            own = replace(round, template=templates[index])
            total, states[index] = self.transforms[index].decode_sum(total, states[index], own)
        return total, tuple(array for own in states for array in own)

    def settle(self, params: Arrays, state: Arrays, round: Round) -> tuple[Arrays, Arrays]:
        """The params after the server's step, changed by each step from left to right; and the server's next state."""
        states = self._server_states(state)
        for index, transform in enumerate(self.transforms):
            params, states[index] = transform.settle(params, states[index], round)
        return params, tuple(array for own in states for array in own)

    @property
    def headroom(self) -> float:
        """How far opening may move an element of the sum."""
        return sum(transform.headroom() for transform in self.transforms)

    def _server_states(self, state: Arrays) -> list[Arrays]:
        ends = accumulate(transform.num_server_arrays for transform in self.transforms)
        return [state[end - t.num_server_arrays : end] for t, end in zip(self.transforms, ends, strict=True)]

    def _decoded(self, update: Update, round: Round, first: int) -> Update:
        templates = self._templates(round)
        for index in reversed(range(first, len(self.transforms))):
            update = self.transforms[index].decode_each(update, replace(round, template=templates[index]))
        return update

    def _templates(self, round: Round) -> list[Template]:
        """What each step takes, given what the first does."""
        found = [round.template]
        for transform in self.transforms:
            found.append(transform.encodes(found[-1]))
        return found[:-1]

    @staticmethod
    def _through(transforms: Sequence[Transform], template: Template) -> Template:
        for transform in transforms:
            template = transform.encodes(template)
        return template

    def max_weight(self, num_examples: int) -> int:
        """The largest weight of a client with `num_examples` rows."""
        weight = 1
        for transform in self.transforms:
            weight = transform.max_weight(num_examples, weight)
        return weight


def chain(*parts: Transform | Pipeline) -> Pipeline:
    """Join transforms and pipelines into one pipeline. Associative; the empty chain is the identity.

    Raises IllegalChain, naming both steps, when neighbouring domains differ, when a step that must be opened reply by
    reply stands left of one that acts on the sum, when noise is made for less than the bound that holds before it (or
    nothing bounds a contribution before it), when two steps add noise, when noise on the sum would fall on chosen
    coordinates only, and when weights or lengths tell what noise is to hide.
    """
    steps: list[Transform] = []
    for part in parts:
        steps.extend(part.transforms if isinstance(part, Pipeline) else [part])
    _check_domains(steps)
    _check_opening(steps)
    _check_noise(steps)
    return Pipeline(tuple(steps))


def _name(transform: Transform) -> str:
    return type(transform).__name__


def _check_domains(steps: Sequence[Transform]) -> None:
    gives, giver = Domain.REAL, "the client"
    for step in steps:
        if step.takes is not gives:
            raise IllegalChain(f"{giver} gives {gives.value}, but {_name(step)} to its right takes {step.takes.value}")
        gives, giver = step.gives, _name(step)


def _check_opening(steps: Sequence[Transform]) -> None:
    for i, left in enumerate(steps):
        for right in steps[i + 1 :]:
            if left.opens is Opens.EACH and right.opens is Opens.SUM:
                raise IllegalChain(
                    f"{_name(left)} must be opened reply by reply, but {_name(right)} to its right"
                    f" leaves only the sum: put {_name(right)} to the left of {_name(left)}"
                )


def _check_noise(steps: Sequence[Transform]) -> None:
    bound: float | None = None
    bounded_by = ""
    noisy = [step for step in steps if step.privacy_event() is not None]
    if len(noisy) > 1:
        raise IllegalChain(f"{_name(noisy[0])} and {_name(noisy[1])} both add noise: one promise, one of them")
    for step in steps:
        event = step.privacy_event()
        if event is not None and bound is None:
            raise IllegalChain(f"{_name(step)} adds noise, but nothing to its left bounds a client: clip first")
        if event is not None and bound is not None and event.sensitivity < bound:
            raise IllegalChain(
                f"{_name(step)} makes noise for a sensitivity of {event.sensitivity:g}, but after {bounded_by}"
                f" one client can contribute {bound:g}: clip more, or raise the noise"
            )
        after = step.bound(bound)
        if after != bound:
            bound, bounded_by = after, _name(step)
    for step in steps[: steps.index(noisy[0])] if noisy else ():
        if step.chooses() and noisy[0].opens is Opens.SUM:
            raise IllegalChain(
                f"{_name(step)} sends some coordinates only, and {_name(noisy[0])} to its right would leave the others"
                f" without noise: put {_name(noisy[0])} to the left of {_name(step)}"
            )
    for step in steps:
        if noisy and step.tells_length():
            raise IllegalChain(
                f"{_name(step)} sends what is longer or shorter by what it holds, which"
                f" {_name(noisy[0])} does not hide: pad it"
            )
        if noisy and step.max_weight(ANY_NUMBER_OF_EXAMPLES, 1) > 1:
            raise IllegalChain(
                f"{_name(step)} weighs clients by counts of rows, which {_name(noisy[0])} does not hide: use"
                " BoundedWeights, which scales what a client sends"
            )

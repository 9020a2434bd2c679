"""Steps on the way of an update from client to server, and the rules by which they chain.

A transform holds both halves of one mechanism (clipping, noise, compression, masking): `encode` runs at the client,
`decode_each` or `decode_sum` at the server. A pipeline applies its transforms left to right at the client and right to
left at the server. `chain` refuses an order that cannot be right, when it is built and not in round 1.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import ClassVar

from strategies.update import Arrays, FixedPoint, Update

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

    `seed` is derived: at the client from (run seed, round, client), at the server from (run seed, round).
    """

    number: int
    seed: int
    grid: FixedPoint
    public: Public = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """Gaussian noise that a transform adds: its standard deviation, and the L2 sensitivity it is made for."""

    stddev: float
    sensitivity: float


class Transform(ABC):  # noqa: B024  (every method has a meaningful default: the identity)
    """One step on the update path. Subclasses are frozen: state is passed in and out."""

    opens: ClassVar[Opens] = Opens.EITHER
    takes: ClassVar[Domain] = Domain.REAL
    gives: ClassVar[Domain] = Domain.REAL
    num_state_arrays: ClassVar[int] = 0

    def announce(self, round: Round) -> Public:
        """Public material that the server sends to every client of the round."""
        return {}

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """The client half: what goes on towards the wire, and the client's next state.

        `state` has `num_state_arrays` arrays, or none before the client's first update that was used.
        """
        return update, state

    def decode_each(self, update: Update, round: Round) -> Update:
        """The server half on one client's update. Raises InvalidUpdate("decode") for what is no encoding."""
        return update

    def decode_sum(self, total: Update, round: Round) -> Update:
        """The server half on the exact sum of the round."""
        return total

    def max_weight(self, num_examples: int, before: int) -> int:
        """The largest weight of a client with `num_examples` rows after this step, given the largest before it."""
        return before

    def bound(self, before: float | None) -> float | None:
        """L2 bound on one client's contribution after this step, given the bound before it; None = unbounded."""
        return before

    def privacy_event(self) -> PrivacyEvent | None:
        """The noise this step adds, if any."""
        return None


class IllegalChain(ValueError):
    """A chain of transforms that cannot be right in this order."""


@dataclass(frozen=True)
class Pipeline:
    """Transforms in order: left = nearest the model, right = nearest the wire. Built by `chain`."""

    transforms: tuple[Transform, ...] = ()

    @property
    def gives(self) -> Domain:
        """What travels."""
        return self.transforms[-1].gives if self.transforms else Domain.REAL

    @property
    def noised_sum(self) -> bool:
        """Whether a step adds noise to the sum."""
        return any(t.privacy_event() is not None and t.opens is Opens.SUM for t in self.transforms)

    @property
    def private(self) -> bool:
        """Whether a step makes what a client sends, or the sum, private: nothing else may then be asked of it."""
        return any(t.privacy_event() is not None for t in self.transforms)

    @property
    def seals(self) -> bool:
        """Whether the server learns the sum only, never one client's update."""
        return any(t.opens is Opens.SUM and t.privacy_event() is None for t in self.transforms)

    @property
    def stateful(self) -> bool:
        """Whether clients keep state between rounds."""
        return any(t.num_state_arrays for t in self.transforms)

    @property
    def _first_each(self) -> int:
        """From here to the right everything is opened reply by reply; to the left, on the sum."""
        each = (i for i, t in enumerate(self.transforms) if t.opens is Opens.EACH)
        return next(each, len(self.transforms))

    def announce(self, round: Round) -> Public:
        """The public material of all steps. Raises IllegalChain when two steps announce one name."""
        public: dict[str, bool | int | float | str | bytes] = {}
        for transform in self.transforms:
            for name, value in transform.announce(round).items():
                if name in public:
                    raise IllegalChain(f"two steps announce {name!r}; the second is {_name(transform)}")
                public[name] = value
        return public

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Left to right; `state` is the concatenation of the steps' states."""
        kept: list[Arrays] = []
        for transform in self.transforms:
            own = state[: transform.num_state_arrays]
            state = state[transform.num_state_arrays :]
            update, own = transform.encode(update, own, round)
            kept.append(own)
        return update, tuple(array for own in kept for array in own)

    def decode_each(self, update: Update, round: Round) -> Update:
        """Right to left, the steps that are opened reply by reply."""
        for transform in reversed(self.transforms[self._first_each :]):
            update = transform.decode_each(update, round)
        return update

    def decode_sum(self, total: Update, round: Round) -> Update:
        """Right to left, the steps that are opened on the sum."""
        for transform in reversed(self.transforms[: self._first_each]):
            total = transform.decode_sum(total, round)
        return total

    def max_weight(self, num_examples: int) -> int:
        """The largest weight of a client with `num_examples` rows."""
        weight = 1
        for transform in self.transforms:
            weight = transform.max_weight(num_examples, weight)
        return weight


def chain(*parts: Transform | Pipeline) -> Pipeline:
    """Join transforms and pipelines into one pipeline. Associative; the empty chain is the identity.

    Raises IllegalChain, naming both steps, when neighbouring domains differ, when a step that must be opened reply by
    reply stands left of one that acts on the sum, and when noise is made for less than the bound that holds before it
    (or nothing bounds a contribution before it).
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
    # The sum holds weight * contribution, wherever in the chain the weight was set.
    heaviest = Pipeline(tuple(steps)).max_weight(ANY_NUMBER_OF_EXAMPLES)
    bound: float | None = None
    bounded_by = ""
    for step in steps:
        event = step.privacy_event()
        if event is not None and bound is None:
            raise IllegalChain(f"{_name(step)} adds noise, but nothing to its left bounds a client: clip first")
        if event is not None and bound is not None:
            reach = bound * heaviest if step.opens is Opens.SUM else bound
            if event.sensitivity < reach:
                raise IllegalChain(
                    f"{_name(step)} makes noise for a sensitivity of {event.sensitivity:g}, but after {bounded_by}"
                    f" one client can contribute {reach:g}: clip or weigh less, or raise the noise"
                )
        after = step.bound(bound)
        if after != bound:
            bound, bounded_by = after, _name(step)

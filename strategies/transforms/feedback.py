"""What compression loses goes with the next update."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from strategies.transform import Domain, IllegalChain, Opens, Pipeline, Public, Round, Transform, chain
from strategies.transforms.payload import check_finite, flat, in_dtypes, unflat
from strategies.transforms.sparsify import RandomK
from strategies.update import Arrays, Template, Update


@dataclass(frozen=True)
class ErrorFeedback(Transform):
    """Error feedback around the steps of `codec` (Karimireddy et al. 2019, arXiv:1901.09847).

    A client keeps e, at first zeros; with the codec C, it sends C(x + e) and keeps what that lost:

        sent = decode(C(x + e)),   e <- x + e - sent

    So the sum of what was sent plus e is the sum of the updates, to float error, however lossy or biased C is. The
    state is one vector of all real numbers. What the server clips off after decoding is lost for good; what a clip
    inside the codec takes off is sent later.

    e stays bounded where C loses less than it is given, ||x - decode(C(x))|| < ||x||, as `TopK` does, `RandomK` without
    its scale, and rounding to nearest of a rotated update. Stochastic rounding to 1 or 2 bits loses more than that.

    The steps must be openable reply by reply, keep no state, and add no noise: feedback would take noise back. Raises
    IllegalChain.
    """

    codec: Pipeline
    opens: ClassVar[Opens] = Opens.EACH
    num_state_arrays: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for step in self.codec.transforms:
            reason = _unfit(step)
            if reason:
                raise IllegalChain(f"{type(step).__name__} {reason}: it cannot stand inside of ErrorFeedback")

    def announce(self, state: Arrays, round: Round) -> Public:
        """What the steps announce."""
        return self.codec.announce((), round)

    def tells_length(self) -> bool:
        """Where a step does."""
        return any(step.tells_length() for step in self.codec.transforms)

    def encodes(self, template: Template) -> Template:
        """What the codec makes of it."""
        return self.codec.encodes(template)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Encodes the update and what earlier ones left. Raises InvalidUpdate("non-finite")."""
        vector, others = flat(update.arrays)
        with np.errstate(over="ignore"):  # refused below
            wanted = vector + state[0] if state else vector
        check_finite(wanted)
        corrected = in_dtypes(unflat(wanted, others, round.template), round.template)
        encoded, _ = self.codec.encode(replace(update, arrays=corrected), (), round)
        sent, _ = flat(self.decode_each(encoded, round).arrays)
        return encoded, (wanted - sent,)

    def decode_each(self, update: Update, round: Round) -> Update:
        """Right to left, all steps. Raises InvalidUpdate("decode")."""
        return self.codec.decode(update, round)

    def max_weight(self, num_examples: int, before: int) -> int:
        """That of the codec."""
        for step in self.codec.transforms:
            before = step.max_weight(num_examples, before)
        return before

    def bound(self, before: float | None) -> float | None:
        """Whatever came before, what was left may be long: only a clip inside the codec bounds."""
        bound: float | None = None
        for step in self.codec.transforms:
            bound = step.bound(bound)
        return bound


def with_feedback(*steps: Transform) -> ErrorFeedback:
    """Error feedback around these steps."""
    return ErrorFeedback(chain(*steps))


def _unfit(step: Transform) -> str:
    if step.opens is Opens.SUM:
        return "acts on the sum only"
    if step.num_state_arrays or step.num_server_arrays:
        return "keeps state of its own"
    if step.privacy_event() is not None:
        return "adds noise, which feedback would take back"
    if isinstance(step, RandomK) and step.scaled:
        return "enlarges what it sends, which feedback would add up without end (take scaled=false)"
    if step.takes is not Domain.REAL or step.gives is not Domain.REAL:
        return "does not give real numbers"
    return ""

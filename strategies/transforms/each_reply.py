"""Steps that would be opened on the sum, opened reply by reply."""

from dataclasses import dataclass
from typing import ClassVar

from strategies.transform import Domain, IllegalChain, Opens, Pipeline, Public, Round, Transform, chain
from strategies.update import Arrays, Template, Update


@dataclass(frozen=True)
class EachReply(Transform):
    """The steps of `codec` as one, all of which the server undoes before it adds anything up.

    For linear steps, above all `Rotate`: what is summed, limited and aggregated is then every client's own update, as a
    median needs it, and as noise on the sum to the left does, whose sensitivity knows no rounding of the sum.

    Raises IllegalChain for steps that act on the sum or keep state.
    """

    codec: Pipeline
    opens: ClassVar[Opens] = Opens.EACH

    def __post_init__(self) -> None:
        for step in self.codec.transforms:
            if step.opens is Opens.SUM or step.gives is not Domain.REAL:
                raise IllegalChain(f"{type(step).__name__} cannot be opened reply by reply")
            if step.num_state_arrays or step.num_server_arrays or step.privacy_event() is not None:
                raise IllegalChain(f"{type(step).__name__} keeps state or adds noise: put it outside of EachReply")

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
        """Left to right, all steps."""
        return self.codec.encode(update, (), round)

    def decode_each(self, update: Update, round: Round) -> Update:
        """Right to left, all steps. Raises InvalidUpdate("decode")."""
        return self.codec.decode(update, round)

    def max_weight(self, num_examples: int, before: int) -> int:
        """That of the codec."""
        for step in self.codec.transforms:
            before = step.max_weight(num_examples, before)
        return before

    def bound(self, before: float | None) -> float | None:
        """One step after the other."""
        for step in self.codec.transforms:
            before = step.bound(before)
        return before


def each_reply(*steps: Transform) -> EachReply:
    """These steps, opened reply by reply."""
    return EachReply(chain(*steps))

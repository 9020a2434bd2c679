"""Chains apply in order and in reverse, keep their states apart, and refuse what cannot be right.

What holds for every transform is fl_app.contracts.transforms; it is applied here to those of strategies/transforms.
"""

import pkgutil
from dataclasses import dataclass, replace
from importlib import import_module
from typing import ClassVar

import numpy as np
import pytest

import strategies.transforms
from fl_app.contracts import TransformContract
from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transform import (
    Domain,
    IllegalChain,
    Opens,
    Pipeline,
    PrivacyEvent,
    Round,
    Transform,
    chain,
)
from strategies.transforms.weighting import ByExamples
from strategies.update import FixedPoint, Update
from strategies.work import Delta

ROUND = Round(1, 0, FixedPoint(10))


class TestByExamples(TransformContract):
    transform = ByExamples(25)


def transforms_of_the_package() -> set[type]:
    modules = pkgutil.iter_modules(strategies.transforms.__path__, "strategies.transforms.")
    found = [value for module in modules for value in vars(import_module(module.name)).values()]
    return {
        cls
        for cls in found
        if isinstance(cls, type) and issubclass(cls, Transform) and cls.__module__.startswith("strategies.transforms.")
    }


def contracts(of: type[TransformContract] = TransformContract) -> set[type[TransformContract]]:
    """All contract classes that the tests of this run have defined."""
    return {of}.union(*(contracts(each) for each in of.__subclasses__()))


def test_every_transform_of_the_package_is_under_contract():
    checked = {type(cls.transform) for cls in contracts() if "transform" in vars(cls)}
    assert transforms_of_the_package() <= checked


class TestPairsOfHalves(TransformContract):
    """The contract holds for a step that is opened reply by reply."""

    @property
    def transform(self):
        return Affine(2.0, 0.0)


class TestState(TransformContract):
    """And for one that keeps state."""

    @property
    def transform(self):
        return Counting(1)


@dataclass(frozen=True)
class Affine(Transform):
    """x -> factor * x + offset, opened where `opens` says."""

    factor: float
    offset: float
    opens: ClassVar[Opens] = Opens.EACH

    def encode(self, update, state, round):
        return replace(update, arrays=tuple(self.factor * a + self.offset for a in update.arrays)), state

    def decode_each(self, update, round):
        return replace(update, arrays=tuple((a - self.offset) / self.factor for a in update.arrays))


@dataclass(frozen=True)
class Counting(Transform):
    """Counts its own calls in its state."""

    step: int
    num_state_arrays: ClassVar[int] = 1

    def encode(self, update, state, round):
        count = state[0] if state else np.zeros(1)
        return update, (count + self.step,)


@dataclass(frozen=True)
class Clip(Transform):
    norm: float

    def bound(self, before):
        return self.norm


@dataclass(frozen=True)
class Noise(Transform):
    sensitivity: float
    opens: ClassVar[Opens] = Opens.SUM

    def privacy_event(self):
        return PrivacyEvent(1.0, self.sensitivity)


@dataclass(frozen=True)
class Mask(Transform):
    opens: ClassVar[Opens] = Opens.SUM


@dataclass(frozen=True)
class ToRing(Transform):
    gives: ClassVar[Domain] = Domain.RING


def test_a_pipeline_encodes_left_to_right_and_decodes_right_to_left():
    pipeline = chain(Affine(2.0, 0.0), Affine(1.0, 3.0))
    update = Update((np.array([5.0]),), ("a",))
    encoded, _ = pipeline.encode(update, (), ROUND)
    assert encoded.arrays[0] == [13.0]  # 2 * 5 + 3, and not 2 * (5 + 3)
    assert pipeline.decode_each(encoded, ROUND).arrays[0] == [5.0]


def test_chain_is_associative_and_the_empty_chain_is_the_identity():
    a, b, c = Affine(2.0, 1.0), Counting(1), Affine(3.0, 0.0)
    assert chain(chain(a, b), c) == chain(a, chain(b, c)) == chain(a, b, c) == chain(chain(), a, b, c)
    update = Update((np.arange(3.0),), ("a",))
    assert chain().encode(update, (), ROUND) == (update, ())


def test_each_step_gets_its_own_state_back():
    pipeline = chain(Counting(1), Affine(1.0, 0.0), Counting(10))
    state = ()
    for _ in range(3):
        _, state = pipeline.encode(Update((np.zeros(1),), ("a",)), state, ROUND)
    assert [float(s[0]) for s in state] == [3.0, 30.0]
    assert pipeline.stateful
    assert not chain(Affine(1.0, 0.0)).stateful


def test_neighbouring_domains_must_agree():
    with pytest.raises(IllegalChain, match=r"ToRing gives integers.*Clip to its right takes real"):
        chain(ToRing(), Clip(1.0))


def test_a_step_opened_reply_by_reply_stands_right_of_one_that_acts_on_the_sum():
    with pytest.raises(IllegalChain, match="put Mask to the left of Affine"):
        chain(Affine(1.0, 0.0), Mask())
    chain(Mask(), Affine(1.0, 0.0))


@pytest.mark.parametrize("steps", [(Noise(1.0),), (ByExamples(5), Noise(1.0))])
def test_noise_without_a_bound_is_refused(steps):
    with pytest.raises(IllegalChain, match="Noise adds noise, but nothing to its left bounds a client: clip first"):
        chain(*steps)


def test_noise_below_the_bound_is_refused_and_names_both():
    with pytest.raises(IllegalChain, match=r"sensitivity of 0\.5, but after Clip one client can contribute 1"):
        chain(Clip(1.0), Noise(0.5))
    chain(Clip(1.0), Noise(1.0))


def test_noise_on_the_sum_covers_the_largest_weight_wherever_it_is_set():
    for steps in ((Clip(1.0), ByExamples(100), Noise(1.0)), (ByExamples(100), Clip(1.0), Noise(99.0))):
        with pytest.raises(IllegalChain, match="one client can contribute 100"):
            chain(*steps)
    chain(Clip(1.0), ByExamples(100), Noise(100.0))


def test_noise_on_the_sum_wants_a_public_divisor():
    with pytest.raises(IllegalChain, match="WeightedMean divides by what depends on private counts"):
        composed(chain(Clip(1.0), Noise(1.0)), WeightedMean())


def test_an_aggregator_that_needs_each_update_refuses_a_sealing_pipeline():
    class Median(WeightedMean):
        needs_each = True

    with pytest.raises(IllegalChain, match="Median needs every client's update, which the pipeline seals"):
        composed(chain(Mask()), Median())


def composed(pipeline: Pipeline, aggregator: WeightedMean) -> ComposedStrategy:
    return ComposedStrategy(Basics(), work=Delta(), pipeline=pipeline, aggregator=aggregator, server_optimizer=SGD())


def test_two_steps_may_not_announce_one_name():
    class Loud(Transform):
        def announce(self, round):
            return {"clip": 1.0}

    with pytest.raises(IllegalChain, match="announce 'clip'"):
        chain(Loud(), Loud()).announce(ROUND)


def test_the_weight_bound_is_the_weight_that_encode_sets():
    for n in (1, 5, 70):
        update = Update((np.zeros(1),), ("a",), num_examples=n)
        assert chain(ByExamples(50)).encode(update, (), ROUND)[0].weight == chain(ByExamples(50)).max_weight(n)
    assert chain().max_weight(1_000) == 1

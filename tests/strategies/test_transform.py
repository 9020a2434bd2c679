"""Chains apply in order and in reverse, keep their states apart, and refuse what cannot be right.

What holds for every transform is fl_app.contracts.transforms; it is applied here to those of strategies/transforms.
"""

import pkgutil
from dataclasses import dataclass, replace
from importlib import import_module
from typing import ClassVar

import numpy as np
import pytest
from protected import protection
from seeded import SeededEntropy

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
from strategies.transforms import clipping
from strategies.transforms.clipping import AdaptiveClip
from strategies.transforms.correlated_noise import CorrelatedNoiseOnSum
from strategies.transforms.each_reply import each_reply
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.noise import LocalNoise, NoiseOnSum
from strategies.transforms.prune import Prune
from strategies.transforms.sparsify import RandomK, TopK
from strategies.transforms.weighting import BoundedWeights, ByExamples
from strategies.update import FixedPoint, Update
from strategies.work import Delta

ROUND = Round(1, 0, FixedPoint(10))


class TestByExamples(TransformContract):
    transform = ByExamples(25)


class TestBoundedWeights(TransformContract):
    transform = BoundedWeights(25)


class TestClip(TransformContract):
    transform = clipping.Clip(1.0)


class TestAdaptiveClip(TransformContract):
    transform = AdaptiveClip(initial=0.5, quantile=0.5, learning_rate=0.2, bit_scale=0.2, expected=4)


class Noisy(TransformContract):
    """Noise that begins anew in every test."""

    before = (clipping.Clip(1.0),)

    @pytest.fixture(autouse=True)
    def from_the_start(self):
        self.transform.entropy.__init__(0)

    def contribution(self, update, info):
        return update.arrays


class TestNoiseOnSum(Noisy):
    transform = NoiseOnSum(protection(), 1.0, SeededEntropy(0))


class TestCorrelatedNoiseOnSum(Noisy):
    transform = CorrelatedNoiseOnSum(protection(), 1.0, 4, SeededEntropy(0))


class TestLocalNoise(Noisy):
    transform = LocalNoise(protection(), 1.0, SeededEntropy(0))
    pure = False


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
    import_module("test_compression_contract")  # where those of compression are
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
        return PrivacyEvent(self.sensitivity, protection())


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


@pytest.mark.parametrize("steps", [(Noise(1.0),), (BoundedWeights(5), Noise(1.0))])
def test_noise_without_a_bound_is_refused(steps):
    with pytest.raises(IllegalChain, match="Noise adds noise, but nothing to its left bounds a client: clip first"):
        chain(*steps)


def test_noise_below_the_bound_is_refused_and_names_both():
    with pytest.raises(IllegalChain, match=r"sensitivity of 0\.5, but after Clip one client can contribute 1"):
        chain(Clip(1.0), Noise(0.5))
    chain(Clip(1.0), Noise(1.0))


def test_weights_that_tell_counts_are_refused_beside_noise_wherever_they_are_set():
    for steps in ((Clip(1.0), ByExamples(100), Noise(1.0)), (ByExamples(100), Clip(1.0), Noise(99.0))):
        with pytest.raises(
            IllegalChain, match="ByExamples weighs clients by counts of rows, which Noise does not hide"
        ):
            chain(*steps)
    chain(Clip(1.0), BoundedWeights(100), Noise(1.0))


@pytest.mark.parametrize("padded", [True, False])
def test_lengths_that_tell_the_content_are_refused_beside_noise(padded):
    codecs = (
        EntropyCoding(padded),
        with_feedback(TopK(0.1), EntropyCoding(padded)),
        each_reply(Flatten(), EntropyCoding(padded)),
    )
    for codec in codecs:
        if padded:
            chain(Clip(1.0), Noise(1.0), codec)
            continue
        with pytest.raises(
            IllegalChain, match=f"{type(codec).__name__} sends what is longer .*Noise does not hide: pad"
        ):
            chain(Clip(1.0), Noise(1.0), codec)


@pytest.mark.parametrize("choice", [RandomK(0.5, scaled=False), Prune()])
def test_noise_on_the_sum_never_falls_on_chosen_coordinates_only(choice):
    with pytest.raises(IllegalChain, match=f"put NoiseOnSum to the left of {type(choice).__name__}"):
        chain(CLIP, choice, CENTRAL)
    chain(CLIP, CENTRAL, choice)


def test_one_promise_is_kept_by_one_step():
    with pytest.raises(IllegalChain, match="Noise and Noise both add noise"):
        chain(Clip(1.0), Noise(1.0), Noise(1.0))


def test_noise_on_the_sum_wants_a_public_divisor():
    with pytest.raises(IllegalChain, match="WeightedMean divides by what depends on private counts"):
        composed(chain(Clip(1.0), Noise(1.0)), WeightedMean())


def test_an_aggregator_that_needs_each_update_refuses_a_sealing_pipeline():
    class Median(WeightedMean):
        needs_each = True

    with pytest.raises(IllegalChain, match="Median needs every client's update, which the pipeline seals"):
        composed(chain(Mask()), Median())


CLIP, WEIGHTS, COUNTS = clipping.Clip(2.0), BoundedWeights(25), ByExamples(25)
CENTRAL, LOCAL = NoiseOnSum(protection(), 2.0), LocalNoise(protection(), 2.0)
CORRELATED = CorrelatedNoiseOnSum(protection(), 2.0, bands=4)
ADAPTIVE = AdaptiveClip(initial=0.1, quantile=0.5, learning_rate=0.2, bit_scale=0.2, expected=10)
NOTHING_BOUNDS = "adds noise, but nothing to its left bounds a client: clip first"


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((CENTRAL,), f"^NoiseOnSum {NOTHING_BOUNDS}"),
        ((LOCAL,), f"^LocalNoise {NOTHING_BOUNDS}"),
        ((CORRELATED,), f"^CorrelatedNoiseOnSum {NOTHING_BOUNDS}"),
        ((WEIGHTS, CENTRAL), f"^NoiseOnSum {NOTHING_BOUNDS}"),
        ((CENTRAL, CLIP), f"^NoiseOnSum {NOTHING_BOUNDS}"),
        ((LOCAL, CLIP), f"^LocalNoise {NOTHING_BOUNDS}"),
        ((clipping.Clip(2.01), CENTRAL), r"^NoiseOnSum makes noise for .* 2, but after Clip one client can .* 2\.01"),
        ((clipping.Clip(3.0), LOCAL), "^LocalNoise makes noise for .* 2, but after Clip one client can contribute 3"),
        ((clipping.Clip(3.0), CORRELATED), "^CorrelatedNoiseOnSum makes noise for .* 2, but after Clip"),
        ((ADAPTIVE, NoiseOnSum(protection(), 1.0)), r"^NoiseOnSum .* 1, but after AdaptiveClip one client .* 1\.00499"),
        ((CLIP, COUNTS, CENTRAL), "^ByExamples weighs clients by counts of rows, which NoiseOnSum does not hide"),
        ((COUNTS, CLIP, CORRELATED), "^ByExamples weighs clients by counts of rows, which CorrelatedNoiseOnSum"),
        ((COUNTS, CLIP, LOCAL), "^ByExamples weighs clients by counts of rows, which LocalNoise does not hide"),
        ((CLIP, CENTRAL, COUNTS), "^ByExamples weighs clients by counts of rows, which NoiseOnSum does not hide"),
        ((CLIP, LOCAL, CENTRAL), "^LocalNoise and NoiseOnSum both add noise"),
        ((CLIP, CENTRAL, CORRELATED), "^NoiseOnSum and CorrelatedNoiseOnSum both add noise"),
    ],
)
def test_chains_that_would_promise_too_much_are_refused_when_built_and_name_the_steps(steps, why):
    with pytest.raises(IllegalChain, match=why):
        chain(*steps)


@pytest.mark.parametrize("noise", [CENTRAL, LOCAL, CORRELATED])
def test_chains_that_keep_what_they_promise_are_built(noise):
    for steps in ((CLIP, noise), (clipping.Clip(1.0), noise), (CLIP, WEIGHTS, noise), (WEIGHTS, CLIP, noise)):
        assert chain(*steps).protection is noise.protection
    assert chain(CLIP, clipping.Clip(0.5), noise).sensitivity == (None if noise is LOCAL else noise.sensitivity)


def test_no_strategy_puts_noise_on_a_sum_that_is_divided_by_private_counts():
    for noise in (CENTRAL, CORRELATED):
        with pytest.raises(IllegalChain, match="WeightedMean divides by what depends on private counts"):
            composed(chain(CLIP, noise), WeightedMean())
    composed(chain(CLIP, LOCAL), WeightedMean())


def composed(pipeline: Pipeline, aggregator: WeightedMean) -> ComposedStrategy:
    return ComposedStrategy(Basics(), work=Delta(), pipeline=pipeline, aggregator=aggregator, server_optimizer=SGD())


def test_two_steps_may_not_announce_one_name():
    class Loud(Transform):
        def announce(self, state, round):
            return {"clip": 1.0}

    with pytest.raises(IllegalChain, match="announce 'clip'"):
        chain(Loud(), Loud()).announce((), ROUND)


def test_the_weight_bound_is_the_weight_that_encode_sets():
    for n in (1, 5, 70):
        update = Update((np.zeros(1),), ("a",), num_examples=n)
        assert chain(ByExamples(50)).encode(update, (), ROUND)[0].weight == chain(ByExamples(50)).max_weight(n)
    assert chain().max_weight(1_000) == 1

"""Clipping bounds whatever comes, as little as it must; the adaptive norm finds the quantile it is told to."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from protected import GRID, STEP, fits, flat, opened, protection, summed
from seeded import SeededEntropy

from strategies.transform import Round, chain
from strategies.transforms.clipping import CLIP, AdaptiveClip, Clip, clipped, is_longer, norm
from strategies.transforms.noise import NoiseOnSum, limited
from strategies.update import InvalidUpdate, Update
from strategies.work import check_template, template_of

ROUND = Round(1, 0, GRID)
DTYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8]
SHAPES = npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)


def finite(dtype):
    """Arrays of this dtype, whatever the shape and however large or small their values."""
    reals = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else {}
    return npst.arrays(dtype, SHAPES, elements=npst.from_dtype(np.dtype(dtype), **reals))


UPDATES = st.lists(st.sampled_from(DTYPES).flatmap(finite), min_size=1, max_size=4).map(tuple)
BOUNDS = st.floats(0, 1e308, exclude_min=True) | st.floats(1e-3, 1e3)


def squared(arrays):
    """The square of the L2 norm, exactly."""
    return sum((Fraction(float(x)) if a.dtype.kind == "f" else Fraction(int(x))) ** 2 for a in arrays for x in a.flat)


def encoded(arrays, clip_norm):
    return Clip(clip_norm).encode(Update(arrays, ("a",)), (), ROUND)[0].arrays


# ------------------------------------------------------------------------------------------------------- a fixed norm


@given(UPDATES, BOUNDS)
@settings(max_examples=400)
def test_a_clipped_update_is_within_the_bound_in_exact_arithmetic_and_keeps_shapes_and_dtypes(arrays, bound):
    try:
        result = encoded(arrays, bound)
    except InvalidUpdate:
        assert squared(arrays) > Fraction(1e307) ** 2  # the norm itself is no number
        return
    check_template(result, template_of(arrays))
    smallest = Fraction(5e-324) * 4  # to which norms so small are rounded
    assert squared(result) <= (Fraction(bound) * (1 + Fraction(1, 2**40)) + smallest) ** 2


@given(UPDATES, BOUNDS)
@settings(max_examples=200)
def test_clipping_twice_is_clipping_once_to_the_bit_and_what_is_within_the_bound_stays(arrays, bound):
    try:
        once = encoded(arrays, bound)
    except InvalidUpdate:
        return
    assert [a.tobytes() for a in encoded(once, bound)] == [a.tobytes() for a in once]
    if squared(arrays) < Fraction(bound) ** 2 * (1 - Fraction(1, 2**40)):
        assert [a.tobytes() for a in once] == [a.tobytes() for a in arrays]


def test_all_arrays_are_scaled_together_by_one_factor():
    arrays = (np.array([[3.0, 0.0]]), np.array(4.0), np.zeros((0, 2)), np.array([-12.0]))
    for scaled, whole in zip(encoded(arrays, 1.3), arrays, strict=True):
        np.testing.assert_allclose(scaled, whole / 10, rtol=1e-12)
    assert norm(encoded(arrays, 1.3)) == pytest.approx(1.3, rel=1e-12)


def test_a_parameter_without_dimensions_and_whole_numbers_are_clipped_like_all_others():
    alone = encoded((np.array(1000.0),), 1.0)[0]
    assert (alone.shape, float(alone)) == ((), pytest.approx(1.0, rel=1e-12))
    counter, weights = encoded((np.array(300, np.int64), np.full(4, 200.0, np.float32)), 50.0)
    assert (counter.shape, counter.dtype) == ((), np.int64)
    assert 29 <= int(counter) <= 30
    np.testing.assert_allclose(weights, 20, rtol=1e-6)
    assert int(encoded((np.array(-7, np.int64),), 2.9)[0]) == -2  # towards zero, never past the bound


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_the_smallest_whole_number_whose_negative_does_not_exist_is_clipped_too(dtype):
    smallest = np.full(3, np.iinfo(dtype).min)
    assert norm((smallest,)) == pytest.approx(np.sqrt(3) * -float(np.iinfo(dtype).min))
    assert norm(encoded((smallest,), 5.0)) <= 5.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_a_zero_update_stays_zero(dtype):
    arrays = (np.zeros((2, 3), dtype), np.array(0, dtype), np.zeros(0, dtype))
    assert [a.tobytes() for a in encoded(arrays, 1e-9)] == [a.tobytes() for a in arrays]
    assert encoded((), 1.0) == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_refused_wherever_it_stands(bad, place):
    arrays = [np.array([1.0, 2.0]), np.array(3.0)]
    arrays[place] = arrays[place] * bad
    for call in (lambda: encoded(tuple(arrays), 1.0), lambda: limited(Update(tuple(arrays), ("a",)), 1.0, GRID)):
        with pytest.raises(InvalidUpdate) as caught:
            call()
        assert caught.value.reason == "non-finite"


def test_in_a_million_single_precision_elements_rounding_never_adds_up_to_more_than_the_bound():
    rng = np.random.default_rng(1)
    for bound in (1.0, 0.1, 1 / 3, 1e-6):
        (result,) = encoded((rng.normal(size=10**6).astype(np.float32),), bound)
        exact = float(np.sqrt(np.sum(np.square(result.astype(np.longdouble)))))
        assert bound * (1 - 1e-6) < exact <= bound * (1 + 1e-13)


@pytest.mark.parametrize("huge", [1e300, 1e154, 1e-154, 1e-300, 1e-320])
def test_squares_that_would_over_or_underflow_do_not(huge):
    arrays = (np.array([3 * huge, 0.0]), np.array(4 * huge))
    assert norm(arrays) == pytest.approx(5 * huge, rel=1e-3)
    assert norm(encoded(arrays, huge)) <= huge
    assert norm(encoded(arrays, huge)) == pytest.approx(huge, rel=1e-3)


def test_inputs_are_not_written_to():
    array = np.full(4, 9.0)
    array.setflags(write=False)
    encoded((array,), 1.0)
    assert array.tolist() == [9.0] * 4


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_clip_norm_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match="clip-norm="):
        Clip(bad)
    with pytest.raises(ValueError, match="initial-clip-norm="):
        adaptive(initial=bad)


@pytest.mark.parametrize(("dtype", "rounding", "more"), [(np.float64, 4e-12, 1e-10), (np.float32, 1e-7, 3e-7)])
def test_a_norm_that_floats_may_have_rounded_differently_elsewhere_is_no_longer_one(dtype, rounding, more):
    """A sum of 100,000 squares, in whichever order, and one more rounding of each element."""
    arrays = (np.random.default_rng(0).normal(size=100_000).astype(dtype),)
    length = norm(arrays)
    assert not is_longer(arrays, length * (1 - rounding))
    assert is_longer(arrays, length * (1 - more))
    backwards = np.cumsum(np.square(arrays[0][::-1].astype(np.float64)))[-1] ** 0.5
    assert not is_longer(arrays, backwards)


# --------------------------------------------------------------------------------------------------- at the server


CENTRAL = chain(Clip(2.0), NoiseOnSum(protection(), 2.0))


def test_the_server_clips_again_what_a_node_has_not_clipped():
    honest, dishonest = np.array([0.6, -0.8]), np.array([600.0, -800.0])  # the bound is 2
    for sent, kept in ((honest, honest), (dishonest, dishonest / 500)):
        (received,) = CENTRAL.limit(Update((sent,), ("a",)), ROUND).arrays
        np.testing.assert_allclose(received, kept, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_fold_of_k_clients_is_held_to_k_times_the_bound(count):
    clients = tuple(map(str, range(count)))
    honest = [Update((np.array([1.2, -1.6]),), (client,)) for client in clients]  # all pull the same way
    fold = summed(honest, CENTRAL, ROUND)
    assert CENTRAL.limit(fold, ROUND).arrays[0].tolist() == fold.arrays[0].tolist()
    (held,) = CENTRAL.limit(replace(fold, arrays=(fold.arrays[0] * 100,)), ROUND).arrays
    assert held.dtype == np.int64
    np.testing.assert_allclose(held * STEP, np.array([1.2, -1.6]) * count, rtol=1e-8)
    assert norm((held,)) * STEP <= 2.0 * count + STEP * count


@given(npst.arrays(np.int64, (5,), elements=st.integers(-(2**61), 2**61)), st.integers(1, 5))
def test_whatever_a_node_claims_to_be_the_sum_of_k_clients_the_server_lets_in_k_times_the_bound(steps, count):
    update = Update((steps,), tuple(map(str, range(count))), weight=count, on_grid=True)
    (held,) = CENTRAL.limit(update, ROUND).arrays
    most = count * (Fraction(2 * 2**GRID.fraction_bits) * (1 + Fraction(1, 2**39)) + 2)  # sqrt(5) / 2 < 2: the rounding
    assert squared((held,)) <= most**2


# ------------------------------------------------------------------------------------------------- an adaptive norm


CLIENTS = 20


def adaptive(initial=1.0, quantile=0.5, learning_rate=0.6, bit_scale=0.2, expected=CLIENTS):
    return AdaptiveClip(initial, quantile, learning_rate, bit_scale, expected)


def chained(clip, noise_multiplier, seed=0):
    return chain(
        clip,
        NoiseOnSum(protection(noise_multiplier), np.sqrt(1 + clip.bit_scale**2 / 4), SeededEntropy(seed)),
    )


def deltas(norms, seed, dtype=np.float32):
    """One update of each norm, in random directions."""
    rng = np.random.default_rng(seed)
    for index, length in enumerate(norms):
        direction = rng.normal(size=7)
        direction *= length / np.linalg.norm(direction)
        yield Update((direction[:6].reshape(2, 3).astype(dtype), np.array(direction[6], dtype)), (str(index),))


def played(pipeline, norms_of, rounds):
    """The norms that were announced, round by round, in a federation whose updates have these norms."""
    state, announced = pipeline.begin(), []
    for number in range(1, rounds + 1):
        updates = list(deltas(norms_of(number), number))
        info = opened(pipeline, updates[0].arrays, state, number)
        announced.append(info.public[CLIP])
        total = summed(updates, pipeline, info)
        _, state = pipeline.decode_sum(total, state, info)
    return np.array(announced)


def constant(number):
    return np.full(CLIENTS, 3.0)


def lognormal(number):
    return np.random.default_rng(number).lognormal(1.0, 0.8, CLIENTS)


def drifting(number):
    return np.random.default_rng(number).lognormal(-0.02 * number, 0.3, CLIENTS)


@pytest.mark.parametrize(
    ("norms_of", "quantile"), [(constant, 0.5), (lognormal, 0.5), (lognormal, 0.8), (drifting, 0.5)]
)
@pytest.mark.parametrize("factor", [1e-3, 1e3], ids=["1000 times too small", "1000 times too large"])
def test_the_adaptive_norm_reaches_the_quantile_under_noise(norms_of, quantile, factor):
    start = factor * float(np.quantile(norms_of(1), quantile))
    rounds = 60 if quantile == 0.5 else 110  # it comes down by exp(-0.6 * 0.2) at most where the quantile is 0.8
    pipeline = chained(adaptive(start, quantile), noise_multiplier=0.5)
    announced = played(pipeline, norms_of, rounds)
    late = range(rounds - 20, rounds + 1)
    wanted = np.array([np.quantile(norms_of(number), quantile) for number in late])
    ratio = np.exp(np.mean(np.log(announced[-21:] / wanted)))
    # updates of one norm have no quantile but a step, and a norm that drifts is followed from behind
    assert 0.8 < ratio < (1.35 if norms_of is not lognormal else 1.25), ratio
    if norms_of is not constant:
        within = np.mean([np.mean(norms_of(number) <= announced[number - 1]) for number in late])
        assert abs(within - quantile) < 0.12


def test_too_small_a_norm_grows_and_too_large_a_one_shrinks_from_the_first_round_on():
    for initial, change in ((0.01, np.exp(0.6 * 0.5)), (100.0, np.exp(-0.6 * 0.5))):
        announced = played(chained(adaptive(initial), 1e-6), constant, 2)
        assert announced == pytest.approx([initial, initial * change], rel=1e-5)


def test_the_next_norm_is_the_rule_of_the_paper_for_the_share_that_was_within_it():
    norms = np.array([0.5] * 5 + [2.0] * 15)
    announced = played(chained(adaptive(1.0, quantile=0.6), 1e-6), lambda number: norms, 2)
    assert announced[1] == pytest.approx(np.exp(-0.6 * (5 / 20 - 0.6)), rel=1e-5)


def test_the_divisor_of_the_share_is_public_and_who_does_not_answer_counts_as_half():
    norms = np.array([0.5] * 5)  # of 20 that are expected
    announced = played(chained(adaptive(1.0), 1e-6), lambda number: norms, 2)
    assert announced[1] == pytest.approx(np.exp(-0.6 * (5 * 0.5 / 20)), rel=1e-5)


def test_the_norm_announced_is_the_norm_that_clips_and_the_norm_that_the_noise_is_made_for():
    clip = adaptive(0.7, learning_rate=2.0)  # so that the next norm is far from this one
    updates = list(deltas(np.full(CLIENTS, 3.0), 0, np.float64))
    pipeline = chained(clip, 1e-6)
    info = opened(pipeline, updates[0].arrays)
    assert info.public == {CLIP: 0.7}
    total, (after,) = pipeline.decode_sum(summed(updates, pipeline, info), pipeline.begin(), info)
    assert float(after) == pytest.approx(0.7 * np.exp(2.0 * 0.5), rel=1e-5)
    expected = sum(flat(clipped(update.arrays, 0.7)) for update in updates)
    np.testing.assert_allclose(flat(total.arrays) * STEP, expected, atol=1e-4)

    wide = Update((np.zeros(5000, np.int64), np.zeros(1, np.int64)), (), weight=0, on_grid=True)
    noisy, _ = chained(clip, 1.5).decode_sum(wide, clip.begin(), opened(clip, (np.zeros(5000),)))
    claimed = 1.5 * np.sqrt(1 + 0.2**2 / 4) * 0.7
    assert fits(flat(noisy.arrays) * STEP, claimed)
    assert not fits(flat(noisy.arrays) * STEP, claimed * np.exp(1.0))


@given(
    npst.arrays(np.float32, (4,), elements=st.floats(-(2.0**19), 2.0**19, width=32)),
    st.floats(2.0**-20, 2.0**20),
    st.floats(0.01, 3.0),
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=300)
def test_update_and_bit_together_never_exceed_the_bound(values, clip_norm, bit_scale, dtype):
    clip = adaptive(clip_norm, bit_scale=bit_scale)
    pipeline = chained(clip, 1.0)
    info = opened(pipeline, (values.astype(dtype),))
    encoded, _ = clip.encode(Update((values.astype(dtype),), ("a",)), (), info)
    *units, bit = encoded.arrays
    within = norm((values,)) <= clip_norm
    assert float(bit[0]) == pytest.approx((0.5 if within else -0.5) * bit_scale, rel=1e-6)
    assert squared(units) <= 1 + Fraction(1, 2**40)
    assert squared(pipeline.limit(encoded, info).arrays) <= Fraction(clip.bound(None)) ** 2 * (1 + Fraction(1, 2**40))


def test_a_client_that_is_told_no_norm_sends_nothing():
    update = Update((np.ones(3),), ("a",))
    for public in ({}, {CLIP: 0.0}, {CLIP: -1.0}, {CLIP: float("nan")}, {CLIP: float("inf")}, {CLIP: "1"}):
        with pytest.raises(InvalidUpdate, match="the clip norm announced"):
            adaptive().encode(update, (), replace(ROUND, public=public))


def test_an_update_that_is_not_finite_has_no_bit_either():
    for bad in (np.nan, np.inf):
        with pytest.raises(InvalidUpdate, match="non-finite"):
            adaptive().encode(Update((np.full(3, bad),), ("a",)), (), replace(ROUND, public={CLIP: 1.0}))


@pytest.mark.parametrize("wrong", [{"quantile": 0.0}, {"quantile": 1.0}, {"learning_rate": 0.0}])
def test_an_adaptive_clip_that_cannot_adapt_is_refused(wrong):
    with pytest.raises(ValueError, match="expected above 0"):
        adaptive(**wrong)

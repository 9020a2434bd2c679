"""Every codec gives back what it says, of arrays of any shape and size; sums of encodings are sums of updates."""

from itertools import permutations

import numpy as np
import pytest
from compressed import GRID, encoded, joined, norm, round_of, there_and_back, update, updates, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from protected import protection
from scipy.linalg import hadamard as hadamard_matrix

from strategies.transform import IllegalChain, Opens, chain
from strategies.transforms import golomb_rice
from strategies.transforms.cast import HALF_SMALLEST, LARGEST, UNIT_ROUNDOFF, Cast
from strategies.transforms.clipping import Clip
from strategies.transforms.each_reply import each_reply
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.feedback import ErrorFeedback, with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.noise import LocalNoise, NoiseOnSum
from strategies.transforms.prune import Prune
from strategies.transforms.quantize import Quantize, pack, unpack
from strategies.transforms.rotate import Rotate, hadamard
from strategies.transforms.sparsify import RandomK, TopK, how_many, largest
from strategies.transforms.weighting import ByExamples
from strategies.update import ExactSum, InvalidUpdate
from strategies.wire import encoded_bytes
from strategies.work import check_template, template_of

BITS = (1, 2, 4, 8, 16)

CODECS = (
    Flatten(),
    Cast("float16"),
    Cast("bfloat16"),
    *(Quantize(bits, block=8, rounding=rounding) for bits in BITS for rounding in ("stochastic", "nearest")),
    Rotate(2**8),
    TopK(0.1),
    RandomK(0.3),
    RandomK(0.3, scaled=False),
    EntropyCoding(),
    EntropyCoding(padded=True),
    Prune(),
    with_feedback(TopK(0.3), Quantize(4), EntropyCoding()),
)

CHAINS = (
    chain(Flatten(), Quantize(8)),
    chain(Quantize(8), Flatten()),
    chain(Flatten(), Quantize(8), EntropyCoding()),
    chain(Flatten(), Rotate(2**8), Quantize(4), EntropyCoding()),
    chain(Rotate(2**8), Flatten(), Cast("bfloat16"), EntropyCoding()),
    chain(Flatten(), RandomK(0.5), Rotate(2**8), Quantize(1)),
    chain(TopK(0.1), Quantize(8), EntropyCoding()),
    chain(Prune(), TopK(0.1), Cast("float16"), Flatten(), EntropyCoding(padded=True)),
    chain(ByExamples(9), Flatten(), with_feedback(Rotate(2**8), Quantize(1, rounding="nearest"), EntropyCoding())),
    chain(Prune(), RandomK(0.5), Rotate(2**8)),
    chain(Prune(), each_reply(Flatten(), Rotate(2**8), RandomK(0.5), EntropyCoding())),
)


def name(step):
    return str(step)[:60]


# --------------------------------------------------------------------------------------------- one codec


@pytest.mark.parametrize("codec", CODECS, ids=name)
@settings(max_examples=30)
@given(arrays=updates(most=1e4))
def test_shapes_dtypes_and_whole_numbers_come_back(codec, arrays):
    found = there_and_back(codec, arrays)
    check_template(found, template_of(arrays))
    for back, array in zip(found, arrays, strict=True):
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("codec", CODECS, ids=name)
@settings(max_examples=30)
@given(arrays=updates(most=1e4))
def test_what_travels_is_what_is_announced_or_less(codec, arrays):
    travels = encoded(codec, arrays)
    announced = codec.encodes(template_of(arrays))
    if isinstance(codec, EntropyCoding | ErrorFeedback):
        ((most,), dtype) = announced[0]
        assert len(announced) == len(travels) == 1
        assert travels[0].dtype == dtype
        assert 1 <= travels[0].size <= most
    else:
        check_template(travels, announced)


@pytest.mark.parametrize("codec", [Flatten(), EntropyCoding(), EntropyCoding(padded=True)], ids=name)
@given(arrays=updates())
def test_flatten_and_entropy_are_exact(codec, arrays):
    for back, array in zip(there_and_back(codec, arrays), arrays, strict=True):
        np.testing.assert_array_equal(back, array)


def test_flatten_is_one_array_for_each_dtype_and_saves_their_headers():
    layers = tuple(np.ones((2, 3), np.float32) for _ in range(10))
    flat = encoded(Flatten(), layers)
    assert len(flat) == 1
    assert encoded_bytes(layers) - encoded_bytes(flat) == 9 * 128
    mixed = encoded(Flatten(), (np.ones(2), np.ones(3, np.float32), np.ones(4), np.ones(1, np.int64)))
    assert [(array.shape, str(array.dtype)) for array in mixed] == [
        ((6,), "float64"),
        ((3,), "float32"),
        ((1,), "int64"),
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@given(array=vectors())
def test_cast_rounds_by_no_more_than_it_says_and_saturates(dtype, array):
    (back,) = there_and_back(Cast(dtype), (array,))
    x = np.clip(array.astype(np.float64), -LARGEST[dtype], LARGEST[dtype])
    allowed = UNIT_ROUNDOFF[dtype] * (1 + 2.0**-16) * np.abs(x) + HALF_SMALLEST[dtype] * (1 + 2.0**-16)
    assert (np.abs(back.astype(np.float64) - x) <= allowed).all()


def test_bfloat16_is_that_of_torch():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint64).astype(np.uint32)
    halfway = (np.arange(1_000, dtype=np.uint32) * 2**16 + 2**15) + np.float32(1).view(np.uint32)
    x = np.concatenate([bits, halfway]).view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < LARGEST["bfloat16"])]
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(there_and_back(Cast("bfloat16"), (x,))[0], expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast_turns_the_largest_numbers_into_the_largest_that_there_are(dtype):
    x = np.array([3.4e38, -3.4e38, 1.0], np.float32)
    np.testing.assert_array_equal(
        there_and_back(Cast(dtype), (x,))[0], np.array([LARGEST[dtype], -LARGEST[dtype], 1], np.float32)
    )


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("bits", BITS)
@given(array=vectors(), block=st.sampled_from([8, 16, 1024]))
def test_quantize_keeps_to_its_step(bits, rounding, array, block):
    codec = Quantize(bits, block, rounding)
    (back,) = there_and_back(codec, (array,))
    x, found = joined([array]), joined([back])
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    for start in range(0, x.size, block):
        here, there = x[start : start + block], found[start : start + block]
        scale = np.abs(here).max()
        if bits == 1 and rounding == "nearest":
            np.testing.assert_allclose(there, np.where(here >= 0, 1, -1) * np.abs(here).mean(), rtol=1e-5, atol=tiny)
        else:
            step = (1.0 if rounding == "stochastic" else 0.5) / codec.top
            assert (np.abs(there - here) <= (step + 1e-6) * scale + 2 * tiny).all()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_from_4_bits_on_zeros_stay_zero_and_the_largest_stays(bits, rounding):
    x = np.array([0.0, 5.0, 0.0, -5.0, 1e-9], np.float32)
    for seed in range(50):
        (back,) = there_and_back(Quantize(bits, rounding=rounding), (x,), seed)
        np.testing.assert_array_equal(back[:4], x[:4])


def test_quantize_saturates_what_float32_cannot_hold():
    (back,) = there_and_back(Quantize(8), (np.array([1e300, -1e300, 0.0]),))
    np.testing.assert_array_equal(back, np.array([1, -1, 0]) * float(np.finfo(np.float32).max))


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 40), st.integers(0, 99))
def test_packing_loses_nothing(bits, size, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, size).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.size == -(-size * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits)[:size], codes)


@given(array=vectors(), block=st.sampled_from([2**8, 2**15]))
def test_rotate_gives_back_what_it_took(array, block):
    (back,) = there_and_back(Rotate(block), (array,))
    precision = 4e-6 if array.dtype == np.float32 else 1e-14
    tiny = float(np.finfo(array.dtype).smallest_subnormal)
    assert norm(joined([back]) - joined([array])) <= precision * norm(joined([array])) + 600 * tiny


@pytest.mark.parametrize("size", [0, 1, 2, 5, 255, 256, 257, 700, 33_000, 100_000])
def test_rotate_fills_up_with_few_zeros(size):
    ((padded,), _), *_ = Rotate().encodes((((size,), np.dtype(np.float32)),))
    assert size <= padded < size + 128
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    (rotated,) = encoded(Rotate(), (x,))
    assert abs(norm(joined([rotated])) - norm(joined([x]))) <= 1e-6 * norm(joined([x]))
    assert norm(joined(there_and_back(Rotate(), (x,))) - joined([x])) <= 4e-6 * norm(joined([x]))


def test_the_hadamard_transform_is_scipys_orthonormal_and_its_own_inverse():
    h = hadamard(np.eye(64))
    np.testing.assert_allclose(h * 8, hadamard_matrix(64), atol=1e-12)
    np.testing.assert_allclose(h @ h.T, np.eye(64), atol=1e-12)
    np.testing.assert_allclose(hadamard(h), np.eye(64), atol=1e-12)


def test_rotate_spreads_one_large_element_over_its_block_anew_in_every_round():
    x = np.zeros(1024)
    x[17] = 32.0
    (first,), (second,) = (encoded(Rotate(1024), (x,), round_of(Rotate(1024), (x,), seed=seed)) for seed in (2, 4))
    np.testing.assert_allclose(np.abs(first), 1.0)
    rng = np.random.default_rng(0)
    y = rng.normal(size=1024)
    (a,), (b,) = (encoded(Rotate(1024), (y,), round_of(Rotate(1024), (y,), seed=seed)) for seed in (2, 4))
    assert abs(a @ b) < 0.2 * (y @ y)
    assert np.abs(second).max() == pytest.approx(1.0)


@given(vectors(most=1e30), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_top_k_sends_exactly_the_largest_and_as_they_are(array, fraction):
    (back,) = there_and_back(TopK(fraction), (array,))
    k = how_many(fraction, array.size)
    positions, values = encoded(TopK(fraction), (array,))
    assert values.size == k == positions.size - 1
    sent = np.zeros(array.size, bool)
    sent[positions[:-1]] = True
    np.testing.assert_array_equal(back.reshape(-1)[sent], array.reshape(-1)[sent])
    assert not back.reshape(-1)[~sent].any()
    magnitudes = np.abs(array.reshape(-1))
    assert magnitudes[~sent].max(initial=0) <= magnitudes[sent].min(initial=np.inf)


def test_top_k_counts_coordinates_of_all_arrays_together():
    layers = (np.array([[9.0, 1.0], [2.0, 3.0]]), np.float64(8.0).reshape(()), np.zeros(3))
    found = there_and_back(TopK(0.25), layers)
    np.testing.assert_array_equal(found[0], [[9, 0], [0, 0]])
    assert found[1] == 8
    assert not found[2].any()


@pytest.mark.parametrize(
    ("fraction", "size", "k"), [(0.07, 100, 7), (0.01, 1, 1), (0.01, 101, 2), (1, 9, 9), (0.1, 0, 0)]
)
def test_k_is_the_fraction_rounded_up(fraction, size, k):
    assert how_many(fraction, size) == k


@pytest.mark.parametrize("kind", ["noise", "ties", "sorted", "few"])
def test_the_largest_are_found_whatever_the_sample_tells(kind):
    rng = np.random.default_rng(0)
    x = {
        "noise": rng.normal(size=200_000),
        "ties": np.ones(200_000),
        "sorted": np.arange(200_000.0),
        "few": np.where(np.arange(200_000) % 12 == 0, 1.0, 0.0),  # every sampled element is a large one
    }[kind]
    for k in (1, 10, 2_000, 150_000):
        found = largest(x, k)
        assert (np.diff(found) > 0).all()
        assert found.size == k
        np.testing.assert_array_equal(np.sort(np.abs(x[found])), np.sort(np.abs(x))[-k:])


@given(vectors(most=1e30), st.sampled_from([0.01, 0.3, 1.0]))
def test_random_k_sends_scaled_values_of_coordinates_that_all_know(array, fraction):
    (back,) = there_and_back(RandomK(fraction), (array,))
    k = how_many(fraction, array.size)
    x, found = joined([array]), joined([back])
    sent = np.flatnonzero(found)
    assert sent.size <= k
    tiny = float(np.finfo(array.dtype).smallest_subnormal)
    np.testing.assert_allclose(found[sent], x[sent] * array.size / max(k, 1), rtol=1e-6, atol=tiny)


@given(updates(dtype=np.float32, most=1e4), st.sampled_from([1, 4]))
def test_feedback_keeps_what_the_codec_loses(arrays, bits):
    codec = with_feedback(Flatten(), Quantize(bits, 8, "nearest"), EntropyCoding())
    info = round_of(codec, arrays)
    sent, (kept,) = codec.encode(update(arrays), (), info)
    decoded = joined(codec.decode_each(sent, info).arrays)
    np.testing.assert_allclose(decoded + kept, joined(arrays), rtol=1e-5, atol=1e-3)


# ------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("codec", CODECS, ids=name)
@pytest.mark.parametrize("small", [0.0, 1e-9, 0.0021, 0.034, 0.4])
def test_no_update_gets_longer_than_the_bound(codec, small):
    """One large element and many small ones is what rounding lengthens most."""
    for size in (8, 100, 1024):
        x = np.full(size, small)
        x[0] = 1.0
        bound = codec.bound(norm(x))
        length = max(norm(joined(there_and_back(codec, (x,), seed))) for seed in range(4))
        assert bound is None or length <= bound * (1 + 1e-12)


def test_bounds_say_which_steps_lengthen():
    assert chain(Flatten(), TopK(0.1), Quantize(1, rounding="nearest"), EntropyCoding()).transforms[2].bound(1.0) == 1.0
    assert Rotate().bound(1.0) == pytest.approx(1.0, abs=1e-5)
    assert RandomK(0.1).bound(1.0) == pytest.approx(10, rel=1e-5)
    assert Quantize(8, 1024).bound(1.0) == pytest.approx(1 + 32 / 127, rel=1e-5)
    assert Cast("bfloat16").bound(1.0) == pytest.approx(1 + 2**-8, rel=1e-3)
    assert with_feedback(TopK(0.1)).bound(1.0) is None
    assert with_feedback(Clip(1.0), TopK(0.1)).bound(None) == 1.0


# ------------------------------------------------------------------------------------------------ chains


def layers(seed, size=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((20, 30), (30,), (), (30, 5), (0, 4))
    return (*(np.asarray(rng.normal(size=shape) * size, np.float32) for shape in shapes), np.array([3, seed]))


@pytest.mark.parametrize("pipeline", CHAINS, ids=lambda p: "-".join(type(t).__name__ for t in p.transforms))
def test_a_sum_of_encodings_opens_to_the_sum_of_what_was_sent_in_whatever_order_it_came(pipeline):
    info = round_of(pipeline, layers(0))
    sent = [pipeline.encode(update(layers(seed), str(seed)), (), info)[0] for seed in range(3)]
    each = [pipeline.decode(one, info).arrays for one in sent]
    opened = []
    for order in permutations(sent):
        total = ExactSum(GRID)
        for one in order:
            single = pipeline.decode_each(one, info)
            check_template(single.arrays, pipeline.opened(info.template))
            total.add(single)
        opened.append(pipeline.decode_sum(total.total(), pipeline.begin(), info)[0].arrays)
    for index, (shape, _) in enumerate(info.template):
        assert opened[0][index].shape == shape
        assert all((arrays[index] == opened[0][index]).all() for arrays in opened)
        expected = sum(arrays[index].astype(np.float64) for arrays in each)
        np.testing.assert_allclose(GRID.to_float(opened[0][index], 1.0), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pipeline", CHAINS, ids=lambda p: "-".join(type(t).__name__ for t in p.transforms))
def test_a_chain_is_shorter_than_the_update(pipeline):
    sent = encoded(pipeline, layers(1))
    assert encoded_bytes(sent) < encoded_bytes(layers(1))


def test_linear_steps_can_be_opened_on_the_sum_and_others_cannot():
    either = {type(codec) for codec in CODECS if codec.opens is Opens.EITHER}
    assert either == {Flatten, Rotate, RandomK, Prune}


def test_steps_of_each_reply_are_undone_before_anything_is_added_up():
    x = layers(0)
    apart, together = chain(Rotate(2**8), Quantize(16)), chain(each_reply(Rotate(2**8), Quantize(16)))
    info = round_of(apart, x)
    sent = apart.encode(update(x), (), info)[0]
    assert template_of(apart.decode_each(sent, info).arrays) != template_of(x)
    opened = together.decode_each(sent, info).arrays
    check_template(opened, template_of(x))
    np.testing.assert_allclose(joined(opened), joined(x), atol=1e-3)
    with pytest.raises(IllegalChain, match="NoiseOnSum cannot be opened reply by reply"):
        each_reply(Clip(1.0), NoiseOnSum(protection(), 1.0))
    with pytest.raises(IllegalChain, match="ErrorFeedback keeps state or adds noise"):
        each_reply(with_feedback(TopK(0.1)))


def test_feedback_refuses_steps_that_it_would_undo():
    with pytest.raises(
        IllegalChain, match="LocalNoise adds noise, which feedback would take back: it cannot stand inside"
    ):
        with_feedback(Clip(1.0), LocalNoise(protection(), 1.0))
    with pytest.raises(IllegalChain, match="NoiseOnSum acts on the sum only"):
        with_feedback(Clip(1.0), NoiseOnSum(protection(), 1.0))
    with pytest.raises(IllegalChain, match="ErrorFeedback keeps state of its own"):
        with_feedback(with_feedback(TopK(0.1)))
    with pytest.raises(IllegalChain, match="Prune keeps state of its own"):
        with_feedback(Prune())
    with pytest.raises(IllegalChain, match=r"RandomK enlarges what it sends, .*\(take scaled=false\)"):
        with_feedback(RandomK(0.1))


# --------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantize(3), "bits=3: expected 1, 2, 4, 8 or 16"),
        (lambda: Quantize(8, 4), "block=4: expected 8 to 1048576"),
        (lambda: Quantize(8, 2**21), "block=2097152: expected 8 to 1048576"),
        (lambda: Quantize(8, rounding="up"), "rounding=up: expected stochastic or nearest"),
        (lambda: Cast("float8"), "dtype=float8: expected float16 or bfloat16"),
        (lambda: Rotate(100), "rotation-block=100: expected a power of two from 256 to 1048576"),
        (lambda: Rotate(2**21), "rotation-block=2097152: expected a power of two from 256 to 1048576"),
        (lambda: TopK(0), "top-k=0: expected above 0 and at most 1, such as 0.01"),
        (lambda: TopK(float("nan")), "top-k=nan: expected above 0 and at most 1"),
        (lambda: RandomK(1.5), "random-k=1.5: expected above 0 and at most 1"),
        (lambda: Prune(1.0), "sparsity=1: expected above 0 and below 1"),
        (lambda: Prune(0.5, 0), "prune-from=0: expected at least 1"),
        (lambda: Prune(0.5, 5, 4), "prune-to=4: expected at least prune-from=5"),
    ],
)
def test_bad_arguments_are_refused_with_the_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("codec", [c for c in CODECS if not isinstance(c, Flatten | EntropyCoding | Prune)], ids=name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused_at_the_client(codec, bad):
    x = np.ones(300)
    x[:] = bad
    with pytest.raises(InvalidUpdate, match="non-finite"):
        encoded(codec, (x,))


# ----------------------------------------------------------------------------------------- entropy codes


@given(st.sets(st.integers(0, 2**32 - 1), max_size=60), st.integers(0, 31))
def test_golomb_rice_loses_nothing(positions, digits):
    ascending = np.array(sorted(positions), np.uint32)
    if golomb_rice.length(ascending, digits) > 2**16:
        digits = golomb_rice.best_digits(ascending)
    code = golomb_rice.encode(ascending, digits)
    assert code.size == golomb_rice.length(ascending, digits)
    np.testing.assert_array_equal(golomb_rice.decode(code, ascending.size, digits), ascending)


def test_the_best_digits_are_the_best():
    rng = np.random.default_rng(0)
    for fraction in (0.001, 0.02, 0.3, 0.9):
        positions = np.flatnonzero(rng.random(50_000) < fraction).astype(np.uint32)
        lengths = [golomb_rice.length(positions, digits) for digits in range(20)]
        assert lengths[golomb_rice.best_digits(positions)] == min(lengths)


def test_a_padded_length_tells_nothing_of_the_content():
    codec = chain(TopK(0.05), Quantize(8, 64), EntropyCoding(padded=True))
    lengths = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=4_000) * np.exp(rng.normal(size=4_000) * seed)
        x[: 200 * (seed % 2)] *= 1e6
        lengths.add(encoded(codec, (x,))[0].size)
    assert len(lengths) == 1


def test_runs_take_next_to_nothing_and_noise_no_more_than_it_has():
    noise = np.frombuffer(np.random.default_rng(0).bytes(10_000), np.uint8)
    assert encoded(EntropyCoding(), (np.zeros(1_000_000, np.uint8),))[0].size < 4_000
    assert encoded(EntropyCoding(), (noise,))[0].size == 1 + 5 + noise.size


def test_exponents_compress_apart_from_digits():
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    assert encoded(chain(Cast("bfloat16"), EntropyCoding()), (x,))[0].size < 0.75 * 2 * x.size

"""Whatever a client sends, decoding ends: with arrays of the right form that are finite, or with InvalidUpdate, and
with no more memory than stated."""

import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from compressed import encoded, round_of, update
from protected import protection

from strategies.compression import uplink
from strategies.transform import chain
from strategies.transforms.cast import Cast
from strategies.transforms.clipping import Clip, norm
from strategies.transforms.entropy_coding import DEFLATE, POSITIONS, RAW, VERSION, EntropyCoding
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.noise import NoiseOnSum
from strategies.transforms.prune import MASK, Prune
from strategies.transforms.quantize import Quantize
from strategies.transforms.rotate import Rotate
from strategies.transforms.sparsify import RandomK, TopK
from strategies.update import ExactSum, InvalidUpdate
from strategies.work import check_template, template_of

PAYLOADS = 10_000
DTYPES = [np.dtype(name) for name in ("u1", "u2", "u4", "i8", "f2", "f4", "f8", ">f4", "?", "c8", "S3")]

DECODERS = {
    "flatten": chain(Flatten()),
    "float16": chain(Cast("float16")),
    "bfloat16": chain(Cast("bfloat16")),
    "1 bit": chain(Quantize(1, 16)),
    "4 bits": chain(Quantize(4, 16)),
    "8 bits": chain(Quantize(8, 16)),
    "16 bits": chain(Quantize(16, 16)),
    "rotate": chain(Rotate(2**8)),
    "top-k": chain(TopK(0.1)),
    "random-k": chain(RandomK(0.1)),
    "prune": chain(Prune()),
    "entropy": chain(EntropyCoding()),
    "padded entropy": chain(EntropyCoding(padded=True)),
    "positions": chain(TopK(0.1), EntropyCoding()),
    "padded positions": chain(TopK(0.1), EntropyCoding(padded=True)),
    "all": chain(with_feedback(Flatten(), Rotate(2**8), TopK(0.2), Quantize(4, 16), EntropyCoding())),
}


def layers():
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random(300) < 0.1, rng.normal(size=300), 0).astype(np.float32)
    return rng.normal(size=(9, 8)).astype(np.float32), sparse, np.float64(3).reshape(()), np.arange(3)


def mutated(rng, arrays):
    """A payload with one to three faults."""
    arrays = list(arrays)
    for _ in range(rng.integers(1, 4)):
        fault = FAULTS[rng.integers(len(FAULTS))]
        where = rng.integers(len(arrays)) if arrays else 0
        if arrays:
            arrays[where : where + 1] = fault(rng, arrays[where])
    return tuple(arrays)


def _flipped(rng, array):
    data = bytearray(array.tobytes())
    for _ in range(rng.integers(1, 5) if data else 0):
        data[rng.integers(len(data))] = rng.integers(256)
    return [np.frombuffer(bytes(data), array.dtype).reshape(array.shape)] if data else [array]


def _head_flipped(rng, array):
    """Where the entropy code keeps version, methods and lengths."""
    data = bytearray(array.tobytes())
    for place in range(min(len(data), 8)):
        if rng.random() < 0.3:
            data[place] = rng.choice([0, 1, 2, 3, 127, 255, rng.integers(256)])
    return [np.frombuffer(bytes(data), array.dtype).reshape(array.shape)] if data else [array]


def _resized(rng, array):
    flat = array.reshape(-1)
    size = int(rng.choice([0, 1, max(0, flat.size - 1), flat.size + 1, 2 * flat.size, rng.integers(2 * flat.size + 1)]))
    return [np.resize(flat, size) if flat.size else np.zeros(size, array.dtype)]


def _recast(rng, array):
    dtype = DTYPES[rng.integers(len(DTYPES))]
    data = array.tobytes()
    return [np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype) if data else np.zeros(0, dtype)]


def _reshaped(rng, array):
    return [array.reshape(1, -1) if rng.random() < 0.5 else array.reshape(-1, 1)]


def _strange(rng, array):
    changed = array.copy()
    if changed.size and changed.dtype.kind == "f":
        values = [np.nan, np.inf, -np.inf, -1, np.finfo(changed.dtype).max, np.finfo(changed.dtype).smallest_subnormal]
        changed.reshape(-1)[rng.integers(changed.size)] = values[rng.integers(len(values))]
    elif changed.size and changed.dtype.kind in "iu":
        limits = np.iinfo(changed.dtype)
        changed.reshape(-1)[rng.integers(changed.size)] = rng.choice([limits.min, limits.max])
    return [changed]


def _all_huge(rng, array):
    if array.dtype.kind == "f":
        return [np.full(array.shape, np.finfo(array.dtype).max)]
    return [~array if array.dtype.kind in "iub" else array]


def _sorted(rng, array):
    flat = np.sort(array.reshape(-1))
    return [(flat if rng.random() < 0.5 else flat[::-1]).reshape(array.shape)]


def _dropped(rng, array):
    return []


def _doubled(rng, array):
    return [array, array]


FAULTS = (
    *[_flipped] * 4,
    *[_head_flipped] * 3,
    _resized,
    _recast,
    _reshaped,
    _strange,
    _all_huge,
    _sorted,
    _dropped,
    _doubled,
)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
def test_ten_thousand_mutations_raise_nothing_but_invalid_update(decoder):
    rng = np.random.default_rng(0)
    info = round_of(decoder, layers())
    valid = decoder.encode(update(layers()), (), info)[0].arrays
    reasons = Counter()
    for _ in range(PAYLOADS):
        wrong = mutated(rng, valid)
        try:
            found = decoder.decode(update(wrong), info).arrays
        except InvalidUpdate as error:
            reasons[error.reason] += 1
            continue
        check_template(found, info.template)
        assert all(np.isfinite(array).all() for array in found)
    assert set(reasons) == {"decode"}
    assert 0.3 * PAYLOADS < reasons["decode"] < PAYLOADS


@pytest.mark.parametrize("args", [(0.1, 8, "auto"), (0.0, 8, "on"), (0.0, 1, "auto")], ids=str)
def test_no_payload_moves_a_sum_with_a_clip_by_more_than_the_clip(args):
    """As the server of compressed-dp-fedavg has it: decoded, limited, added up on the grid."""
    private = chain(Clip(0.5), NoiseOnSum(protection(), 0.5), uplink(*args, private=True))
    rng, given = np.random.default_rng(1), layers()[:3]
    info = round_of(private, given)
    valid = private.encode(update(given), (), info)[0].arrays
    moved, dropped = [], 0
    for _ in range(PAYLOADS // 4):
        total = ExactSum(info.grid)
        try:
            opened = private.decode_each(update(mutated(rng, valid)), info)
            check_template(opened.arrays, info.template)
            total.add(private.limit(opened, info))
        except InvalidUpdate:
            dropped += 1
            continue
        moved.append(norm(tuple(info.grid.to_float(array, 1.0) for array in total.total().arrays)))
    assert dropped
    assert 0.4 < max(moved) <= 0.5 + 1e-6


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
def test_decoding_allocates_no_more_than_stated(decoder):
    """40 bytes for each byte of the update, and what errors and small things take."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=20_000).astype(np.float32), np.arange(3))
    info = round_of(decoder, x)
    valid = decoder.encode(update(x), (), info)[0].arrays
    allowed = 40 * sum(array.nbytes for array in x) + 2**16
    for _ in range(60):
        wrong = mutated(rng, valid)
        tracemalloc.start()
        try:
            decoder.decode(update(wrong), info)
        except InvalidUpdate:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < allowed


# --------------------------------------------------------------------------------------------- by hand


def refused(codec, arrays, given, match):
    info = round_of(codec, given)
    with pytest.raises(InvalidUpdate, match=match) as caught:
        chain(codec).decode(update(arrays), info)
    assert caught.value.reason == "decode"


X = (np.array([3.0, -1.0, 2.0, 0.5, 0.0, 1.0, 1.0, 1.0]),)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0])
def test_scales_that_no_update_has(scale):
    codes, scales = encoded(Quantize(8), X)
    refused(Quantize(8), (codes, np.full_like(scales, scale)), X, "NaN or an infinity|negative scale")


@pytest.mark.parametrize(("bits", "code"), [(4, 0xFF), (8, 0xFF), (16, 0xFFFF)])
def test_codes_that_there_are_not(bits, code):
    codes, scales = encoded(Quantize(bits), X)
    refused(Quantize(bits), (np.full_like(codes, code), scales), X, "a code that")


def test_codes_behind_the_last_element():
    given = (np.ones(3),)
    codes, scales = encoded(Quantize(1), given)
    refused(Quantize(1), (codes | 0b1000, scales), given, "more codes than elements")


@pytest.mark.parametrize("positions", [(0, 0, 8), (2, 1, 8), (0, 8, 8), (0, 1, 9), (0, 1, 7), (0, 2**32 - 1, 8)])
def test_positions_that_repeat_descend_or_leave_the_update(positions):
    refused(TopK(0.25), (np.array(positions, np.uint32), np.ones(2)), X, "positions that do not ascend to 8")


def test_values_too_large_for_the_model():
    given = (np.ones(4, np.float16),)
    codes, scales = encoded(Quantize(8), given)
    refused(Quantize(8), (codes, np.full_like(scales, 1e30)), given, "not finite")
    refused(Rotate(2**8), (np.full(4, np.float32(3e38)),), (np.ones(4, np.float32),), "not finite")
    refused(Cast("bfloat16"), (np.array([0x7F80], np.uint16),), (np.ones(1),), "not finite")


def test_a_seed_that_is_not_there():
    info = replace(round_of(Rotate(), X), public={})
    with pytest.raises(InvalidUpdate, match="rotation-seed: expected a whole number from the server, got None"):
        Rotate().encode(update(X), (), info)
    with pytest.raises(InvalidUpdate, match="random-k-seed: expected a whole number"):
        RandomK().decode_each(update((np.ones(1),)), replace(info, public={"random-k-seed": "7"}))


def section(method, body):
    return bytes([method]) + len(body).to_bytes(4, "little") + body


def stream(*parts):
    return (np.frombuffer(b"".join(parts), np.uint8),)


ZEROS = (np.zeros(1_000, np.uint8),)
ASCENDING = (np.arange(5, 1_000, 7).astype(np.uint32),)
HEAD = bytes([VERSION])


@pytest.mark.parametrize(
    ("sent", "match"),
    [
        (stream(bytes([2]), section(RAW, bytes(1_000))), "version 2, expected 1"),
        (stream(HEAD, section(RAW, bytes(999))), "an array that method 0 does not give"),
        (stream(HEAD, section(RAW, bytes(1_001))[:-1]), "ends too early"),
        (stream(HEAD, section(9, bytes(3))), "method 9"),
        (stream(HEAD, section(DEFLATE, zlib.compress(bytes(1_000))), b"\0"), "1 bytes behind the last array"),
        (stream(HEAD, section(RAW, bytes(1_000)), b"\0"), "at most 1006 bytes"),
        (stream(HEAD, section(DEFLATE, zlib.compress(bytes(999)))), "does not end with 1000 bytes"),
        (stream(HEAD, section(DEFLATE, zlib.compress(bytes(1_001)))), "does not end with 1000 bytes"),
        (stream(HEAD, section(DEFLATE, zlib.compress(bytes(1_000))[:-1])), "does not end with 1000 bytes"),
        (stream(HEAD, section(DEFLATE, zlib.compress(bytes(1_000)) + b"\0")), "does not end with 1000 bytes"),
        (stream(HEAD, section(DEFLATE, zlib.compress(bytes(500_000)))), "does not end with 1000 bytes"),
        (stream(HEAD, section(DEFLATE, b"nothing")), "no zlib stream"),
        (stream(HEAD, section(POSITIONS, b"\0\xff")), "method 2"),
        (stream(HEAD), "ends too early"),
        ((), "expected one vector"),
        ((np.zeros(0, np.uint8),), "expected one vector"),
    ],
)
def test_entropy_streams_that_are_none(sent, match):
    refused(EntropyCoding(), sent, ZEROS, match)


def test_a_bomb_is_not_unpacked():
    bomb = section(DEFLATE, zlib.compress(bytes(50_000_000), 9)[:900])
    info = round_of(EntropyCoding(), ZEROS)
    tracemalloc.start()
    with pytest.raises(InvalidUpdate):
        EntropyCoding().decode_each(update(stream(HEAD, bomb)), info)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("padded", [False, True])
def test_positions_with_a_byte_more_or_less_or_too_far(padded):
    (good,) = encoded(EntropyCoding(padded), ASCENDING)
    body = good[6:].tobytes()
    digits, code = body[:1], body[1:]
    np.testing.assert_array_equal(
        EntropyCoding(padded).decode_each(update((good,)), round_of(EntropyCoding(padded), ASCENDING)).arrays[0],
        ASCENDING[0],
    )
    for wrong in (digits + code + b"\0", digits + code[:-1], digits + code + b"\x80", b"\x20" + code, b"\xff" + code):
        refused(EntropyCoding(padded), stream(HEAD, section(POSITIONS, wrong)), ASCENDING, "positions")
    far = np.packbits(np.array([1] * 31 * 2 + [0] * 40 + [1] * 2))
    two = (np.array([1, 5], np.uint32),)
    refused(
        EntropyCoding(padded), stream(HEAD, section(POSITIONS, bytes([31]) + far.tobytes()))[:1], two, "bytes|2\\^32"
    )


def test_a_padded_stream_is_not_deflated():
    refused(EntropyCoding(padded=True), stream(HEAD, section(DEFLATE, zlib.compress(bytes(1_000)))), ZEROS, "method 1")


def test_a_mask_hides_nothing():
    info = replace(round_of(Prune(), X), public={MASK: b"\x80"})
    with pytest.raises(InvalidUpdate, match="values for pruned"):
        Prune().decode_each(update((np.ones(8),)), info)


def test_the_template_of_the_round_decides_and_not_the_payload():
    larger = encoded(Quantize(8), (np.ones(9),))
    refused(Quantize(8), larger, X, "another form")
    assert template_of(larger) != Quantize(8).encodes(template_of(X))

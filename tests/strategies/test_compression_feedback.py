"""Error feedback loses nothing: not over rounds, not with replies that are lost, not over restarts of a node."""

import numpy as np
import pytest
from compressed import joined, round_of, update

from fl_app.client_state import ClientStore
from strategies.transform import chain
from strategies.transforms.clipping import Clip
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.quantize import Quantize
from strategies.transforms.rotate import Rotate
from strategies.transforms.sparsify import RandomK, TopK

ROUNDS = 100
SHAPES = ((20, 30), (30,), ())

CODECS = {
    "top-k": with_feedback(TopK(0.02)),
    "top-k, 8 bits": with_feedback(TopK(0.02), Quantize(8), EntropyCoding()),
    "signs": with_feedback(Flatten(), Quantize(1, rounding="nearest")),
    "rotated 2 bits": with_feedback(Flatten(), Rotate(), Quantize(2, rounding="nearest"), EntropyCoding()),
    "random-k": with_feedback(RandomK(0.1, scaled=False), Quantize(8)),
    "clipped": with_feedback(Clip(3.0), TopK(0.05), Quantize(8), EntropyCoding()),
}


def a_delta(rng, dtype):
    return tuple(np.asarray(rng.normal(size=shape), dtype) for shape in SHAPES)


@pytest.mark.parametrize(("name", "dtype"), [*((name, np.float32) for name in CODECS), ("top-k, 8 bits", np.float64)])
def test_what_was_used_and_what_is_left_is_all_that_there_was(name, dtype, tmp_path):
    """A third of the replies is lost; every node begins anew in every round and reads the state from its disk, at
    the generation that the server says it used last."""
    rng = np.random.default_rng(0)
    pipeline = chain(CODECS[name])
    clients = ("a", "b")
    used_rounds = dict.fromkeys(clients, 0)
    used = {client: np.zeros(631) for client in clients}
    wanted = {client: np.zeros(631) for client in clients}
    for number in range(1, ROUNDS + 1):
        for client in clients:
            store = ClientStore(tmp_path, "job")
            delta = a_delta(rng, dtype)
            info = round_of(pipeline, delta, number, seed=number)
            sent, state = pipeline.encode(update(delta, client), store.load(client, used_rounds[client]), info)
            store.save(client, used_rounds[client], number, state)
            if rng.random() < 1 / 3:
                continue
            used_rounds[client] = number
            used[client] += joined(pipeline.decode_each(sent, info).arrays)
            wanted[client] += joined(delta)
    precision = 1e-4 if dtype == np.float32 else 1e-11
    for client in clients:
        (left,) = ClientStore(tmp_path, "job").load(client, used_rounds[client])
        assert used_rounds[client] > ROUNDS - 15
        np.testing.assert_allclose(used[client] + left, wanted[client], rtol=0, atol=precision)


def test_without_feedback_it_is_not():
    """The test above tells feedback from its absence."""
    rng = np.random.default_rng(0)
    used, wanted = np.zeros(631), np.zeros(631)
    for number in range(ROUNDS):
        delta = a_delta(rng, np.float64)
        info = round_of(TopK(0.02), delta, number)
        used += joined(TopK(0.02).decode_each(TopK(0.02).encode(update(delta), (), info)[0], info).arrays)
        wanted += joined(delta)
    assert np.linalg.norm(used - wanted) > 0.5 * np.linalg.norm(wanted)


def test_a_lost_reply_leaves_the_state_where_it_was():
    codec = with_feedback(TopK(0.02), Quantize(8))
    rng = np.random.default_rng(0)
    first, second = a_delta(rng, np.float32), a_delta(rng, np.float32)
    info = round_of(codec, first)
    _, state = codec.encode(update(first), (), info)
    once, after = codec.encode(update(second), state, info)
    again, same = codec.encode(update(second), state, info)
    np.testing.assert_array_equal(after[0], same[0])
    for a, b in zip(once.arrays, again.arrays, strict=True):
        np.testing.assert_array_equal(a, b)


def test_feedback_makes_signs_find_the_optimum():
    """Descent on |x - target|^2 by scaled signs of blocks with one large gradient: stuck without feedback."""
    target = np.full(8, 0.01)
    target[0] = 1.0

    def distance(codec):
        x, state = np.zeros(8), ()
        for number in range(300):
            info = round_of(codec, (x,), number)
            sent, state = codec.encode(update((0.1 * (target - x),)), state, info)
            x = x + codec.decode_each(sent, info).arrays[0]
        return np.abs(x - target).max()

    signs = Quantize(1, 8, "nearest")
    assert distance(with_feedback(TopK(0.125))) < 1e-3
    assert distance(with_feedback(signs)) < 0.02

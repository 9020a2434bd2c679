"""The model on its way down: everybody ends with the same reconstruction, whatever they missed."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import RecordDict

from strategies.compression import downlink
from strategies.downlink import MOST_STEPS, Downlink, StepCodec, follow, model_sha256
from strategies.transform import chain
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.quantize import Quantize
from strategies.update import InvalidUpdate
from strategies.wire import model_records, read_model

SHAPES = ((30, 40), (40,), ())


def models(count, seed=0):
    """A model that moves, round by round."""
    rng = np.random.default_rng(seed)
    params = tuple(rng.normal(size=shape).astype(np.float32) for shape in SHAPES)
    for _ in range(count):
        yield params
        params = tuple((p + 0.1 * rng.normal(size=p.shape)).astype(np.float32) for p in params)


def norm(arrays):
    return float(np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)))


def gap(model, params):
    return norm([m - p for m, p in zip(model, params, strict=True)])


CODECS = {"8 bits": downlink(0.0, 8), "4 bits": downlink(0.0, 4), "sparse": downlink(0.1, 8)}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_whoever_missed_how_many_rounds_ends_with_the_servers_reconstruction(codec):
    down, reconstruction = Downlink(codec, seed=3), ()
    held = dict.fromkeys(range(5), ((), 0))
    for number, params in enumerate(models(30), 1):
        reconstruction = down.advance(number, params, reconstruction)
        present = [node for node in held if node == 0 or (number * (node + 3)) % (node + 1) == 0]
        for node in present:
            sent = down.for_holder(node)
            assert sent.size <= replace(sent, model=reconstruction, steps=()).size
            held[node] = follow(codec, read_model(RecordDict(dict(model_records(sent)))), *held[node]), number
            for ours, theirs in zip(held[node][0], reconstruction, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        down.settle(present, (), ())
    assert held[0][1] == 30


def test_the_first_round_sends_the_params_themselves_and_later_ones_a_step_that_is_far_smaller():
    down, (first, second) = Downlink(downlink(0.0, 8), seed=0), models(2)
    reconstruction = down.advance(1, first, ())
    assert reconstruction is first
    whole = down.for_holder("a").size
    down.settle([1], (), ["a"])
    down.advance(2, second, reconstruction)
    assert down.for_holder("a").size < whole / 3
    assert down.for_holder(1).size == down.for_holder("a").size
    assert down.for_holder("newcomer").size == whole


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_what_a_step_loses_is_in_the_next_so_that_the_reconstruction_follows(codec):
    """The model stands still after some rounds; the reconstruction then comes as near as floats do."""
    down, reconstruction = Downlink(codec, seed=0), ()
    *moving, last = models(5)
    for number, params in enumerate([*moving, *[last] * 60], 1):
        reconstruction = down.advance(number, params, reconstruction)
    assert gap(reconstruction, last) < 1e-3 * norm(last)


def test_no_more_than_eight_steps_are_kept():
    down, reconstruction = Downlink(downlink(0.02, 8), seed=0), ()
    for number, params in enumerate(models(MOST_STEPS + 3), 1):
        reconstruction = down.advance(number, params, reconstruction)
        if number == 2:
            down.settle([1], (), ())
        if number == 3:
            down.settle([2], (), ())
    assert down.for_holder(1).model  # nine rounds behind
    assert len(down.for_holder(2).steps) == MOST_STEPS


def test_steps_that_are_together_larger_than_the_model_are_not_sent():
    down, reconstruction = Downlink(downlink(0.0, 8), seed=0), ()
    for number, params in enumerate(models(7), 1):
        reconstruction = down.advance(number, params, reconstruction)
        if number == 1:
            down.settle([1], (), ())
    assert down.for_holder(1).model


def test_a_node_whose_reply_was_lost_skips_the_steps_it_has_taken():
    codec = downlink(0.0, 8)
    down, reconstruction, held = Downlink(codec, seed=0), (), ()
    for number, params in enumerate(models(4), 1):
        reconstruction = down.advance(number, params, reconstruction)
        held = follow(codec, down.for_holder(1), held, number - 1)
        if number == 1:
            down.settle([1], (), ())  # the replies of rounds 2 and 3 are lost: the server counts from round 1
    assert model_sha256(held) == model_sha256(reconstruction)


def test_a_node_that_lost_its_model_or_has_another_one_says_so_and_is_sent_the_model():
    codec = downlink(0.0, 8)
    down, (first, second, third) = Downlink(codec, seed=0), models(3)
    reconstruction = down.advance(1, first, ())
    down.settle([1], (), ())
    reconstruction = down.advance(2, second, reconstruction)
    steps = down.for_holder(1)
    for held, number in (((), 0), (tuple(2 * a for a in first), 1), (first[:-1], 1), (first, 5)):
        with pytest.raises(InvalidUpdate, match=r"^decode"):
            follow(codec, steps, held, number)
    down.settle((), [1], ())
    down.advance(3, third, reconstruction)
    assert down.for_holder(1).model


def test_steps_that_were_tampered_with_are_refused():
    codec = downlink(0.0, 8)
    down, (first, second) = Downlink(codec, seed=0), models(2)
    reconstruction = down.advance(1, first, ())
    down.settle([1], (), ())
    down.advance(2, second, reconstruction)
    sent = down.for_holder(1)
    (step,) = sent.steps
    for place in range(0, step.arrays[0].size, 97):
        changed = step.arrays[0].copy()
        changed[place] ^= 0x15
        with pytest.raises(InvalidUpdate, match=r"^decode"):
            follow(codec, replace(sent, steps=(replace(step, arrays=(changed,)),)), first, 1)


def test_a_codec_that_keeps_state_cannot_encode_the_way_down():
    with pytest.raises(ValueError, match="ErrorFeedback cannot encode the way down"):
        StepCodec(chain(with_feedback(Flatten(), Quantize(1, rounding="nearest"))))


def test_all_of_the_model_is_sent_where_nothing_is_to_be_encoded():
    assert downlink(0.0, 32) is None

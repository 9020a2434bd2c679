"""What is written is read back to the bit; what is not of this format is refused without cost."""

import io
import pickle
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fl_app.inline import InlineGrid
from strategies import wire
from strategies.history import Dropped
from strategies.update import Update
from strategies.wire import Answer, Order, WireError

ORDER = Order(3, ("a", "ä/1"), (0, 2), 17, 60.0, True, {"clip": 1.5, "seed": b"\x00\xff", "on": True})
UPDATE = Update(
    (np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros(0, np.float32)),
    ("a", "b"),
    weight=7,
    num_examples=9,
    metric_sums={"loss": Fraction(0.1) + Fraction(1e20), "correct": Fraction(4)},
    payload_bytes=11,
    on_grid=True,
)
ANSWER = Answer((UPDATE,), (Dropped("c", "non-finite"),))


def test_an_order_and_its_params_survive():
    params = (np.array([[1.5, -0.0]]), np.array(3, np.int64))
    content = wire.order_content(
        ORDER, {"params": wire.params_record(params)}, ConfigRecord({"job": "j", "mean": [0.5]})
    )
    assert wire.read_order(content) == ORDER
    assert wire.read_config(content) == {"job": "j", "mean": [0.5]}
    for sent, read in zip(params, wire.read_params(content), strict=True):
        assert (sent.dtype, sent.shape, sent.tobytes()) == (read.dtype, read.shape, read.tobytes())
        assert not read.flags.writeable


def test_an_answer_survives():
    read = wire.read_answer(wire.answer_content(ANSWER))
    assert read.dropped == ANSWER.dropped
    (update,) = read.updates
    for sent, got in zip(UPDATE.arrays, update.arrays, strict=True):
        np.testing.assert_array_equal(sent, got)
        assert sent.dtype == got.dtype
    for name in ("clients", "weight", "num_examples", "metric_sums", "payload_bytes", "on_grid"):
        assert getattr(update, name) == getattr(UPDATE, name)


@given(st.lists(arrays(st.sampled_from(["<f4", "<f8", "<i8", "u1"]), array_shapes(min_dims=0, max_dims=4, min_side=0))))
def test_bytes_are_counted_as_flower_encodes_them(items):
    assert wire.encoded_bytes(tuple(items)) == sum(len(Array(item).data) for item in items)
    assert wire.record_bytes(wire.params_record(tuple(items))) == wire.encoded_bytes(tuple(items))


@given(
    st.lists(arrays(st.sampled_from(["<f4", "<i8"]), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=70))),
    st.text(min_size=1, max_size=300),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.text(max_size=300),
)
def test_the_length_of_a_message_is_that_of_flowers_own_serialisation(items, name, numbers, text):
    InlineGrid(ClientApp(), {}, 1)  # messages take the identity of their sender from the process
    records = {"params": wire.params_record(tuple(items)), f"c{name}": ConfigRecord({"n": numbers, "t": text})}
    message = Message(RecordDict(records), 2**63, "train", group_id=text)
    error = Message(Error(1_000, text), reply_to=message)
    for each in (message, error):
        assert wire.message_bytes(each) == len(message_to_proto(each).SerializeToString())


def without(record, key):
    content = wire.answer_content(ANSWER)
    del content[record][key]
    return content


def with_value(record, key, value):
    content = wire.answer_content(ANSWER)
    content[record][key] = value
    return content


def with_record(key, record):
    content = wire.answer_content(ANSWER)
    content[key] = record
    return content


def claiming(shape):
    """A file in numpy's format whose header claims a shape, with 16 bytes behind it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(16)


def headed(header):
    """A file in numpy's format with this text as its header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)


BAD = {
    "another version": with_value("answer", "version", wire.VERSION + 1),
    "no version": without("answer", "version"),
    "more updates than records": with_value("answer", "updates", 10**9),
    "negative updates": with_value("answer", "updates", -1),
    "a reason that is not on the list": with_value("answer", "reasons", ["because"]),
    "a dropped client without a reason": with_value("answer", "reasons", []),
    "a weight that is no integer": with_value("about-0", "weight", 1.5),
    "a weight that is a bool": with_value("about-0", "weight", True),
    "clients that are no strings": with_value("about-0", "clients", [1, 2]),
    "a missing key": without("about-0", "num-examples"),
    "a metric without a sum": with_value("about-0", "metric-sums", ["1/1"]),
    "too many metrics": with_value("about-0", "metrics", ["x"] * 10_000),
    "an array record of another name": with_record("update-0", ArrayRecord({"w": Array(np.zeros(2))})),
    "a config where arrays should be": with_record("update-0", ConfigRecord({"x": 1})),
    "bytes that are no array": with_record(
        "update-0", ArrayRecord({"0": Array("float64", (2,), "numpy.ndarray", b"junk")})
    ),
    "a truncated array": with_record(
        "update-0", ArrayRecord({"0": Array("float64", (9,), "numpy.ndarray", Array(np.zeros(9)).data[:-8])})
    ),
    "another serialisation": with_record("update-0", ArrayRecord({"0": Array("float64", (2,), "pickle", b"x")})),
    "a header that claims a terabyte": with_record(
        "update-0", ArrayRecord({"0": Array("float64", (2,), "numpy.ndarray", claiming((10**12,)))})
    ),
    **{
        f"a header that numpy fails on: {header[:24]}": with_record(
            "update-0", ArrayRecord({"0": Array("float64", (2,), "numpy.ndarray", headed(header))})
        )
        for header in (
            "((((",
            "{'descr': (), 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '|S0', 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1" + 30 * "0" + ")}",
            "-" * 9_000 + "1",
        )
    },
    "a header with a negative size": with_record(
        "update-0", ArrayRecord({"0": Array("float64", (2,), "numpy.ndarray", claiming((-1, -2)))})
    ),
    "nothing at all": RecordDict(),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_answer_is_refused(content):
    with pytest.raises(WireError):
        wire.read_answer(content)


def test_a_pickle_inside_an_array_is_not_loaded():
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    data = buffer.getvalue() + pickle.dumps(np.array([Bomb()], dtype=object))
    with pytest.raises(WireError):
        wire.read_answer(with_record("update-0", ArrayRecord({"0": Array("object", (1,), "numpy.ndarray", data)})))


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999/1",
        "9" * 10**6 + "/1",
        "1/3",
        "1/0",
        "1",
        "/",
        "x/2",
        "1/-2",
        "1/٣",
        "0x10/1",
        "1_0/1",
        f"{2**101}/1",
    ],
)
def test_a_metric_sum_is_an_integer_over_a_power_of_two_and_never_costs_time(text):
    began = time.monotonic()
    with pytest.raises(WireError, match="power of two"):
        wire.read_answer(with_value("about-0", "metric-sums", [text, "1/1"]))
    assert time.monotonic() - began < 1


def test_a_sum_of_many_doubles_of_all_sizes_fits():
    total = sum((Fraction(2.0**e) for e in range(-1022, 90, 7)), Fraction(0))
    update = Update((), ("a",), metric_sums={"loss": total})
    assert wire.read_answer(wire.answer_content(Answer((update,), ()))).updates[0].metric_sums["loss"] == total


def test_an_order_that_names_a_client_twice_is_refused():
    """Its ledger would be asked once and charged twice."""
    content = wire.order_content(replace(ORDER, clients=("a", "a")), {}, ConfigRecord(), None)
    with pytest.raises(WireError, match="twice"):
        wire.read_order(content)

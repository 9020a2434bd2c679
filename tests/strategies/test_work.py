"""What a strategy asks of fit, and what becomes of the answer."""

import numpy as np

from strategies.work import ControlledDelta, Curvature, Delta, Gradient

PARAMS = (np.arange(4.0).reshape(2, 2), np.ones(3, np.float32))
WORKS = (Delta(), Delta(settings={"proximal-mu": 0.5}), Gradient(), Curvature(), ControlledDelta())


def random_like(arrays, seed):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=a.shape).astype(a.dtype) for a in arrays)


def test_work_without_state_asks_for_training_from_the_params_alone():
    for work in WORKS[:-1]:
        assert work.prepare(PARAMS, (), ()) is PARAMS
        assert (work.stateful, work.num_state_arrays(PARAMS)) == (False, 0)
    assert [dict(work.settings) for work in WORKS] == [{}, {"proximal-mu": 0.5}, {}, {}, {"correction": True}]


def test_a_delta_is_the_way_from_the_received_params():
    new = random_like(PARAMS, 0)
    contribution, state = Delta().contribution(PARAMS, new, ())
    for got, old, end in zip(contribution, PARAMS, new, strict=True):
        np.testing.assert_array_equal(got, end - old)
        assert got.dtype == old.dtype
    assert state == ()


def test_a_controlled_client_is_corrected_by_how_its_variate_differs_from_the_servers():
    work, server, own = ControlledDelta(), random_like(PARAMS, 1), random_like(PARAMS, 2)
    assert (work.stateful, work.num_state_arrays(PARAMS)) == (True, 2)
    for state, expected in ((own, [s - o for s, o in zip(server, own, strict=True)]), ((), server)):
        given = work.prepare(PARAMS, server, state)
        assert given[:2] == PARAMS
        for got, correction in zip(given[2:], expected, strict=True):
            np.testing.assert_array_equal(got, correction)
            assert got.dtype == correction.dtype


def test_a_controlled_client_sends_how_its_variate_changed_and_keeps_the_new_one():
    work, returned, own = ControlledDelta(), random_like(PARAMS * 2, 3), random_like(PARAMS, 4)
    for state, before in ((own, own), ((), tuple(np.zeros_like(p) for p in PARAMS))):
        contribution, kept = work.contribution(PARAMS, returned, state)
        for got, end, start in zip(contribution, returned, (*PARAMS, *before), strict=True):
            np.testing.assert_array_equal(got, end - start)
        assert kept == returned[2:]
    assert [(a.shape, a.dtype) for a in contribution] == list(work.returns(PARAMS))

"""Server optimisers against what they are defined to be."""

import numpy as np

from strategies.optimizers import SGD, DampedNewton, cast_like

WHO = ("a", "b")


def test_sgd_without_momentum_adds_the_aggregate():
    params = (np.array([1.0, 2.0]), np.array([3.0], np.float32))
    new, state = SGD().step(params, (np.array([0.5, 0.0]), np.array([-1.0])), (), WHO)
    assert [a.tolist() for a in new] == [[1.5, 2.0], [2.0]]
    assert [a.dtype for a in new] == [np.float64, np.float32]
    assert state == ()


def test_momentum_is_the_textbook_recursion():
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(6, 4))
    optimizer = SGD(learning_rate=0.3, momentum=0.9)
    params = (np.zeros(4),)
    state = optimizer.init(params)
    x, v = np.zeros(4), np.zeros(4)
    for delta in deltas:
        params, state = optimizer.step(params, (delta,), state, WHO)
        v = 0.9 * v + delta
        x = x + 0.3 * v
    np.testing.assert_allclose(params[0], x, rtol=1e-14)


def test_integer_params_are_rounded_not_truncated():
    (counter,) = cast_like((np.array(6.7),), (np.array(3, np.int64),))
    assert counter == 7
    assert counter.dtype == np.int64


def statistics(objective, gradient, hessian):
    return np.array([objective]), gradient, hessian[np.triu_indices(len(gradient))]


def test_newton_solves_a_quadratic_in_one_step():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    hessian, b = root @ root.T + np.eye(5), rng.normal(size=5)
    newton = DampedNewton()
    params = (np.zeros((2, 2)), np.zeros(1))
    new, _ = newton.step(params, statistics(0.0, b, hessian), newton.init(params), WHO)
    flat = np.concatenate([a.ravel() for a in new])
    np.testing.assert_allclose(flat, -np.linalg.solve(hessian, b), rtol=1e-6)
    assert [a.shape for a in new] == [(2, 2), (1,)]


def test_a_step_that_raised_the_objective_is_halved_from_where_it_began():
    def at(x):  # sqrt(1 + x^2): Newton's full step overshoots from |x| > 1
        return statistics(np.sqrt(1 + x**2), np.array([x / np.sqrt(1 + x**2)]), np.array([[(1 + x**2) ** -1.5]]))

    newton = DampedNewton()
    params = (np.array([2.0]),)
    state = newton.init(params)
    seen = []
    for _ in range(40):
        seen.append(float(params[0][0]))
        params, state = newton.step(params, at(seen[-1]), state, WHO)
    assert seen[1] < -2  # the first full step overshoots to -x^3
    np.testing.assert_allclose(seen[2], (2.0 + seen[1]) / 2, rtol=1e-6)
    assert abs(seen[-1]) < 1e-8


def test_a_direction_without_curvature_does_not_stop_newton():
    newton, params = DampedNewton(), (np.zeros(2),)
    flat = statistics(0.0, np.array([1.0, 0.0]), np.array([[2.0, 0.0], [0.0, 0.0]]))
    new, _ = newton.step(params, flat, newton.init(params), WHO)
    np.testing.assert_allclose(new[0], [-0.5, 0.0], atol=1e-8)


def test_rounds_of_other_clients_are_not_compared():
    """A client that was missing once must not leave an objective behind that nothing can reach."""
    newton, params = DampedNewton(), (np.zeros(1),)
    hessian, gradient = np.eye(1), np.ones(1)
    moved, state = newton.step(params, statistics(0.1, gradient, hessian), newton.init(params), ("a",))
    halved, _ = newton.step(moved, statistics(0.9, gradient, hessian), state, ("a",))
    np.testing.assert_allclose(halved[0], [-0.5])
    stepped, _ = newton.step(moved, statistics(0.9, gradient, hessian), state, ("a", "b"))
    np.testing.assert_allclose(stepped[0], [-2.0])

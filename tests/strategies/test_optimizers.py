"""Server optimisers against what they are defined to be."""

import numpy as np
import pytest

from strategies.optimizers import SGD, Adagrad, Adam, Contributors, ControlVariates, DampedNewton, Yogi, cast_like


def who(*clients):
    return Contributors(clients, len(clients), len(clients))


WHO = who("a", "b")


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
    moved, state = newton.step(params, statistics(0.1, gradient, hessian), newton.init(params), who("a"))
    halved, _ = newton.step(moved, statistics(0.9, gradient, hessian), state, who("a"))
    np.testing.assert_allclose(halved[0], [-0.5])
    stepped, _ = newton.step(moved, statistics(0.9, gradient, hessian), state, who("a", "b"))
    np.testing.assert_allclose(stepped[0], [-2.0])


def adaptive_reference(rule, deltas, rate, beta1, beta2, tau):
    """Algorithm 2 of arXiv:2003.00295, number by number."""
    x = np.zeros(deltas.shape[1])
    for i in range(x.size):
        m, v = 0.0, tau**2
        for delta in deltas[:, i]:
            m = beta1 * m + (1 - beta1) * delta
            if rule == "adagrad":
                v = v + delta**2
            elif rule == "adam":
                v = beta2 * v + (1 - beta2) * delta**2
            else:
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            x[i] += rate * m / (np.sqrt(v) + tau)
    return x


RULES = {
    "adagrad": Adagrad(learning_rate=0.3, beta1=0.5, tau=0.01),
    "adam": Adam(learning_rate=0.3, beta1=0.8, beta2=0.9, tau=0.01),
    "yogi": Yogi(learning_rate=0.3, beta1=0.8, beta2=0.9, tau=0.01),
}


def writable_by_nobody(*arrays):
    for array in arrays:
        array.setflags(write=False)
    return arrays


@pytest.mark.parametrize("rule", RULES)
def test_adaptive_steps_are_those_of_the_paper(rule):
    deltas = np.random.default_rng(0).normal(size=(12, 6)) * np.logspace(-4, 1, 6)
    optimizer = RULES[rule]
    params = (np.zeros(4), np.zeros((2, 1)))
    state = optimizer.init(params)
    for delta in deltas:
        aggregate = writable_by_nobody(delta[:4].copy(), delta[4:].reshape(2, 1).copy())
        params, state = optimizer.step(writable_by_nobody(*params), aggregate, writable_by_nobody(*state), WHO)
    beta2 = getattr(optimizer, "beta2", None)
    expected = adaptive_reference(rule, deltas, 0.3, optimizer.beta1, beta2, 0.01)
    np.testing.assert_allclose(np.concatenate([a.ravel() for a in params]), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [*RULES.values(), SGD(0.5, 0.9), ControlVariates()], ids=lambda o: type(o).__name__
)
def test_state_is_kept_in_float64_and_params_in_their_own_dtype(optimizer):
    params = (np.zeros(3, np.float32), np.zeros((), np.float32))
    aggregate = (np.ones(3), np.array(-1.0)) * (2 if isinstance(optimizer, ControlVariates) else 1)
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.step(params, aggregate, state, WHO)
    assert all(array.dtype == np.float64 for array in state)
    assert [(array.dtype, array.shape) for array in params] == [(np.float32, (3,)), (np.float32, ())]
    assert params[0][0] > 0 > params[1]


def test_yogi_lowers_a_large_second_moment_more_slowly_than_adam():
    params, small = (np.zeros(1),), (np.array([1e-3]),)
    ends = {}
    for rule in ("adam", "yogi"):
        _, state = RULES[rule].step(params, (np.array([10.0]),), RULES[rule].init(params), WHO)
        for _ in range(20):
            _, state = RULES[rule].step(params, small, state, WHO)
        ends[rule] = state[1][0]
    assert ends["yogi"] > 5 * ends["adam"]


def test_the_servers_variate_is_the_weighted_mean_of_all_clients_variates_whoever_takes_part_and_joins():
    rng = np.random.default_rng(0)
    weights = {"a": 5, "b": 1, "c": 3, "d": 2}
    variates = {client: np.zeros(2) for client in weights}
    optimizer, params = ControlVariates(0.5), (np.zeros(2),)
    state = optimizer.init(params)
    for cohort, roster in (("abc", "abc"), ("ac", "abc"), ("bd", "abcd"), ("d", "abcd"), ("ab", "abcd")):
        new = {client: rng.normal(size=2) for client in cohort}
        share = {client: weights[client] / sum(weights[c] for c in cohort) for client in cohort}
        change = sum(share[c] * (new[c] - variates[c]) for c in cohort)
        weight = sum(weights[c] for c in cohort)
        contributors = Contributors(tuple(cohort), weight, sum(weights[c] for c in roster))
        before = params
        params, state = optimizer.step(params, (np.ones(2), change), state, contributors)
        np.testing.assert_allclose(params[0], before[0] + 0.5)
        variates |= new
        expected = sum(weights[c] * variates[c] for c in roster) / sum(weights[c] for c in roster)
        np.testing.assert_allclose(optimizer.broadcast(params, state)[0], expected, atol=1e-15)


def test_the_variate_travels_in_the_dtypes_of_the_params():
    params = (np.zeros(2, np.float32), np.zeros((), np.int64))
    optimizer = ControlVariates()
    for sent, param in zip(optimizer.broadcast(params, optimizer.init(params)), params, strict=True):
        assert (sent.dtype, sent.shape) == (param.dtype, param.shape)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGD(0.0), "server-learning-rate=0.0: expected above 0"),
        (lambda: SGD(1.0, 1.0), "momentum=1.0: expected at least 0 and below 1"),
        (lambda: ControlVariates(-1.0), "server-learning-rate=-1.0: expected above 0"),
        (lambda: Adagrad(learning_rate=0.0, beta1=0.0, tau=1.0), "server-learning-rate=0.0: expected above 0"),
        (lambda: Adagrad(learning_rate=1.0, beta1=-0.1, tau=1.0), "beta1=-0.1: expected at least 0 and below 1"),
        (lambda: Adam(learning_rate=1.0, beta1=0.9, beta2=1.0, tau=1.0), "beta2=1.0: expected at least 0 and below 1"),
        (lambda: Yogi(learning_rate=1.0, beta1=0.9, beta2=2.0, tau=1.0), "beta2=2.0: expected at least 0 and below 1"),
        (lambda: Yogi(learning_rate=1.0, beta1=0.9, beta2=0.9, tau=0.0), "tau=0.0: expected above 0"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_the_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()

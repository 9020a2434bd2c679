"""However its rows, its weight and its updates look, one client moves the sum of a round by no more than the noise is
made for: Hypothesis looks for a counter-example among adversarial clients, drop-outs and folding nodes."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from protected import empty_sum, opened, summed

from strategies.aggregation import FixedDivisor
from strategies.base import Basics
from strategies.compressed_dp_fedavg import CompressedDPFedAvg
from strategies.dp_fedavg import DPFedAvg
from strategies.dp_fedavg_adaptive import DPFedAvgAdaptive
from strategies.dp_ftrl import DPFTRL
from strategies.roster import Member, Roster
from strategies.sampling import Draw, round_rng
from strategies.transforms import correlated_noise, noise
from strategies.transforms.correlated_noise import coefficients
from strategies.update import ExactSum, FixedPoint, InvalidUpdate, Update

POPULATION, Z = 20, 2.0
SHAPES = ((2, 3), (), (2,))
ELEMENTS = 9
BASICS = Basics(clients_per_round=10, population=POPULATION, rounds=8)

STRATEGIES = {
    "dp-fedavg": (DPFedAvg, {"clip_norm": 0.7}),
    "dp-fedavg, a cohort of fixed size": (DPFedAvg, {"clip_norm": 0.7, "sampling": "fixed"}),
    "dp-fedavg, weighted": (DPFedAvg, {"clip_norm": 0.7, "max_examples": 100}),
    "compressed-dp-fedavg": (CompressedDPFedAvg, {"clip_norm": 0.7, "bits": 4}),
    "dp-fedavg-adaptive": (DPFedAvgAdaptive, {"initial_clip_norm": 0.3, "bit_share": 0.1}),
    "dp-ftrl": (DPFTRL, {"clip_norm": 3.0}),
    "dp-ftrl, weighted": (DPFTRL, {"clip_norm": 3.0, "max_examples": 100}),
}


def built(name):
    kind, args = STRATEGIES[name]
    return kind(BASICS, noise_multiplier=Z, **args)


@contextmanager
def scales():
    """The standard deviations, in steps of the grid, for which noise is drawn inside the block; none is added."""
    drawn = []

    def record(sigma, size, entropy):
        drawn.append(sigma)
        return np.zeros(size, np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "discrete_gaussian", record)
        patch.setattr(correlated_noise, "discrete_gaussian", record)
        yield drawn


def covered(strategy, info):
    """How far a client may move the sum of a round, in steps of its grid, for the noise that is drawn then."""
    shapes = [shape for shape, _ in strategy.pipeline.opened(info.template)]
    with scales() as drawn:
        strategy.pipeline.decode_sum(empty_sum(*shapes), strategy.pipeline.begin(), info)
    (sigma,) = set(drawn)
    lengthened = (
        np.linalg.norm(coefficients(strategy.pipeline.transforms[-1].bands)) if isinstance(strategy, DPFTRL) else 1
    )
    return sigma / Z / lengthened


# ---------------------------------------------------------------------------------------------------- adversaries

VALUES = st.sampled_from([0.0, -0.0, 1e-40, 1e-7, 0.1, 1.0, -3.0, 999.0, -(2.0**20) + 1, 1e6])


@dataclass(frozen=True)
class Client:
    """rows: what it weighs. good: whether it answers. honest: whether its node clips. node: where it lives."""

    name: str
    arrays: tuple
    rows: int
    good: bool
    honest: bool
    node: int


@st.composite
def deltas(draw, dtype):
    kind = draw(st.sampled_from(["one coordinate", "all", "anything"]))
    if kind == "anything":
        return tuple(draw(npst.arrays(dtype, shape, elements=VALUES.map(dtype))) for shape in SHAPES)
    arrays = [np.zeros(shape, dtype) for shape in SHAPES]
    value = draw(VALUES)
    if kind == "all":
        return tuple(np.full(shape, value, dtype) for shape in SHAPES)
    arrays[draw(st.integers(0, 2))].flat[0] = value
    return tuple(arrays)


@st.composite
def federations(draw):
    """Some clients, mostly of 10 rows or 1,000, and which of them is the neighbour's difference."""
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    clients = [
        Client(
            name=f"{index:02}",
            arrays=draw(deltas(dtype)),
            rows=draw(st.sampled_from([1, 10, 99, 100, 1000])),
            good=draw(st.booleans()) or index == 0,
            honest=draw(st.booleans()),
            node=draw(st.integers(0, 2)),
        )
        for index in range(draw(st.integers(1, 5)))
    ]
    return clients, replace(clients[0], arrays=draw(deltas(dtype)), rows=draw(st.sampled_from([1, 10, 1000])))


def received(client, strategy, info):
    """What leaves the client's node: a dishonest one leaves out the client half, but sends what a client may send."""
    update = Update(client.arrays, (client.name,), num_examples=client.rows)
    if client.honest:
        return strategy.pipeline.decode_each(strategy.pipeline.encode(update, (), info)[0], info)
    extra = tuple(np.full(shape, 5e5, dtype) for shape, dtype in strategy.pipeline.opened(info.template)[len(SHAPES) :])
    return replace(update, arrays=update.arrays + extra)


def total(clients, strategy, info, folding):
    """The exact sum of the good clients' updates as the server has it, before noise and division."""
    fold = ExactSum(info.grid)
    good = sorted((client for client in clients if client.good), key=lambda client: client.node)
    for node, hosted in groupby(good, key=lambda client: client.node):
        updates = [received(client, strategy, info) for client in hosted]
        if folding and node:  # nodes that fold hold each client to its limit first: fl_app/local_round.py
            within = ExactSum(info.grid)
            for update in updates:
                within.add(strategy.pipeline.limit(update, info))
            updates = [within.total()]
        for update in updates:
            fold.add(strategy.pipeline.limit(update, info))
    if not len(fold):
        return [0] * (ELEMENTS + 1)
    return [int(x) for array in fold.total().arrays for x in array.flat]


def distance(one, other):
    """The square of the L2 distance, exactly."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=False))


@pytest.mark.parametrize("name", STRATEGIES)
@given(federations(), st.booleans(), st.sampled_from([10, 30, 37]))
@settings(max_examples=60)
def test_no_client_moves_the_sum_by_more_than_the_noise_is_made_for(name, federation, folding, fraction_bits):
    clients, other = federation
    strategy = built(name)
    info = opened(strategy.pipeline, clients[0].arrays, grid=FixedPoint(fraction_bits))
    most = Fraction(covered(strategy, info))
    whole = total(clients, strategy, info, folding)
    removed = total(clients[1:], strategy, info, folding)
    replaced = total([other, *clients[1:]], strategy, info, folding)
    assert distance(whole, removed) <= most**2
    assert distance(replaced, removed) <= most**2
    assert distance(whole, replaced) <= (2 * most) ** 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_bound_is_reached_so_the_noise_is_not_larger_than_it_must_be(name):
    strategy = built(name)
    one = Client("00", tuple(np.full(shape, 1e5) for shape in SHAPES), 1000, good=True, honest=True, node=0)
    info = opened(strategy.pipeline, one.arrays)
    if name == "compressed-dp-fedavg":
        pytest.skip("compression leaves an update a little shorter or longer, and the server cuts off what is longer")
    moved = np.sqrt(float(distance(total([one], strategy, info, False), [0] * 10)))
    assert moved == pytest.approx(covered(strategy, info), rel=1e-6)


def elsewhere(update):
    """The same elements in another order, for which floats round otherwise."""
    return replace(update, arrays=tuple(np.flip(array) for array in reversed(update.arrays)))


@pytest.mark.parametrize("name", STRATEGIES)
@given(federations(), st.sampled_from([10, 30, 37]))
@settings(max_examples=60)
def test_nothing_that_honest_clients_or_nodes_send_counts_as_beyond_the_clip_norm(name, federation, fraction_bits):
    clients = [replace(client, honest=True, arrays=federation[0][0].arrays) for client in federation[0]]
    strategy = built(name)
    info = opened(strategy.pipeline, clients[0].arrays, grid=FixedPoint(fraction_bits))
    fold = ExactSum(info.grid)
    for update in (received(client, strategy, info) for client in clients):
        assert not strategy.pipeline.exceeds(update, info)
        assert not strategy.pipeline.exceeds(elsewhere(update), info)
        fold.add(strategy.pipeline.limit(update, info))
    assert not strategy.pipeline.exceeds(fold.total(), info)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_a_little_longer_than_it_may_be_counts_as_beyond(name, dtype):
    """By a millionth part; but where an honest client's update may have become longer on the way nobody is accused."""
    strategy = built(name)
    arrays = tuple(np.full(shape, 1e5, dtype) for shape in SHAPES)
    info = opened(strategy.pipeline, arrays)
    update = received(Client("00", arrays, 1000, good=True, honest=True, node=0), strategy, info)
    longer = replace(update, arrays=tuple(array * dtype(1 + 1e-6) for array in update.arrays))
    assert strategy.pipeline.exceeds(longer, info) == (name != "compressed-dp-fedavg")
    fold = ExactSum(info.grid)
    for _ in range(3):
        fold.add(longer)
    assert strategy.pipeline.exceeds(fold.total(), info) == (name != "compressed-dp-fedavg")


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_divisor_is_the_expected_size_of_the_cohort_whoever_answers(name):
    """2 of 10 replying: each counts as much as if all had."""
    strategy = built(name)
    assert strategy.aggregator == FixedDivisor(10)
    clients = [
        Client(f"{i:02}", tuple(np.full(shape, 1e5) for shape in SHAPES), 1000 if i else 10, True, True, 0)
        for i in range(10)
    ]
    info = opened(strategy.pipeline, clients[0].arrays)
    steps = covered(strategy, info)
    for answering in (clients, clients[:2]):
        whole = total(answering, strategy, info, False)
        assert np.sqrt(float(distance(whole, total(answering[1:], strategy, info, False)))) <= steps


@pytest.mark.parametrize("name", ["dp-fedavg, weighted", "dp-ftrl, weighted"])
def test_a_client_of_10_rows_counts_a_tenth_of_one_of_100_and_one_of_1000_no_more_than_that(name):
    strategy = built(name)
    lengths = {}
    for rows in (10, 100, 1000):
        client = Client("00", tuple(np.full(shape, 1e5) for shape in SHAPES), rows, True, True, 0)
        info = opened(strategy.pipeline, client.arrays)
        lengths[rows] = np.sqrt(float(distance(total([client], strategy, info, False), [0] * 10)))
    assert lengths[1000] == lengths[100]
    assert lengths[10] == pytest.approx(lengths[100] / 10, rel=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**20])
def test_what_is_not_finite_does_not_enter_the_sum_and_what_is_too_large_for_the_grid_is_clipped(name, bad):
    strategy = built(name)
    arrays = tuple(np.full(shape, bad) for shape in SHAPES)
    info = opened(strategy.pipeline, arrays)
    for honest in (True, False):
        if np.isfinite(bad):
            moved = total([Client("00", arrays, 10, True, honest, 0)], strategy, info, False)
            assert distance(moved, [0] * 10) <= covered(strategy, info) ** 2
        else:
            with pytest.raises(InvalidUpdate, match=r"^non-finite"):
                total([Client("00", arrays, 10, True, honest, 0)], strategy, info, False)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_grid_is_the_same_whoever_was_drawn_and_whoever_is_there(name):
    """It is announced to everybody, so it must not tell the size of the cohort."""
    strategy, grids = built(name), set()

    class Here:
        def __init__(self, count):
            self.count = count

        def current(self, grid):
            return Roster(Member(f"{i:02}", 1, 1) for i in range(self.count))

    strategy._state = strategy.first_state(tuple(np.zeros(shape) for shape in SHAPES))
    for count in (2, 11, POPULATION):
        strategy._setting = replace(strategy._setting, roster=Here(count))
        for number in range(1, 6):
            grids.add(strategy._draw(number, None).info.grid.fraction_bits)
    assert len(grids) == 1


# --------------------------------------------------------------------------------------------- over the rounds of a run


@given(st.integers(0, 2**32), st.integers(4, 10), st.integers(2, 4), st.integers(1, 3))
@settings(max_examples=40)
def test_over_a_run_of_dp_ftrl_a_client_moves_what_is_released_by_what_is_paid_for(seed, rounds, cohorts, size):
    """Whoever is online, at the client's worst: ||C (x - x')|| <= sqrt(charged releases) times the bound of one."""
    rng = np.random.default_rng(seed)
    basics = Basics(clients_per_round=size, population=size * cohorts, rounds=rounds, seed=seed)
    strategy = DPFTRL(basics, noise_multiplier=Z, clip_norm=1.0)
    clients = [f"{i:02}" for i in range(size * cohorts)]
    arrays = (np.full(4, 1e5),)
    info = opened(strategy.pipeline, arrays)
    once = summed([Update(arrays, ("00",))], strategy.pipeline, info).arrays[0]
    used, moved = {}, np.zeros((rounds, 4))
    for number in range(1, rounds + 1):
        online = [client for client in clients if rng.random() < 0.7 or client == "00"]
        cohort = strategy.sampler.sample(online, Draw(number, round_rng(seed, number), used))
        used.update(dict.fromkeys(cohort, number))
        moved[number - 1] = ("00" in cohort) * once
    bands = strategy.pipeline.transforms[-1].bands
    c = coefficients(bands)
    matrix = sum(np.diag(np.full(rounds - lag, c[lag]), -lag) for lag in range(min(bands, rounds)))
    charges = [strategy.protection.charge(nth) for nth in range(1, rounds + 1)]
    paid = sum(release.count for release in charges if release is not None)
    assert np.linalg.norm(matrix @ moved) <= np.sqrt(paid) * covered(strategy, info) * np.linalg.norm(c) * (1 + 1e-12)

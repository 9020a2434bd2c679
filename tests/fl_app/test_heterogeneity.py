"""FedProx, SCAFFOLD and the server optimisers: each run computed once more in plain numpy, and what they are for."""

import json
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from federation import Federation, binary_gradient
from runs import run
from safetensors.numpy import load_file

from fl_app import registry
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import ControlVariates
from strategies.sampling import Draw, FixedSize, round_rng
from strategies.transform import Opens, Transform, chain
from strategies.transforms.weighting import ByExamples
from strategies.work import ControlledDelta
from tasks.logistic import LogisticTask

RATE, L2, STEPS = 0.1, 0.01, 5
BY_GD = {"solver": "gd", "learning_rate": RATE, "l2": L2, "local_steps": STEPS, "baselines": False}
SKEWED = {"partition": "dirichlet", "partition_args": "alpha=0.1"}


def descend(rows, start, *, mu=0.0, correction=0.0, steps=STEPS):
    """Local training, written down once more."""
    theta = start.copy()
    for _ in range(steps):
        theta = theta - RATE * (binary_gradient(rows, theta, L2) + mu * (theta - start) + correction)
    return theta


def cohorts(ours):
    """Who took part, round by round."""
    clients, size = sorted(ours.shards), ours.config.clients_per_round
    for number in range(1, ours.config.rounds + 1):
        drawn = FixedSize(size).sample(clients, Draw(number, round_rng(ours.config.seed, number))) if size else clients
        yield {client: ours.shards[client].train for client in drawn}


def mean(values, weights):
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def simulate(ours, server_step, *, mu=0.0, uniform=False):
    """Rounds of local training, then x <- x + server_step(mean delta)."""
    x = np.zeros(31)
    for cohort in cohorts(ours):
        deltas = [descend(rows, x, mu=mu) - x for rows in cohort.values()]
        x = x + server_step(mean(deltas, [1 if uniform else len(rows) for rows in cohort.values()]))
    return x


def simulate_scaffold(ours, *, uniform=False, rate=1.0, lost=None):
    """The paper's algorithm 1 with option II. lost = (round, client): that client's variate is 0 again after it."""
    weight = {client: 1 if uniform else len(shard.train) for client, shard in ours.shards.items()}
    x, c, own = np.zeros(31), np.zeros(31), {client: np.zeros(31) for client in weight}
    for number, cohort in enumerate(cohorts(ours), 1):
        new = {client: descend(rows, x, correction=c - own[client]) for client, rows in cohort.items()}
        variates = {client: own[client] - c + (x - y) / (STEPS * RATE) for client, y in new.items()}
        weights = [weight[client] for client in cohort]
        change = mean([variates[client] - own[client] for client in cohort], weights)
        x = x + rate * mean([y - x for y in new.values()], weights)
        c = c + sum(weights) / sum(weight.values()) * change
        own |= variates
        if lost and lost[0] == number:
            own[lost[1]] = np.zeros(31)
    return x


class Server:
    """The optimisers of Reddi et al. 2021, on vectors."""

    def __init__(self, rule, *, rate, beta1, tau=1e-3, beta2=0.99):
        self.rule, self.rate, self.beta1, self.beta2, self.tau = rule, rate, beta1, beta2, tau
        self.m, self.v = 0.0, tau**2

    def __call__(self, d):
        self.m = self.beta1 * self.m + (1 - self.beta1) * d
        self.v = {
            "fedadagrad": lambda: self.v + d**2,
            "fedadam": lambda: self.beta2 * self.v + (1 - self.beta2) * d**2,
            "fedyogi": lambda: self.v - (1 - self.beta2) * d**2 * np.sign(self.v - d**2),
        }[self.rule]()
        return self.rate * self.m / (np.sqrt(self.v) + self.tau)


class Momentum:
    """That of Hsu et al. 2019."""

    def __init__(self, momentum, rate):
        self.momentum, self.rate, self.v = momentum, rate, 0.0

    def __call__(self, d):
        self.v = self.momentum * self.v + d
        return self.rate * self.v


# strategy, its arguments, and the same server in the words above; the first of each by default
SERVERS = [
    ("fedavgm", "", lambda: Momentum(0.9, 1.0)),
    ("fedavgm", "momentum=0.5 server-learning-rate=0.3", lambda: Momentum(0.5, 0.3)),
    ("fedadam", "", lambda: Server("fedadam", rate=0.03, beta1=0.9)),
    ("fedadam", "beta1=0.5 beta2=0.9 tau=0.1", lambda: Server("fedadam", rate=0.03, beta1=0.5, beta2=0.9, tau=0.1)),
    ("fedyogi", "", lambda: Server("fedyogi", rate=0.03, beta1=0.9)),
    ("fedadagrad", "", lambda: Server("fedadagrad", rate=0.1, beta1=0.0)),
    ("fedadagrad", "server-learning-rate=0.5", lambda: Server("fedadagrad", rate=0.5, beta1=0.0)),
]


# --------------------------------------------------------------------------------------------- server optimisers


@pytest.mark.parametrize(("strategy", "args", "server"), SERVERS)
def test_a_server_optimiser_takes_the_steps_of_its_paper(tmp_path, strategy, args, server):
    keys = {**BY_GD, "clients_per_round": 6, "partition": "by-size", "rounds": 6}
    ours = Federation(tmp_path, strategy=strategy, strategy_args=args, **keys)
    np.testing.assert_allclose(ours.flat, simulate(ours, server()), rtol=0, atol=1e-8)
    assert np.abs(ours.flat).max() > 0.02


def test_fedavgm_without_momentum_is_fedavg_to_the_bit(tmp_path):
    plain, _ = run(tmp_path / "plain")
    without, _ = run(tmp_path / "without", strategy="fedavgm", strategy_args="momentum=0")
    assert without["params_sha256"] == plain["params_sha256"]


# ------------------------------------------------------------------------------------------------------- fedprox


def test_fedprox_clients_take_the_steps_of_the_proximal_objective(tmp_path):
    keys = {**BY_GD, **SKEWED, "clients_per_round": 6, "rounds": 4}
    ours = Federation(tmp_path, strategy="fedprox", strategy_args="mu=2 weighting=uniform", **keys)
    np.testing.assert_allclose(ours.flat, simulate(ours, lambda d: d, mu=2.0, uniform=True), rtol=0, atol=1e-9)
    assert np.abs(ours.flat - simulate(ours, lambda d: d, uniform=True)).max() > 0.01


@pytest.mark.parametrize("solver", ["sgd", "gd", "lbfgs", "newton"])
def test_fedprox_with_mu_0_is_fedavg_to_the_bit_for_every_solver(tmp_path, solver):
    keys = {"solver": solver, "data": "digits" if solver == "sgd" else "breast-cancer", "baselines": False}
    plain, _ = run(tmp_path / "plain", **keys)
    prox, _ = run(tmp_path / "prox", strategy="fedprox", strategy_args="mu=0", **keys)
    other, _ = run(tmp_path / "other", strategy="fedprox", strategy_args="mu=0.1", **keys)
    assert prox["params_sha256"] == plain["params_sha256"] != other["params_sha256"]


@pytest.mark.parametrize("solver", ["sgd", "gd", "lbfgs", "newton"])
def test_the_larger_mu_the_nearer_a_round_stays_to_where_it_began(tmp_path, solver):
    keys = {"solver": solver, "rounds": 1, "local_epochs": 10, "learning_rate": 0.01, "baselines": False}
    moved = [
        np.linalg.norm(Federation(tmp_path / str(mu), strategy="fedprox", strategy_args=f"mu={mu}", **keys).flat)
        for mu in (0, 1, 10, 150)
    ]
    assert moved[0] > moved[1] > moved[2] > moved[3] > 0
    assert moved[3] < 0.05 * moved[0] if solver != "gd" else moved[3] < 0.2 * moved[0]  # gd: ten short steps


# ------------------------------------------------------------------------------------------------------ scaffold


@pytest.mark.parametrize(
    ("args", "sampled"), [("", 0), ("", 4), ("weighting=uniform server-learning-rate=0.5", 4)], ids=str
)
def test_scaffold_is_the_algorithm_of_its_paper(tmp_path, args, sampled):
    keys = {**BY_GD, **SKEWED, "clients_per_round": sampled, "rounds": 6}
    ours = Federation(tmp_path, strategy="scaffold", strategy_args=args, **keys)
    expected = simulate_scaffold(ours, uniform="uniform" in args, rate=0.5 if args else 1.0)
    np.testing.assert_allclose(ours.flat, expected, rtol=0, atol=1e-9)
    assert np.abs(ours.flat - simulate(ours, lambda d: d)).max() > 1e-3


def test_scaffold_with_one_client_is_plain_training(tmp_path):
    keys = {**BY_GD, "num_clients": 1, "min_clients": 1, "rounds": 5}
    ours = Federation(tmp_path / "scaffold", strategy="scaffold", **keys)
    np.testing.assert_allclose(ours.flat, descend(ours.pooled, np.zeros(31), steps=25), rtol=0, atol=1e-9)
    plain = Federation(tmp_path / "fedavg", **keys)
    np.testing.assert_allclose(ours.flat, plain.flat, rtol=0, atol=1e-9)


def gap(ours):
    """How far the objective on all rows is above its minimum."""
    objective = ours.task.objective(ours.pooled, l1=0.0, l2=ours.config.l2)
    return objective.value(ours.flat) - objective.value(ours.task.flatten(ours.task.solve(ours.pooled, l2=L2)))


@pytest.mark.parametrize(
    "work",
    [
        {"data": "breast-cancer", "learning_rate": 0.5, "local_steps": 50, "rounds": 60},
        {"data": "digits", "learning_rate": 0.3, "local_steps": 30, "rounds": 40},
    ],
    ids=lambda work: work["data"],
)
def test_scaffold_reaches_the_pooled_optimum_where_many_local_steps_stall_fedavg(tmp_path, work):
    keys = {**BY_GD, **SKEWED, **work, "standard_errors": False}
    fedavg = gap(Federation(tmp_path / "fedavg", **keys))
    scaffold = gap(Federation(tmp_path / "scaffold", strategy="scaffold", **keys))
    assert fedavg > 4e-3
    assert abs(scaffold) < fedavg / 100


def test_scaffold_reaches_it_too_with_a_third_of_the_clients_and_mini_batches(tmp_path):
    keys = {**SKEWED, "clients_per_round": 4, "lr_schedule": "cosine", "l2": L2, "rounds": 40, "baselines": False}
    fedavg = gap(Federation(tmp_path / "fedavg", **keys))
    scaffold = gap(Federation(tmp_path / "scaffold", strategy="scaffold", **keys))
    assert 0 < scaffold < fedavg / 3, (scaffold, fedavg)


def test_a_client_whose_state_is_lost_starts_from_zeros_and_its_node_says_so(tmp_path, caplog):
    def lose(line):
        if line["round"] == 2:
            folders = sorted((tmp_path / "state").glob("*/*"))
            assert len(folders) == 10
            for folder in folders[:1]:
                lost.append(folder)
                shutil.rmtree(folder)

    lost = []
    keys = {**BY_GD, **SKEWED, "strategy": "scaffold", "rounds": 5}
    ours = Federation(tmp_path, on_line=lose, **keys)
    (told,) = [record.getMessage() for record in caplog.records if "is lost" in record.getMessage()]
    client = told.split("the state of client ")[1].split()[0]
    np.testing.assert_allclose(ours.flat, simulate_scaffold(ours, lost=(2, client)), rtol=0, atol=1e-9)
    assert np.abs(ours.flat - simulate_scaffold(ours)).max() > 1e-5


class ResidualScaffold(ComposedStrategy):
    """SCAFFOLD whose updates are compressed with error feedback: two kinds of state in one client."""

    def __init__(self, basics: Basics) -> None:
        super().__init__(
            basics,
            work=ControlledDelta(),
            pipeline=chain(ByExamples(10**6), Residual()),
            aggregator=WeightedMean(),
            server_optimizer=ControlVariates(),
        )


@dataclass(frozen=True)
class Residual(Transform):
    """Keeps half of every update back and sends it with the next one."""

    num_state_arrays: int = 4
    opens: ClassVar[Opens] = Opens.EITHER

    def encode(self, update, state, round):
        assert len(state) in (0, 4)
        kept = state or tuple(np.zeros_like(a) for a in update.arrays)
        halves = tuple((a + k) / 2 for a, k in zip(update.arrays, kept, strict=True))
        return replace(update, arrays=halves), halves


def test_the_state_of_the_work_and_that_of_the_pipeline_are_kept_side_by_side(tmp_path):
    keys = {**BY_GD, "strategy": "test_heterogeneity:ResidualScaffold", "clients_per_round": 6, "rounds": 4}
    ends = [run(tmp_path / str(nodes), nodes=nodes, **keys) for nodes in (1, 5)]
    assert ends[0][0]["params_sha256"] == ends[1][0]["params_sha256"]
    for path in (tmp_path / "1" / "state").rglob("round-*.safetensors"):
        variate, held = np.split(np.concatenate([load_file(path)[str(i)].ravel() for i in range(6)]), [31])
        assert len(held) == 62
        assert variate.any()
        assert held.any()


def test_scaffold_sends_twice_as_much_and_only_to_clients_that_train(tmp_path):
    class Watching(InlineGrid):
        def push_messages(self, messages):
            messages = list(messages)
            sent.extend((m.metadata.message_type, sorted(m.content)) for m in messages)
            return super().push_messages(messages)

    sent = []
    keys = {"data": "extensions:HeldByClients", "standard_errors": False}
    plain, _ = run(tmp_path / "plain", **keys)
    ours, folder = run(tmp_path / "ours", strategy="scaffold", grid=Watching, **keys)
    assert ours["payload_up"] == 2 * plain["payload_up"]
    assert plain["payload_down"] < ours["payload_down"] < 2 * plain["payload_down"]  # evaluation takes the params alone
    kinds = dict(sent)
    assert kinds["train"] == ["beside", "config", "order", "params"]
    assert kinds["evaluate"] == ["config", "order", "params"]
    assert json.loads(folder.summary.read_text())["metrics"]["accuracy"] > 0.8


# ----------------------------------------------------------------------------------------------------- refusals


class Deaf(LogisticTask):
    """Heeds nothing that a strategy may ask for beside training."""

    fit_options = ()


@pytest.mark.parametrize(("strategy", "option"), [("fedprox", "proximal-mu"), ("scaffold", "correction")])
def test_a_task_that_would_not_heed_what_a_strategy_needs_is_refused(tmp_path, strategy, option):
    with pytest.raises(Refused, match=f"does not heed {option}: strategy={strategy} needs it"):
        run(tmp_path, strategy=strategy, task="test_heterogeneity:Deaf")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategy": "scaffold", "solver": "lbfgs"}, "solver 'lbfgs' takes steps that cannot be corrected"),
        ({"strategy": "scaffold", "solver": "newton"}, "set solver=sgd or gd"),
        ({"strategy": "fedprox", "strategy_args": "mu=20"}, "proximal-mu 20 times learning-rate 0.1 is 2 or more"),
        ({"solver": "adam"}, "task logistic has no solver 'adam': it has sgd, gd, lbfgs, newton"),
        ({"strategy": "fedsgd", "solver": "adamw"}, "task logistic has no solver 'adamw'"),
    ],
)
def test_what_clients_could_not_do_is_refused_before_round_1(tmp_path, keys, message):
    with pytest.raises(Refused, match=message):
        run(tmp_path, **keys)


@pytest.mark.parametrize(
    ("strategy", "args", "message"),
    [
        ("fedprox", "mu=-1", "mu=-1.0: expected a finite number of 0 or more"),
        ("fedprox", "mu=some", "expected float"),
        ("fedavgm", "momentum=1", "momentum=1.0: expected at least 0 and below 1"),
        ("fedadam", "beta2=1", "beta2=1.0: expected at least 0 and below 1"),
        ("fedyogi", "tau=0", "tau=0.0: expected above 0"),
        ("fedadagrad", "server-learning-rate=0", "server-learning-rate=0.0: expected above 0"),
        ("scaffold", "server-learning-rate=-1", "server-learning-rate=-1.0: expected above 0"),
        ("scaffold", "max-weight=0", "max-weight=0: expected at least 1"),
        ("fedadam", "beta3=0.9", "did you mean"),
    ],
)
def test_a_bad_argument_is_refused_with_the_allowed_range(strategy, args, message):
    with pytest.raises(Refused, match=message):
        registry.build("strategy", strategy, args, Basics())

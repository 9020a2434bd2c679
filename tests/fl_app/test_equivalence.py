"""What the federation computes is what the field says it computes: Flower's FedAvg, and training on the pooled rows."""

import numpy as np
import pytest
from federation import Federation, binary_gradient
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from runs import QUICK
from sklearn.linear_model import LogisticRegression

from fl_app.assembly import fit_config
from fl_app.config import RunConfig
from fl_app.inline import InlineGrid
from strategies import wire
from strategies.sampling import derive_seed


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"data": "digits", "partition": "dirichlet", "partition_args": "alpha=0.3"},
        {"partition": "by-size", "l1": 0.001, "lr_schedule": "cosine"},
    ],
    ids=["breast-cancer", "digits, skewed", "sizes skewed, l1, cosine"],
)
def test_fedavg_is_flowers_own_fedavg_on_the_same_clients(tmp_path, keys):
    ours = Federation(tmp_path, rounds=4, **keys)
    clients = list(ours.shards)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = clients[int(context.node_config["partition-id"])]
        number = int(message.content["config"]["server-round"])
        seed = derive_seed(ours.config.seed, "fit", number, client)
        arrays = message.content["arrays"].to_numpy_ndarrays()
        new, n, _ = ours.task.make_client(ours.shards[client]).fit(
            arrays, fit_config(ours.config, number, "train", seed=seed)
        )
        return Message(
            RecordDict({"arrays": ArrayRecord.from_numpy_ndarrays(new), "metrics": MetricRecord({"num-examples": n})}),
            reply_to=message,
        )

    grid = InlineGrid(app, {}, len(clients))
    flower = FlowerFedAvg(fraction_evaluate=0.0, min_train_nodes=len(clients), min_available_nodes=len(clients))
    initial = wire.params_record(ours.task.initial_arrays(ours.config.seed))
    result = flower.start(grid, initial, num_rounds=4, train_config=ConfigRecord())
    theirs = np.concatenate([a.ravel() for a in result.arrays.to_numpy_ndarrays()])
    np.testing.assert_allclose(ours.flat, theirs, rtol=0, atol=1e-10)  # 1e-6 is asked for
    assert np.abs(theirs).max() > 0.1


def test_one_client_with_one_local_gradient_step_is_centralised_gradient_descent(tmp_path):
    ours = Federation(
        tmp_path, num_clients=1, min_clients=1, rounds=25, solver="gd", local_epochs=1, batch_size=0, learning_rate=0.5
    )
    theta = np.zeros(31)
    for _ in range(25):
        theta -= 0.5 * binary_gradient(ours.pooled, theta, 0.01)
    np.testing.assert_allclose(ours.flat, theta, rtol=0, atol=1e-10)


@pytest.mark.parametrize("partition", ["iid", "by-size", "dirichlet"])
def test_fedsgd_is_centralised_gradient_descent_over_50_rounds(tmp_path, partition):
    ours = Federation(tmp_path, strategy="fedsgd", rounds=50, learning_rate=0.5, partition=partition)
    theta = np.zeros(31)
    for _ in range(50):
        theta -= 0.5 * binary_gradient(ours.pooled, theta, 0.01)
    np.testing.assert_allclose(ours.flat, theta, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("data", "l2"), [("breast-cancer", 0.01), ("breast-cancer", 0.001), ("digits", 0.01)])
def test_fednewton_is_scikit_learns_pooled_optimum_in_at_most_10_rounds(tmp_path, data, l2):
    ours = Federation(tmp_path, strategy="fednewton", rounds=10, data=data, l2=l2, partition="dirichlet")
    rows = ours.pooled
    sklearn = LogisticRegression(C=1 / (len(rows) * l2), tol=1e-12, max_iter=1_000, solver="newton-cholesky")
    sklearn.fit(rows.x, rows.y)
    weights, intercept = ours.params["weights"], ours.params["intercept"]
    if data == "digits":  # the softmax does not see a shift of all intercepts
        assert abs(intercept.mean()) < 1e-6
        np.testing.assert_allclose(intercept, sklearn.intercept_ - sklearn.intercept_.mean(), rtol=0, atol=1e-6)
    else:
        np.testing.assert_allclose(intercept, sklearn.intercept_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(weights, sklearn.coef_, rtol=0, atol=1e-6)


def test_uniform_weighting_is_the_plain_mean_of_the_clients_models(tmp_path):
    keys = {"rounds": 1, "partition": "by-size", "solver": "gd", "local_epochs": 1}
    uniform = Federation(tmp_path / "uniform", strategy_args="weighting=uniform", **keys)
    weighted = Federation(tmp_path / "weighted", **keys)
    steps = [-0.1 * binary_gradient(shard.train, np.zeros(31), 0.01) for shard in uniform.shards.values()]
    np.testing.assert_allclose(uniform.flat, np.mean(steps, axis=0), rtol=0, atol=1e-12)
    assert np.abs(weighted.flat - uniform.flat).max() > 1e-4


def test_metrics_from_the_clients_are_those_of_the_pooled_test_rows(tmp_path):
    server = Federation(tmp_path / "server")
    clients = Federation(tmp_path / "clients", data="extensions:HeldByClients")
    assert clients.summary["metrics_on"] == "clients"
    assert clients.summary["params_sha256"] == server.summary["params_sha256"]
    for name, value in clients.summary["metrics"].items():
        assert value == pytest.approx(server.summary["metrics"][name], abs=1e-15)


def test_config_is_the_one_that_was_asked_for(tmp_path):
    found = Federation(tmp_path, baselines=True, standard_errors=True).config
    assert found == RunConfig.parse({**QUICK, "out": str(tmp_path)})

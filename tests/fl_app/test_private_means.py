"""The means of the features under a promise of privacy, and what sites and people are told of promises."""

import json
from dataclasses import replace

import numpy as np
import pytest
from private_runs import SMALL
from protected import protection
from runs import run
from seeded import SeededEntropy

from fl_app.errors import Refused
from fl_app.site_ledger import SiteLedgers, costs_of
from privacy.accounting import Release, Sampling, spent
from privacy.ledger import Ledger
from strategies.private_means import PrivateMeans
from strategies.protection import MEANS, Promise
from tasks.data.bundled import BreastCancer

WAYS = ("record-dp-fedavg", "dp-fedavg", "local-dp-fedavg", "dp-ftrl", "dp-fedavg-adaptive")
CANCER = {"data": "breast-cancer", "standardize": "private", "rounds": 3, "local_epochs": 1, "batch_size": 0}


def means_of(folder):
    return {term["name"]: term["mean"] for term in folder.read_json(folder.about_model)["features"]}


@pytest.mark.parametrize("strategy", WAYS)
def test_the_means_are_in_the_ledger_before_the_rounds_and_within_the_target(tmp_path, strategy):
    keys = {**SMALL, "strategy": strategy, "strategy_args": "target-epsilon=3", "standardize": "private"}
    summary, folder = run(tmp_path / "out", **keys)
    first, *others = Ledger.read(folder.ledger).entries
    assert (first.round, first.release.what, first.release.sampling) == (0, MEANS, Sampling("none"))
    assert all(entry.release.what != MEANS for entry in others)
    assert 2.7 < summary["privacy"]["epsilon"] <= 3
    told = folder.read_json(folder.privacy)
    assert {release["what"]: release["count"] for release in told["releases"]}[MEANS] == 1
    by_clients = strategy in ("record-dp-fedavg", "local-dp-fedavg")
    assert (
        any("also sees the means of the features of every client" in line for line in told["trust"]) is not by_clients
    )


@pytest.mark.parametrize("strategy", WAYS[:3])
def test_with_hardly_any_noise_they_are_the_means_of_all_clients(tmp_path, strategy):
    args = "target-epsilon=1e9" if strategy == "record-dp-fedavg" else "noise-multiplier=1e-6"
    keys = {**CANCER, "strategy": strategy, "strategy_args": args, "learning_rate": 1e-3}
    _, folder = run(tmp_path / "out", **keys)
    table = BreastCancer().table()
    found = means_of(folder)
    scale = table.x.std(axis=0)
    off = [
        (found[name] - mean) / sd
        for name, mean, sd in zip(table.columns.names, table.x.mean(axis=0), scale, strict=True)
    ]
    assert np.abs(off).max() < 0.35  # rows beyond their range are moved to its end, and of some the norm is clipped
    assert np.mean(np.abs(off)) < 0.15


def test_a_run_that_is_resumed_keeps_its_means_and_pays_for_them_once(tmp_path):
    keys = {**CANCER, "strategy": "record-dp-fedavg", "strategy_args": "target-epsilon=3", "rounds": 4}

    class Stop(RuntimeError):
        pass

    def stop(line):
        if line["round"] == 2:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "out", on_line=stop, **keys)
    summary, folder = run(tmp_path / "out", resume=True, **keys)
    assert [entry.release.what for entry in Ledger.read(folder.ledger).entries].count(MEANS) == 1
    assert summary["privacy"]["epsilon"] <= 3


def test_they_are_refused_where_nothing_is_promised_or_declared(tmp_path):
    with pytest.raises(Refused, match=r"standardize=private: strategy=fedavg promises no privacy"):
        run(tmp_path / "out", strategy="fedavg", standardize="private")


@pytest.mark.parametrize(("unit", "by_clients"), [("record", True), ("client", False), ("client", True)])
def test_one_unit_moves_the_means_by_no_more_than_the_noise_is_made_for(unit, by_clients):
    """The same entropy twice, so that the noise is the same and what is left is one row's, or one client's, part."""
    rng = np.random.default_rng(0)
    promise = protection(2.0, unit=unit, by_clients=by_clients, means=True)
    rows = rng.uniform(-3, 3, size=(40, 9))
    for change in (np.full(9, 1e6), np.full(9, -1e6), np.zeros(9), np.eye(9)[0] * 1e6):
        other = rows.copy()
        other[0] = change
        asked = [PrivateMeans(promise, 9, SeededEntropy(1)).contribution(each)[0] for each in (rows, other)]
        moved = np.linalg.norm(asked[0] - asked[1])
        bound = PrivateMeans(promise, 9).bound
        if unit == "record":
            assert moved <= 2 * bound / 40 * (1 + 1e-9)  # exchanged; left out it is half of that
        else:
            assert np.linalg.norm(asked[0]) <= bound


def test_the_noise_on_a_clients_mean_has_the_scale_that_is_claimed():
    promise = protection(2.0, unit="record", by_clients=True, means=True)
    entropy, rows = SeededEntropy(3), np.zeros((50, 4_000))
    asked = PrivateMeans(promise, rows.shape[1], entropy)
    noise = asked.contribution(rows)[0]
    claimed = promise.means_noise * asked.bound / len(rows)
    assert noise.std() == pytest.approx(claimed, rel=0.05)
    assert asked.vectors.own.noise_multiplier == asked.vectors.release.noise_multiplier == promise.means_noise


def test_their_share_of_a_target_leaves_the_rest_to_the_rounds():
    promise = replace(protection(), promise=Promise(3.0, 0.0, 1e-5), rounds=10, means=True)
    together = [Release(MEANS, promise.means_noise, Sampling("none")), *[promise.charge(n) for n in range(1, 11)]]
    assert 2.99 < spent(together, "add-remove", 1e-5).epsilon <= 3
    assert promise.noise_multiplier > replace(promise, means=False).noise_multiplier


# ------------------------------------------------------------------------------------------- what people are told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    keys = {**SMALL, "strategy": "dp-fedavg", "strategy_args": "target-epsilon=2"}
    return run(tmp_path_factory.mktemp("run") / "out", **keys)[1]


def test_explain_says_it_in_words_at_80_columns_and_as_json(fl_app, folder):
    told = fl_app("privacy", "explain", str(folder.path))
    assert told.status == 0
    assert max(map(len, told.out.splitlines())) <= 80
    text = " ".join(told.out.split())
    for words in (
        "one client, with all of its rows",
        "one has a client that the other lacks",
        "epsilon is 2 at delta 1e-05",
        "at most 7.39 times as likely",
        "Who must be trusted",
        "Whoever runs the server",
        "What is not covered",
        "Other runs on the same rows",
    ):
        assert words in text, words
    as_json = fl_app("privacy", "explain", str(folder.path), "--json")
    assert json.loads(as_json.out) == folder.read_json(folder.privacy)


def test_explain_of_a_run_that_promised_nothing_says_so(fl_app, tmp_path):
    refusal = fl_app("privacy", "explain", str(tmp_path)).refusal()
    assert "name the folder of a run whose strategy promises privacy" in refusal


def test_a_site_adds_up_what_its_rows_have_cost_over_runs(fl_app, tmp_path):
    release, promise = Release("sum", 4.0, Sampling("none")), protection(4.0)
    for job in ("one", "two"):
        for number in (1, 2, 3):
            SiteLedgers(tmp_path, job).enter("bern", number, promise, release)
    SiteLedgers(tmp_path, "two").enter("uri", 1, promise, release)
    bern, uri = costs_of(tmp_path, 1e-5)
    assert (bern.client, bern.runs, uri.client, uri.runs) == ("bern", 2, "uri", 1)
    assert bern.epsilon == spent([replace(release, count=6)], "add-remove", 1e-5).epsilon
    told = fl_app("privacy", "spent", str(tmp_path), "--json")
    assert [client["epsilon"] for client in json.loads(told.out)["clients"]] == [bern.epsilon, uri.epsilon]
    assert "bern: epsilon" in fl_app("privacy", "spent", str(tmp_path)).out


def test_rounds_in_which_a_client_was_not_drawn_are_added_up_where_the_draw_is_secret(tmp_path):
    drawn = Release("sum", 1.0, Sampling("poisson", 0.1))
    for number in (10, 60, 100):
        SiteLedgers(tmp_path, "one").enter("bern", number, protection(4.0), drawn)
    (bern,) = costs_of(tmp_path, 1e-5)
    assert bern.epsilon == spent([replace(drawn, count=100)], "add-remove", 1e-5).epsilon


def test_a_damaged_ledger_of_a_site_is_no_cost_of_nothing(fl_app, tmp_path):
    SiteLedgers(tmp_path, "one").enter("bern", 1, protection(4.0), Release("sum", 4.0, Sampling("none")))
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_text(path.read_text().replace("4.0", "400.0", 1))
    assert "is damaged" in fl_app("privacy", "spent", str(tmp_path)).refusal()

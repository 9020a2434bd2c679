"""Whole runs that promise privacy for clients: what they spend, what they keep to themselves, and what they refuse."""

import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hospitals import patients, read_json, trained, words, write_csv
from private_runs import (
    FOUR,
    PRIVATE,
    SCHEMA,
    Crash,
    Exchanged,
    costs,
    crashing_in,
    entries,
    foreseen,
    lines,
    private_run,
)
from runs import run
from safetensors.numpy import load_file
from scipy.stats import chi2

from fl_app import server_app
from fl_app.caller import CALLER
from fl_app.checkpoint import Checkpoint
from fl_app.config import KEYS
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.job import resumed_job
from fl_app.profiles import load_profile
from fl_app.report import closing_lines
from privacy.accounting import Release, Sampling, spent
from privacy.ledger import Ledger
from strategies.base import TooFewClients
from tasks.logistic import LogisticTask

HERE = "test_private_runs"


@pytest.fixture(autouse=True)
def the_same_every_time(monkeypatch):
    """Cohorts and noise that repeat: which clients are drawn decides what some of these tests can see."""
    foreseen(monkeypatch)


# ------------------------------------------------------------------------------------------------------ what is spent


@pytest.mark.parametrize("name", PRIVATE)
def test_what_a_run_says_it_spent_is_what_the_accountant_says_of_its_releases(tmp_path, name):
    summary, folder = private_run(tmp_path / "out", name)
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("completed", "rounds", 4)
    cost, told = costs(name, 4), read_json(folder.privacy)
    delta = 1e-4 if name == "dp-fedavg fixed" else 1e-5
    assert summary["privacy"] == {
        "unit": "client",
        "epsilon": cost.epsilon,
        "delta": delta,
        "accountant": cost.accountant,
        **{key: told[key] for key in ("noise_to_updates",) if key in told},
    }
    assert told["epsilon"] == {"pld": cost.pld, "rdp": cost.rdp}
    by_round = [costs(name, rounds).epsilon for rounds in (1, 2, 3, 4)]
    assert [line["epsilon"] for line in lines(folder)] == pytest.approx(by_round, rel=1e-9)
    assert told["curve"] == [[number, pytest.approx(epsilon)] for number, epsilon in enumerate(by_round, 1)]
    _, _, relation, noise, sampling, count = PRIVATE[name]
    assert (told["unit"], told["relation"], told["delta"], told["rounds"]) == ("client", relation, delta, 4)
    assert (told["noise_multiplier"], told["clip_norm"]) == (noise, None if "adaptive" in name else 1.0)
    assert told["sampling"] == {"kind": sampling.kind, "rate": sampling.rate}
    assert [release["count"] for release in told["releases"]] == [count(4)]
    assert told["trust"]
    assert told["not_covered"]


@pytest.mark.parametrize("rows_per_group", [0, 1])
def test_it_is_said_whether_a_row_stands_for_a_person(tmp_path, fl_app, rows_per_group):
    for client in "ab":
        visits = [f"p{k % 15},{k % 7},{'no' if k % 2 else 'yes'}" for k in range(60)]
        (tmp_path / f"{client}.csv").write_text("\n".join(["patient,age,y", *visits]))
    schema = {"label": "y", "classes": ["no", "yes"], "features": [{"name": "age", "range": [0, 6]}]}
    (tmp_path / "columns.json").write_text(json.dumps(schema))
    args = f"path={tmp_path} label=y group=patient rows-per-group={rows_per_group}"
    keys = {"strategy": "record-dp-fedavg", "strategy_args": "noise-multiplier=9", "schema": tmp_path / "columns.json"}
    out = trained(fl_app, str(tmp_path / "out"), args, rounds=1, num_clients=2, min_examples=5, **keys)
    told = read_json(out / "privacy.json")
    further = [line for line in told["not_covered"] if line.startswith("Several rows of one person")]
    text = " ".join(fl_app("privacy", "explain", str(out)).out.split())
    said = "Of each value of 'patient' a client uses one row." in text
    expected = ("patient", False, True) if rows_per_group else (None, True, False)
    assert (told.get("one_row_each"), bool(further), said) == expected
    assert ("stands under several values of 'patient'" in text) == bool(rows_per_group)


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl", "local-dp-fedavg"])
@pytest.mark.parametrize("target", [False, True])
def test_a_run_that_ends_by_its_results_claims_what_all_planned_rounds_cost(tmp_path, fl_app, name, target):
    """That of the rounds played holds where their number is fixed, and not where results choose it."""
    stop = {"rounds": 6, "stop": "converged", "stop_args": "tolerance=1e9 rounds=2", "evaluate_every": 1}
    budget = (costs(name, 3).epsilon + costs(name, 6).epsilon) / 2
    args = f"{PRIVATE[name][1]} target-epsilon={budget}" if target else PRIVATE[name][1]
    summary, folder = private_run(tmp_path / "out", name, args, **stop)
    assert (summary["stop_reason"], summary["rounds"]) == ("converged", 3)
    told, cost = read_json(folder.privacy), costs(name, 6)
    assert told["curve"][-1] == [3, pytest.approx(costs(name, 3).epsilon)]
    expected = min(cost.epsilon, budget) if target else cost.epsilon
    assert summary["privacy"]["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert any("of all 6 planned rounds at delta" in line for line in closing_lines(summary, folder.path))
    page = folder.report.read_text()
    assert "by all 6 planned rounds, since its stop rule reads results" in page
    assert ", all 6 planned rounds" in page
    text = " ".join(fl_app("privacy", "explain", str(folder.path)).out.split())
    assert "That is what all 6 planned rounds would have cost" in text
    unmade = [release["count"] for release in told["releases"] if "planned and not made" in release["what"]]
    count = PRIVATE[name][-1]
    assert sum(unmade) == count(6) - count(3)


def test_planned_releases_of_metrics_count_too_where_results_end_the_run(tmp_path):
    keys = {"rounds": 6, "noisy_metrics": 5.0, "evaluate_every": 1}
    whole, _ = private_run(tmp_path / "whole", **keys)
    ended, folder = private_run(tmp_path / "ended", stop="converged", stop_args="tolerance=1e9 rounds=2", **keys)
    assert (whole["rounds"], ended["rounds"]) == (6, 3)
    assert ended["privacy"]["epsilon"] == pytest.approx(whole["privacy"]["epsilon"], rel=1e-9)
    assert [release["count"] for release in read_json(folder.privacy)["releases"]] == [3, 3, 3, 3]


def test_a_run_of_too_few_clients_to_learn_under_its_noise_says_so(tmp_path, fl_app):
    """With 5 parameters, 4 rounds and cohorts of 4 (of 12): z sqrt(5 / 4) / 4."""
    for noise, warned in ((1.5, False), (50, True)):
        summary, folder = private_run(tmp_path / str(noise), "dp-fedavg", f"noise-multiplier={noise}")
        expected = noise * np.sqrt(5 / 4) / 4
        assert read_json(folder.privacy)["noise_to_updates"] == pytest.approx(expected)
        told = [line for line in closing_lines(summary, folder.path) if line.startswith("warning: the noise of all")]
        assert bool(told) == ("Noise / updates" in folder.report.read_text()) == warned
        text = " ".join(fl_app("privacy", "explain", str(folder.path)).out.split())
        assert f"All noise is {expected:.2g} times as long as all updates together can be." in text
    for name in ("dp-ftrl", "local-dp-fedavg"):  # whose noise adds up otherwise
        assert "noise_to_updates" not in read_json(private_run(tmp_path / name, name)[1].privacy)


@pytest.mark.parametrize(
    ("name", "target"),
    [("dp-fedavg", 0.9), ("dp-fedavg fixed", 20), ("dp-fedavg-adaptive", 8), ("dp-ftrl", 1), ("local-dp-fedavg", 50)],
)
def test_a_target_is_never_exceeded_and_almost_reached(tmp_path, name, target):
    sampling = " sampling=fixed" if "fixed" in name else ""
    summary, folder = private_run(tmp_path / "out", name, f"target-epsilon={target}{sampling}", rounds=5)
    assert (summary["stop_reason"], summary["rounds"]) == ("rounds", 5)
    assert 0.99 * target < summary["privacy"]["epsilon"] <= target
    assert max(line["epsilon"] for line in lines(folder)) <= target


@pytest.mark.parametrize("name", FOUR)
def test_a_budget_ends_the_run_before_the_round_that_would_exceed_it(tmp_path, name):
    exchanged = Exchanged()
    args = PRIVATE[name][1]
    budget = (costs(name, 4).epsilon + costs(name, 3).epsilon) / 2  # three rounds and no fourth
    args = f"{args} target-epsilon={budget}"
    summary, folder = private_run(tmp_path / "out", name, args, rounds=9, grid=exchanged.grid)
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("completed", "budget", 3)
    assert summary["privacy"]["epsilon"] == costs(name, 3).epsilon <= budget
    assert set(exchanged.asked()) <= {1, 2, 3}
    assert {message.metadata.message_type for message, _ in exchanged.pairs} == {"query.enrol", "train"}
    assert max(entries(folder)) <= 3
    assert folder.model.exists()
    assert summary["metrics"] is not None  # of the last model, on the server's rows


@pytest.mark.parametrize("name", FOUR)
def test_a_budget_below_the_cost_of_one_round_is_refused_with_what_would_help(tmp_path, name):
    args = f"{PRIVATE[name][1]} target-epsilon=0.1"
    cost = f"{costs(name, 1).epsilon:.4g}"
    with pytest.raises(Refused, match=f"the first round alone costs epsilon {cost}, .*: raise one of") as refused:
        private_run(tmp_path / "out", name, args)
    assert "leave noise-multiplier out" in str(refused.value)
    assert not (tmp_path / "out" / "ledger.jsonl").exists()
    means = {"standardize": "private"}
    budget = costs(name, 1).epsilon * (1 + 1e-9)
    with pytest.raises(Refused, match="the first round alone"):  # which the means, that come before, leave too little
        private_run(tmp_path / "means", name, f"{PRIVATE[name][1]} target-epsilon={budget}", **means)
    summary, _ = private_run(tmp_path / "one", name, f"{PRIVATE[name][1]} target-epsilon={budget}")
    assert summary["rounds"] == {"dp-ftrl": 3}.get(name, 1)


def test_from_the_command_line_such_a_budget_is_refused_before_the_start(fl_app, tmp_path):
    told = fl_app(
        "run", "--engine", "inline", "-c", "data=synthetic", "-c", "num-clients=12", "-c", f"out={tmp_path / 'out'}",
        "-c", "strategy=dp-fedavg", "-c", "strategy-args=noise-multiplier=1 target-epsilon=0.1",
    )  # fmt: skip
    assert "the first round alone costs" in told.refusal()
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------- crashes and resumes


def crashed(out, name, round_, args="", **keys):
    with pytest.raises(Crash):
        private_run(out, name, args, grid=crashing_in(round_), **keys)


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-fedavg-adaptive", "local-dp-fedavg"])
def test_a_round_that_a_crash_cut_short_counts_as_spent(tmp_path, name):
    crashed(tmp_path / "out", name, 3)
    summary, folder = private_run(tmp_path / "out", name, resume=True)
    assert (summary["status"], summary["rounds"], summary["resumed_from"]) == ("completed", 4, 2)
    assert entries(folder) == [1, 2, 3, 3, 4]
    assert summary["privacy"]["epsilon"] == costs(name, 5).epsilon
    told = read_json(folder.privacy)
    assert [release["count"] for release in told["releases"]] == [5]
    assert told["curve"][2][1] == pytest.approx(costs(name, 4).epsilon)  # the third round was paid for twice
    assert lines(folder)[2]["epsilon"] == pytest.approx(costs(name, 4).epsilon)


def test_the_ledger_is_written_before_anything_is_asked_of_a_client(tmp_path):
    crashed(tmp_path / "out", "dp-fedavg", 1)
    ledger = Ledger.read(tmp_path / "out" / "ledger.jsonl")
    assert [entry.round for entry in ledger.entries] == [1]
    assert Checkpoint.read(tmp_path / "out" / "checkpoint.safetensors").state.round == 0


def test_a_crash_cannot_push_a_run_beyond_its_target(tmp_path):
    crashed(tmp_path / "out", "dp-fedavg", 3, "target-epsilon=4")
    summary, folder = private_run(tmp_path / "out", "dp-fedavg", "target-epsilon=4", resume=True)
    assert (summary["stop_reason"], summary["rounds"]) == ("budget", 3)  # of 4: the third cost twice
    assert entries(folder) == [1, 2, 3, 3]
    assert 3.9 < summary["privacy"]["epsilon"] <= 4


def test_a_resumed_run_of_dp_ftrl_begins_a_new_matrix_and_pays_for_it(tmp_path):
    crashed(tmp_path / "out", "dp-ftrl", 3)
    summary, folder = private_run(tmp_path / "out", "dp-ftrl", rounds=7, resume=True)
    assert (summary["status"], summary["rounds"]) == ("completed", 7)
    assert entries(folder) == [1, 3, 6]  # each pays for 3 rounds, and the crash cut the first stretch short
    assert summary["privacy"]["epsilon"] == costs("dp-ftrl", 9).epsilon > costs("dp-ftrl", 6).epsilon


def test_a_run_of_dp_ftrl_leaves_nothing_on_the_disk_that_takes_the_noise_off_its_model(tmp_path):
    _, folder = private_run(tmp_path / "out", "dp-ftrl", args="noise-multiplier=2 bands=3", rounds=2)
    (noise,) = Checkpoint.read(folder.checkpoint).state.pipeline
    assert noise.size == 0


@pytest.mark.parametrize("name", FOUR)
def test_a_run_with_hardly_any_noise_says_that_it_has_no_bound(tmp_path, name):
    summary, folder = private_run(tmp_path / "out", name, args="noise-multiplier=1e-300", rounds=1)
    assert (summary["status"], summary["privacy"]["epsilon"]) == ("completed", None)
    assert read_json(folder.privacy)["curve"] == [[1, None]]
    assert "no finite bound on what was spent is known" in folder.report.read_text()


@pytest.mark.parametrize("name", FOUR)
def test_a_run_whose_rounds_are_raised_goes_on_with_its_noise_and_pays_for_the_new_rounds(tmp_path, name):
    first, folder = private_run(tmp_path / "out", name, rounds=3)
    summary, folder = private_run(tmp_path / "out", name, rounds=6, resume=True)
    assert (summary["stop_reason"], summary["rounds"]) == ("rounds", 6)
    assert summary["privacy"]["epsilon"] == costs(name, 6).epsilon > first["privacy"]["epsilon"]
    assert [line["epsilon"] for line in lines(folder)] == pytest.approx([costs(name, n).epsilon for n in range(1, 7)])


def test_raising_the_rounds_of_a_run_that_has_spent_its_target_gives_no_round_more(tmp_path):
    private_run(tmp_path / "out", "dp-fedavg", "target-epsilon=4", rounds=3)
    noise = read_json(tmp_path / "out" / "privacy.json")["noise_multiplier"]
    summary, folder = private_run(tmp_path / "out", "dp-fedavg", "target-epsilon=4", rounds=9, resume=True)
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("completed", "budget", 3)
    assert summary["privacy"]["epsilon"] <= 4
    assert read_json(folder.privacy)["noise_multiplier"] == noise  # not that of 9 rounds
    assert entries(folder) == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"args": "noise-multiplier=1.5 clip-norm=2"}, "mechanism.clip_norm was 1.0 there and is 2.0 here"),
        ({"args": "noise-multiplier=1.6"}, "mechanism.noise_multiplier was 1.5 there and is 1.6 here"),
        ({"args": "noise-multiplier=1.5 delta=1e-6"}, "delta was 1e-05 there and is 1e-06 here"),
        ({"args": "noise-multiplier=1.5 sampling=fixed"}, 'relation was "add-remove" there and is "replace-one"'),
        ({"args": "noise-multiplier=1.5 target-epsilon=9"}, "mechanism.target_epsilon was null there and is 9.0 here"),
        ({"clients_per_round": 6}, "mechanism.sampling was"),
        ({"num_clients": 24}, "mechanism.sampling was"),
        ({"name": "dp-ftrl"}, "mechanism.mechanism was"),
        ({"name": "dp-fedavg-adaptive"}, "mechanism.mechanism was"),
    ],
    ids=str,
)
def test_a_resume_with_another_mechanism_than_the_ledgers_is_refused_and_spends_nothing(
    tmp_path, changes, what, monkeypatch
):
    monkeypatch.setattr(server_app, "MAY_CHANGE", frozenset(KEYS))  # else the keys are refused before it is read
    private_run(tmp_path / "out", "dp-fedavg", rounds=2)
    before = (tmp_path / "out" / "ledger.jsonl").read_bytes()
    with pytest.raises(Refused, match=r"^the ledger does not fit: .*is the ledger of another mechanism") as refused:
        private_run(tmp_path / "out", **{"name": "dp-fedavg", **changes}, resume=True)
    assert what in str(refused.value)
    assert (tmp_path / "out" / "ledger.jsonl").read_bytes() == before


def test_a_damaged_ledger_is_refused(tmp_path):
    private_run(tmp_path / "out", "dp-fedavg", rounds=2)
    ledger = tmp_path / "out" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"round": 2', b'"round": 1'))
    with pytest.raises(Refused, match=r"the ledger cannot be read: .* is damaged at line 3"):
        private_run(tmp_path / "out", "dp-fedavg", rounds=4, resume=True)


@pytest.mark.parametrize("kept", [0, 1, 2], ids=["gone", "without entries", "an older copy"])
def test_a_ledger_that_lacks_rounds_of_the_checkpoint_is_refused(tmp_path, kept):
    """What has been spent is not forgotten: such a run could spend its budget once more."""
    private_run(tmp_path / "out", "dp-fedavg", rounds=3)
    ledger = tmp_path / "out" / "ledger.jsonl"
    content = ledger.read_bytes().splitlines(keepends=True)
    ledger.unlink()
    if kept:
        ledger.write_bytes(b"".join(content[:kept]))
    with pytest.raises(Refused, match="ledger"):
        private_run(tmp_path / "out", "dp-fedavg", rounds=4, resume=True)


def test_from_the_command_line_a_run_goes_on_with_what_it_promised(tmp_path):
    private_run(tmp_path / "out", "dp-fedavg", rounds=2)
    profile = load_profile("simulation", Path.cwd())
    with pytest.raises(Refused, match="a resumed run takes all but rounds from its folder"):
        resumed_job(tmp_path / "out", {"strategy-args": "noise-multiplier=0.1"}, profile, "inline")
    job = resumed_job(tmp_path / "out", {"rounds": "3"}, profile, "inline")
    assert job.config.strategy_args == PRIVATE["dp-fedavg"][1]


# ------------------------------------------------------------------------------------- retries, drop-outs, empty rounds


class Fails(LogisticTask):
    """Logistic regression in which clients raise where `FAILING` says so: {client: in how many of its first calls}."""

    def make_client(self, shard):
        made = super().make_client(shard)
        return Raising(made, shard.client) if shard.client in FAILING else made


FAILING: dict[str, int] = {}


class Raising:
    def __init__(self, client, name):
        self.client, self.name = client, name

    def fit(self, parameters, config):
        if FAILING[self.name] > 0:
            FAILING[self.name] -= 1
            raise RuntimeError("this client fails")
        return self.client.fit(parameters, config)


@pytest.fixture
def failing(monkeypatch):
    """failing(clients, times): these clients raise in so many of their next calls."""

    def fail(clients, times=10**9):
        monkeypatch.setattr("test_private_runs.FAILING", dict.fromkeys(clients, times))
        return {"task": f"{HERE}:Fails"}

    return fail


EVERYBODY = [f"{index:02}" for index in range(12)]


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-fedavg fixed", "dp-fedavg-adaptive"])
def test_rounds_in_which_nobody_answers_are_pure_noise_of_the_claimed_scale_and_charged(tmp_path, failing, name):
    more = {"data_args": "features=300 classes=2 examples=12", "rounds": 1}
    args = f"{PRIVATE[name][1]} server-learning-rate=1"
    summary, folder = private_run(tmp_path / "out", name, args, **failing(EVERYBODY), **more)
    assert (summary["status"], summary["rounds"]) == ("completed", 1)
    assert summary["privacy"]["epsilon"] == costs(name, 1).epsilon
    params = np.concatenate([array.ravel() for array in load_file(folder.model).values()])
    clip_norm = 0.1 * np.sqrt(1 + 0.01 / 0.99) if "adaptive" in name else 1.0
    low, high = chi2.ppf((1e-6, 1 - 1e-6), params.size)
    assert low < np.sum((params / (PRIVATE[name][3] * clip_norm / 4)) ** 2) < high  # 4 is the expected cohort


def test_a_cohort_that_happens_to_be_empty_is_released_as_noise_and_charged(tmp_path):
    exchanged = Exchanged()
    summary, folder = private_run(
        tmp_path / "out", "dp-fedavg", rounds=12, clients_per_round=1, grid=exchanged.grid, evaluate_every=1
    )
    assert len(exchanged.asked()) < 12  # with probability 1 - 1e-5: a round is empty in 35 of 100 cases
    assert (summary["status"], summary["rounds"], entries(folder)) == ("completed", 12, list(range(1, 13)))
    cost = spent([Release("any", 1.5, Sampling("poisson", 1 / 12), 12)], "add-remove", 1e-5)
    assert summary["privacy"]["epsilon"] == cost.epsilon
    assert all(line["params_change"] > 0 for line in lines(folder))


@pytest.mark.parametrize("name", ["dp-fedavg none", "dp-ftrl"])
def test_drop_outs_count_as_zero_and_the_divisor_stays(tmp_path, failing, name):
    """2 of 4 in a cohort: the model moves half as far as with all 4, where it would move as far by an average."""
    tiny = "noise-multiplier=1e-7 clip-norm=1e-3"  # so short that every update is clipped, in about one direction
    args = f"{tiny} sampling=none" if "none" in name else tiny
    keys = {"rounds": 1, "clients_per_round": 12, "local_epochs": 3}
    moved = []
    for number, absent in enumerate(([], EVERYBODY[:6])):
        _, folder = private_run(tmp_path / str(number), name, args, **failing(absent), **keys)
        params = load_file(folder.model).values()
        moved.append(np.sqrt(sum(float(np.sum(array**2)) for array in params)))
    assert moved[0] <= 1e-3 * (1 + 1e-6)
    assert 0.3 < moved[1] / moved[0] < 0.7


def test_a_second_attempt_at_which_clients_noise_anew_is_paid_for(tmp_path, failing):
    exchanged = Exchanged()
    keys = {"rounds": 1, "clients_per_round": 12, "min_clients": 12}
    summary, folder = private_run(
        tmp_path / "out", "local-dp-fedavg", **failing(["00"], 1), **keys, grid=exchanged.grid
    )
    assert summary["status"] == "completed"
    sent = [client for message, _ in exchanged.of("train") for client in message.content["order"]["clients"]]
    assert sent.count("05") == 2  # its update went out twice, with other noise
    assert summary["privacy"]["epsilon"] == costs("local-dp-fedavg", 2).epsilon
    assert entries(folder) == [1, 1]


def test_a_second_attempt_that_the_budget_does_not_pay_for_is_not_made(tmp_path, failing):
    exchanged = Exchanged()
    keys = {"rounds": 1, "clients_per_round": 12, "min_clients": 12}
    args = "target-epsilon=50"
    summary, folder = private_run(
        tmp_path / "out", "local-dp-fedavg", args, **failing(["00"], 1), **keys, grid=exchanged.grid
    )
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("completed", "budget", 0)
    assert len(exchanged.of("train")) == 2  # one message a node: the first attempt
    assert entries(folder) == [1]


def test_a_second_attempt_at_which_the_server_released_nothing_before_costs_nothing(tmp_path, failing):
    keys = {"rounds": 1, "clients_per_round": 12, "min_clients": 12}
    summary, folder = private_run(tmp_path / "out", "dp-fedavg none", **failing(["00"], 1), **keys)
    assert summary["status"] == "completed"
    assert entries(folder) == [1]


def test_a_run_that_fails_says_what_it_has_spent(tmp_path, failing):
    with pytest.raises(TooFewClients):
        private_run(tmp_path / "out", "local-dp-fedavg", **failing(EVERYBODY), min_clients=4)
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (summary["status"], summary["rounds"]) == ("failed", 0)
    assert summary["privacy"]["epsilon"] >= costs("local-dp-fedavg", 1).epsilon


def test_when_a_client_takes_part_in_dp_ftrl_does_not_depend_on_whether_another_one_fails(tmp_path, failing):
    """One client's rows may decide whether its training fails. Its neighbours' rounds must not hang on that: they
    would move too, and the noise is made for one."""
    cohorts = []
    for number, absent in enumerate(([], ["00"])):
        exchanged = Exchanged()
        keys = {"rounds": 9, "seed": 3}
        private_run(tmp_path / str(number), "dp-ftrl", **failing(absent), **keys, grid=exchanged.grid)
        cohorts.append({n: set(clients) - {"00"} for n, clients in exchanged.asked().items()})
    assert cohorts[0] == cohorts[1]


# ------------------------------------------------------------------------------------------------------------- secrecy

PLACES = ("aldgate", "barbican", "camberwell", "dalston", "ealing", "finsbury", "greenwich", "hampstead")
FAILS = "finsbury"


class OneAlwaysFails(LogisticTask):
    """Logistic regression in which FAILS raises whenever it is to train."""

    def make_client(self, shard):
        made = super().make_client(shard)
        return AlwaysRaising() if shard.client == FAILS else made


class AlwaysRaising:
    def fit(self, parameters, config):
        raise RuntimeError("this client fails")


@pytest.fixture
def wards(tmp_path, monkeypatch):
    """Files of clients with names that occur nowhere else, and a schema; the keys of a run on them."""
    for index, place in enumerate(PLACES):
        write_csv(tmp_path / "data" / f"{place}.csv", patients(40 + index, index))
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    monkeypatch.setenv(CALLER, str(tmp_path))  # nodes are simulated: the run may name their files
    return {
        "data": "csv",
        "data_args": f"path={tmp_path / 'data'} label=outcome",
        "schema": str(schema),
        "num_clients": 0,
        "clients_per_round": 4,
        "rounds": 6,
    }


class OneNodeLies(InlineGrid):
    """A federation in which one node multiplies what it sends by a thousand."""

    def _work(self, message):
        reply = super()._work(message)
        if message.metadata.message_type == "train" and "00" in message.content["order"]["clients"]:
            for key, record in reply.content.items():
                if key == "update-0":
                    scaled = [array.numpy() * array.numpy().dtype.type(1000) for array in record.values()]
                    reply.content[key] = ArrayRecord({str(i): Array(array) for i, array in enumerate(scaled)})
        return reply


@pytest.mark.parametrize("name", ["dp-fedavg none", "dp-ftrl"])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "one by one"])
def test_an_update_beyond_the_clip_norm_is_clipped_again_and_its_clients_are_named(tmp_path, monkeypatch, name, fold):
    """Of a node that adds up several, all of them: which one it was only the node knows."""
    if not fold:
        monkeypatch.setattr("strategies.base.ComposedStrategy.nodes_may_fold", False)
    keys = {"clients_per_round": 12, "rounds": 1, "nodes": 3}
    exchanged = Exchanged()
    with exchanged.server_log() as logged:
        _, folder = private_run(tmp_path / "out", name, **keys, grid=OneNodeLies, on_line=None)
    hosted = ["00", "03", "06", "09"]
    named = hosted if fold else hosted[:1]
    assert [line["clipped"] for line in lines(folder)] == [named]
    warning = f"round 1: updates beyond the clip norm, clipped again: {', '.join(named)}"
    assert warning in [record.getMessage() for record in logged]
    assert [line["dropped"] for line in lines(folder)] == [[]]
    _, honest = private_run(tmp_path / "honest", name, **keys)
    assert [line["clipped"] for line in lines(honest)] == [[]]


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-fedavg-adaptive"])
def test_of_a_secret_cohort_nobody_is_named_for_an_update_beyond_the_clip_norm(tmp_path, name):
    exchanged = Exchanged()
    with exchanged.server_log() as logged:
        _, folder = private_run(tmp_path / "out", name, rounds=6, grid=OneNodeLies, on_line=None)
    assert [line["clipped"] for line in lines(folder)] == [None] * 6
    assert not [record for record in logged if "clip norm" in record.getMessage()]


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-fedavg-adaptive", "dp-fedavg fixed", "compressed-dp-fedavg"])
def test_nothing_that_a_run_writes_or_logs_tells_who_was_in_a_secret_cohort(tmp_path, wards, name):
    exchanged = Exchanged()
    with exchanged.server_log() as logged:
        summary, folder = private_run(
            tmp_path / "out", name, **wards, task=f"{HERE}:OneAlwaysFails", grid=exchanged.grid, on_line=None
        )
    assert summary["status"] == "completed"
    asked = exchanged.asked()
    assert any(FAILS in cohort for cohort in asked.values())
    told = [record.getMessage() + str(record.exc_info or "") for record in logged]
    assert any("round 6/6" in line for line in told)
    written = [path for path in folder.path.rglob("*") if path.is_file()]
    if name == "compressed-dp-fedavg":  # what it sends next depends on what a client has: its owner alone can read that
        written.remove(folder.checkpoint)
    for place in PLACES:
        assert not [path for path in written if place.encode() in path.read_bytes()], place
        assert not any(place in line for line in told), place
    secret = {"good": None, "dropped": [], **dict.fromkeys(("bytes_up", "bytes_down", "payload_up", "payload_down"))}
    for line in lines(folder):
        assert {key: line[key] for key in secret} == secret
        assert line["expected_clients"] == 4
        assert line["train_metrics"] is None
    secret = ("client_updates", "dropped", "bytes_up", "bytes_down", "payload_up", "payload_down")
    assert {key: summary[key] for key in secret} == dict.fromkeys(secret)
    assert not (tmp_path / "out" / "sites.json").exists()


def test_no_line_of_a_round_says_more_of_a_cohort_of_none_than_of_one_of_many(tmp_path, wards):
    """All but what was released, and how long it took, is the same in every round, whoever was drawn."""
    exchanged = Exchanged()
    keys = {**wards, "rounds": 12, "clients_per_round": 3, "evaluate_every": 1}
    with exchanged.server_log() as logged:
        _, folder = private_run(tmp_path / "out", "dp-fedavg", **keys, grid=exchanged.grid, on_line=None)
    assert len({len(cohort) for cohort in exchanged.asked().values()}) > 1
    public = ("round", "metrics", "epsilon", "seconds", "params_change")
    assert len({json.dumps({k: v for k, v in line.items() if k not in public}) for line in lines(folder)}) == 1
    told = [line for record in logged if "round " in (line := record.getMessage())]
    assert len(told) == 12
    bare = {re.sub(r"\d+(\.\d+)? s\b|epsilon \S+|round \S+|(accuracy|log_loss) \S+", "", line) for line in told}
    assert len(bare) == 1, bare
    page = folder.report.read_text()
    assert not re.search(r"\b(dropped|good updates|payload)\b", page)


def test_the_grid_and_all_else_that_is_sent_to_a_node_is_the_same_whoever_else_was_drawn(tmp_path, wards):
    exchanged = Exchanged()
    private_run(tmp_path / "out", "dp-fedavg", **wards, nodes=8, grid=exchanged.grid)
    orders = [message.content["order"] for message, _ in exchanged.of("train")]
    own = {"clients", "round", "used-rounds"}
    assert len({json.dumps({k: v for k, v in order.items() if k not in own}) for order in orders}) == 1
    assert {len(order["clients"]) for order in orders} == {1}
    assert {tuple(order["used-rounds"]) for order in orders} == {(0,)}


def test_no_seed_of_the_run_foretells_its_cohorts_or_its_noise(tmp_path):
    cohorts, models = [], []
    for number in range(2):
        np.random.seed(0)  # noqa: NPY002
        exchanged = Exchanged()
        summary, _ = private_run(tmp_path / str(number), "dp-fedavg", seed=5, grid=exchanged.grid, rounds=8)
        cohorts.append(exchanged.asked())
        models.append(summary["params_sha256"])
    assert cohorts[0] != cohorts[1]
    assert models[0] != models[1]


def test_with_one_and_the_same_entropy_a_run_is_the_same_to_the_bit_on_any_number_of_nodes(tmp_path, monkeypatch):
    for name in ("dp-fedavg", "dp-ftrl"):
        ends = []
        for nodes in (1, 3):
            foreseen(monkeypatch)
            ends.append(private_run(tmp_path / f"{name} {nodes}", name, nodes=nodes, rounds=2)[0]["params_sha256"])
        foreseen(monkeypatch, seed=1)
        assert ends[0] == ends[1] != private_run(tmp_path / f"{name} other", name, rounds=2)[0]["params_sha256"]


@pytest.mark.parametrize("name", FOUR)
def test_only_its_owner_can_read_what_a_run_keeps_to_itself(tmp_path, name):
    _, folder = private_run(tmp_path / "out", name)
    for path in (folder.checkpoint, folder.ledger):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


# ---------------------------------------------------------------------------------------------------------- refusals

MANY = {"data": "synthetic", "data_args": "features=3 classes=2 examples=20", "num_clients": 12, "clients_per_round": 4}


@pytest.mark.parametrize(
    ("args", "keys", "what"),
    [
        ("", {}, "how private is the run to be: set target-epsilon, such as 3, or noise-multiplier"),
        ("target-epsilon=-1", {}, "target-epsilon is below 0"),
        ("noise-multiplier=-1", {}, "noise-multiplier is below 0"),
        *(
            (f"target-epsilon=3 delta={d}", {}, f"delta={d}: expected above 0 and below 1")
            for d in ("0", "1", "-1", "2")
        ),
        *((f"target-epsilon=3 clip-norm={c}", {}, f"clip-norm={c}: expected above 0") for c in ("0", "-1")),
        ("target-epsilon=3 sampling=weekly", {}, "poisson"),
        ("target-epsilon=3 clip=1", {}, "clip-norm"),
        ("target-epsilon=1e-9 delta=1e-9", {"rounds": 1000}, "take fewer rounds, a lower sampling rate, or a larger"),
        ("target-epsilon=3", {"num_clients": 0, "clients_per_round": 11}, "clients-per-round=11"),
        ("target-epsilon=3", {"clients_per_round": 13}, "clients-per-round=13 of num-clients=12"),
        ("target-epsilon=3 max-examples=-3", {}, "max-examples=-3"),
        ("noise-multiplier=3", {"finetune_epochs": 2}, "finetune-epochs=2 is reported by metrics of each client"),
        ("target-epsilon=3 momentum=0.9 server-optimizer=adam", {}, "momentum=0.9 is for server-optimizer=sgd"),
    ],
    ids=str,
)
def test_what_cannot_be_promised_is_refused_before_the_run_and_says_what_to_do(fl_app_run, args, keys, what):
    settings = {**MANY, "strategy": "dp-fedavg", "strategy_args": args, **keys}
    if not settings["num_clients"]:
        settings |= {"data": "breast-cancer", "data_args": ""}  # 10 clients unless it is said otherwise
    assert what in fl_app_run(**settings).refusal()


@pytest.mark.parametrize(
    ("strategy", "args", "what"),
    [
        ("dp-fedavg-adaptive", "target-epsilon=3 initial-clip-norm=0", "initial-clip-norm=0: expected above 0"),
        ("dp-fedavg-adaptive", "target-epsilon=3 quantile=1", "quantile=1: expected above 0 and below 1"),
        ("dp-fedavg-adaptive", "target-epsilon=3 bit-share=0", "bit-share=0: expected above 0 and below 1"),
        ("dp-fedavg-adaptive", "target-epsilon=3 clip-learning-rate=0", "clip-learning-rate=0: expected above 0"),
        ("dp-ftrl", "target-epsilon=3 bands=4", "bands=4: expected 0 to 3, the rounds from one use of a client to the"),
        ("dp-ftrl", "", "how private is the run to be"),
        ("local-dp-fedavg", "target-epsilon=3 clip-norm=-2", "clip-norm=-2: expected above 0"),
        ("local-dp-fedavg", "delta=1e-5", "how private is the run to be"),
    ],
)
def test_so_is_what_the_other_strategies_cannot_promise(fl_app_run, strategy, args, what):
    assert what in fl_app_run(**MANY, strategy=strategy, strategy_args=args).refusal()


@pytest.mark.parametrize("strategy", ["dp-fedavg", "dp-fedavg-adaptive", "dp-ftrl"])
def test_a_population_that_only_the_sites_know_is_refused(tmp_path, strategy):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    args = "target-epsilon=3"
    with pytest.raises(Refused, match="the number of clients is not known: set num-clients"):
        run(tmp_path / "out", data="csv", schema=str(schema), num_clients=0, strategy=strategy, strategy_args=args)
    assert not (tmp_path / "out" / "ledger.jsonl").exists()


def test_batch_normalisation_that_is_averaged_is_refused_and_not_where_it_stays_at_the_clients(fl_app_run):
    keys = {**MANY, "strategy": "dp-fedavg", "strategy_args": "noise-multiplier=3", "rounds": 1, "task": "torch"}
    told = fl_app_run(**keys, task_args="model=permuted:net").refusal()
    assert "is averaged over the clients, a statistic of their rows" in told
    assert "batch-norm=local" in told
    assert fl_app_run(**keys, task_args="model=permuted:net batch-norm=local").status == 0


@pytest.mark.parametrize("standardize", ["global", "local", "none"])
def test_columns_that_nobody_declared_are_refused_and_declared_ones_used(tmp_path, wards, fl_app, standardize):
    """Also without scaling: which categories and classes there are may be told by the rows of one client alone."""
    keys = {**wards, "strategy": "dp-fedavg", "strategy_args": "noise-multiplier=2", "rounds": 2, "min_clients": 1}
    keys["standardize"] = standardize
    data, schema, keys["schema"] = keys.pop("data_args"), keys.pop("schema"), ""
    del keys["data"]
    outcome = fl_app(*words(data_args=data, out=str(tmp_path / "refused"), **keys))
    assert "nothing may be learned of the columns from the rows" in outcome.refusal()
    assert "schema=FILE" in outcome.err
    assert not (tmp_path / "refused").exists()
    outcome = fl_app(*words(data_args=data, out=str(tmp_path / "taken"), **{**keys, "schema": schema}))
    assert outcome.status == 0, outcome.err
    about = read_json(tmp_path / "taken" / "model.json")
    age = next(feature for feature in about["features"] if feature["name"] == "age")
    assert (age["mean"], age["scale"]) == (59.0, pytest.approx((100 - 18) / np.sqrt(12)))


def changed(**changes):
    return {**SCHEMA, **changes}


def feature(**values):
    return changed(features=[values, *SCHEMA["features"][1:]])


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (feature(name="age"), "column 'age': give either a range, or a mean and a scale"),
        (feature(name="age", range=[100, 18]), "column 'age': the range 100 to 18 is empty"),
        (feature(name="age", range=[18]), "features.0.range"),
        (feature(name="age", mean=3), "column 'age': give either a range, or a mean and a scale"),
        (feature(name="age", mean=3, scale=0), "column 'age': expected a finite mean and a scale above 0"),
        (feature(name="age", range=[18, 100], colour="red"), "features.0.colour"),
        (feature(name="age", kind="category"), "column 'age': a category needs its categories"),
        (changed(labels="outcome"), "labels"),
        (changed(classes=["alive"]), "label 'outcome': expected two classes or more"),
        (changed(classes=[]), "label 'outcome': give either a range"),
        (changed(features=[]), "features"),
        ("not JSON", "invalid JSON"),
        (None, "name a JSON file that declares the columns"),
    ],
    ids=str,
)
def test_a_schema_that_is_none_is_refused_and_says_where(tmp_path, wards, schema, what):
    path = tmp_path / "schema.json"
    path.unlink()
    if schema is not None:
        path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    with pytest.raises(Refused) as refused:
        private_run(tmp_path / "out", "dp-fedavg", **wards)
    assert "the schema cannot be used" in str(refused.value)
    assert what in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        changed(classes=["alive", "lost"]),  # rows say "dead"
        changed(features=SCHEMA["features"][:3]),
        changed(features=[*SCHEMA["features"], {"name": "weight", "range": [30, 200]}]),
        changed(label="fate"),
    ],
    ids=["a class that is not declared", "a column less", "a column more", "another label"],
)
def test_clients_whose_rows_do_not_fit_the_schema_are_not_eligible_and_say_no_more(tmp_path, wards, schema):
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    exchanged = Exchanged()
    with exchanged.server_log() as logged, pytest.raises((TooFewClients, Refused)) as ended:
        private_run(tmp_path / "out", "dp-fedavg", **wards, grid=exchanged.grid, enrol_timeout_s=0.2)
    for message, reply in exchanged.pairs:
        assert message.metadata.message_type == "query.enrol"
        assert not any(reply.content["eligibility"]["eligible"])
    told = str(ended.value) + "".join(record.getMessage() for record in logged)
    assert "dead" not in told
    assert not any(path.name == "ledger.jsonl" and path.read_bytes().count(b"\n") > 1 for path in tmp_path.rglob("*"))


def test_a_declared_schema_scales_a_run_without_privacy_too(tmp_path, wards):
    keys = {**wards, "standardize": "declared", "clients_per_round": 0, "rounds": 3, "local_epochs": 3}
    summary, folder = run(tmp_path / "out", **keys)
    assert (summary["status"], summary["privacy"], summary["clients"]) == ("completed", None, 8)
    age = next(f for f in read_json(folder.about_model)["features"] if f["name"] == "age")
    assert age["mean"] == 59.0
    assert summary["metrics"]["accuracy"] > 0.5
    bundled, _ = run(tmp_path / "bundled", standardize="declared")
    assert bundled["metrics"]["accuracy"] > 0.8
    with pytest.raises(Refused, match="schema=FILE"):
        run(tmp_path / "none", **{**keys, "schema": ""})

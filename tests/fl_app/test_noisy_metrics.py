"""Metrics of the clients' test rows under a promise of privacy: what they cost, what they tell, what hides the rest."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from private_runs import ALL, PRIVATE, SMALL, Crash, Exchanged, foreseen, lines
from protected import empty_sum, fits, flat, opened, protection
from runs import run
from seeded import SeededEntropy

from fl_app import client_app
from fl_app.assembly import build_task
from fl_app.checkpoint import Checkpoint
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.report import closing_lines
from fl_app.rows import prepared_rows
from privacy.accounting import Release, Sampling, spent
from privacy.ledger import Ledger
from strategies.private_metrics import PrivateMetrics
from strategies.protection import METRICS
from strategies.update import InvalidUpdate, Update
from tasks.logistic import LogisticTask

HERE = "test_noisy_metrics"
RECORD = "record-dp-fedavg"
# name -> strategy, strategy-args, relation, and what one round releases how often
WAYS = {
    **{name: (*way[:3], (Release("any", way[3], way[4]), way[5])) for name, way in PRIVATE.items()},
    RECORD: (
        RECORD,
        "noise-multiplier=2",
        "add-remove",
        (Release("any", 2.0, Sampling("poisson", 8 / 20)), lambda rounds: 3 * rounds),
    ),
}
NOISY = {"noisy_metrics": 6.0, "evaluate_every": 2, "rounds": 5}  # at rounds 2, 4 and 5
HARDLY_ANY = {"noisy_metrics": 1e-6, "rounds": 2}


@pytest.fixture(autouse=True)
def the_same_every_time(monkeypatch):
    foreseen(monkeypatch)


def noisy_run(out, name, args="", **keys):
    strategy, usual = WAYS[name][:2]
    return run(out, **{**SMALL, "strategy": strategy, "strategy_args": args or usual, **NOISY, **keys})


def cost(name, rounds, metrics):
    """Of so many rounds and releases of metrics, by privacy.accounting called directly."""
    _, args, relation, (release, count) = WAYS[name]
    releases = [replace(release, count=count(rounds))]
    releases += [Release("any", 6.0, ALL, metrics)] if metrics else []
    return spent(releases, relation, 1e-4 if "delta=1e-4" in args else 1e-5)


def charged(folder):
    """The rounds whose metrics the ledger holds."""
    return [entry.round for entry in Ledger.read(folder.ledger).entries if entry.release.what == METRICS]


# ------------------------------------------------------------------------------------------------------ what is spent


@pytest.mark.parametrize("name", WAYS)
def test_metrics_are_released_when_they_are_due_and_cost_what_the_accountant_says(tmp_path, name):
    summary, folder = noisy_run(tmp_path / "out", name)
    assert [line["metrics"] is not None for line in lines(folder)] == [False, True, False, True, True]
    assert charged(folder) == [2, 4, 5]
    by_round = [cost(name, n, metrics).epsilon for n, metrics in enumerate((0, 1, 1, 2, 3), 1)]
    assert [line["epsilon"] for line in lines(folder)] == pytest.approx(by_round, rel=1e-3)
    assert summary["privacy"]["epsilon"] == cost(name, 5, 3).epsilon > cost(name, 5, 0).epsilon
    assert (summary["metrics_on"], summary["metrics"]) == ("clients", lines(folder)[-1]["metrics"])
    told = folder.read_json(folder.privacy)
    assert told["curve"][-1] == [5, pytest.approx(by_round[-1], rel=1e-3)]
    (entry,) = [release for release in told["releases"] if release["what"] == METRICS]
    assert entry == {"what": METRICS, "count": 3, "event": "Gaussian, noise multiplier 6, no sampling"}


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl", "local-dp-fedavg", RECORD])
def test_a_target_pays_for_the_metrics_beforehand(tmp_path, name):
    summary, folder = noisy_run(tmp_path / "out", name, "target-epsilon=8")
    assert (summary["stop_reason"], summary["rounds"], charged(folder)) == ("rounds", 5, [2, 4, 5])
    assert 7.9 < summary["privacy"]["epsilon"] <= 8


def test_metrics_that_the_budget_does_not_pay_for_are_left_out_and_the_rounds_go_on(tmp_path):
    budget = cost("dp-fedavg", 4, 1).epsilon
    summary, folder = noisy_run(tmp_path / "out", "dp-fedavg", f"noise-multiplier=1.5 target-epsilon={budget}")
    assert (summary["stop_reason"], summary["rounds"], summary["metrics"]) == ("budget", 4, None)
    assert charged(folder) == [2]
    assert summary["privacy"]["epsilon"] == budget


def crashing_at(kind, round_):
    """A grid on which the server dies while these messages of this round are out."""

    class Crashing(InlineGrid):
        def _work(self, message):
            if message.metadata.message_type == kind and message.content["order"]["round"] == round_:
                raise Crash
            return super()._work(message)

    return Crashing


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl", RECORD])
@pytest.mark.parametrize(
    ("kind", "round_", "metrics"),
    [("train", 3, [2, 4, 5]), ("evaluate", 2, [2, 2, 4, 5])],
    ids=["in the round after", "while they are asked for"],
)
def test_a_resumed_run_neither_forgets_a_release_nor_pays_for_it_twice(tmp_path, name, kind, round_, metrics):
    with pytest.raises(Crash):
        noisy_run(tmp_path / "out", name, grid=crashing_at(kind, round_))
    summary, folder = noisy_run(tmp_path / "out", name, resume=True)
    assert (summary["status"], summary["rounds"]) == ("completed", 5)
    assert charged(folder) == metrics  # what may have been released before the crash has been paid for
    assert lines(folder)[1]["metrics"] is not None


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl"])
def test_a_ledger_that_lacks_metrics_of_the_checkpoint_is_refused(tmp_path, name):
    """An older copy: it ends with the last round, and with its metrics yet to be entered."""
    _, folder = noisy_run(tmp_path / "out", name, rounds=4)
    content = folder.ledger.read_bytes().splitlines(keepends=True)
    assert METRICS.encode() in content[-1]
    folder.ledger.write_bytes(b"".join(content[:-1]))
    with pytest.raises(Refused, match="the ledger lacks rounds"):
        noisy_run(tmp_path / "out", name, rounds=8, resume=True)


def test_a_ledger_whose_metrics_go_further_than_its_training_is_refused(tmp_path):
    """With dp-ftrl one entry pays for three rounds; metrics of a round in between pay for none."""
    keys = {"evaluate_every": 3, "rounds": 8}
    with pytest.raises(Crash):
        noisy_run(tmp_path / "out", "dp-ftrl", **keys, grid=crashing_at("train", 5))
    ledger = tmp_path / "out" / "ledger.jsonl"
    content = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(content[:3]))  # the terms, rounds 1 to 3, the metrics of round 3
    with pytest.raises(Refused, match="the ledger lacks rounds of the 4"):
        noisy_run(tmp_path / "out", "dp-ftrl", **keys, resume=True)


def test_a_resume_for_which_clients_would_plan_another_noise_is_refused_before_any_is_asked(tmp_path):
    """The server's ledger knows the noise so far; clients know the plan of the run, and compute theirs from it."""
    args = {"strategy": "local-dp-fedavg", "strategy_args": "target-epsilon=3"}
    run(tmp_path / "out", **{**SMALL, **args, "rounds": 2})
    before = (tmp_path / "out" / "ledger.jsonl").read_bytes()
    with pytest.raises(Refused, match=r"clients add the noise, of multiplier .* for rounds=4 they would add"):
        run(tmp_path / "out", **{**SMALL, **args, "rounds": 4}, resume=True)
    assert (tmp_path / "out" / "ledger.jsonl").read_bytes() == before
    (tmp_path / "out" / "ledger.jsonl").unlink()
    with pytest.raises(Refused, match="the ledger lacks rounds of the 2"):
        run(tmp_path / "out", **{**SMALL, **args, "rounds": 2}, resume=True)


def test_a_resume_with_another_noise_on_the_metrics_is_refused(tmp_path):
    noisy_run(tmp_path / "out", "dp-fedavg", rounds=2)
    with pytest.raises(Refused, match=r"noisy-metrics=5.0 \(was 6.0\)"):
        noisy_run(tmp_path / "out", "dp-fedavg", rounds=4, noisy_metrics=5.0, resume=True)


# ------------------------------------------------------------------------------------------------------- what they say


def by_hand(folder):
    """{client: its test rows' means}, of the metrics held to their ranges, with the final model."""
    checkpoint = Checkpoint.read(folder.checkpoint)
    task = build_task(checkpoint.config, checkpoint.design.schema)
    rows = prepared_rows(checkpoint.config, checkpoint.design)
    found = {}
    for client in rows.clients:
        each = task.measure_rows(checkpoint.state.params, rows.shard(client).test)
        found[client] = {name: np.clip(values, *task.metric_ranges[name]).mean() for name, values in each.items()}
    return found, rows


@pytest.mark.parametrize("name", WAYS)
def test_with_hardly_any_noise_they_are_the_means_over_the_clients_of_their_means(tmp_path, name):
    summary, folder = noisy_run(tmp_path / "out", name, **HARDLY_ANY)
    expected, _ = by_hand(folder)
    for metric, value in summary["metrics"].items():
        assert value == pytest.approx(np.mean([own[metric] for own in expected.values()]), abs=1e-4)


class OneNodeIsSilent(InlineGrid):
    """A federation in which the clients of one node train but do not measure."""

    def _work(self, message):
        asked = message.content["order"]["clients"] if message.metadata.message_type == "evaluate" else ()
        if "00" in asked:
            return Message(Error(0, "no answer"), reply_to=message)
        return super()._work(message)


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl", "local-dp-fedavg", RECORD])
def test_who_does_not_answer_does_not_count(tmp_path, name):
    summary, folder = noisy_run(tmp_path / "out", name, **HARDLY_ANY, nodes=3, grid=OneNodeIsSilent)
    own, _ = by_hand(folder)
    silent = sorted(own)[::3]
    expected = np.mean([each["accuracy"] for client, each in own.items() if client not in silent])
    assert expected != np.mean([each["accuracy"] for each in own.values()])
    assert summary["metrics"]["accuracy"] == pytest.approx(expected, abs=1e-4)


def test_where_nobody_answers_noise_is_released_and_charged(tmp_path):
    _, folder = noisy_run(tmp_path / "out", "dp-fedavg", nodes=1, grid=OneNodeIsSilent)
    assert charged(folder) == [2, 4, 5]
    for line in lines(folder):
        if line["metrics"] is not None:
            assert min(line["metrics"].values()) >= 0
            assert line["metrics"]["accuracy"] <= 1
    assert len({line["metrics"]["accuracy"] for line in lines(folder) if line["metrics"]}) > 1
    local, _ = noisy_run(tmp_path / "local", "local-dp-fedavg", nodes=1, grid=OneNodeIsSilent)
    assert local["metrics"] is None


class NeedsRows(LogisticTask):
    """Logistic regression that cannot measure nothing."""

    def measure_rows(self, arrays, rows):
        if not len(rows):
            raise RuntimeError("no rows")
        return super().measure_rows(arrays, rows)


@pytest.mark.parametrize("name", ["dp-fedavg", "local-dp-fedavg", RECORD])
def test_a_client_without_test_rows_does_not_count_and_where_clients_are_protected_does_not_show(tmp_path, name):
    exchanged = Exchanged()
    keys = {**HARDLY_ANY, "data": "breast-cancer", "data_args": "", "partition": "by-size", "num_clients": 12}
    keys |= {"partition_args": "exponent=3", "min_examples": 1, "task": f"{HERE}:NeedsRows"}
    summary, folder = noisy_run(tmp_path / "out", name, **keys, grid=exchanged.grid)
    checkpoint = Checkpoint.read(folder.checkpoint)
    rows = prepared_rows(checkpoint.config, checkpoint.design)
    without = {client for client in rows.clients if not len(rows.shard(client).test)}
    assert without
    dropped = [client for _, reply in exchanged.of("evaluate") for client in reply.content["answer"]["dropped"]]
    assert set(dropped) == (without if name == RECORD else set())
    task = build_task(checkpoint.config, checkpoint.design.schema)
    own = [task.measure_rows(checkpoint.state.params, rows.shard(c).test) for c in rows.clients if c not in without]
    expected = np.mean([each["accuracy"].mean() for each in own])
    assert summary["metrics"]["accuracy"] == pytest.approx(expected, abs=1e-4)


def test_a_regression_has_errors_up_to_twice_those_of_guessing(tmp_path):
    keys = {"data": "diabetes", "task": "linear", "data_args": "", "num_clients": 8, **HARDLY_ANY, "rounds": 5}
    summary, folder = noisy_run(tmp_path / "out", RECORD, **keys, learning_rate=0.01)
    expected, _ = by_hand(folder)
    scale = folder.read_json(folder.about_model)["label_scale"]
    assert folder.read_json(folder.privacy)["metrics"]["ranges"] == {"mse": [0, 2 * scale**2], "mae": [0, 2 * scale]}
    assert set(summary["metrics"]) == {"mse", "mae"}
    for metric, value in summary["metrics"].items():
        assert value == pytest.approx(np.mean([own[metric] for own in expected.values()]), rel=1e-3)


def test_a_stop_rule_reads_what_was_released_and_adds_no_release(tmp_path):
    keys = {"noisy_metrics": 1e-6, "evaluate_every": 2, "rounds": 8}
    more = {**keys, "stop": "target", "stop_args": "metric=brier value=1"}
    summary, folder = noisy_run(tmp_path / "out", "dp-fedavg", **more)
    assert (summary["stop_reason"], summary["rounds"], charged(folder)) == ("target", 2, [2])
    made = [(release["what"], release["count"]) for release in folder.read_json(folder.privacy)["releases"]]
    assert made[1] == ("metrics on test rows", 1)
    assert [count for what, count in made if "planned and not made" in what] == [6, 3]
    with pytest.raises(Refused, match="unknown metric 'auc'"):  # which only a server with the rows can tell
        noisy_run(tmp_path / "other", "dp-fedavg", **{**more, "stop_args": "metric=auc value=1"})


def test_people_are_told_what_the_metrics_are_worth(tmp_path, fl_app):
    summary, folder = noisy_run(tmp_path / "out", "dp-fedavg none")
    about = folder.read_json(folder.privacy)["metrics"]
    assert about["ranges"] == {"accuracy": [0, 1], "log_loss": [0, pytest.approx(2 * np.log(2))], "brier": [0, 1]}
    assert about["stddev"]["accuracy"] == pytest.approx(np.sqrt(2) * 6 * np.sqrt(4) / 2 / 12)
    text = " ".join(fl_app("privacy", "explain", str(folder.path)).out.split())
    assert "3 x metrics on test rows: Gaussian, noise multiplier 6, no sampling" in text
    assert "The metrics of this run are noised sums too" in text
    assert "accuracy from 0 to 1" in text
    assert "also sees the metrics of every client" in text
    page = folder.report.read_text()
    assert "The metrics of this run are noised sums too" in page
    assert "test rows, with noise" in page
    assert "give or take noise of a standard deviation of <b>70.7 points</b>" in page
    assert "the noise in accuracy has a standard deviation of 0.707" in closing_lines(summary, folder.path)
    summary, local = noisy_run(tmp_path / "local", RECORD)
    told = local.read_json(local.privacy)
    assert told["metrics"]["stddev"] is None
    assert told["metrics"]["stddev_times_rows"]["accuracy"] == pytest.approx(6 * np.sqrt(3) / 2 / np.sqrt(12))
    assert "deviation of <b>150 points / n</b>, where each client has n test rows" in local.report.read_text()
    said = "the noise in accuracy has a standard deviation of 1.500 / n, where each client has n test rows"
    assert said in " ".join(closing_lines(summary, local.path))
    assert not [line for line in told["trust"] if "metrics" in line]
    for what in ("to test on", "Several rows of one person", "floating-point numbers"):
        assert [line for line in told["not_covered"] if what in line], what


def test_where_rows_are_protected_it_is_said_that_several_rows_of_one_person_are_protected_less(tmp_path, fl_app):
    weaker = "k times epsilon, and with delta times k exp((k - 1) epsilon)"
    for name, told in ((RECORD, True), ("dp-fedavg none", False)):
        _, folder = noisy_run(tmp_path / name, name)
        text = " ".join(fl_app("privacy", "explain", str(folder.path)).out.split())
        assert ("Whoever has several rows" in text) is told
        assert (weaker in text) is told


# ------------------------------------------------------------------------------------------------- the noise, its scale


def asked(unit="client", by_clients=False, size=3, noise=2.0, seed=0):
    """A release of `size` metrics, from 0 to 1 each."""
    planned = Release(METRICS, noise, ALL)
    promise = protection(7.0, unit=unit, by_clients=by_clients, metrics=planned)
    return PrivateMetrics(promise, {f"m{index}": (0.0, 1.0) for index in range(size)}, SeededEntropy(seed))


def measured(release, rows):
    """What one client contributes, of metrics (n, size)."""
    return release.contribution(dict(zip(release.ranges, np.transpose(rows), strict=True)), len(rows))[0]


def noise_of(unit, by_clients, size=4_000):
    release = asked(unit, by_clients, size)
    pipeline = release.vectors.pipeline
    if unit == "record":
        return measured(release, np.full((50, size), 0.5)), 2.0 * np.sqrt(size) / 2 / 50
    width = release.vectors.size
    if by_clients:
        sent, _ = pipeline.encode(Update((np.zeros(width),), ("00",)), (), opened(pipeline, (np.zeros(width),)))
        return sent.arrays[0], 2.0 * np.sqrt(width) / 2
    info = opened(pipeline, (np.zeros(width),))
    total, _ = pipeline.decode_sum(empty_sum((width,)), (), info)
    return flat(total.arrays) * 2.0**-info.grid.fraction_bits, 2.0 * np.sqrt(width) / 2


@pytest.mark.parametrize(("unit", "by_clients"), [("client", False), ("client", True), ("record", True)])
def test_the_noise_has_the_scale_of_the_key_and_neither_two_thirds_nor_three_halves_of_it(unit, by_clients):
    sample, claimed = noise_of(unit, by_clients)
    assert fits(sample, claimed)
    assert not fits(sample, claimed * 2 / 3)
    assert not fits(sample, claimed * 3 / 2)


ROWS = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.just(3)),
    elements=st.sampled_from([0.0, 0.3, 1.0, -5.0, 1e300, -1e300, np.nan, np.inf, -np.inf]),
)


@given(rows=ROWS, other=ROWS)
@settings(max_examples=200)
def test_one_client_adds_no_more_than_the_noise_is_made_for_whatever_its_rows_and_the_model_are(rows, other):
    release = asked()
    bound = release.vectors.bound
    for each in (rows, other):
        assert np.linalg.norm(measured(release, each)) <= bound * (1 + 1e-12)
    assert np.array_equal(release.contribution({}, 0)[0], np.zeros(4))  # as if it had not answered


@given(rows=ROWS, row=st.sampled_from([(np.nan,) * 3, (1e300,) * 3, (-1.0, 1.0, np.inf), (0.0, 1.0, 0.5)]))
@settings(max_examples=200)
def test_one_row_moves_what_its_client_sends_by_no_more_than_the_noise_is_made_for(rows, row):
    """The same entropy twice, so that the noise is the same; a row whose place is empty counts as half."""
    there, empty = rows.copy(), rows.copy()
    there[0], empty[0] = row, 0.5
    found = [measured(asked("record", True), each) for each in (there, empty)]
    assert np.linalg.norm(found[0] - found[1]) <= asked("record", True).vectors.bound / len(rows) * (1 + 2.0**-20)


def test_a_node_that_sends_more_than_its_clients_may_add_is_clipped_by_the_server():
    release = asked()
    pipeline, arrays = release.vectors.pipeline, (np.full(4, 1e5),)
    info = opened(pipeline, arrays)
    held = pipeline.limit(Update(arrays, ("00",)), info)
    assert np.linalg.norm(held.arrays[0]) <= release.vectors.bound
    fold = Update((np.full(4, 2**60),), ("00", "01"), weight=2, on_grid=True)
    held = pipeline.limit(fold, info)
    assert np.linalg.norm(held.arrays[0] * 2.0**-info.grid.fraction_bits) <= 2 * release.vectors.bound * (1 + 1e-6)


def test_metrics_of_other_names_or_of_another_number_of_rows_are_no_contribution():
    release = asked("record", True)
    for rows in ({"m0": np.zeros(5)}, dict.fromkeys(release.ranges, np.zeros(4))):
        with pytest.raises(InvalidUpdate, match="metrics"):
            release.contribution(rows, 5)
    with pytest.raises(InvalidUpdate, match="no test rows"):
        release.contribution({}, 0)


# -------------------------------------------------------------------------------------------- what leaves a node for it


@pytest.mark.parametrize("name", ["local-dp-fedavg", RECORD])
def test_where_clients_add_the_noise_nothing_leaves_a_node_without_it(tmp_path, name):
    """The same question twice: the answers have nothing in common but their form, whatever the server announces."""
    exchanged = Exchanged()
    keys = {"noisy_metrics": 1000.0, "rounds": 1}
    _, folder = noisy_run(tmp_path / "out", name, **keys, grid=exchanged.grid)
    config = Checkpoint.read(folder.checkpoint).config
    grid = InlineGrid(client_app.app, config.values(), 2)
    (honest, first), _ = exchanged.of("evaluate")
    order = {**honest.content["order"], "fold": False, "public.privacy.noise-multiplier": 1e-9}
    content = RecordDict({**honest.content, "order": ConfigRecord(order)})
    replies = [
        grid.send_and_receive([Message(content, honest.metadata.dst_node_id, "evaluate")])[0].content for _ in range(40)
    ]
    updates = [key for key in replies[0] if key.startswith("update")]
    assert len(updates) == 6
    rows = {"local-dp-fedavg": 1, RECORD: 6}[name]  # 30 of a client, of which a fifth are to test on
    size = 4 if name == "local-dp-fedavg" else 3
    for key in updates:
        sent = np.array([reply[key]["0"].numpy() for reply in replies])
        assert sent.shape == (40, size)
        assert fits(sent - sent.mean(), 1000 * np.sqrt(size) / 2 / rows, error=1e-9)
    assert set(first.content) == {"answer", "update-0", "about-0"}
    about = first.content["about-0"]
    assert (about["num-examples"], about["metrics"], about["metric-sums"]) == (0, [], [])


def test_where_the_server_adds_the_noise_a_node_sends_a_bounded_vector_and_no_count(tmp_path):
    exchanged = Exchanged()
    noisy_run(tmp_path / "out", "dp-fedavg", grid=exchanged.grid)
    evaluations = exchanged.of("evaluate")
    assert len(evaluations) == 6  # of all clients of two nodes, three times
    for message, reply in evaluations:
        about, step = reply.content["about-0"], 2.0 ** -message.content["order"]["fraction-bits"]
        assert set(reply.content) == {"answer", "update-0", "about-0"}
        assert (about["clients"], about["weight"]) == (message.content["order"]["clients"], 6)
        assert (about["num-examples"], about["metrics"], about["metric-sums"]) == (0, [], [])
        sent = reply.content["update-0"]["0"].numpy()
        assert sent.dtype == np.int64
        assert np.linalg.norm(sent * step) <= 6 * 1.0 * (1 + 1e-9)
    assert not {message.metadata.message_type for message, _ in exchanged.pairs} & {"query.survey"}


def test_a_server_that_asks_for_exact_metrics_beside_gets_an_error(tmp_path):
    exchanged = Exchanged()
    _, folder = noisy_run(tmp_path / "out", "dp-fedavg", grid=exchanged.grid)
    grid = InlineGrid(client_app.app, Checkpoint.read(folder.checkpoint).config.values(), 2)
    honest = exchanged.of("evaluate")[0][0]
    surveyed = ConfigRecord({**honest.content["config"], "curvature": False, "kinds": ["common"]})
    content = RecordDict({**honest.content, "config": surveyed})
    (reply,) = grid.send_and_receive([Message(content, honest.metadata.dst_node_id, "query.survey")])
    assert reply.has_error()


# ----------------------------------------------------------------------------------------------------- what is refused


class Unbounded(LogisticTask):
    """Logistic regression that declares no ranges."""

    def __init__(self, schema):
        super().__init__(schema)
        self.metric_ranges = {}


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"strategy": "fedavg", "strategy_args": ""}, "without a promise nothing needs noise"),
        ({"task": f"{HERE}:Unbounded"}, "no metric of .* has a range"),
        ({"test_fraction": 0.0}, "keep some rows for tests"),
        ({"data": "diabetes", "data_args": "", "task": "linear", "standardize": "none"}, "have no range"),
        (
            {"strategy": RECORD, "task": "mlp", "task_args": "personal=2.*", "strategy_args": "noise-multiplier=2"},
            "stays at the client",
        ),
        ({"strategy_args": "target-epsilon=0.5"}, r"noisy-metrics=6 plans 3 releases .*: raise noisy-metrics"),
    ],
    ids=str,
)
def test_metrics_that_cannot_be_released_are_refused(tmp_path, keys, what):
    with pytest.raises(Refused, match=what):
        noisy_run(tmp_path / "out", "dp-fedavg", **{"strategy": "dp-fedavg", **keys})
    ledger = tmp_path / "out" / "ledger.jsonl"
    assert not ledger.exists() or not Ledger.read(ledger).entries

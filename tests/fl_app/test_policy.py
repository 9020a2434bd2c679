"""What a site demands of a run holds, whatever the run says; and nobody else learns what it was."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from grids import at_sites, recorded, site
from hospitals import SCHEMA, hospitals

from fl_app import client_app
from fl_app.assembly import build_strategy
from fl_app.config import RunConfig
from fl_app.enrolment import Enrolment
from fl_app.errors import Refused
from fl_app.policy import Declined, Policy, charge, policy_of
from fl_app.server_app import serve
from fl_app.site import Common
from fl_app.site_ledger import SiteLedgers
from privacy.accounting import Release, Sampling, spent
from strategies import wire
from strategies.base import TooFewClients
from strategies.protection import METRICS, Promise, Protection

pytestmark = pytest.mark.usefixtures("deployed")

QUICK = {"data": "csv", "rounds": 2, "enrol-timeout-s": 0.2, "min-clients": 2, "local-epochs": 1, "num-clients": 2}
EVERYTHING = "[release]\ncounts = true\nstatistics = true\nmetrics = true\nsurvey = true\n"
OWN = "my_hospital_models"

Keys = Mapping[str, Any]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of somebody's own, which says on the disk that it was imported."""
    folder = tmp_path / "installed"
    (folder / OWN).mkdir(parents=True)
    (folder / OWN / "__init__.py").write_text(
        "from pathlib import Path\n"
        "from tasks.logistic import LogisticTask\n"
        "Path(__file__).with_name('imported').touch()\n"
        "class Task(LogisticTask):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder / OWN / "imported"
    sys.modules.pop(OWN, None)


WELCOMING = f"{EVERYTHING}folding = true\n[allow]\nmodules = ['{OWN}']\n"


@dataclass
class Sites:
    """Two nodes, of which the first has a policy from its n-th message on."""

    folder: Path
    schema: Path
    seen: list[Message] = field(default_factory=list)

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    @property
    def state(self) -> Path:
        return self.folder / "data" / "state"

    def keys(self, keys: Keys, name: str = "out") -> RunConfig:
        values = {**QUICK, **keys, "out": str(self.folder / name)}
        if values.get("schema"):
            values["schema"] = str(self.schema)
        return RunConfig.parse(values)

    def grid(self, config: RunConfig, text: str, late: str = "") -> Any:
        """`late`: the message from whose kind on the policy is there; a site may make one at any time."""
        data, sites = self.folder / "data", self
        self.policy.write_text("" if late else text)
        if late:
            self.policy.write_text(WELCOMING)
        nodes = [site(data, "bern", policy=str(self.policy)), site(data, "oslo")]
        if OWN in config.task:  # which nobody imports who does not say so
            nodes[1]["policy"] = str(self.folder / "oslo.toml")
            Path(nodes[1]["policy"]).write_text(WELCOMING)

        class Grid(at_sites(*nodes)):  # type: ignore[misc]  # mypy takes no call as a base
            def _work(self, message: Message) -> Message:
                if late and message.metadata.message_type == late:
                    sites.policy.write_text(text)
                reply = super()._work(message)
                sites.seen.append(reply)
                return reply

        return Grid(client_app.app, config.values(), 2)

    def run(self, text: str, keys: Keys, late: str = "", name: str = "out") -> dict[str, Any]:
        config = self.keys(keys, name)
        return serve(self.grid(config, text, late), config, on_line=lambda line: None)

    def enrol(self, text: str, keys: Keys) -> None:
        config = self.keys(keys)
        strategy = build_strategy(config, clients=2)
        from fl_app.assembly import agreed_beforehand

        design, private = agreed_beforehand(config, strategy), strategy.protection is not None
        Enrolment(config, design=design, private=private).open(self.grid(config, text))


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    hospitals(tmp_path / "data", rows=60)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    return Sites(tmp_path, tmp_path / "schema.json")


CHEAP = "noise-multiplier=60"  # nothing to be calibrated


def private(
    strategy: str = "record-dp-fedavg", args: str = f"target-epsilon=3 delta=1e-5 {CHEAP}", **keys: Any
) -> Keys:
    return {"strategy": strategy, "strategy-args": args, "schema": True, **keys}


PLAIN: Keys = {}
DECLARED: Keys = {"schema": True}
UNIFORM: Keys = {"schema": True, "strategy-args": "weighting=uniform"}

# What the policy says, a run that it declines, one that it lets through, the clause.
CLAUSES: dict[str, tuple[str, Keys, Keys, str]] = {
    "a promise": ("[privacy]\nrequired = true\n" + EVERYTHING, PLAIN, private(), "privacy.required"),
    "a unit": (
        '[privacy]\nunits = ["record"]\n',
        private("local-dp-fedavg"),
        private(),
        "privacy.units",
    ),
    "an epsilon": (
        "[privacy]\nmax-epsilon = 3.0\nmax-delta = 1e-5\n",
        private(args=f"target-epsilon=3.01 delta=1e-5 {CHEAP}"),
        private(),
        "privacy.max-epsilon",
    ),
    "an epsilon that is set": (
        "[privacy]\nmax-epsilon = 3.0\nmax-delta = 1e-5\n",
        private(args=f"delta=1e-5 {CHEAP}"),
        private(),
        "privacy.max-epsilon",
    ),
    "an epsilon at the usual delta": (
        "[privacy]\nmax-epsilon = 3.0\n",
        private(args=f"target-epsilon=3 delta=2e-5 {CHEAP}"),
        private(),
        "privacy.max-delta",
    ),
    "a delta": (
        "[privacy]\nmax-delta = 1e-6\n",
        private(),
        private(args=f"target-epsilon=3 delta=1e-6 {CHEAP}"),
        "privacy.max-delta",
    ),
    "noise of its own": (
        "[privacy]\nnoise-by-client = true\n",
        private("dp-fedavg", f"target-epsilon=3 delta=1e-5 sampling=none {CHEAP}"),
        private(),
        "privacy.noise-by-client",
    ),
    "a task": (
        '[allow]\ntasks = ["logistic"]\n' + EVERYTHING,
        {"task": f"{OWN}:Task"},
        PLAIN,
        "allow.tasks",
    ),
    "a strategy": (
        '[allow]\nstrategies = ["fedavg"]\n' + EVERYTHING,
        {"strategy": "fedsgd"},
        PLAIN,
        "allow.strategies",
    ),
    "modules": (EVERYTHING, {"task": f"{OWN}:Task"}, PLAIN, "allow.modules"),
    "counts": (
        "[release]\n",
        DECLARED,
        {**UNIFORM, "standard-errors": False},
        "release.counts",
    ),
    "statistics": (
        "[release]\ncounts = true\nmetrics = true\nsurvey = true\n",
        PLAIN,
        DECLARED,
        "release.statistics",
    ),
    "a cohort": ("[cohort]\nminimum = 2\n" + EVERYTHING, {"min-clients": 1}, PLAIN, "cohort.minimum"),
}


@pytest.mark.parametrize("demand", CLAUSES)
def test_a_run_that_asks_for_more_is_not_enrolled_and_the_clause_stays_at_the_site(
    sites: Sites, log: Any, own_module: Path, demand: str
) -> None:
    text, asks_too_much, _, clause = CLAUSES[demand]
    keys = {**asks_too_much, "min-clients": 2} if clause != "cohort.minimum" else {**asks_too_much, "num-clients": 0}
    if clause == "cohort.minimum":
        sites.enrol(text, keys)  # the other one is enough for such a run
    else:
        with pytest.raises(TooFewClients, match=r"1 of 2 clients enrolled within .*node \d+: declined by its policy$"):
            sites.enrol(text, keys)
    assert f"declined by this site: {clause}: " in log()
    answer = next(reply.content for reply in sites.seen if "declined" in reply.content)
    assert {name: dict(record) for name, record in answer.items() if name not in ("versions", "receipt")} == {
        "declined": {"declined": True}
    }


def test_nothing_that_a_run_names_is_imported_before_it_is_declined(sites: Sites, own_module: Path) -> None:
    sites.policy.write_text(EVERYTHING)
    config = RunConfig.parse({**QUICK, "task": f"{OWN}:Task"})
    node = site(sites.folder / "data", "bern", policy=str(sites.policy))
    with pytest.raises(TooFewClients, match="declined by its policy"):
        Enrolment(config).open(at_sites(node)(client_app.app, config.values(), 1))
    assert not own_module.exists()
    with pytest.raises(TooFewClients, match="declined by its policy"):  # nor where nothing is demanded
        Enrolment(config).open(at_sites({**node, "policy": ""})(client_app.app, config.values(), 1))
    assert not own_module.exists()
    sites.policy.write_text(WELCOMING)
    with pytest.raises(TooFewClients):  # one of two
        Enrolment(config).open(at_sites(node)(client_app.app, config.values(), 1))
    assert own_module.exists()


@pytest.mark.parametrize("demand", CLAUSES)
def test_a_run_that_asks_for_more_of_a_node_that_is_enrolled_gets_nothing_of_it(
    sites: Sites, log: Any, own_module: Path, demand: str
) -> None:
    text, asks_too_much, _, clause = CLAUSES[demand]
    if clause == "cohort.minimum":
        summary = sites.run(text, {**asks_too_much, "stop": "rounds"}, late="train")
        lines = [json.loads(line) for line in Path(summary["out"], "rounds.jsonl").read_text().splitlines()]
        assert [line["dropped"] for line in lines] == [[{"client": "bern", "reason": "declined"}]] * 2
    else:
        with suppress(TooFewClients):  # or the budget does not allow a second try
            assert sites.run(text, asks_too_much, late="train")["stop_reason"] == "budget"
    assert f"declined by this site: {clause}: " in log()
    answers = [wire.read_answer(reply.content) for reply in sites.seen if "answer" in reply.content]
    refused = [answer for answer in answers if answer.dropped]
    assert refused
    for answer in refused:
        assert answer.updates == ()
        assert [(drop.client, drop.reason) for drop in answer.dropped] == [("bern", "declined")]


@pytest.mark.parametrize("demand", CLAUSES)
def test_a_run_that_asks_for_no_more_goes_on(sites: Sites, log: Any, demand: str) -> None:
    text, _, asks_enough, _ = CLAUSES[demand]
    assert sites.run(text, asks_enough)["status"] == "completed"
    told = [line for line in log().splitlines() if "declined" in line]
    assert not [line for line in told if "release.metrics" not in line and "release.survey" not in line], told


# ------------------------------------------------------------------------------------------------- what may be named


@pytest.mark.parametrize(
    ("text", "keys", "clause"),
    [
        ("", {"task": f"{OWN}:Task"}, "allow.modules"),
        (f'[allow]\nmodules = ["{OWN}"]\n', {"task": f"{OWN}:Task"}, ""),
        (f'[allow]\nmodules = ["{OWN}"]\n', {"task": f"{OWN}_of_others:Task"}, "allow.modules"),
        (f'[allow]\ntasks = ["{OWN}:Task"]\n', {"task": f"{OWN}:Task"}, ""),
        (f'[allow]\ntasks = ["logistic"]\nmodules = ["{OWN}"]\n', {"task": f"{OWN}:Task"}, "allow.tasks"),
        ("", {"strategy": "evil:Strategy"}, "allow.modules"),
        ("", {"stop": "evil:Stop"}, "allow.modules"),
        ("", {"data": "evil:Data"}, "allow.modules"),
        ("", {"partition": "evil:Partition"}, "allow.modules"),
        ("", {"data": "loader", "data-args": "factory=evil:rows label=y"}, "allow.modules"),
        ("", {"task": "torch", "task-args": "model=evil:net"}, "allow.modules"),
        ('[allow]\nmodules = ["mine"]\n', {"task": "torch", "task-args": "model=mine.nets:net"}, ""),
        (
            '[allow]\nmodules = ["mine"]\n',
            {"task": "torch", "task-args": "model=mine:net loss=evil:l"},
            "allow.modules",
        ),
        ("", {"task": "not-built-in"}, "allow.modules"),
    ],
)
def test_a_run_names_only_what_the_site_lets_it(
    tmp_path: Path, own_module: Path, text: str, keys: Keys, clause: str
) -> None:
    (tmp_path / "p.toml").write_text(text + EVERYTHING)
    policy, config = Policy.of(tmp_path / "p.toml"), RunConfig.parse({"data": "csv", **keys})
    if not clause:
        policy.check_run(config, "train")
        return
    with pytest.raises(Declined) as declined:
        policy.check_run(config, "train")
    assert declined.value.clause == clause
    assert "evil" not in sys.modules
    assert not own_module.exists()


# -------------------------------------------------------------------------------------------------- what is released


def test_who_withholds_counts_enrols_as_one_row_and_its_updates_say_none(sites: Sites) -> None:
    sites.run("[release]\n", {**UNIFORM, "standard-errors": False})
    told = [reply.content["enrolment"] for reply in sites.seen if "enrolment" in reply.content]
    assert sorted(record["num-examples"][0] > 1 for record in told) == [False, True]
    answers = [wire.read_answer(reply.content) for reply in sites.seen if "answer" in reply.content]
    said = {client: [] for client in ("bern", "oslo")}
    for update in (update for answer in answers for update in answer.updates if update.arrays):
        said[update.clients[0]].append((update.num_examples, dict(update.metric_sums)))
    assert said["bern"] == [(0, {})] * 2
    assert all(count > 0 for count, _ in said["oslo"])


def test_statistics_do_not_leave_a_site_that_withholds_them_even_where_the_server_says_that_nothing_is_agreed(
    sites: Sites,
) -> None:
    config = sites.keys(DECLARED)
    Enrolment(config).open(sites.grid(config, EVERYTHING.replace("statistics = true\n", "")))  # its design is missing
    told = {reply.content["enrolment"]["clients"][0]: reply.content for reply in sites.seen}
    assert told["bern"]["enrolment"]["label-moments"] == []
    categories = {
        name: [f.get("levels") for f in json.loads(content["enrolment"]["columns"][0])["features"]]
        for name, content in told.items()
    }
    assert not any(categories["bern"])
    assert any(categories["oslo"])


def test_a_site_that_does_not_measure_is_asked_to_train_without_metrics_and_the_others_measure(
    sites: Sites, log: Any
) -> None:
    summary = sites.run("[release]\ncounts = true\nstatistics = true\n", PLAIN)
    assert summary["status"] == "completed"
    assert summary["metrics"]["accuracy"] > 0.4
    lines = [json.loads(line) for line in Path(summary["out"], "rounds.jsonl").read_text().splitlines()]
    assert [(line["good"], line["train_metrics"]) for line in lines] == [(2, None)] * 2
    assert "declined by this site: release.metrics: it asks for metrics with evaluate" in log()
    assert "declined by this site: release.survey" in log()
    shown = json.loads(Path(summary["out"], "sites.json").read_text())
    assert [entry["client"] for entry in shown["sites"]] == ["oslo"]
    for reply in sites.seen:
        if "answer" in reply.content:
            for update in wire.read_answer(reply.content).updates:
                assert not ("bern" in update.clients and update.metric_sums)


def test_a_server_that_asks_for_metrics_with_training_all_the_same_gets_nothing(sites: Sites, log: Any) -> None:
    with pytest.raises(TooFewClients):
        sites.run("[release]\ncounts = true\nstatistics = true\n", PLAIN, late="train")
    assert "release.metrics: it asks for metrics with train" in log()


@pytest.mark.parametrize(("text", "sums"), [("", False), ("folding = true\n", True)])
def test_a_node_adds_up_updates_of_several_clients_only_where_its_site_lets_it(
    tmp_path: Path, text: str, sums: bool
) -> None:
    (tmp_path / "p.toml").write_text(EVERYTHING + text)
    seen: list[tuple[Message, Message]] = []
    node = {"partition-id": 0, "num-partitions": 1, "policy": str(tmp_path / "p.toml")}
    grid = recorded(at_sites(node), seen)
    values = {
        "data": "synthetic",
        "data-args": "features=2",
        "num-clients": 3,
        "rounds": 1,
        "out": str(tmp_path / "out"),
    }
    config = RunConfig.parse(values)
    summary = serve(grid(client_app.app, config.values(), 1), config, on_line=lambda line: None)
    answers = [wire.read_answer(reply.content) for _, reply in seen if "answer" in reply.content]
    trained = [len(update.clients) for answer in answers for update in answer.updates if update.arrays]
    assert trained[: 1 if sums else 3] == ([3] if sums else [1, 1, 1])
    plain = RunConfig.parse({**values, "out": str(tmp_path / "plain")})
    grid = at_sites({"partition-id": 0, "num-partitions": 1})(client_app.app, plain.values(), 1)
    assert serve(grid, plain, on_line=lambda line: None)["params_sha256"] == summary["params_sha256"]


# ---------------------------------------------------------------------------------------------------- what it may cost


def protection(**changes: Any) -> Protection:
    usual: dict[str, Any] = {
        "unit": "client",
        "relation": "replace-one",
        "mechanism": "noise",
        "promise": Promise(0.0, 10.0, 1e-5),
        "clip_norm": 1.0,
        "sampling": Sampling("none"),
        "rounds": 5,
        "by_clients": True,
    }
    return Protection(**{**usual, **changes})


def order(number: int) -> wire.Order:
    return wire.Order(number, ("bern",), (0,), 10, 1.0, False, {})


def of(total: float = 0.0, once: float = 0.0) -> Policy:
    keys = {"max-total-epsilon": total} if total else {}
    return Policy.model_validate({"privacy": {**keys, **({"max-epsilon": once} if once else {})}})


def epsilon(count: int, release: Release, relation: Any = "replace-one", delta: float = 1e-5) -> float:
    return spent([release] * count, relation, delta).epsilon


def charged(
    policy: Policy | None, ledgers: SiteLedgers, rounds: Sequence[int], promise: Protection, release: Release
) -> int:
    """How many of the rounds are let through."""
    for place, number in enumerate(rounds):
        try:
            charge(policy, ledgers, order(number), promise, release)
        except Declined:
            return place
    return len(rounds)


ONCE = Release("update", 10.0, Sampling("none"))


def test_a_round_is_declined_that_would_exceed_what_all_runs_may_cost_and_is_not_entered(tmp_path: Path) -> None:
    limit = epsilon(7, ONCE)
    first, second = SiteLedgers(tmp_path, "first"), SiteLedgers(tmp_path, "second")
    assert charged(of(total=limit), first, range(1, 6), protection(), ONCE) == 5
    assert charged(of(total=limit), second, range(1, 6), protection(), ONCE) == 2
    assert charged(of(total=limit), second, [3], protection(), ONCE) == 0
    assert sorted(len(book.entries) for book in second.of("bern").values()) == [2, 5]
    assert charged(of(total=epsilon(8, ONCE)), second, [3, 4], protection(), ONCE) == 1


def test_messages_that_are_charged_at_once_do_not_spend_more_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, enter = epsilon(6, ONCE), SiteLedgers.enter

    def enter_late(self: SiteLedgers, *entry: Any) -> None:
        time.sleep(0.02)  # between looking at what was spent and spending more
        enter(self, *entry)

    monkeypatch.setattr(SiteLedgers, "enter", enter_late)

    def charge_many(job: int) -> int:  # a file's lock is between those who opened it: threads are as good as processes
        return charged(of(total=limit), SiteLedgers(tmp_path, f"job {job}"), range(1, 5), protection(), ONCE)

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(charge_many, range(3))) == 6
    assert sum(len(book.entries) for book in SiteLedgers(tmp_path, "").of("bern").values()) == 6


def test_what_other_clients_of_the_node_have_spent_does_not_count(tmp_path: Path) -> None:
    ledgers = SiteLedgers(tmp_path, "job")
    for number in range(1, 6):
        ledgers.enter("oslo", number, protection(), ONCE)
    assert charged(of(total=epsilon(2, ONCE)), ledgers, [1, 2, 3], protection(), ONCE) == 2


def test_a_run_costs_no_more_than_it_may_whatever_its_server_announces(tmp_path: Path) -> None:
    weak = Release("update", 1.0, Sampling("none"))
    limit = epsilon(2, weak)
    assert charged(of(once=limit), SiteLedgers(tmp_path, "one"), [1, 2, 3], protection(), weak) == 2
    assert charged(of(once=limit), SiteLedgers(tmp_path, "two"), [1, 2, 3], protection(), weak) == 2  # each by itself


@pytest.mark.parametrize("sampling", [Sampling("none"), Sampling("poisson", 0.1)], ids=["all rows", "some rows"])
def test_where_clients_add_the_noise_a_run_is_held_to_its_target_also_without_a_policy(
    tmp_path: Path, sampling: Sampling
) -> None:
    own = protection(unit="record", relation="add-remove", sampling=sampling, per_round=3)
    own = replace(own, promise=Promise(2.0, 0.0, 1e-5))
    release, ledgers = own.announced({}), SiteLedgers(tmp_path, "job")
    assert charged(None, ledgers, [1, 2, 2, 3, 4, 5], own, release) == 5  # a round that is tried again is one more
    assert len(ledgers.in_run("bern")) == 5
    assert charged(None, SiteLedgers(tmp_path, "another run"), range(1, 7), own, release) == 5
    budget = replace(own, promise=Promise(2.0, 2 * own.noise_multiplier, 1e-5), rounds=1)
    assert charged(None, SiteLedgers(tmp_path, "budget"), range(1, 8), budget, budget.announced({})) == 7
    server = replace(own, by_clients=False)  # whoever trusts it to add the noise trusts it to count
    assert charged(None, SiteLedgers(tmp_path, "server"), range(1, 8), server, release) == 7


def test_a_run_of_sites_that_add_the_noise_plays_all_that_its_target_pays_for(sites: Sites, log: Any) -> None:
    done = sites.run("", private("local-dp-fedavg", "target-epsilon=50 delta=1e-5", **{"noisy-metrics": 9.0}))
    assert (done["status"], done["rounds"], log()) == ("completed", 2, "")
    assert 49.9 < done["privacy"]["epsilon"] <= 50


def test_a_design_that_makes_rows_depend_on_one_another_is_declined_where_rows_are_protected(
    sites: Sites, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Common.values
    monkeypatch.setattr(
        Common, "values", lambda self: honest(replace(self, design=replace(self.design, standardize="local")))
    )
    with pytest.raises(TooFewClients, match="declined"):
        sites.run("", private())
    assert "declined by this site: design: it scales by the client's own rows" in log()
    assert not list(sites.state.glob("privacy/*/*.jsonl"))


def test_rounds_in_which_a_client_was_not_drawn_cost_as_much_where_the_draw_is_secret(tmp_path: Path) -> None:
    drawn = Release("sum", 1.0, Sampling("poisson", 0.1))
    central = protection(relation="add-remove", sampling=Sampling("poisson", 0.1), by_clients=False)
    limit = epsilon(10, drawn, "add-remove")
    assert charged(of(total=limit), SiteLedgers(tmp_path, "job"), [3, 10, 11], central, drawn) == 2
    ledgers, everybody = SiteLedgers(tmp_path / "metrics", "job"), Release("metrics", 9.0, Sampling("none"))
    assert charged(of(), ledgers, [3], central, drawn) == charged(of(), ledgers, [10], central, everybody) == 1
    limit = spent([replace(drawn, count=10), everybody, everybody], "add-remove", 1e-5).epsilon
    assert charged(of(total=limit), ledgers, [10], central, everybody) == 1  # of ten rounds, the last was then played
    assert charged(of(total=limit), ledgers, [11], central, everybody) == 0
    limit = epsilon(10, drawn, "add-remove")
    own = protection(unit="record", relation="add-remove")  # of rows, which are drawn where the client takes part
    assert charged(of(total=limit), SiteLedgers(tmp_path / "rows", "job"), [3, 10, 11], own, drawn) == 3


def test_what_protects_rows_and_what_protects_clients_is_added_up(tmp_path: Path) -> None:
    own = protection(unit="record", relation="add-remove")
    limit = epsilon(2, ONCE, delta=5e-6) + epsilon(2, ONCE, "add-remove", 5e-6)
    first, second = SiteLedgers(tmp_path, "first"), SiteLedgers(tmp_path, "second")
    assert charged(of(total=limit), first, [1, 2], protection(), ONCE) == 2
    assert charged(of(total=limit * 0.999), second, [1, 2], own, ONCE) == 1
    assert charged(of(total=limit), second, [2, 3], own, ONCE) == 1


def test_a_damaged_ledger_declines_what_it_cannot_account_for(tmp_path: Path) -> None:
    ledgers = SiteLedgers(tmp_path, "job")
    ledgers.enter("bern", 1, protection(), ONCE)
    path = ledgers.path("bern")
    path.write_text(path.read_text().replace('"round": 1', '"round": 0'))
    with pytest.raises(Declined, match="the ledgers cannot be read"):
        charge(of(total=9.0), ledgers, order(2), protection(), ONCE)


def test_a_site_takes_part_in_runs_until_its_rows_have_cost_what_they_may(sites: Sites, log: Any) -> None:
    keys = private("local-dp-fedavg", "target-epsilon=1 noise-multiplier=20 delta=1e-5", rounds=3)
    limit = epsilon(4, Release("update", 20.0, Sampling("none")))
    text = f"[privacy]\nmax-total-epsilon = {limit}\n"
    assert sites.run(text, keys, name="first")["status"] == "completed"
    sites.seen.clear()
    with suppress(TooFewClients):
        assert sites.run(text, keys, name="second")["stop_reason"] == "budget"
    assert "privacy.max-total-epsilon: with this round epsilon " in log()
    answers = [wire.read_answer(reply.content) for reply in sites.seen if "answer" in reply.content]
    given = [update.clients for answer in answers for update in answer.updates]
    assert given.count(("bern",)) == 1  # its fourth round, which is the last that it may take part in
    with pytest.raises(TooFewClients, match="declined by its policy"):
        sites.run(text, keys, name="third")


def test_a_node_that_keeps_no_ledgers_cannot_keep_a_total(tmp_path: Path, log: Any) -> None:
    (tmp_path / "p.toml").write_text("[privacy]\nmax-total-epsilon = 9\n")
    node = {"partition-id": 0, "num-partitions": 1, "policy": str(tmp_path / "p.toml")}
    values = {"data": "synthetic", "strategy": "local-dp-fedavg", "strategy-args": "noise-multiplier=5"}
    config = RunConfig.parse({**values, "num-clients": 2, "enrol-timeout-s": 0.1})
    with pytest.raises(TooFewClients, match="declined by its policy"):
        Enrolment(config).open(at_sites(node)(client_app.app, config.values(), 1))
    assert "privacy.max-total-epsilon: the node has no file of its own" in log()


# ---------------------------------------------------------------------------------------------------- the file itself


BROKEN: dict[str, tuple[str, str]] = {
    "an unknown section": ("[privcy]\n", "unknown key 'privcy': privcy in {path}: did you mean 'privacy'?"),
    "an unknown key": (
        "[privacy]\nmax-epsilom = 3\n",
        "unknown key 'max-epsilom': privacy.max-epsilom in {path}: did you mean 'max-epsilon'?",
    ),
    "a key of another section": (
        "[cohort]\ncounts = true\n",
        "unknown key 'counts': cohort.counts in {path}: known: minimum",
    ),
    "a number as text": (
        '[privacy]\nmax-epsilon = "3"\n',
        "privacy.max-epsilon = '3': privacy.max-epsilon in {path}: input should be a valid number",
    ),
    "a number below 0": (
        "[privacy]\nmax-epsilon = -1\n",
        "privacy.max-epsilon = -1: privacy.max-epsilon in {path}: input should be greater than 0",
    ),
    "infinity": (
        "[privacy]\nmax-epsilon = inf\n",
        "privacy.max-epsilon = inf: privacy.max-epsilon in {path}: input should be a finite number",
    ),
    "text for a switch": (
        '[release]\ncounts = "no"\n',
        "release.counts = 'no': release.counts in {path}: input should be a valid boolean",
    ),
    "an unknown unit": (
        '[privacy]\nunits = ["row"]\n',
        "privacy.units = 'row': privacy.units in {path}: input should be 'client' or 'record'",
    ),
    "an unknown task": (
        '[allow]\ntasks = ["logistc"]\n',
        "unknown task 'logistc': allow in {path}: did you mean 'logistic'?",
    ),
    "a module that is none": (
        '[allow]\nmodules = ["a-b"]\n',
        "'a-b' is no module: allow in {path}: write it as in an import",
    ),
    "half of a release": (
        "[release]\nmetrics = true\n",
        "metrics = true tells numbers of rows: release in {path}: set counts = true too, or metrics = false",
    ),
    "a contradiction": (
        "[privacy]\nrequired = false\nmax-epsilon = 3\n",
        "required = false, and yet max-epsilon demands privacy: privacy in {path}: leave one of them out",
    ),
    "no TOML": ("[privacy\n", "the policy is no valid TOML: {path}: "),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_policy_says_in_one_line_what_is_wrong(tmp_path: Path, fault: str) -> None:
    text, said = BROKEN[fault]
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(Refused) as refused:
        Policy.of(path)
    assert str(refused.value).startswith(said.format(path=path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[privcy]\n", None])
@pytest.mark.parametrize("late", ["", "train"])
def test_a_node_whose_policy_is_broken_or_gone_takes_part_in_nothing(
    sites: Sites, log: Any, monkeypatch: pytest.MonkeyPatch, late: str, text: str | None
) -> None:
    if text is None:
        write = Path.write_text
        monkeypatch.setattr(
            Path, "write_text", lambda p, t, **k: p.unlink(missing_ok=True) if t == "" else write(p, t, **k)
        )
    with pytest.raises(TooFewClients):
        sites.run(text or "", PLAIN, late=late)
    assert "declined by this site: policy: nothing is allowed before it is mended: " in log()
    assert ("unknown key 'privcy'" if text else "the policy cannot be read") in log()
    assert not [reply for reply in sites.seen if "answer" in reply.content and _of_bern(reply)]


def _of_bern(reply: Message) -> bool:
    return any("bern" in update.clients for update in wire.read_answer(reply.content).updates)


def test_a_node_without_a_policy_demands_nothing() -> None:
    assert policy_of({}) is None
    assert policy_of({"policy": ""}) is None


def test_an_empty_policy_lets_only_private_runs_have_anything_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("")
    policy = Policy.of(tmp_path / "p.toml")
    with pytest.raises(Declined, match=r"release\.statistics"):
        policy.check_run(RunConfig.parse({"data": "csv"}), "enrol")
    policy.check_run(RunConfig.parse({"data": "csv", **private(), "schema": "s.json"}), "train")


# ------------------------------------------------------------------------------------------- metrics that noise hides


NOISED: Keys = {"noisy-metrics": 20.0, "evaluate-every": 1}


def noised(message: Any) -> list[wire.Answer]:
    return [wire.read_answer(reply.content) for reply in message if reply.metadata.message_type == "evaluate"]


def test_noised_metrics_are_in_the_ledgers_of_the_site_and_declined_beyond_its_limit(sites: Sites, log: Any) -> None:
    run = private("local-dp-fedavg", CHEAP, **NOISED)
    assert sites.run("", run)["metrics"] is not None
    (book,) = SiteLedgers(sites.state, "").of("bern").values()
    entries = [(entry.round, entry.release.what, entry.release.noise_multiplier) for entry in book.entries]
    assert [entry for entry in entries if entry[1] == METRICS] == [(1, METRICS, 20.0), (2, METRICS, 20.0)]
    assert [entry[0] for entry in entries] == [1, 1, 2, 2]
    limit = spent([*book.releases, *book.releases[:1]], "replace-one", 1e-5).epsilon  # one round more, no metrics
    summary = sites.run(f"[privacy]\nmax-total-epsilon = {limit}\n", {**run, "rounds": 1}, name="second")
    assert summary["metrics"] is not None  # from the other site
    assert "privacy.max-total-epsilon: with this round epsilon " in log()
    entered = sum(len(book.entries) for book in SiteLedgers(sites.state, "").of("bern").values())
    assert entered == 5


@pytest.mark.parametrize(
    ("run", "text", "declined"),
    [
        (private("dp-fedavg", f"sampling=none {CHEAP}", **NOISED), "", True),
        (private("dp-fedavg", f"sampling=none {CHEAP}", **NOISED), "[release]\ncounts = true\nmetrics = true\n", False),
        (private("local-dp-fedavg", CHEAP, **NOISED), "", False),
        (private(args=CHEAP, **NOISED), "", False),
    ],
    ids=["noise of the server", "with leave", "noise of the client", "noise of the client, for rows"],
)
def test_metrics_that_the_server_adds_noise_to_need_leave_of_the_site(
    sites: Sites, log: Any, fl_app: Any, run: Keys, text: str, declined: bool
) -> None:
    summary = sites.run(text, run)
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    answers = noised(sites.seen)
    assert len(answers) == 4
    assert sum(bool(answer.dropped) for answer in answers) == (2 if declined else 0)
    assert ("declined by this site: release.metrics: the noise on" in log()) is declined
    asked = [
        word for key, value in run.items() for word in ("-c", f"{key}={sites.schema if key == 'schema' else value}")
    ]
    said = " ".join(checked(fl_app, sites, text, *asked).out.split())
    assert f"when it asks to evaluate: {'declined by release.metrics' if declined else 'allowed'}" in said
    assert "when it asks to survey" not in said


MEANS = {"standardize": "private", "rounds": 1}


@pytest.mark.parametrize("late", ["", "query.means"], ids=["enrolled", "asked all the same"])
@pytest.mark.parametrize(
    ("run", "text", "declined"),
    [
        (private("dp-fedavg", f"sampling=none {CHEAP}", **MEANS), "", True),
        (
            private("dp-fedavg", f"sampling=none {CHEAP}", **MEANS),
            "[release]\ncounts = true\nstatistics = true\n",
            False,
        ),
        (private("local-dp-fedavg", CHEAP, **MEANS), "", False),
    ],
    ids=["noise of the server", "with leave", "noise of the client"],
)
def test_means_that_the_server_adds_noise_to_need_leave_of_the_site(
    sites: Sites, log: Any, run: Keys, text: str, declined: bool, late: str
) -> None:
    with pytest.raises(TooFewClients) if declined else nullcontext():
        sites.run(text, run, late=late)
    answers = [reply for reply in sites.seen if reply.metadata.message_type == "query.means"]
    given = [update for reply in answers for update in wire.read_answer(reply.content).updates]
    assert len(given) == (2 if not declined else 1 if late else 0)
    assert ("declined by this site: release.statistics: the noise on" in log()) is declined


# ---------------------------------------------------------------------------------------------------- before any run


def checked(fl_app: Any, sites: Sites, text: str, *words: str) -> Any:
    sites.policy.write_text(text)
    file = sites.folder / "data" / "bern.csv"
    return fl_app("check", "--data", file, "--label", "outcome", "--policy", sites.policy, *words)


def test_the_dry_run_shows_the_policy_and_what_it_says_to_a_run(sites: Sites, fl_app: Any) -> None:
    text = "[privacy]\nmax-epsilon = 3.0\n[release]\ncounts = true\n"
    outcome = checked(fl_app, sites, text)
    said = " ".join(outcome.out.split())
    assert outcome.status == 0
    assert "privacy.max-epsilon = 3.0" in said
    assert "when it asks to enrol: declined by privacy.max-epsilon: the run promises no privacy" in said
    asked = ["-c", "strategy=record-dp-fedavg", "-c", "strategy-args=target-epsilon=3", "-c", f"schema={sites.schema}"]
    said = " ".join(checked(fl_app, sites, text, *asked).out.split())
    assert "when it asks to enrol: allowed" in said
    assert "when it asks to train: allowed" in said
    assert "evaluate" not in said  # under a promise nothing is measured


def test_the_dry_run_as_json_has_each_clause(sites: Sites, fl_app: Any) -> None:
    text = "[release]\ncounts = true\nstatistics = true\n"
    (found,) = json.loads(checked(fl_app, sites, text, "--json").out)
    verdicts = found["policy"]["verdicts"]
    assert {ask: verdict["clause"] for ask, verdict in verdicts.items()} == {
        "enrol": "",
        "train": "",
        "evaluate": "release.metrics",
        "survey": "release.survey",
    }


def test_the_dry_run_refuses_a_broken_policy_and_two_of_them(sites: Sites, fl_app: Any) -> None:
    assert "did you mean 'privacy'?" in checked(fl_app, sites, "[privcy]\n").refusal()
    node = f'client="bern" data="{sites.folder / "data" / "bern.csv"}" label="outcome" policy="{sites.policy}"'
    assert "two policies" in fl_app("check", "--node-config", node, "--policy", sites.policy).refusal()


def test_the_answer_of_a_node_without_a_policy_is_as_before(sites: Sites) -> None:
    sites.run(EVERYTHING, PLAIN)
    (told,) = (
        r.content["enrolment"]
        for r in sites.seen
        if "enrolment" in r.content and r.content["enrolment"]["clients"] == ["oslo"]
    )
    assert isinstance(told, ConfigRecord)
    assert "unmeasured" not in told

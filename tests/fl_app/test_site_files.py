"""Nodes with files of their own, as they are deployed: what a site reads is its own to say, whatever the run says."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from grids import at_sites, site
from hospitals import COLUMNS, Row, hospitals, patients, read_json, with_gaps, write_csv

from fl_app import client_app
from fl_app.assembly import open_data
from fl_app.caller import CALLER
from fl_app.config import RunConfig
from fl_app.enrolment import Enrolment
from fl_app.inline import InlineGrid
from fl_app.own_files import OwnFiles
from fl_app.rows import prepared_rows
from fl_app.run_folder import RunFolder
from fl_app.server_app import serve
from strategies.base import TooFewClients
from tasks.data.base import OwnFile

pytestmark = pytest.mark.usefixtures("deployed")

Log = Callable[[], str]
QUICK = {"rounds": 3, "enrol-timeout-s": 0.5, "min-clients": 2, "local-epochs": 2}


def run(out: Path, nodes: Sequence[Mapping[str, Any]], **keys: Any) -> dict[str, Any]:
    """The summary of a run over nodes with these configs."""
    values = {"data": "csv", **QUICK, **{key.replace("_", "-"): value for key, value in keys.items()}, "out": str(out)}
    config = RunConfig.parse(values)
    return serve(at_sites(*nodes)(client_app.app, config.values(), len(nodes)), config)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    hospitals(tmp_path / "data", rows=60)
    return tmp_path / "data"


@pytest.fixture
def sites(data: Path) -> list[dict[str, Any]]:
    """The configs of four nodes, in no order."""
    return [site(data, path.stem) for path in sorted(data.glob("*.csv"), reverse=True)]


# ----------------------------------------------------------------------------------------------------- what comes of it


@pytest.mark.parametrize("strategy", ["fedavg", "fednewton"])
def test_sites_with_their_own_files_come_to_the_model_of_the_simulation_over_the_same_folder(
    sites: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    deployed = run(tmp_path / "deployed", sites, strategy=strategy)
    monkeypatch.setenv(CALLER, str(tmp_path))
    nodes = [{"partition-id": 0, "num-partitions": 2}, {"partition-id": 1, "num-partitions": 2}]
    args = f"path='{data}' label=outcome"
    simulated = run(tmp_path / "simulated", nodes, strategy=strategy, data_args=args)
    assert deployed["params_sha256"] == simulated["params_sha256"]
    for metric in ("accuracy", "log_loss", "brier"):
        assert deployed["metrics"][metric] == pytest.approx(simulated["metrics"][metric], rel=1e-9)
    coefficients = [read_json(tmp_path / name / "model.json")["coefficients"] for name in ("deployed", "simulated")]
    for here, there in zip(*coefficients, strict=True):
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert value == (
                there[key] if value is None or isinstance(value, str) else pytest.approx(there[key], rel=1e-6)
            )


def test_clients_enrol_by_the_names_of_their_sites_and_measure_the_model_themselves(
    sites: Any, data: Path, tmp_path: Path
) -> None:
    summary = run(tmp_path / "out", sites)
    assert (summary["clients"], summary["metrics_on"], summary["baselines"]) == (4, "clients", None)
    found = read_json(tmp_path / "out" / "sites.json")
    assert [entry["client"] for entry in found["sites"]] == sorted(path.stem for path in data.glob("*.csv"))
    for entry in found["sites"]:
        assert entry["federated"].keys() == {"accuracy", "log_loss", "brier"}
        assert entry["alone"] is entry["alone_everywhere"] is None
        assert entry["train"] > entry["test"] > 0
    tested = sum(entry["test"] for entry in found["sites"])
    accuracy = sum(entry["federated"]["accuracy"] * entry["test"] for entry in found["sites"]) / tested
    assert accuracy == pytest.approx(summary["metrics"]["accuracy"])


def test_a_site_with_fewer_than_five_test_rows_shows_nothing_of_them(sites: Any, data: Path, tmp_path: Path) -> None:
    for node, count in zip(sites, (4, 5), strict=False):
        node["test-data"] = str(write_csv(tmp_path / f"{count}.csv", patients(count, 50)))
    run(tmp_path / "out", sites)
    found = {entry["client"]: entry for entry in read_json(tmp_path / "out" / "sites.json")["sites"]}
    few, enough = (found[node["client"]] for node in sites[:2])
    assert (few["test"], few["federated"]) == (4, None)
    assert (enough["test"], enough["federated"].keys()) == (5, {"accuracy", "log_loss", "brier"})


def test_a_site_may_have_test_rows_of_its_own(sites: Any, data: Path, tmp_path: Path) -> None:
    sites[0]["test-data"] = str(write_csv(tmp_path / "tests.csv", patients(33, 50)))
    run(tmp_path / "out", sites)
    found = {entry["client"]: entry for entry in read_json(tmp_path / "out" / "sites.json")["sites"]}
    lines = Path(sites[0]["data"]).read_text().splitlines()
    assert (found[sites[0]["client"]]["train"], found[sites[0]["client"]]["test"]) == (len(lines) - 1, 33)


def test_sites_may_call_their_files_and_folders_as_they_like(sites: Any, data: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "first", sites)["params_sha256"]
    for number, node in enumerate(sites):
        moved = tmp_path / f"site {number}" / "patients.csv"
        moved.parent.mkdir()
        Path(node["data"]).rename(moved)
        node["data"] = str(moved)
    assert run(tmp_path / "second", sites)["params_sha256"] == first


def test_the_run_says_what_is_made_of_gaps_and_what_is_dropped(sites: Any, data: Path, tmp_path: Path) -> None:
    write_csv(data / "bern.csv", with_gaps(patients(80, 3), ("age",), 0))
    run(tmp_path / "out", sites, data_args="missing=indicator drop=dose")
    features = [row["feature"] for row in read_json(tmp_path / "out" / "model.json")["coefficients"]]
    assert "age is missing" in features
    assert "dose" not in features


def test_nothing_of_the_rows_reaches_the_servers_folder(sites: Any, data: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", sites)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for row in patients(60, 0):
        assert row["age"].encode() + b"," not in written
    assert str(data).encode() not in written  # nor where the files lie


# ------------------------------------------------------------------------------------------------------ who is left out


def other_rows(change: Callable[[Row], Row], columns: Sequence[str] = COLUMNS) -> Callable[[Path], object]:
    return lambda path: write_csv(path, [change(row) for row in patients(60, 8)], columns)


MISFITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a column by another name": (
        other_rows(lambda row: {**row, "doses": row["dose"]}, ("age", "doses", "smoker", "stage", "outcome")),
        "bern does not take part: its column 'doses' is none of the others': did you mean 'dose'?",
    ),
    "a column less": (
        other_rows(lambda row: row, ("age", "smoker", "stage", "outcome")),
        "bern does not take part: it has no column 'dose', which the others have: add it, or let all drop it",
    ),
    "another kind": (
        other_rows(lambda row: {**row, "smoker": "01"[row["smoker"] == "true"]}),
        "bern does not take part: its column 'smoker' is a number, that of the others a boolean: write it alike",
    ),
    "another spelling of a class": (
        other_rows(lambda row: {**row, "outcome": row["outcome"].replace("dead", "DEAD")}),
        "bern does not take part: in the label 'outcome' it writes 'DEAD' where others write 'dead': write it alike",
    ),
    "classes as numbers": (
        other_rows(lambda row: {**row, "outcome": "01"[row["outcome"] == "dead"]}),
        "bern does not take part: its label 'outcome' is '0' or '1', that of the others 'alive' or 'dead': write it",
    ),
    "gaps": (
        other_rows(lambda row: {**row, "age": ""}),
        "bern does not take part: its rows cannot be used: see the log of its node",
    ),
    "text among numbers": (
        other_rows(lambda row: {**row, "age": "Smith, John" if row["age"] < "45" else row["age"]}),
        "bern does not take part: its rows cannot be used: see the log of its node",
    ),
    "no file": (lambda path: path.unlink(), "bern does not take part: its rows cannot be used: see the log of its nod"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_site_that_does_not_fit_is_left_out_by_name_and_the_others_go_on(
    sites: Any, data: Path, tmp_path: Path, log: Log, misfit: str
) -> None:
    spoil, said = MISFITS[misfit]
    spoil(data / "bern.csv")
    summary = run(tmp_path / "out", sites)
    assert (summary["status"], summary["clients"]) == ("completed", 3)
    assert [entry["client"] for entry in read_json(tmp_path / "out" / "sites.json")["sites"]] == [
        "aarhus",
        "köln süd",
        "oslo",
    ]
    assert said in log()


def test_the_node_logs_what_is_wrong_with_its_file_and_the_server_is_told_no_cell(
    sites: Any, data: Path, tmp_path: Path, log: Log
) -> None:
    other_rows(lambda row: {**row, "age": '"Smith, John"' if row["age"] < "45" else row["age"]})(data / "bern.csv")
    run(tmp_path / "out", sites)
    assert f"{data / 'bern.csv'}, line " in log()
    assert "text 'Smith, John' in the numeric column 'age'" in log()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"Smith" in path.read_bytes()]


def test_where_too_few_are_left_the_run_fails_and_says_why(sites: Any, data: Path, tmp_path: Path) -> None:
    for path in data.glob("*.csv"):
        if path.stem != "oslo":
            path.write_text("")
    with pytest.raises(TooFewClients, match=r"1 of \d clients enrolled .*bern: its rows cannot be used"):
        run(tmp_path / "out", sites)
    summary = RunFolder(tmp_path / "out").read_summary()
    assert (summary["status"], summary["stop_reason"]) == ("failed", "too-few-clients")


def test_of_two_nodes_with_one_clients_name_one_takes_part_and_the_other_is_named(
    sites: Any, data: Path, tmp_path: Path, log: Log
) -> None:
    summary = run(tmp_path / "out", [*sites, site(data, "bern")])
    assert summary["clients"] == 4
    assert "another node hosts a client of this name: rename one" in log()


# -------------------------------------------------------------------------------------------- what the run may not say


@pytest.mark.parametrize("key", ["path", "label", "client-column", "test-path"])
def test_a_run_that_says_what_a_site_reads_is_refused_there(
    sites: Any, data: Path, tmp_path: Path, log: Log, key: str
) -> None:
    (tmp_path / "secret.csv").write_text("")  # reading it would be another error
    with pytest.raises(TooFewClients):
        answered(sites, data_args=f"{key}={tmp_path / 'secret.csv'}")
    assert f"the run sets {key}=" in log()
    assert "a site reads what its own node config names, no more" in log()
    assert "the file is empty" not in log()


def answered(nodes: Sequence[Mapping[str, Any]], **keys: Any) -> None:
    """Enrolment alone, by a server that may say what it likes; raises TooFewClients where no node answers it."""
    values = {"data": "csv", **QUICK, **{key.replace("_", "-"): value for key, value in keys.items()}}
    config = RunConfig.parse({**values, "enrol-timeout-s": 0.2})
    Enrolment(config).open(at_sites(*nodes)(client_app.app, config.values(), len(nodes)))


PARTITION = {"partition-id": 0, "num-partitions": 1}


def test_a_deployed_node_without_a_file_refuses_a_run_that_names_one(tmp_path: Path, data: Path, log: Log) -> None:
    with pytest.raises(TooFewClients):
        answered([PARTITION], data_args=f"path='{data}' label=outcome")
    assert "the run names files to read at this site" in log()
    assert "start the node with --node-config" in log()


def test_a_deployed_node_does_not_read_a_file_that_the_run_names(tmp_path: Path, log: Log) -> None:
    (tmp_path / "secret.csv").write_text("")  # reading it would be another error
    with pytest.raises(TooFewClients):
        answered([PARTITION], data_args=f"path={tmp_path / 'secret.csv'} label=outcome")
    assert "the run names files to read at this site" in log()


def test_a_deployed_node_that_is_sent_a_round_outright_neither_reads_nor_trains_on_a_file_that_the_run_names(
    tmp_path: Path, data: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutrightGrid(InlineGrid):
        """Its node takes part in a simulation until it has enrolled: to a round it answers as if nobody had asked."""

        def _work(self, message: Message) -> Message:
            if message.metadata.message_type == "query.enrol":
                monkeypatch.setenv(CALLER, str(tmp_path))
            else:
                monkeypatch.delenv(CALLER, raising=False)
            open_data.cache_clear()
            prepared_rows.cache_clear()
            return super()._work(message)

    values = {"data": "csv", "data-args": f"path='{data}' label=outcome", **QUICK, "out": str(tmp_path / "out")}
    config = RunConfig.parse(values)
    with pytest.raises(TooFewClients):
        serve(OutrightGrid(client_app.app, config.values(), 1), config)
    assert "the run names files to read at this site" in log()


def test_a_node_that_says_half_of_what_it_has_says_what_is_absent(data: Path, log: Log) -> None:
    for key in ("client", "label"):
        node = {name: value for name, value in site(data, "bern").items() if name != key}
        with pytest.raises(TooFewClients):
            answered([node])
        assert f"no {key} in its node config" in log()


def test_a_site_whose_run_needs_no_files_is_told_so(data: Path, log: Log) -> None:
    with pytest.raises(TooFewClients):
        answered([site(data, "bern")], data="digits")
    assert "these data are not read from a site's own file: use data=csv" in log()


def test_a_run_for_sites_is_refused_where_nobody_has_files(tmp_path: Path, log: Log) -> None:
    with pytest.raises(TooFewClients):
        answered([PARTITION])
    assert "no file is named: add data-args=" in log()


def test_the_json_of_a_run_at_sites_has_no_infinities(sites: Any, tmp_path: Path) -> None:
    run(tmp_path / "out", sites, test_fraction=0.0)
    for name in ("summary.json", "sites.json", "model.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=pytest.fail)


def test_a_deployed_node_that_has_imported_ray_is_no_simulation(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # noqa: F401

    monkeypatch.delenv(CALLER, raising=False)
    with pytest.raises(TooFewClients):
        answered([PARTITION], data_args=f"path={tmp_path / 'secret.csv'} label=outcome")
    assert "the run names files to read at this site" in log()


# ------------------------------------------------------------------------------------------- files that do not stay


def one_more_row(path: Path) -> None:
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("data", one_more_row, "have changed since it joined this run: put them back"),
        ("data", Path.unlink, "cannot be read (No such file or directory): put it back"),
        ("test-data", one_more_row, "have changed since it joined this run: put them back"),
    ],
)
def test_a_client_whose_files_change_between_rounds_declines_until_they_are_back(
    sites: Any, data: Path, tmp_path: Path, log: Log, key: str, change: Callable[[Path], None], words: str
) -> None:
    sites[0]["test-data"] = str(write_csv(tmp_path / "tests.csv", patients(20, 50)))
    path = Path(sites[0][key])
    content = path.read_text()

    def on_line(line: Mapping[str, Any]) -> None:
        if line["round"] == 1:
            change(path)
        elif line["round"] == 2:
            path.write_text(content)

    config = RunConfig.parse({"data": "csv", **QUICK, "out": str(tmp_path / "out")})
    serve(at_sites(*sites)(client_app.app, config.values(), len(sites)), config, on_line)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    declined = [{"client": sites[0]["client"], "reason": "declined"}]
    assert [line["dropped"] for line in lines] == [[], declined, []]
    assert re.search(f"declined by this site: data: .*{re.escape(words)}", log())
    noted = [file.read_bytes() for file in (data / "state").rglob("files-*.sha256")]
    assert len(noted) == len(sites)
    served = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(digest in content for digest in noted for content in served)


def test_nodes_that_share_a_state_folder_and_a_name_by_mistake_do_not_take_each_others_files(tmp_path: Path) -> None:
    rows = [OwnFile("a", str(write_csv(tmp_path / f"{n}.csv", patients(20, n))), "outcome", "") for n in (1, 2)]
    first, second = (OwnFiles(own, tmp_path / "state", "job", node) for node, own in enumerate(rows))
    first.note()
    second.note()
    first.check()
    second.check()


def test_code_that_a_run_names_is_not_imported_at_a_site_without_a_policy(
    sites: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    (tmp_path / "named_by_a_run.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for keys in ({"task": "named_by_a_run:Task"}, {"task": "torch", "task_args": "model=named_by_a_run:make"}):
        values = {"data": "csv", **QUICK, **{key.replace("_", "-"): value for key, value in keys.items()}}
        config = RunConfig.parse({**values, "out": str(tmp_path / "out")})
        with pytest.raises(TooFewClients, match="declined"):
            Enrolment(config).open(at_sites(*sites)(client_app.app, config.values(), len(sites)))
        assert "allow.modules" in log()
        assert "named_by_a_run" not in sys.modules


def test_an_order_for_anybody_else_than_the_sites_client_is_declined(sites: Any, tmp_path: Path, log: Log) -> None:
    class Greedy(at_sites(*sites)):  # type: ignore[misc]  # mypy takes no call as a base
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == "train":
                    order = message.content["order"]
                    order["clients"], order["used-rounds"] = [*order["clients"], "nobody"], [0, 0]
            return super().push_messages(messages)

    config = RunConfig.parse({"data": "csv", **QUICK, "out": str(tmp_path / "out")})
    with pytest.raises(TooFewClients):
        serve(Greedy(client_app.app, config.values(), len(sites)), config)
    assert "declined by this site: client: the order is for 2 clients" in log()


def test_a_client_may_go_on_with_other_rows_where_a_run_is_resumed_and_its_site_is_told(
    sites: Any, tmp_path: Path, log: Log
) -> None:
    run(tmp_path / "out", sites)
    one_more_row(Path(sites[0]["data"]))
    open_data.cache_clear()
    assert "are others than when it last joined" not in log()
    summary = run(tmp_path / "out", sites, resume=True, rounds=4)
    assert f"the data of client {sites[0]['client']} are others than when it last joined this run" in log()
    assert (summary["rounds"], summary["dropped"]) == (4, 0)

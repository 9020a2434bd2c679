"""Federations of CSV files: the model is the one that the pooled file gives, however its rows and columns lie."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hospitals import COLUMNS, STAGES, Row, hospitals, patients, read_json, trained, with_gaps, words, write_csv
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

Call = Callable[..., Any]
Array = NDArray[np.float64]

EXACT = {"strategy": "fednewton", "rounds": 12, "test_fraction": 0.0}
TABLE = ("(intercept)", "age", "dose", "smoker", "stage=II", "stage=III")


@pytest.fixture
def rows(caller: Path) -> dict[str, list[Row]]:
    """Four hospitals' files in data/."""
    return hospitals(caller / "data")


def pooled(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    return [row for client in sorted(rows) for row in rows[client]]


def matrix(rows: Sequence[Row]) -> tuple[Array, NDArray[np.int64]]:
    """The columns of TABLE after the intercept, in their own units, and 1 for the dead."""
    numbers = [[float(row["age"]), float(row["dose"]), row["smoker"] == "true"] for row in rows]
    stages = [[row["stage"] == stage for stage in STAGES[1:]] for row in rows]
    x = np.column_stack([np.array(numbers, float), np.array(stages, float)])
    return x, np.array([row["outcome"] == "dead" for row in rows], np.int64)


def coefficients(out: Path) -> dict[str, dict[str, Any]]:
    """By feature, of a model with one output."""
    return {row["feature"]: row for row in read_json(out / "model.json")["coefficients"]}


def values(out: Path, key: str = "coefficient", features: Sequence[str] = TABLE) -> Array:
    found = coefficients(out)
    return np.array([found[feature][key] for feature in features], float)


# ----------------------------------------------------------------------------------------------------- the pooled model


@pytest.fixture
def logit(rows: dict[str, list[Row]]) -> Any:
    """What statsmodels finds on the pooled file."""
    x, y = matrix(pooled(rows))
    scale = np.array([1.0, 1e-3, 1.0, 1.0, 1.0])  # which keeps its Newton steps well conditioned
    fitted = sm.Logit(y, sm.add_constant(x / scale)).fit(disp=False, tol=1e-14, maxiter=100)
    return fitted.params / np.r_[1, scale], fitted.bse / np.r_[1, scale]


def test_without_a_penalty_fednewton_gives_the_pooled_coefficients_and_standard_errors(
    fl_app: Call, logit: Any
) -> None:
    out = trained(fl_app, l2=0.0, **EXACT)
    params, errors = logit
    np.testing.assert_allclose(values(out), params, rtol=1e-6)
    np.testing.assert_allclose(values(out, "standard_error"), errors, rtol=1e-4)
    np.testing.assert_allclose(values(out, "low"), params - 1.959964 * errors, rtol=1e-4)
    np.testing.assert_allclose(values(out, "high"), params + 1.959964 * errors, rtol=1e-4)
    determined = [0, 1, 3, 4, 5]  # exp overflows for the dose, which counts thousandths
    np.testing.assert_allclose(values(out, "odds_ratio")[determined], np.exp(params)[determined], rtol=1e-5)
    np.testing.assert_allclose(values(out, "odds_high"), np.exp(values(out, "high")), rtol=1e-9)
    assert read_json(out / "model.json")["coefficients_note"] == "From 660 training rows."


def test_unscaled_columns_give_the_same_coefficients_in_their_own_units(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], logit: Any
) -> None:
    for client, own in rows.items():  # thousandths become units
        units = [{**row, "dose": f"{1000 * float(row['dose']):.3f}"} for row in own]
        write_csv(caller / "data" / f"{client}.csv", units)
    out = trained(fl_app, l2=0.0, standardize="none", **EXACT)
    params, errors = (numbers * np.array([1, 1, 1e-3, 1, 1, 1]) for numbers in logit)
    np.testing.assert_allclose(values(out), params, rtol=1e-6)
    np.testing.assert_allclose(values(out, "standard_error"), errors, rtol=1e-4)


def test_unscaled_columns_may_be_thousandths(fl_app: Call, logit: Any) -> None:
    out = trained(fl_app, l2=0.0, standardize="none", **EXACT)
    np.testing.assert_allclose(values(out), logit[0], rtol=1e-4)


def test_unscaled_columns_on_which_fednewton_has_not_moved_are_told(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, l2=0.0, standardize="none", **{**EXACT, "rounds": 1})
    assert "The model is not at its optimum" in read_json(out / "model.json")["coefficients_note"]


def test_a_coefficient_that_no_row_determines_is_zero_without_an_error(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, l2=0.0, **EXACT)
    other = coefficients(out)["stage=other"]
    assert other["coefficient"] == 0
    assert [other[key] for key in ("standard_error", "low", "high", "odds_low", "odds_high")] == [None] * 5
    assert other["odds_ratio"] == 1


@pytest.mark.parametrize("value", ["0", "1", "7.3", "1e12", "-1.7e9"])
def test_a_constant_column_is_not_determined_and_takes_no_other_with_it(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], logit: Any, value: str
) -> None:
    for client, own in rows.items():
        path = caller / "data" / f"{client}.csv"
        write_csv(path, [{**row, "year": value} for row in own], ("year", *COLUMNS))
    out = trained(fl_app, l2=0.0, **EXACT)
    assert (coefficients(out)["year"]["coefficient"], coefficients(out)["year"]["standard_error"]) == (0, None)
    params, errors = logit
    np.testing.assert_allclose(values(out), params, rtol=1e-6)
    np.testing.assert_allclose(values(out, "standard_error"), errors, rtol=1e-4)


def test_two_columns_that_are_one_are_not_determined_and_take_no_other_with_them(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], logit: Any
) -> None:
    for client, own in rows.items():
        path = caller / "data" / f"{client}.csv"
        write_csv(path, [{**row, "days": f"{100 * float(row['age']):.0f}"} for row in own], ("days", *COLUMNS))
    out = trained(fl_app, l2=0.0, **EXACT)
    for feature in ("age", "days"):
        assert coefficients(out)[feature]["standard_error"] is None
        assert coefficients(out)[feature]["coefficient"] != 0
    params, errors = logit
    others = [0, *range(2, len(TABLE))]
    np.testing.assert_allclose(values(out)[others], params[others], rtol=1e-6)
    np.testing.assert_allclose(values(out, "standard_error")[others], errors[others], rtol=1e-4)


def test_with_a_penalty_fednewton_gives_what_scikit_learn_gives_on_the_pooled_file(
    fl_app: Call, rows: dict[str, list[Row]]
) -> None:
    l2 = 0.02
    out = trained(fl_app, l2=l2, **EXACT)
    x, y = matrix(pooled(rows))
    mean, scale = x.mean(axis=0), x.std(axis=0)
    mean[3:], scale[3:] = 0, 1  # categories are not scaled
    model = LogisticRegression(C=1 / (len(y) * l2), tol=1e-12, max_iter=10_000).fit((x - mean) / scale, y)
    slopes = model.coef_[0] / scale
    np.testing.assert_allclose(values(out), [model.intercept_[0] - slopes @ mean, *slopes], rtol=1e-5)
    assert "shrinks coefficients towards 0" in read_json(out / "model.json")["coefficients_note"]
    assert values(out, "standard_error").min() > 0
    bounds = ("low", "high", "odds_low", "odds_high")
    assert all(row[key] is None for row in coefficients(out).values() for key in bounds)


def test_multinomial_contrasts_and_their_errors_are_those_of_the_pooled_file(
    fl_app: Call, rows: dict[str, list[Row]]
) -> None:
    out = trained(fl_app, data_args="path=data label=stage drop=outcome", l2=0.0, **EXACT)
    x, _ = matrix(pooled(rows))
    y = np.array([STAGES.index(row["stage"]) for row in pooled(rows)])
    scale = np.array([1.0, 1.0, 1e-3, 1.0])
    fitted = sm.MNLogit(y, sm.add_constant(x[:, :3]) / scale).fit(disp=False, tol=1e-14, maxiter=200)
    found = read_json(out / "model.json")["coefficients"]
    assert [(row["output"], row["feature"]) for row in found] == [(s, f) for s in STAGES[1:] for f in TABLE[:4]]
    for key, expected, rtol in (("coefficient", fitted.params, 1e-6), ("standard_error", fitted.bse, 1e-4)):
        got = np.array([row[key] for row in found]).reshape(2, 4)
        np.testing.assert_allclose(got, np.asarray(expected).T / scale, rtol=rtol)


def test_what_is_not_at_its_optimum_says_so(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, l2=0.0, test_fraction=0.0, rounds=1)
    assert "The model is not at its optimum" in read_json(out / "model.json")["coefficients_note"]


def test_classes_that_a_column_tells_apart_without_error_are_told(fl_app: Call, caller: Path) -> None:
    for client in "ab":
        rows = [{**row, "outcome": ("alive", "dead")[float(row["age"]) > 60]} for row in patients(60, ord(client))]
        write_csv(caller / "data" / f"{client}.csv", rows)
    out = trained(fl_app, l2=0.0, **{**EXACT, "rounds": 40})
    assert "The rows determine no coefficient" in " ".join(fl_app("show", out).out.split())


def test_without_standard_errors_there_are_coefficients_alone(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, standard_errors="false")
    assert all(row["standard_error"] is row["low"] is None for row in coefficients(out).values())
    shown = fl_app("show", out).out
    assert "interval" not in shown
    assert "not determined" not in shown


# ------------------------------------------------------------------------------------------------- what changes nothing


def rewritten(caller: Path, rows: Mapping[str, Sequence[Row]], change: Callable[[str, list[Row]], Any]) -> str:
    """The arguments of the data for another folder: change(client, rows) -> (client, rows, columns)."""
    for client, own in rows.items():
        name, new, columns = change(client, list(own))
        write_csv(caller / "other" / f"{name}.csv", new, columns)
    return "path=other label=outcome"


def test_the_order_of_columns_and_who_has_which_order_change_nothing(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    first = values(trained(fl_app))
    orders = {client: np.random.default_rng(k).permutation(COLUMNS) for k, client in enumerate(rows)}
    other = rewritten(caller, rows, lambda client, own: (client, own, tuple(orders[client])))
    np.testing.assert_allclose(values(trained(fl_app, "again", other)), first, rtol=1e-9)


def test_the_same_order_of_columns_everywhere_but_at_one_gives_the_same_model_to_the_bit(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    first = read_json(trained(fl_app) / "summary.json")
    other = rewritten(caller, rows, lambda client, own: (client, own, COLUMNS[:: -1 if client == "oslo" else 1]))
    assert read_json(trained(fl_app, "again", other) / "summary.json")["params_sha256"] == first["params_sha256"]


def test_the_order_of_rows_changes_nothing_where_all_are_trained_on_in_full_batches(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    keys = {"test_fraction": 0.0, "batch_size": 0, "solver": "gd"}
    first = values(trained(fl_app, **keys))
    rng = np.random.default_rng(0)
    other = rewritten(caller, rows, lambda client, own: (client, [own[k] for k in rng.permutation(len(own))], COLUMNS))
    np.testing.assert_allclose(values(trained(fl_app, "again", other, **keys)), first, rtol=1e-9)


def test_other_names_of_the_clients_change_nothing_where_nothing_is_drawn(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    keys = {"test_fraction": 0.0, "batch_size": 0, "solver": "gd"}
    first = values(trained(fl_app, **keys))
    names = dict(zip(rows, ("z", "y", "x", "w"), strict=True))
    other = rewritten(caller, rows, lambda client, own: (names[client], own, COLUMNS))
    np.testing.assert_allclose(values(trained(fl_app, "again", other, **keys)), first, rtol=1e-12)


def test_one_file_with_a_client_column_gives_the_same_model_as_the_folder_to_the_bit(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    first = read_json(trained(fl_app) / "summary.json")
    whole = [{**row, "site": client} for client, own in rows.items() for row in own]
    write_csv(caller / "all.csv", whole, (*COLUMNS, "site"))
    one = read_json(trained(fl_app, "one", "path=all.csv label=outcome client-column=site") / "summary.json")
    assert one["params_sha256"] == first["params_sha256"]
    assert one["metrics"] == first["metrics"]


def test_a_folder_may_be_named_from_anywhere_and_with_blanks(fl_app: Call, caller: Path, rows: Any) -> None:
    (caller / "data").rename(caller / "my data")
    out = trained(fl_app, data_args="path='my data' label=outcome")
    assert read_json(out / "summary.json")["clients"] == 4


@pytest.mark.parametrize("missing", ["mean", "indicator"])
@pytest.mark.parametrize("standardize", ["global", "local", "none"])
def test_a_mixed_federation_with_gaps_trains_and_is_better_than_a_guess(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], missing: str, standardize: str
) -> None:
    for seed, (client, own) in enumerate(rows.items()):
        gaps = with_gaps(own, ("age", "smoker", "stage"), seed)
        if client == "oslo":  # which has measured no doses at all
            gaps = [{**row, "dose": ""} for row in gaps]
        write_csv(caller / "data" / f"{client}.csv", gaps)
    args = f"path=data label=outcome missing={missing}"
    out = trained(fl_app, data_args=args, strategy="fednewton", rounds=8, standardize=standardize)
    assert read_json(out / "summary.json")["metrics"]["auc"] > 0.75
    indicators = {feature for feature in coefficients(out) if feature.endswith(" is missing")}
    every = {f"{column} is missing" for column in COLUMNS[:-1]}
    assert indicators == (every if missing == "indicator" else set())


def test_the_mean_that_fills_gaps_is_that_of_all_clients(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    own = [{**row, "age": ""} for row in rows["oslo"]]
    write_csv(caller / "data" / "oslo.csv", own)
    out = trained(fl_app, data_args="path=data label=outcome missing=mean", test_fraction=0.0)
    ages = [float(row["age"]) for client in rows for row in rows[client] if client != "oslo"]
    (age,) = [term for term in read_json(out / "model.json")["features"] if term["name"] == "age"]
    assert age["mean"] == pytest.approx(np.mean(ages), rel=1e-12)
    assert age["scale"] == pytest.approx(np.std(ages), rel=1e-12)


def test_classes_that_differ_between_clients_are_put_together(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    for client, missing_one in (("bern", "I"), ("oslo", "III")):
        write_csv(caller / "data" / f"{client}.csv", [row for row in rows[client] if row["stage"] != missing_one])
    out = trained(fl_app, data_args="path=data label=stage")
    assert read_json(out / "model.json")["classes"] == list(STAGES)


def test_the_positive_class_is_the_one_that_was_said(fl_app: Call, rows: Any) -> None:
    keys = {"l2": 0.0, **EXACT}
    dead = trained(fl_app, **keys)
    alive = trained(fl_app, "alive", "path=data label=outcome positive=alive", **keys)
    assert read_json(alive / "model.json")["classes"] == ["dead", "alive"]
    np.testing.assert_allclose(values(alive), -values(dead), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ baselines


@pytest.fixture
def compared(fl_app: Call, caller: Path, rows: dict[str, list[Row]]) -> tuple[Any, Any, Any]:
    """Outcome, summary and sites of a run with test files, on which a client alone is compared with all."""
    for seed, client in enumerate(rows):
        write_csv(caller / "test" / f"{client}.csv", patients(50 + seed, 100 + seed, shift=3.0 * seed))
    args = "path=data label=outcome test-path=test"
    outcome = fl_app(*words(data_args=args, out="out", strategy="fednewton", rounds=8, l2=1e-4))
    assert outcome.status == 0, outcome.err
    return outcome, read_json(caller / "out/summary.json"), read_json(caller / "out/sites.json")


def scikit(train: Sequence[Row], scaled_as: Sequence[Row], l2: float = 1e-4) -> Callable[[Sequence[Row]], Array]:
    """The chance of death by a model of some rows, scaled by the statistics of others."""
    everyone, _ = matrix(scaled_as)
    mean, scale = everyone.mean(axis=0), everyone.std(axis=0)
    mean[3:], scale[3:] = 0, 1
    x, y = matrix(train)
    model = LogisticRegression(C=1 / (len(y) * l2), tol=1e-10, max_iter=100_000).fit((x - mean) / scale, y)
    return lambda rows: model.predict_proba((matrix(rows)[0] - mean) / scale)[:, 1]


def test_baselines_are_the_models_of_the_pooled_rows_and_of_each_clients_own(
    compared: Any, rows: dict[str, list[Row]]
) -> None:
    _, summary, sites = compared
    tests = {client: patients(50 + k, 100 + k, shift=3.0 * k) for k, client in enumerate(rows)}
    everyone, truth = pooled(tests), matrix(pooled(tests))[1]
    whole = scikit(pooled(rows), pooled(rows))(everyone)
    assert summary["baselines"]["pooled"]["log_loss"] == pytest.approx(log_loss(truth, whole), abs=1e-4)
    assert summary["baselines"]["pooled"]["auc"] == pytest.approx(roc_auc_score(truth, whole), abs=1e-3)
    assert summary["metrics"]["log_loss"] == pytest.approx(log_loss(truth, whole), abs=1e-4)
    assert [site["client"] for site in sites["sites"]] == sorted(rows)
    for site in sites["sites"]:
        client = site["client"]
        assert (site["train"], site["test"]) == (len(rows[client]), len(tests[client]))
        alone, own = scikit(rows[client], pooled(rows)), matrix(tests[client])[1]
        for key, asked, y in (("alone", tests[client], own), ("alone_everywhere", everyone, truth)):
            assert site[key]["log_loss"] == pytest.approx(log_loss(y, alone(asked)), abs=1e-4)
        here = scikit(pooled(rows), pooled(rows))(tests[client])
        assert site["federated"]["log_loss"] == pytest.approx(log_loss(own, here), abs=1e-4)
        assert site["calibration"]["predicted"] == pytest.approx(here.mean(), abs=1e-4)
        assert site["calibration"]["observed"] == pytest.approx(own.mean())


def test_worst_best_and_mean_are_those_of_the_table_of_sites(compared: Any) -> None:
    _, summary, sites = compared
    baselines, everywhere = summary["baselines"], [site["alone_everywhere"] for site in sites["sites"]]
    assert baselines["clients"] == len(everywhere) == 4
    for name in ("accuracy", "log_loss", "brier", "auc"):
        assert baselines["local_mean"][name] == pytest.approx(np.mean([metrics[name] for metrics in everywhere]))
        worst, best = (max, min) if name in ("log_loss", "brier") else (min, max)
        assert baselines["local_worst"][name] == worst(metrics[name] for metrics in everywhere)
        assert baselines["local_best"][name] == best(metrics[name] for metrics in everywhere)


def test_the_baselines_tell_the_test_rows_and_what_the_most_frequent_class_would_reach(
    compared: Any, rows: dict[str, list[Row]]
) -> None:
    outcome, summary, _ = compared
    truth = matrix([row for k in range(len(rows)) for row in patients(50 + k, 100 + k, shift=3.0 * k)])[1]
    baselines = summary["baselines"]
    assert baselines["test_rows"] == len(truth) == 206
    assert baselines["majority"] == pytest.approx(max(truth.mean(), 1 - truth.mean()))
    said = " ".join(outcome.out.split())
    assert "(server's 206 test rows)" in said
    assert f"saying the most frequent class of everybody would reach {baselines['majority']:.3f}" in said


def test_where_the_label_is_a_number_no_class_is_the_most_frequent(fl_app: Call, rows: Any) -> None:
    baselines = read_json(
        trained(fl_app, data_args="path=data label=age drop=outcome", task="linear", strategy="fednewton")
        / "summary.json"
    )["baselines"]
    assert baselines["majority"] is None
    assert baselines["test_rows"] > 0
    for name in ("mse", "mae"):
        assert baselines["local_worst"][name] > baselines["local_mean"][name] > baselines["local_best"][name]


def test_a_site_with_fewer_than_five_test_rows_shows_nothing_of_them(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]]
) -> None:
    for client, own in rows.items():
        write_csv(caller / "data" / f"{client}.csv", own[: {"bern": 20, "oslo": 25}.get(client)])
    sites = {site["client"]: site for site in read_json(trained(fl_app) / "sites.json")["sites"]}
    assert (sites["bern"]["test"], sites["oslo"]["test"]) == (4, 5)
    for key in ("federated", "alone", "calibration"):
        assert sites["bern"][key] is None
        assert sites["oslo"][key] is not None
    assert sites["bern"]["alone_everywhere"] is not None, "that is of everybody's rows"


def test_coefficients_count_the_rows_of_no_client_that_has_too_few(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], warnings: Call
) -> None:
    write_csv(caller / "data" / "bern.csv", rows["bern"][:19])
    out = trained(fl_app, l2=0.0, **EXACT)
    assert "client bern left out of an exchange beside the rounds: " in warnings()
    assert "no standard errors from 19 rows, min-examples=20" in warnings()
    others = sum(len(own) for client, own in rows.items() if client != "bern")
    assert f"From {others} training rows." in read_json(out / "model.json")["coefficients_note"]
    assert read_json(out / "summary.json")["clients"] == 4, "it has trained with the others"


def test_the_last_lines_say_what_federating_was_worth(compared: Any) -> None:
    outcome, summary, _ = compared
    said = " ".join(outcome.out.split())
    mean, federated = summary["baselines"]["local_mean"]["accuracy"], summary["metrics"]["accuracy"]
    assert f"a client alone reaches accuracy {mean:.3f} on the same rows" in said
    assert f"federating gained {100 * (federated - mean):+.1f} points on average" in said
    assert f"all rows in one place would reach {summary['baselines']['pooled']['accuracy']:.3f}" in said
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_a_run_warns_of_patients_numbers_that_are_categories_of_the_model(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], warnings: Call
) -> None:
    for client, own in rows.items():
        visits = [{**row, "patient": f"{client}-{k // 8}"} for k, row in enumerate(own)]
        write_csv(caller / "data" / f"{client}.csv", visits, (*COLUMNS, "patient"))
    trained(fl_app, "out", "path=data label=outcome drop=patient", rounds=1)
    assert warnings() == ""
    trained(fl_app, "named", rounds=1)
    assert "column 'patient' has 80 categories in 528 rows, all named in the model: " in warnings()
    assert "leave identifiers out with drop=patient" in warnings()
    assert "column 'stage'" not in warnings()


def test_what_each_client_gains_on_its_own_rows_is_told_beside_the_gain_on_the_rows_of_all(compared: Any) -> None:
    """The two may be of different signs: alone a client learns what is particular to its own patients."""
    outcome, summary, sites = compared
    gains = [site["federated"]["accuracy"] - site["alone"]["accuracy"] for site in sites["sites"]]
    kinds = {"better": 0, "same": 0, "worse": 0}
    for gain in gains:
        kinds["better" if gain > 0 else "worse" if gain < 0 else "same"] += 1
    own = summary["baselines"]["own_rows"]
    assert own == {**kinds, "gain": pytest.approx(np.mean(gains))}
    said = f"on their own test rows clients gain {100 * np.mean(gains):+.1f} points: "
    said += f"{kinds['better']} better, {kinds['same']} the same, {kinds['worse']} worse"
    assert said in " ".join(outcome.out.split())


def test_the_metrics_of_such_a_run_are_measured_at_the_server(compared: Any) -> None:
    _, summary, _ = compared
    assert summary["metrics_on"] == "server"


def test_without_baselines_there_are_none_but_the_table_of_sites_stays(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, baselines="false")
    assert read_json(out / "summary.json")["baselines"] is None
    for site in read_json(out / "sites.json")["sites"]:
        assert site["federated"]["accuracy"] > 0
        assert site["alone"] is site["alone_everywhere"] is None


def test_without_test_rows_there_are_no_baselines(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, test_fraction=0.0)
    assert read_json(out / "summary.json")["baselines"] is None
    assert all(site["federated"] is None for site in read_json(out / "sites.json")["sites"])


# ------------------------------------------------------------------------------------------------------------- predict


def predictions(path: Path) -> tuple[list[str], Array]:
    header, *lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    assert header == ["prediction", "p_alive", "p_dead"]
    return [line[0] for line in lines], np.array([[float(cell) for cell in line[1:]] for line in lines])


@pytest.mark.parametrize("missing", ["error", "mean", "indicator"])
@pytest.mark.parametrize("standardize", ["global", "none"])
def test_predict_gives_each_row_the_chance_that_the_evaluation_gave_it(
    fl_app: Call, caller: Path, rows: dict[str, list[Row]], missing: str, standardize: str
) -> None:
    """The run's accuracy, log loss and AUC come out of the predictions for its test rows."""
    columns = () if missing == "error" else ("age", "stage", "smoker")
    tests = with_gaps(patients(200, 99), columns, 1)
    tests[0]["stage"] = "IV"  # which nobody has seen
    write_csv(caller / "tests.csv", tests, ("outcome", *COLUMNS[-2::-1]))
    for seed, (client, own) in enumerate(rows.items()):
        write_csv(caller / "data" / f"{client}.csv", with_gaps(own, columns, seed))
    args = f"path=data label=outcome test-path=tests.csv missing={missing}"
    out = trained(fl_app, data_args=args, standardize=standardize, rounds=3, solver="newton")
    outcome = fl_app("predict", out / "model.json", "tests.csv", "-o", "scored.csv")
    unseen = "warning: stage: 1 row holds a value that the model does not know, such as 'IV'\n"
    assert (outcome.status, outcome.out, outcome.err) == (0, "", f"{unseen}200 rows scored, in scored.csv\n")
    names, p = predictions(caller / "scored.csv")
    truth = np.array([row["outcome"] == "dead" for row in tests])
    assert names == [("alive", "dead")[int(chance > 0.5)] for chance in p[:, 1]]
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    metrics = read_json(out / "summary.json")["metrics"]
    assert metrics["accuracy"] == accuracy_score(truth, np.array(names) == "dead")
    assert metrics["log_loss"] == pytest.approx(log_loss(truth, p[:, 1]), rel=1e-9)
    assert metrics["auc"] == pytest.approx(roc_auc_score(truth, p[:, 1]), rel=1e-9)

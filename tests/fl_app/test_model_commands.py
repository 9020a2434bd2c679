"""predict, show and check: what a trained model and a file to be trained on tell, to people who know neither."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hospitals import COLUMNS, Row, hospitals, patients, read_json, trained, with_gaps, write_csv
from runs import contents

from fl_app.assembly import open_data

Call = Callable[..., Any]


@pytest.fixture
def rows(caller: Path) -> dict[str, list[Row]]:
    """Four hospitals' files in data/, and new patients in new.csv."""
    write_csv(caller / "new.csv", patients(30, 77))
    return hospitals(caller / "data", rows=60)


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Each command is one of a process of its own, which has no file in memory."""
    yield
    open_data.cache_clear()


def scored(outcome: Any) -> list[list[str]]:
    """The lines of predictions on stdout, cell by cell."""
    assert outcome.status == 0, outcome.err
    return list(csv.reader(outcome.out.splitlines()))


# -------------------------------------------------------------------------------------------------------------- predict


def test_predictions_go_to_stdout_or_to_a_file_and_are_the_same(fl_app: Call, caller: Path, rows: Any) -> None:
    out = trained(fl_app)
    shown = fl_app("predict", out, "new.csv")
    assert len(scored(shown)) == 31
    before = (caller / "new.csv").read_bytes()
    fl_app("predict", out / "model.json", "new.csv", "-o", "p.csv")
    assert (caller / "p.csv").read_text() == shown.out
    assert (caller / "new.csv").read_bytes() == before
    assert not list(caller.glob(".p*"))  # nothing of the writing is left


@pytest.mark.parametrize(
    "columns",
    [COLUMNS[::-1], ("dose", "outcome", "stage", "age", "smoker"), COLUMNS[:-1], (*COLUMNS, "extra")],
    ids=["reversed", "mixed", "without label", "one more"],
)
def test_columns_are_found_by_name_and_others_do_not_matter(
    fl_app: Call, caller: Path, rows: Any, columns: tuple[str, ...]
) -> None:
    out = trained(fl_app)
    expected = scored(fl_app("predict", out, "new.csv"))
    write_csv(caller / "other.csv", [{**row, "extra": "=1+1"} for row in patients(30, 77)], columns)
    assert scored(fl_app("predict", out, "other.csv")) == expected


@pytest.mark.parametrize("cell", ["", "n/a", "Unheard-of", "maybe"])
def test_the_label_column_is_not_looked_at(fl_app: Call, caller: Path, rows: Any, cell: str) -> None:
    out = trained(fl_app)
    write_csv(caller / "other.csv", [{**row, "outcome": cell} for row in patients(30, 77)])
    assert scored(fl_app("predict", out, "other.csv")) == scored(fl_app("predict", out, "new.csv"))


def test_a_single_row_is_read_as_the_model_knows_its_columns(fl_app: Call, caller: Path, rows: Any) -> None:
    """Not as its one cell looks: a category that is called 1, a truth in capitals, a whole number."""
    for client, own in rows.items():
        numbered = [{**row, "stage": str(1 + ("I", "II", "III").index(row["stage"]))} for row in own]
        write_csv(caller / "data" / f"{client}.csv", numbered)
    out = trained(fl_app, data_args="path=data label=outcome categorical=stage")
    (caller / "one.csv").write_text("age,dose,smoker,stage\n60,0.001,TRUE,2\n")
    (caller / "many.csv").write_text("age,dose,smoker,stage\n60,0.001,true,2\n50,0.001,false,IV\n")
    (name, *one), (other, *many) = (scored(fl_app("predict", out, f"{file}.csv"))[1] for file in ("one", "many"))
    assert name == other
    assert [*map(float, one)] == pytest.approx([*map(float, many)], rel=1e-12)


def test_an_unseen_category_counts_as_other_and_so_does_a_missing_one_under_mean(
    fl_app: Call, caller: Path, rows: Any
) -> None:
    for k, (client, own) in enumerate(rows.items()):
        write_csv(caller / "data" / f"{client}.csv", with_gaps(own, ("age", "stage"), k))
    out = trained(fl_app, data_args="path=data label=outcome missing=mean")
    (age,) = [term["mean"] for term in read_json(out / "model.json")["features"] if term["name"] == "age"]
    cells = [("60", "IV"), ("60", ""), ("", "I"), (repr(age), "I")]
    lines = [f"{age},0.001,true,{stage}" for age, stage in cells]
    (caller / "one.csv").write_text("\n".join(["age,dose,smoker,stage", *lines]) + "\n")
    _, unseen, missing, gap, mean = scored(fl_app("predict", out, "one.csv"))
    assert unseen == missing
    assert gap == mean
    assert gap != missing


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "dose,smoker,stage,Age\n1,true,I,60\n",
            "new.csv: column 'age' is absent: the model needs each column that it",
        ),
        ("dose,smoker,stage,Age\n1,true,I,60\n", "; did you mean 'Age'? the columns are dose, smoker, stage, Age"),
        ("stage\nI\n", "new.csv: column 'age' and 2 more are absent: "),
        (
            "age,dose,smoker,stage\n60,1,true,I\nold,1,true,I\n",
            "new.csv, line 3: text 'old' in the numeric column 'age'",
        ),
        (
            "age,dose,smoker,stage\n60,1,yes,I\n",
            "new.csv, line 2: 'yes' in the boolean column 'smoker', where true or ",
        ),
        (
            "age,dose,smoker,stage\n60,1,true,I\n60,1,true,\n,1,true,\n,1,true,I\n",
            "new.csv, line 4: a missing cell in column 'age', one of 2: fill what is missing, or train with missing=",
        ),
        ("", "new.csv: the file is empty: "),
        ("age,dose,smoker,stage\n", "new.csv: the file has a header but no rows: "),
        ("age,dose,smoker,stage\n60,1,true\n", "new.csv, line 2: 3 fields where the header has 4: "),
        ("age,age,smoker,stage\n60,1,true,I\n", "new.csv, line 1: columns 1 and 2 are both named 'age': "),
    ],
    ids=range(10),
)
def test_rows_that_cannot_be_scored_are_told_in_one_line_and_nothing_is_written(
    fl_app: Call, caller: Path, rows: Any, content: str, said: str
) -> None:
    out = trained(fl_app)
    (caller / "new.csv").write_text(content)
    before = contents(caller)
    told = fl_app("predict", out, "new.csv", "-o", "p.csv").refusal()
    assert told.startswith("error: the rows cannot be scored: new.csv")
    assert said in told
    assert told.count("new.csv") == 1
    assert contents(caller) == before


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_file_may_have_another_delimiter_than_those_of_the_training(
    fl_app: Call, caller: Path, rows: Any, delimiter: str
) -> None:
    out = trained(fl_app)
    expected = scored(fl_app("predict", out, "new.csv"))
    (caller / "other.csv").write_text((caller / "new.csv").read_text().replace(",", delimiter))
    assert scored(fl_app("predict", out, "other.csv")) == expected
    assert scored(fl_app("predict", out, "other.csv", "--delimiter", delimiter)) == expected
    assert "as delimiter, got 'comna'" in fl_app("predict", out, "new.csv", "--delimiter", "comna").refusal()


def test_neither_the_rows_nor_the_model_nor_a_folder_are_written_over(fl_app: Call, caller: Path, rows: Any) -> None:
    out = trained(fl_app)
    (caller / "link.csv").symlink_to("new.csv")
    before = contents(caller)
    for target, said in (
        ("new.csv", "it would replace the rows themselves: -o new.csv: choose another file"),
        ("link.csv", "it would replace the rows themselves"),
        ("out/model.json", "it would replace the model: "),
        ("out/model.safetensors", "it would replace its arrays: "),
        (".", "this is a directory: -o .: name a file in it"),
        ("no/such/folder.csv", "cannot write: -o no/such/folder.csv: No such file or directory"),
    ):
        assert said in fl_app("predict", out, "new.csv", "-o", target).refusal()
    assert contents(caller) == before


def test_what_is_no_model_is_told(fl_app: Call, caller: Path, rows: Any) -> None:
    out = trained(fl_app)
    assert "cannot read the model: nowhere: name the model.json of a run" in fl_app("show", "nowhere").refusal()
    assert "cannot read the model: data/" in fl_app("predict", "data", "new.csv").refusal()
    for content in ("no JSON", "[]", "{}", '{"schema": 1}', (out / "summary.json").read_text()):
        (caller / "model.json").write_text(content)
        assert "no model of this version: model.json: " in fl_app("predict", "model.json", "new.csv").refusal()
    (out / "model.safetensors").write_bytes(b"junk")
    assert "no model of this version: " in fl_app("show", out).refusal()
    (out / "model.safetensors").unlink()
    fl_app("show", out).refusal()


def test_a_model_that_was_never_trained_is_refused(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app)
    about = read_json(out / "model.json")
    assert about["rounds"] == 2
    (out / "model.json").write_text(json.dumps({**about, "rounds": 0}))
    for words in (("show", out), ("predict", out, "new.csv")):
        assert "the run ended before its first round: " in fl_app(*words).refusal()


def test_what_the_model_has_not_seen_is_told_beside_the_predictions(fl_app: Call, caller: Path, rows: Any) -> None:
    """Unknown categories and numbers in another unit; a rare truth is neither."""
    for client, own in rows.items():
        rare = [{**row, "smoker": "true" if (client, k) == ("oslo", 0) else "false"} for k, row in enumerate(own)]
        write_csv(caller / "data" / f"{client}.csv", rare)
    out = trained(fl_app, test_fraction=0.0)
    (age,) = [term for term in read_json(out / "model.json")["features"] if term["name"] == "age"]
    near, far = (age["mean"] + times * age["scale"] for times in (9.99, 10.01))
    lines = [f"{near},0.001,true,I", f"{far},0.001,true,IV", f"{far},0.001,false,IV", "60,0.9,false,V"]
    (caller / "odd.csv").write_text("\n".join(["age,dose,smoker,stage", *lines]) + "\n")
    outcome = fl_app("predict", out, "odd.csv")
    assert len(scored(outcome)) == 5
    assert outcome.err.splitlines() == [
        "warning: age: 2 rows lie more than 10 standard deviations from the mean",
        "warning: dose: 1 row lies more than 10 standard deviations from the mean",
        "warning: stage: 3 rows hold a value that the model does not know, such as 'IV'",
    ]
    (caller / "one.csv").write_text("\n".join(["age,dose,smoker,stage", lines[0]]) + "\n")
    alone = fl_app("predict", out, "one.csv")
    assert alone.err == ""
    assert scored(alone)[1] == scored(outcome)[1]


def test_a_model_whose_clients_scaled_by_themselves_scores_nothing_and_says_so(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, standardize="local")
    told = fl_app("predict", out, "new.csv").refusal()
    assert "scaled by statistics of its own: standardize=local: train with standardize=global to score new rows" in told
    assert "columns that each client scaled by its own statistics" in fl_app("show", out).out.replace("\n", " ")


def test_formulas_in_the_names_of_classes_do_nothing_in_a_spreadsheet(fl_app: Call, caller: Path, rows: Any) -> None:
    names = {"alive": "=1+1", "dead": "-2"}
    for client, own in rows.items():
        write_csv(caller / "data" / f"{client}.csv", [{**row, "outcome": names[row["outcome"]]} for row in own])
    header, *lines = scored(fl_app("predict", trained(fl_app), "new.csv"))
    assert header == ["prediction", "p_-2", "p_=1+1"]
    assert {line[0] for line in lines} == {"'=1+1", "-2"}


def test_class_names_with_commas_and_quotes_are_quoted(fl_app: Call, caller: Path, rows: Any) -> None:
    names = {"alive": '"alive, well"', "dead": '"""dead"""'}
    for client, own in rows.items():
        write_csv(caller / "data" / f"{client}.csv", [{**row, "outcome": names[row["outcome"]]} for row in own])
    header, *lines = scored(fl_app("predict", trained(fl_app), "new.csv"))
    assert header == ["prediction", 'p_"dead"', "p_alive, well"]
    assert {line[0] for line in lines} == {'"dead"', "alive, well"}


def test_several_classes_have_a_probability_each(fl_app: Call, rows: Any) -> None:
    header, *lines = scored(fl_app("predict", trained(fl_app, data_args="path=data label=stage"), "new.csv"))
    assert header == ["prediction", "p_I", "p_II", "p_III"]
    p = np.array([[float(cell) for cell in line[1:]] for line in lines])
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert [line[0] for line in lines] == [("I", "II", "III")[k] for k in p.argmax(axis=1)]


# ----------------------------------------------------------------------------------------------------------------- show


@pytest.mark.parametrize("task", ["logistic", "linear"])
def test_show_prints_the_coefficients_of_model_json_in_80_columns(fl_app: Call, rows: Any, task: str) -> None:
    """With the interval of the odds ratio, and of the coefficient where there are no odds."""
    label, odds = ("outcome", "odds_") if task == "logistic" else ("age", "")
    keys = {"task": task, "strategy": "fednewton", "rounds": 8, "l2": 0.0}
    out = trained(fl_app, data_args=f"path=data label={label}", **keys)
    shown, about = fl_app("show", out / "model.json").out, read_json(out / "model.json")
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.splitlines()[0] == ("outcome = dead against alive" if odds else "age")
    said = "The interval is that of the odds ratio." if odds else "The interval is the coefficient's."
    assert said in shown.splitlines()
    assert "From 240 training rows." in shown.splitlines()
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith("  ")}
    undetermined = 0
    for row in about["coefficients"]:
        cells = lines[row["feature"]]
        assert float(cells[0]) == pytest.approx(row["coefficient"], rel=0.05, abs=0.001)
        if row["standard_error"] is None:
            assert cells[-2:] == ["not", "determined"]
            undetermined += 1
            continue
        assert float(cells[1]) == pytest.approx(row["standard_error"], rel=0.05, abs=0.001)
        low, high = row[f"{odds}low"], row[f"{odds}high"]
        if low is None or high is None:  # exp overflows
            assert "to" not in cells
        else:
            assert float(cells[-3]) == pytest.approx(low, rel=0.05, abs=0.001)
            assert float(cells[-1]) == pytest.approx(high, rel=0.05, abs=0.001)
    others = [row for row in about["coefficients"] if row["feature"].endswith("=other")]  # which nobody has
    assert undetermined == shown.count("not determined") == len(others) > 0
    assert json.loads(fl_app("show", out, "--json").out) == {
        "coefficients": about["coefficients"],
        "note": about["coefficients_note"],
    }


def test_show_of_a_penalised_model_prints_errors_and_tells_how_to_get_intervals(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, strategy="fednewton", rounds=8)
    shown = fl_app("show", out).out
    (age,) = [row for row in read_json(out / "model.json")["coefficients"] if row["feature"] == "age"]
    (line,) = [line.split() for line in shown.splitlines() if line.startswith("  age ")]
    assert [float(cell) for cell in line[1:]] == pytest.approx(
        [age["coefficient"], age["standard_error"], age["odds_ratio"]], rel=0.05
    )
    said = " ".join(shown.split())
    assert "The interval is" not in said
    assert "there are no intervals. For these set strategy=fednewton, l2=0" in said
    assert shown.count("not determined") == 1


def test_long_names_large_numbers_and_many_outputs_fit_in_80_columns(fl_app: Call, caller: Path, rows: Any) -> None:
    long = "a column with a name of which one could wish that it were shorter"
    for client, own in rows.items():
        renamed = [{**row, long: str(1e-9 * float(row["age"])), "stage": f"{long} {row['stage']}"} for row in own]
        write_csv(caller / "data" / f"{client}.csv", renamed, (long, *COLUMNS[1:]))
    out = trained(fl_app, data_args="path=data label=stage", strategy="fednewton", rounds=8, l2=1e-6)
    shown = fl_app("show", out).out
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"\n  a column[a-z ]*\.\.\.[a-z ]*shorter ", shown)
    assert shown.count("(intercept)") == 2


def test_a_shortened_name_keeps_its_category(fl_app: Call, caller: Path, rows: Any) -> None:
    long = "the stage of the disease at admission"
    for client, own in rows.items():
        write_csv(
            caller / "data" / f"{client}.csv",
            [{**row, long: row["stage"]} for row in own],
            (long, *COLUMNS[:3], "outcome"),
        )
    shown = fl_app("show", trained(fl_app)).out
    for category in ("=II ", "=III ", "=other "):
        assert f"on{category}" in shown


# ---------------------------------------------------------------------------------------------------------------- check


SITE = ("--data", "data/bern.csv", "--label", "outcome")


def test_check_tells_what_is_there_what_would_be_told_and_what_an_epoch_does(fl_app: Call, rows: Any) -> None:
    outcome = fl_app("check", *SITE, "--client", "bern")
    assert (outcome.status, outcome.err) == (0, "")
    said = outcome.out.splitlines()
    assert said[0] == "client bern: 48 rows to train on, 12 to test on"
    assert said[1].startswith("label outcome: alive ")
    assert said[2:6] == ["4 columns", "  number: age, dose", "  boolean: smoker", "  category: stage"]
    assert said[-1] == "nothing was sent"
    assert max(map(len, said)) <= 80
    whole = " ".join(outcome.out.split())
    assert "a run would be told the number of rows, the names and kinds of the columns, the classes, " in whole
    assert "the count, mean and variance of each number and the categories that 5 rows or more have" in whole
    assert "one local epoch, 7 parameters, " in whole


def test_check_counts_the_patients_whose_rows_stay_together(fl_app: Call, rows: Any) -> None:
    said = fl_app("check", *SITE, "-c", "data-args=group=stage", "-c", "test-fraction=0.3").out.splitlines()
    assert re.fullmatch(r"client site: \d+ rows of 2 groups to train on, \d+ of 1 group to test on", said[0])


def test_check_is_the_same_from_a_node_config(fl_app: Call, rows: Any) -> None:
    config = 'client="bern" data="data/bern.csv" label="outcome"'
    first, second = (
        fl_app("check", *SITE, "--client", "bern", "--json"),
        fl_app("check", "--node-config", config, "--json"),
    )
    ((site,), (same,)) = json.loads(first.out), json.loads(second.out)
    assert site["training"].pop("seconds") >= same["training"].pop("seconds") * 0
    assert site == same
    assert site["told"] == {
        "statistics": True,
        "label": False,
        "categories": {"stage": ["I", "II", "III"]},
        "rare": [],
        "missing": [],
    }


def test_check_shows_gaps_constants_and_what_is_too_rare_to_be_told(fl_app: Call, caller: Path, rows: Any) -> None:
    own = [{**row, "dose": "5", "stage": "rare" if k < 4 else row["stage"]} for k, row in enumerate(rows["bern"])]
    write_csv(caller / "data/bern.csv", with_gaps(own, ("age",), 0))
    outcome = fl_app("check", *SITE, "-c", "data-args=missing=mean", "-c", "test-fraction=0")
    assert "missing cells: age " in outcome.out
    assert "columns with one value, of no use here: dose" in outcome.out
    assert "  categories of stage: I, II, III\n" in outcome.out
    assert "which columns have missing cells" in " ".join(outcome.out.split())
    assert "rare" not in outcome.out


@pytest.mark.parametrize("standardize", ["global", "none"])
def test_check_names_columns_whose_values_are_all_rare(fl_app: Call, caller: Path, rows: Any, standardize: str) -> None:
    own = [{**row, "stage": f"room {k}"} for k, row in enumerate(rows["bern"])]
    write_csv(caller / "data/bern.csv", own)
    outcome = fl_app("check", *SITE, "-c", f"standardize={standardize}")
    assert "not used, since all their values are rare: stage" in outcome.out.splitlines()
    assert "room" not in outcome.out
    write_csv(caller / "data/bern.csv", own[:15])  # of which nothing is told, rare or not
    open_data.cache_clear()
    assert "rare" not in fl_app("check", *SITE, "-c", f"standardize={standardize}").out


def test_check_names_columns_that_tell_persons_apart(fl_app: Call, caller: Path, rows: Any) -> None:
    own = [{**row, "stage": f"patient {k % 30}", "dose": str(7 * k)} for k, row in enumerate(2 * rows["bern"])]
    write_csv(caller / "data/bern.csv", own)
    said = " ".join(fl_app("check", *SITE).out.split())
    assert "as it seems, which are to be left out with drop, or named as group: dose, stage" in said
    open_data.cache_clear()
    wards = [{**row, "stage": f"ward {k % 8}", "dose": str(k % 60)} for k, row in enumerate(own)]
    write_csv(caller / "data/bern.csv", wards)
    assert "as it seems" not in fl_app("check", *SITE).out


def test_check_of_few_rows_says_that_no_statistics_would_be_told(fl_app: Call, caller: Path, rows: Any) -> None:
    write_csv(caller / "data/bern.csv", rows["bern"][:15])
    said = " ".join(fl_app("check", *SITE).out.split())
    assert "no statistics of numbers and no categories" in said
    assert "categories of stage" not in said


def test_check_of_one_class_is_no_fault_since_others_may_have_more(fl_app: Call, caller: Path, rows: Any) -> None:
    write_csv(caller / "data/bern.csv", [{**row, "outcome": "dead"} for row in rows["bern"]])
    outcome = fl_app("check", *SITE)
    assert outcome.status == 0, outcome.err
    assert "one class here: a run needs another one somewhere; no local epoch was tried" in outcome.out


@pytest.mark.parametrize("missing", ["error", "mean"])
def test_check_shows_no_cell_but_classes_and_categories(fl_app: Call, caller: Path, rows: Any, missing: str) -> None:
    marked = [{**row, "age": f"{7000 + k}.{k:03}"} for k, row in enumerate(rows["bern"])]
    columns = () if missing == "error" else ("dose",)
    write_csv(caller / "data/bern.csv", with_gaps(marked, columns, 1))
    for form in ([], ["--json"]):
        outcome = fl_app("check", *SITE, "-c", f"data-args=missing={missing}", *form)
        assert outcome.status == 0
        assert not [row["age"] for row in marked if row["age"] in outcome.out]
        assert not [row["dose"] for row in marked if row["dose"] in outcome.out]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no data: fl-app check: give --data F.csv --label COLUMN, or --node-config"),
        (SITE[:2], "it is not said which column is the label: --data data/bern.csv: add --label COLUMN"),
        ((*SITE, "--node-config", "client='a'"), "two files: --data and --node-config: give one of them"),
        (("--data", "nowhere.csv", "--label", "y"), "nowhere.csv: there is no such file: check the path"),
        (("--data", "data", "--label", "y"), "data: this is a directory: name one CSV file in it"),
        ((*SITE[:3], "Outcome"), "client site: data/bern.csv: unknown label 'Outcome': did you mean 'outcome'?"),
        ((*SITE, "--test-data", "x.csv"), "x.csv: there is no such file"),
        (
            ("--node-config", 'data="a.csv" label="y"'),
            "no client in its node config: expected --node-config 'client=\"N",
        ),
        (("--node-config", 'client="a" data="a.csv"'), "no label in its node config"),
        (("--node-config", 'client="a"'), "no file is named: "),
        (("--node-config", "client=a data=b"), "the node config cannot be read: "),
        ((*SITE, "-c", "roundz=3"), "did you mean 'rounds'?"),
        ((*SITE, "-c", "data-args=path=data"), "the run sets path=data: a site reads what its own node config names"),
        ((*SITE, "-c", "data-args=label=outcome"), "the run sets label=outcome: "),
        ((*SITE, "-c", "data=digits"), "data/bern.csv: these data are not read from a site's own file: use data=csv"),
        ((*SITE, "-c", "data-args=drop=outcome"), "drop=... names the label 'outcome': do not drop it"),
    ],
    ids=range(16),
)
def test_what_cannot_be_checked_is_told_in_one_line(
    fl_app: Call, caller: Path, rows: Any, words: tuple[str, ...], said: str
) -> None:
    before = contents(caller)
    assert said in fl_app("check", *words).refusal()
    assert contents(caller) == before


def test_check_finds_the_faults_of_a_file_with_their_line(fl_app: Call, caller: Path, rows: Any) -> None:
    write_csv(
        caller / "data/bern.csv", [{**row, "age": "" if k == 7 else row["age"]} for k, row in enumerate(rows["bern"])]
    )
    told = fl_app("check", *SITE).refusal()
    assert "client site: data/bern.csv, line 9: column 'age' has 1 missing cell: fill what is missing, or add" in told


def test_check_writes_nothing(fl_app: Call, caller: Path, rows: Any) -> None:
    before = contents(caller)
    fl_app("check", *SITE)
    assert contents(caller) == before

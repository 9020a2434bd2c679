"""Rows that belong together, such as several of one patient: never on both sides of a split, and never too many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_csv_source import csv, labels, numbers, split, write

from tasks.data.base import OwnFile, PathText
from tasks.data.csv_source import Csv
from tasks.data.partition import ByColumn, BySize, Dirichlet, Iid, Noise, Shards
from tasks.data.table import Columns, Table, group_ids

COLUMNS = ("row", "patient", "age", "y")
NUM_PATIENTS, VISITS = 30, 4


def visits(first=0, patients=NUM_PATIENTS):
    """Four rows of each patient, far apart in the file; of three patients in four the outcome is yes."""
    patient = [{"patient": f"p{first}-{k}", "age": 40, "y": "yes" if k % 4 else "no"} for k in range(patients)]
    return [{**row, "row": first + place} for place, row in enumerate(patient * VISITS)]


def patients(table, count=NUM_PATIENTS):
    return {row % count for row in numbers(table)}


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "data" / "north.csv", visits(), COLUMNS)


@pytest.fixture
def folder(file):
    return file.parent


def divided(path, seed=0, **arguments):
    data = csv(path, label="y", group="patient", **arguments).open(split(seed=seed))
    return [data.divide(client) for client in data.clients]


def test_no_patient_is_on_both_sides_of_a_split_and_the_share_is_of_patients(folder):
    (division,) = divided(folder)
    assert not patients(division.train) & patients(division.test)
    assert len(patients(division.test)) == round(0.25 * NUM_PATIENTS)
    assert len(division.test) == VISITS * len(patients(division.test))
    assert len(division.train) + len(division.test) == VISITS * NUM_PATIENTS


def test_the_split_of_patients_is_stratified(folder):
    (division,) = divided(folder)
    negative = [labels(table).count("no") / len(table) for table in (division.train, division.test)]
    assert negative == pytest.approx([0.25, 0.25], abs=0.05)


def test_nothing_is_learned_from_the_column_of_patients(folder):
    assert divided(folder)[0].train.columns.names == ("row", "age")


@pytest.mark.parametrize(
    "partition", [Iid(), Dirichlet(alpha=0.3), Shards(), BySize(), Noise()], ids=lambda p: type(p).__name__
)
def test_a_file_that_is_dealt_gives_each_patient_to_one_client(file, partition):
    data = csv(file, label="y", group="patient").open(split(4, partition=partition, test_fraction=0))
    owned = [len(data.divide(client).train) for client in data.clients]
    held = [set(data.divide(client).train.groups.tolist()) for client in data.clients]
    assert sum(owned) == VISITS * NUM_PATIENTS
    assert sum(map(len, held)) == len(set().union(*held)) == NUM_PATIENTS


def test_rows_that_say_whose_they_are_stay_there(tmp_path):
    rows = [{**row, "ward": "ab"[row["row"] // 60]} for row in visits()]  # each patient has been in both
    path = write(tmp_path / "all.csv", rows, (*COLUMNS, "ward"))
    data = csv(path, label="y", group="patient").open(split(partition=ByColumn(column="ward"), test_fraction=0))
    assert numbers(data.divide("a").train) == list(range(60))


def test_a_client_uses_no_more_rows_of_a_patient_than_is_said(folder):
    for count in (1, 3):
        (division,) = divided(folder, rows_per_group=count)
        for table in (division.train, division.test):
            assert set(np.unique(table.groups, return_counts=True)[1]) == {count}
        assert patients(division.train) | patients(division.test) == set(range(NUM_PATIENTS))
    visit = [row // NUM_PATIENTS for row in numbers(divided(folder, rows_per_group=1)[0].train)]
    assert set(visit) == set(range(VISITS))  # not always the first


def test_more_rows_than_a_patient_has_are_all_of_them(folder):
    assert [numbers(d.train) for d in divided(folder, rows_per_group=9)] == [numbers(d.train) for d in divided(folder)]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 3))
def test_which_rows_of_a_patient_are_used_depends_on_no_other_patient(owners, count):
    """So that a person whose rows are all taken away changes nothing but that."""
    columns = Columns.of_numbers(["row"], "y")
    x, y = np.arange(len(owners), dtype=float)[:, None], np.zeros(len(owners))
    table = Table(x, y, columns, group_ids(map(str, owners)))
    kept = numbers(table.at_most(count))
    assert kept == sorted(kept)
    for gone in set(owners):
        others = table.rows(np.flatnonzero(np.array(owners) != gone))
        assert numbers(others.at_most(count)) == [row for row in kept if owners[row] != gone]
        assert sum(owners[row] == gone for row in kept) == min(count, owners.count(gone))


def test_a_patient_in_training_and_test_files_is_refused_with_the_number(folder, tmp_path):
    test = write(tmp_path / "test.csv", visits()[:2] + visits(1000, 3), COLUMNS)
    with pytest.raises(ValueError, match=r"'north' has 2 values of 'patient' both in rows to train on and in rows to"):
        divided(folder, test_path=test)
    write(test, visits(1000, 3), COLUMNS)
    (division,) = divided(folder, test_path=test)
    assert len(division.test) == 3 * VISITS


def test_a_row_without_patient_is_refused_with_its_line(folder):
    rows = visits()
    rows[6]["patient"] = ""
    write(folder / "north.csv", rows, COLUMNS)
    with pytest.raises(ValueError, match=r"north\.csv, line 8: column 'patient' has 1 missing cell"):
        divided(folder)


def test_a_site_keeps_patients_whole_as_a_folder_would(folder):
    law = Csv(group="patient", rows_per_group=2)
    own = OwnFile("north", str(folder / "north.csv"), "y")
    division = law.for_site(own).open(split()).divide("north")
    (expected,) = divided(folder, rows_per_group=2)
    assert numbers(division.train) == numbers(expected.train)
    assert numbers(division.test) == numbers(expected.test)


def test_a_site_whose_label_would_group_its_rows_refuses(folder):
    with pytest.raises(ValueError, match="the run groups rows by 'y', which is this site's label"):
        Csv(group="y").for_site(OwnFile("north", str(folder / "north.csv"), "y"))


def test_one_row_each_is_said_of_one_row_alone():
    assert [Csv(path=PathText("x"), group="id", rows_per_group=k).one_row_each for k in (0, 1, 2)] == ["", "id", ""]

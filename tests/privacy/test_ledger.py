"""What is released has been written down before, and what is written down is never lost, doubled or mixed up."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.accounting import Release, Sampling, curve, spent
from privacy.ledger import Entry, Ledger, Terms

PROJECT = Path(__file__).parents[2]
TERMS = Terms("client", "add-remove", 1e-5, {"name": "dp-fedavg", "clip_norm": 1.0, "parts": ["sum", "counts"]})
UPDATES = Release("sum of updates", 1.1, Sampling("poisson", 0.1))
COUNTS = Release("metric sums\nand counts", 20.0, Sampling("poisson", 0.1), 3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "privacy.jsonl"


@pytest.fixture
def written(path):
    """Two rounds, the second of them tried twice."""
    ledger = Ledger.open(path, TERMS)
    ledger.append(1, 0, UPDATES, COUNTS)
    ledger.append(2, 0, UPDATES)
    ledger.append(2, 1, UPDATES, COUNTS)
    return path


ENTRIES = (
    Entry(1, 0, UPDATES),
    Entry(1, 0, COUNTS),
    Entry(2, 0, UPDATES),
    Entry(2, 1, UPDATES),
    Entry(2, 1, COUNTS),
)


def test_what_was_appended_is_read_back_and_goes_on(written):
    ledger = Ledger.open(written, TERMS)
    assert (ledger.terms, ledger.entries) == (TERMS, ENTRIES)
    ledger.append(3, 0, UPDATES)
    assert Ledger.open(written, TERMS).entries == (*ENTRIES, Entry(3, 0, UPDATES))
    assert ledger.entries == (*ENTRIES, Entry(3, 0, UPDATES))


def test_every_kind_of_release_is_read_back_to_the_bit(path):
    ledger = Ledger.open(path, replace(TERMS, unit="record", relation="replace-one", delta=1 / 3))
    releases = (
        Release("a", 0.1 + 0.2, Sampling("fixed", size=1, population=3)),
        Release("é ☃ \u2028", 5e-324, Sampling("none"), 10**12),
        Release("", 0.0, Sampling("poisson", 1 / 3)),
    )
    ledger.append(0, 7, *releases)
    assert Ledger.read(path).releases == releases


def test_the_file_is_the_owners_alone_and_its_first_line_says_whom_it_protects(written):
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    header, *lines = map(json.loads, written.read_text().splitlines())
    expected = {
        "schema": 1,
        "unit": "client",
        "relation": "add-remove",
        "delta": 1e-5,
        "mechanism": {"name": "dp-fedavg", "clip_norm": 1.0, "parts": ["sum", "counts"]},
    }
    assert {key: header[key] for key in header if key != "seal"} == expected
    assert [(line["round"], line["attempt"], line["what"]) for line in lines] == [
        (entry.round, entry.attempt, entry.release.what) for entry in ENTRIES
    ]
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_the_entries_are_what_the_accountant_takes(written):
    ledger = Ledger.read(written)
    assert ledger.by_round() == ((UPDATES, COUNTS), (UPDATES, UPDATES, COUNTS))
    assert curve(ledger.by_round(), "add-remove", 1e-5)[-1] == spent(ledger.releases, "add-remove", 1e-5).epsilon


def test_what_precedes_the_first_round_is_spent_with_it(path):
    ledger = Ledger.open(path, TERMS)
    assert ledger.by_round() == ()
    ledger.append(0, 0, COUNTS)
    assert ledger.by_round() == ((COUNTS,),)
    ledger.append(2, 0, UPDATES)
    assert ledger.by_round() == ((COUNTS,), (UPDATES,))


# -------------------------------------------------------------------------------------------------------------- crashes


def test_a_process_killed_at_any_byte_of_the_last_line_has_released_nothing_by_it(written):
    whole = written.read_bytes()
    before_last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(before_last, len(whole)):
        written.write_bytes(whole[:size])
        assert Ledger.read(written).entries == ENTRIES[:-1]
        assert written.stat().st_size == size  # reading changes nothing
        ledger = Ledger.open(written, TERMS)
        assert ledger.entries == ENTRIES[:-1]
        assert written.read_bytes() == whole[:before_last]
        ledger.append(2, 1, COUNTS)
        assert written.read_bytes() == whole


def test_a_last_line_of_zeros_which_a_power_failure_leaves_is_cut_off(written):
    whole = written.read_bytes()
    written.write_bytes(whole + bytes(300))
    assert Ledger.open(written, TERMS).entries == ENTRIES
    assert written.read_bytes() == whole


def test_a_process_killed_after_append_returned_has_spent(path):
    program = (
        "import os, signal, sys; from pathlib import Path; from privacy.ledger import *;"
        "ledger = Ledger.open(Path(sys.argv[1]), Terms('client', 'add-remove', 1e-5, {}));"
        "ledger.append(1, 0, Release('sum', 1.0, Sampling('none'))); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], cwd=PROJECT, check=False)
    assert done.returncode == -9
    assert Ledger.read(path).releases == (Release("sum", 1.0, Sampling("none")),)


def test_the_line_is_on_the_disk_when_append_returns_and_the_folder_when_it_was_created(path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(handle):
        about = os.fstat(handle)
        synced.append("folder" if stat.S_ISDIR(about.st_mode) else about.st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger = Ledger.open(path, TERMS)
    assert synced == [path.stat().st_size, "folder"]
    ledger.append(1, 0, UPDATES, COUNTS)
    assert synced[2:] == [path.stat().st_size]


def test_a_ledger_that_cannot_be_written_spends_nothing_here_and_takes_no_more(path, monkeypatch):
    ledger = Ledger.open(path, TERMS)

    def full(_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            ledger.append(1, 0, UPDATES)
    assert ledger.entries == ()
    with pytest.raises(ValueError, match="has changed since it was opened"):
        ledger.append(1, 0, UPDATES)
    assert Ledger.open(path, TERMS).entries == (Entry(1, 0, UPDATES),)  # it may have been written: it counts


# --------------------------------------------------------------------------------------------------------------- damage


def test_a_changed_byte_anywhere_before_the_last_line_is_refused(written):
    whole = written.read_bytes()
    end = whole.rindex(b"\n", 0, -1)
    for place in range(end):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        written.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged at line \d+"):
            Ledger.open(written, TERMS)
        assert written.read_bytes() == damaged


def test_a_changed_byte_of_the_last_whole_line_is_refused_too(written):
    whole = written.read_bytes()
    written.write_bytes(whole.replace(b'"count": 3', b'"count": 2'))
    with pytest.raises(ValueError, match="damaged at line 3: it, or the line before it, is not as it was written"):
        Ledger.read(written)
    written.write_bytes(whole[:-3] + b"x}\n")
    with pytest.raises(ValueError, match="damaged at line 6"):
        Ledger.read(written)


def test_a_missing_doubled_or_exchanged_line_is_refused(written):
    lines = written.read_bytes().splitlines(keepends=True)
    header, first, second, *rest = lines
    for damaged in ([header, second, *rest], [header, first, first, second, *rest], [header, second, first, *rest]):
        written.write_bytes(b"".join(damaged))
        with pytest.raises(ValueError, match="is damaged at line"):
            Ledger.read(written)


@pytest.mark.parametrize(
    "content", [b"", b'{"schema": 1', b"\n", b"[]\n", b"{}\n", b"null\n", b"\xff\n", b"[1]\n[2]\n"]
)
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is "):
        Ledger.open(path, TERMS)
    assert path.read_bytes() == content


def test_a_ledger_of_a_later_version_is_refused(path, monkeypatch):
    monkeypatch.setattr("privacy.ledger.SCHEMA", 2)
    Ledger.open(path, TERMS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="schema 2, expected 1"):
        Ledger.read(path)


# ---------------------------------------------------------------------------------------------------------- other terms


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": "record"}, 'unit was "client" there and is "record" here'),
        ({"relation": "replace-one"}, 'relation was "add-remove" there and is "replace-one" here'),
        ({"delta": 1e-6}, "delta was 1e-05 there and is 1e-06 here"),
        ({"mechanism": {**TERMS.mechanism, "clip_norm": 2.0}}, "mechanism.clip_norm was 1.0 there and is 2.0 here"),
        ({"mechanism": {**TERMS.mechanism, "rate": 0.1}}, "mechanism.rate was absent there and is 0.1 here"),
        ({"mechanism": {"name": "dp-fedavg"}}, "mechanism.clip_norm was 1.0 there and is absent here"),
    ],
)
def test_a_ledger_of_another_mechanism_is_refused_with_what_differs(written, change, words):
    before = written.read_bytes()
    with pytest.raises(ValueError, match=words):
        Ledger.open(written, replace(TERMS, **change))
    assert written.read_bytes() == before


def test_what_json_holds_alike_is_the_same_mechanism(written):
    alike = {"parts": ("sum", "counts"), "clip_norm": 1, "name": "dp-fedavg"}
    assert Ledger.open(written, replace(TERMS, mechanism=alike)).entries == ENTRIES


@pytest.mark.parametrize(
    "change",
    [{"unit": "node"}, {"relation": "none"}, {"delta": 0.0}, {"delta": 1.0}]
    + [{"mechanism": {"x": value}} for value in (float("nan"), float("inf"), complex(1, 2), {1, 2})],
    ids=str,
)
def test_terms_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match=r"expected|JSON"):
        replace(TERMS, **change)


def test_a_round_or_an_attempt_below_0_is_refused_and_nothing_is_written(path):
    ledger = Ledger.open(path, TERMS)
    before = path.read_bytes()
    for round_, attempt in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="0 or more"):
            ledger.append(round_, attempt, UPDATES)
    assert path.read_bytes() == before


def test_two_processes_writing_to_one_ledger_are_found_out(path):
    one, other = Ledger.open(path, TERMS), Ledger.open(path, TERMS)
    one.append(1, 0, UPDATES)
    with pytest.raises(ValueError, match="is another process writing to it"):
        other.append(1, 0, UPDATES)
    assert Ledger.read(path).entries == (Entry(1, 0, UPDATES),)


def test_a_ledger_that_was_taken_away_takes_no_more(path):
    ledger = Ledger.open(path, TERMS)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        ledger.append(1, 0, UPDATES)

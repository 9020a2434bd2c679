"""The folder of a run: never over another's, and whole after a crash at any byte."""

import json
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.run_folder import RunFolder, default_folder, write_atomically
from fl_app.served import is_served, served
from strategies.history import Dropped, RoundReport

numbers = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.none() | st.dictionaries(st.text(), numbers, max_size=3)


@st.composite
def histories(draw: Any) -> list[RoundReport]:
    """Rounds 1, 2, ... with anything in them that a line can hold."""
    dropped = st.builds(Dropped, st.text(), st.sampled_from(["raised", "non-finite"]))
    return [
        RoundReport(
            round=number,
            metrics=draw(metrics),
            train_metrics=draw(metrics),
            online=10,
            expected_clients=10,
            attempts=1,
            good=draw(st.integers(0, 10)),
            dropped=tuple(draw(st.lists(dropped, max_size=2))),
            bytes_up=draw(st.integers(0, 2**60)),
            bytes_down=1,
            payload_up=1,
            payload_down=1,
            params_change=draw(numbers),
            seconds={"total": draw(numbers)},
        )
        for number in range(1, draw(st.integers(0, 4)) + 1)
    ]


some = settings(max_examples=40)  # each writes to the disk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("run"))


def written(folder: RunFolder, history: list[RoundReport]) -> bytes:
    folder.rounds.unlink(missing_ok=True)
    folder.rounds.touch()
    for report in history:
        folder.append_round(report)
    return folder.rounds.read_bytes()


@some
@given(histories(), st.integers(0, 5))
def test_rounds_are_read_as_they_were_written_up_to_the_one_asked_for(
    folder: RunFolder, history: list[RoundReport], last: int
) -> None:
    text = written(folder, history)
    assert len(text.splitlines()) == len(history)
    assert folder.read_rounds(last) == history[:last]


@some
@given(histories(), st.data())
def test_a_file_cut_at_any_byte_still_gives_its_whole_lines(
    folder: RunFolder, history: list[RoundReport], data: st.DataObject
) -> None:
    text = written(folder, history)
    cut = data.draw(st.integers(0, len(text)))
    folder.rounds.write_bytes(text[:cut])
    whole = text[:cut].count(b"\n") + (cut < len(text) and text[cut : cut + 1] == b"\n")
    assert folder.read_rounds(100) == history[:whole]


@some
@given(histories(), st.integers(0, 5), st.sampled_from([b"", b'{"round": 7, "metr', b"\0\0\0"]))
def test_rewinding_leaves_exactly_the_rounds_to_keep_and_no_ending(
    folder: RunFolder, history: list[RoundReport], last: int, tail: bytes
) -> None:
    text = written(folder, history)
    folder.rounds.write_bytes(text + tail)
    folder.summary.write_text("{}")
    assert folder.rewind(last) == history[:last]
    assert folder.rounds.read_bytes() == b"".join(text.splitlines(keepends=True)[:last])
    assert not folder.summary.exists()
    assert {path.name for path in folder.path.iterdir()} == {"rounds.jsonl"}


@pytest.mark.parametrize("tail", [b"\x80\xff", b"7\n", b"null\n", b"[]\n", b"{}\n"])
def test_what_a_lost_block_leaves_behind_the_last_line_is_left_out(folder: RunFolder, tail: bytes) -> None:
    folder.rounds.write_bytes(tail)
    assert folder.read_rounds(100) == []


def test_rounds_that_were_never_written_are_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read_rounds(9) == []


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path: Path) -> None:
    nan, folder = float("nan"), RunFolder(tmp_path)
    values = {"metrics": {"a": nan, "b": float("inf"), "c": 1.0}, "train_metrics": None, "params_change": -float("inf")}
    zero = dict.fromkeys(("bytes_up", "bytes_down", "payload_up", "payload_down"), 0)
    one = dict.fromkeys(("round", "online", "expected_clients", "attempts", "good"), 1)
    folder.append_round(RoundReport(dropped=(), **one, **zero, **values))
    line = json.loads(folder.rounds.read_text(), parse_constant=pytest.fail)
    assert line["metrics"] == {"a": None, "b": None, "c": 1.0}
    assert line["params_change"] is None


def test_writing_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for content in (b"one", b"", b"three"):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
        assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["summary.json", "rounds.jsonl", "checkpoint.safetensors"])
def test_a_folder_that_a_run_has_used_is_refused_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(Refused, match=f"^{name} exists: --out {tmp_path}: .*--resume"):
        RunFolder(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a/b/c")
    folder.create()
    assert list(folder.path.iterdir()) == []
    folder.create()  # nothing has been written yet: still nobody's


def test_only_its_owner_opens_the_folder_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/one")
    folder.create()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_server_app_waits_for_the_one_before_it_and_no_two_write_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_app.served._STOPPED_WITHIN_S", 0.5)
    entered = []
    assert not is_served(tmp_path)
    with served(tmp_path):
        assert is_served(tmp_path)
        with pytest.raises(Refused, match=f"the run is still going on: {tmp_path}: wait for its end"), served(tmp_path):
            pass

        def enter() -> None:
            with served(tmp_path):
                entered.append(is_served(tmp_path))

        following = threading.Thread(target=enter)
        following.start()
        time.sleep(0.2)
        assert not entered
    following.join(10)
    assert entered == [True]
    assert not is_served(tmp_path)


def test_a_folder_of_data_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "bern.csv").write_text("age\n60\n")
    with pytest.raises(Refused, match=f"^a folder with CSV files: --out {tmp_path}: .*keep data apart"):
        RunFolder(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["bern.csv"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(Refused, match=f"^cannot write: --out {path}: .*choose another folder"):
            RunFolder(path).create()


def test_default_folders_never_collide_and_name_task_and_strategy(tmp_path: Path) -> None:
    config = RunConfig.parse({"task": "my.tasks:Own", "strategy": "fedsgd"})
    folders = []
    for _ in range(3):
        folders.append(default_folder(config, tmp_path))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3
    assert all(folder.parent == tmp_path / "runs" and "-Own-fedsgd" in folder.name for folder in folders)

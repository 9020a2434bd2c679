"""Checkpoints: what is read is what was written, to the bit, and a run that goes on from one is the run it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import safe_open
from safetensors.numpy import save_file

from fl_app.checkpoint import FORMAT, Checkpoint
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.job import resumed_job, run_job
from fl_app.profiles import load_profile
from fl_app.run_folder import RunFolder
from strategies.base import ServerState
from tasks.data.design import Design, Term

Make = Callable[..., Any]

dtypes = st.sampled_from([np.float64, np.float32, np.int64, np.uint8])
shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
some_arrays = st.lists(npst.arrays(dtypes, shapes), max_size=3)
reals = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
SEEDS = st.integers(0, 2**63 - 1)


def designs(names: list[str]) -> st.SearchStrategy[Design]:
    """Designs of numbers, scaled, and a category."""
    numbers = [
        st.builds(Term, st.just(f"number {name}"), st.just("number"), finite, finite.map(abs).filter(bool))
        for name in names
    ]
    category = st.builds(
        lambda levels, indicator: Term("category", "category", categories=tuple(levels), indicator=indicator),
        st.lists(st.text(), unique=True, min_size=1).filter(lambda levels: not {"other", "missing"} & set(levels)),
        st.booleans(),
    )
    return st.builds(
        Design,
        st.tuples(*numbers, category),
        st.text(),
        st.lists(st.text()).map(tuple),
        st.sampled_from(["global", "local", "none"]),
        st.sampled_from(["error", "mean", "indicator"]),
    )


checkpoints = st.builds(
    Checkpoint,
    config=st.builds(
        lambda text, seed: RunConfig.parse({"out": text, "seed": seed}), st.text(), st.integers(0, 2**63 - 1)
    ),
    job=st.text(),
    state=st.builds(
        ServerState,
        round=st.integers(0, 10**6),
        params=some_arrays.map(tuple),
        optimizer=some_arrays.map(tuple),
        used_rounds=st.dictionaries(st.text(), st.integers(1, 10**6)),
    ),
    design=st.lists(st.text(), unique=True, max_size=3).flatmap(designs),
    array_names=st.lists(st.text()).map(tuple),
    clients=st.integers(0, 10**6),
    metrics_on=st.sampled_from(["server", "clients"]),
    startup_s=reals,
    resumed_from=st.none() | st.integers(0, 10**6),
)


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """Without its arrays, which have no equality."""
    return replace(checkpoint, state=replace(checkpoint.state, params=(), optimizer=()))


def bits(arrays: tuple[np.ndarray, ...]) -> list[tuple[Any, ...]]:
    return [(array.dtype, array.shape, np.ascontiguousarray(array).tobytes()) for array in arrays]


@given(checkpoints)
@settings(max_examples=50)
def test_what_is_read_is_what_was_written_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    Checkpoint.commit(checkpoint.prepare(path), path)
    back = Checkpoint.read(path)
    assert plain(back) == plain(checkpoint)
    assert repr(back.design) == repr(checkpoint.design)  # -0.0 is not 0.0
    assert bits(back.state.params) == bits(checkpoint.state.params)
    assert bits(back.state.optimizer) == bits(checkpoint.state.optimizer)


DESIGN = Design((Term("a", "number", 0.1, 1 / 3), Term("b", "boolean", 0.2, 1.0)), "label", ("no", "yes"), "global")


@pytest.fixture
def checkpoint() -> Checkpoint:
    """One with everything in it."""
    return Checkpoint(
        config=RunConfig(),
        job="job",
        state=ServerState(3, (np.arange(6.0).reshape(2, 3), np.ones(2)), (np.array([np.inf]),), {"00": 2}),
        design=DESIGN,
        array_names=("weights", "intercept"),
        clients=10,
        metrics_on="server",
        startup_s=0.5,
        resumed_from=None,
    )


@pytest.fixture
def path(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    """The file of that checkpoint."""
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint.commit(checkpoint.prepare(path), path)
    return path


WHOLE = np.arange(24.0).reshape(4, 6)
LAYOUTS = {
    "transposed": WHOLE.T,
    "every second": WHOLE[:, ::2],
    "reversed": WHOLE[::-1],
    "broadcast": np.broadcast_to(np.float64(3.0), (2, 2)),
    "big-endian": WHOLE.astype(">f8"),
    "no dimension": np.array(3.0),
    "empty": np.empty((0, 3)),
}


@pytest.mark.parametrize("array", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_arrays_of_any_layout_in_memory_are_kept(path: Path, checkpoint: Checkpoint, array: np.ndarray) -> None:
    later = replace(checkpoint, state=replace(checkpoint.state, params=(array,), optimizer=(array,)))
    Checkpoint.commit(later.prepare(path), path)
    for back in (*Checkpoint.read(path).state.params, *Checkpoint.read(path).state.optimizer):
        assert back.shape == array.shape
        np.testing.assert_array_equal(back, array)


def test_a_checkpoint_prepared_and_not_committed_leaves_the_one_before(path: Path, checkpoint: Checkpoint) -> None:
    before = path.read_bytes()
    later = replace(checkpoint, state=replace(checkpoint.state, round=4))
    prepared = later.prepare(path)
    assert path.read_bytes() == before
    Checkpoint.commit(prepared, path)
    assert Checkpoint.read(path).state.round == 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_cut_short_anywhere_is_refused_by_name(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(Refused, match=f"^damaged checkpoint: {path}: start a new run"):
            Checkpoint.read(path)
    path.write_bytes(whole)
    assert Checkpoint.read(path).state.round == 3


@pytest.mark.parametrize("content", [b"PK\3\4", b"\xff" * 64, b"{}" * 100, b"\x80\x04\x95" + b"p" * 100])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(Refused, match=f"checkpoint: {tmp_path}/c: "):
        Checkpoint.read(tmp_path / "c")


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        content: dict[str, Any] = json.loads(file.metadata()["fl-app"])
        return content


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"other": "x"}, {"fl-app": ""}, {"fl-app": "[]"}, {"fl-app": "3"}, {"fl-app": "{}"}],
    ids=str,
)
def test_safetensors_of_another_program_are_refused_by_name(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"params.0": np.zeros(3)}, tmp_path / "c", metadata)
    with pytest.raises(Refused, match=f"^no checkpoint of this version: {tmp_path / 'c'}: "):
        Checkpoint.read(tmp_path / "c")


@pytest.mark.parametrize(
    "change", [{"format": FORMAT + 1}, {"format": "1"}, {"round": None}, {"job": None}, {"design": None}]
)
def test_a_checkpoint_of_another_format_or_lacking_a_part_is_refused_by_name(
    path: Path, change: dict[str, Any]
) -> None:
    content = {key: value for key, value in (about(path) | change).items() if value is not None}
    save_file({"params.0": np.zeros(3)}, path, {"fl-app": json.dumps(content)})
    with pytest.raises(Refused, match=f"^no checkpoint of this version: {path}: "):
        Checkpoint.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"features": None},
        {"classes": None},
        {"features": [{"name": "a", "kind": "number", "median": 0.0}]},
        {"features": []},
        {"features": [{"name": "a", "kind": "date"}]},
        {"features": [{"name": "a", "kind": "number", "mean": 0.0, "scale": 0.0}]},
        {"standardize": "median"},
        {"missing": "drop"},
    ],
    ids=str,
)
def test_a_checkpoint_whose_design_is_none_of_this_version_is_refused_by_name(
    path: Path, change: dict[str, Any]
) -> None:
    content = about(path)
    content["design"] |= change
    save_file({"params.0": np.zeros(3)}, path, {"fl-app": json.dumps(content)})
    with pytest.raises(Refused, match=f"^no checkpoint of this version: {path}: "):
        Checkpoint.read(path)


@pytest.mark.parametrize("change", [{"new-key": 1}, {"rounds": 0}, {"rounds": "many"}])
def test_a_checkpoint_whose_configuration_does_not_fit_is_refused_by_name(path: Path, change: dict[str, Any]) -> None:
    content = about(path)
    content["config"] |= change
    save_file({"params.0": np.zeros(3)}, path, {"fl-app": json.dumps(content)})
    with pytest.raises(Refused, match=str(path)):
        Checkpoint.read(path)


def test_a_checkpoint_with_an_array_missing_is_refused_by_name(path: Path) -> None:
    save_file({"params.1": np.zeros(3)}, path, {"fl-app": json.dumps(about(path))})
    with pytest.raises(Refused, match=str(path)):
        Checkpoint.read(path)


@pytest.mark.parametrize("name", ["missing", "."])
def test_no_checkpoint_at_all_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=r"^no checkpoint: "):
        Checkpoint.read(tmp_path / name)


# --------------------------------------------------------------------------------------------------------- resume


class Crash(Exception):
    """Stands for whatever ended a run."""


def crash_after(last: int) -> Callable[[Any], None]:
    def on_line(line: Any) -> None:
        if line["round"] == last:
            raise Crash

    return on_line


@pytest.fixture
def broken(serve: Make, tmp_path: Path) -> RunFolder:
    """A run of five rounds that ended in the third."""
    with pytest.raises(Crash):
        serve("broken", on_line=crash_after(3), rounds=5)
    return RunFolder(tmp_path / "broken")


def resume(folder: RunFolder, **texts: str) -> dict[str, Any]:
    """What `fl-app run --engine inline --resume DIR -c ...` does."""
    job = resumed_job(folder.path, texts, load_profile("simulation", folder.path), "inline")
    return run_job(job, lambda line: None)[0]


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    """rounds.jsonl without what is measured: seconds, and the bytes of messages, which have ids of growing length."""
    measured = {"seconds": None, "bytes_up": None, "bytes_down": None}
    return [json.loads(line) | measured for line in folder.rounds.read_text().splitlines()]


OPTIMIZERS = [{}, {"strategy-args": "momentum=0.9"}, {"strategy": "fednewton"}, {"clients-per-round": 2, "seed": 5}]


@pytest.mark.parametrize("keys", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("last", [1, 3])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    serve: Make, tmp_path: Path, keys: dict[str, Any], last: int
) -> None:
    whole = serve("whole", rounds=5, **keys)
    with pytest.raises(Crash):
        serve("broken", rounds=5, on_line=crash_after(last), **keys)
    folder = RunFolder(tmp_path / "broken")
    failed = folder.read_summary()
    assert (failed["status"], failed["stop_reason"], failed["rounds"]) == ("failed", "error", last)
    summary = resume(folder)
    assert summary["params_sha256"] == whole.summary["params_sha256"] != failed["params_sha256"]
    assert summary["resumed_from"] == last
    assert whole.summary["resumed_from"] is None
    assert [line["round"] for line in lines(folder)] == [1, 2, 3, 4, 5]
    assert lines(folder) == lines(whole.folder)
    for key in set(summary) - {"seconds", "bytes_up", "bytes_down", "out", "config", "resumed_from"}:
        assert summary[key] == whole.summary[key], key


def test_a_run_may_break_off_and_go_on_many_times(serve: Make, tmp_path: Path) -> None:
    whole = serve("whole", rounds=4)
    with pytest.raises(Crash):
        serve("broken", rounds=4, on_line=crash_after(1))
    folder = RunFolder(tmp_path / "broken")
    for last in (2, 3):
        job = resumed_job(folder.path, {}, load_profile("simulation", folder.path), "inline")
        summary, status = run_job(job, crash_after(last))
        assert (status, summary["rounds"], summary["resumed_from"]) == (1, last, last - 1)
    assert resume(folder)["params_sha256"] == whole.summary["params_sha256"]
    assert lines(folder) == lines(whole.folder)


def test_rounds_may_be_raised_to_go_on_after_the_end(serve: Make) -> None:
    short, long = serve("short", rounds=2), serve("long", rounds=4)
    summary = resume(short.folder, rounds="4")
    assert (summary["status"], summary["rounds"], summary["config"]["rounds"]) == ("completed", 4, 4)
    assert summary["params_sha256"] == long.summary["params_sha256"]


def test_seconds_are_never_negative_and_add_up(serve: Make) -> None:
    run = serve("short", rounds=2)
    slow = [json.loads(line) for line in run.folder.rounds.read_text().splitlines()]
    for line in slow:
        line["seconds"]["total"] = 1000.0
    run.folder.rounds.write_text("".join(json.dumps(line) + "\n" for line in slow))
    seconds = resume(run.folder, rounds="3")["seconds"]
    assert min(seconds.values()) >= 0
    assert seconds["total"] == pytest.approx(seconds["startup"] + seconds["rounds"])


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ({"seed": "1"}, "-c seed: --resume .*all but rounds"),
        ({"rounds": "6", "l2": "0.5"}, "-c l2: --resume "),
        ({"out": "elsewhere"}, "-c out: --resume "),
        ({"rounds": "4"}, "rounds=4: --resume .*expected 5 or more"),
        ({"rounds": "many"}, "rounds=many: .*expected a whole number"),
        ({"roudns": "6"}, "roudns"),
    ],
)
def test_only_rounds_may_be_given_and_only_raised_and_a_refusal_changes_nothing(
    broken: RunFolder, texts: dict[str, str], complaint: str
) -> None:
    before = {path.name: path.read_bytes() for path in broken.path.iterdir()}
    with pytest.raises(Refused, match=complaint):
        resume(broken, **texts)
    assert {path.name: path.read_bytes() for path in broken.path.iterdir()} == before


def test_a_server_app_that_is_to_resume_with_other_keys_names_them_and_changes_nothing(
    serve: Make, broken: RunFolder
) -> None:
    before = {path.name: path.read_bytes() for path in broken.path.iterdir()}
    with pytest.raises(Refused, match=r"another configuration: seed=7 \(was 0\), l2=0\.5 \(was 0\.01\): leave them"):
        serve("broken", resume=True, rounds=6, seed=7, l2=0.5)
    assert {path.name: path.read_bytes() for path in broken.path.iterdir()} == before


def test_a_completed_run_has_nothing_left_to_do(serve: Make) -> None:
    run = serve(rounds=2)
    for texts in ({}, {"rounds": "2"}):
        with pytest.raises(Refused, match=rf"^nothing left to do: --resume {run.folder.path}: .*-c rounds="):
            resume(run.folder, **texts)
    assert run.folder.read_summary() == run.summary


def test_a_run_that_a_stop_rule_completed_has_nothing_left_to_do_either(serve: Make) -> None:
    run = serve(rounds=9, stop="target", stop_args="value=0")
    assert run.summary["rounds"] == 1
    with pytest.raises(Refused, match="nothing left to do"):
        resume(run.folder)
    assert run.folder.read_summary() == run.summary


def test_a_line_cut_short_by_a_crash_is_dropped_and_its_round_is_played_again(serve: Make, broken: RunFolder) -> None:
    whole = serve("whole", rounds=5)
    with broken.rounds.open("a") as file:
        file.write('{"round": 4, "metr')
    assert resume(broken)["params_sha256"] == whole.summary["params_sha256"]
    assert lines(broken) == lines(whole.folder)


def test_a_line_whose_checkpoint_never_took_effect_is_dropped(serve: Make, broken: RunFolder) -> None:
    whole = serve("whole", rounds=5)
    fourth = whole.folder.rounds.read_text().splitlines()[3]
    with broken.rounds.open("a") as file:
        file.write(fourth + "\n")
    assert resume(broken)["params_sha256"] == whole.summary["params_sha256"]
    assert [line["round"] for line in lines(broken)] == [1, 2, 3, 4, 5]


def test_a_run_resumes_from_wherever_its_folder_was_moved_to(broken: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(broken.path.rename(tmp_path / "moved"))
    summary = resume(moved)
    assert (summary["status"], summary["out"]) == ("completed", str(moved.path))
    assert not broken.path.exists()


def test_the_design_of_a_run_is_frozen_over_a_resume(broken: RunFolder) -> None:
    earlier = Checkpoint.read(broken.checkpoint)
    terms = tuple(replace(term, mean=(term.mean or 0.0) + 1.0) for term in earlier.design.terms)
    changed = replace(earlier.design, terms=terms)
    Checkpoint.commit(replace(earlier, design=changed).prepare(broken.checkpoint), broken.checkpoint)
    resume(broken)
    assert Checkpoint.read(broken.checkpoint).design == changed

"""What clients keep on their node's disk: two generations, and the server says which of them counts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.client_state import ClientStore

Arrays = tuple[np.ndarray, ...]
NAMES = ["a", "", "../x", "../../../etc/passwd", "/abs", "a/b", "a\\b", "nul", ".", "..", "\0", "ü" * 300, "a\nb"]


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path / "state", "job")


def state(value: float) -> Arrays:
    return np.full((2, 3), value), np.array([value], dtype=np.float32), np.array(int(value))


def same(a: Arrays, b: Arrays) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_nothing_is_kept_before_the_first_round(store: ClientStore, tmp_path: Path) -> None:
    assert store.load("a", 0) == ()
    assert store.load("a", 5) == ()
    assert files(tmp_path) == []


def test_what_was_saved_is_loaded_with_dtypes_and_shapes_by_another_process_too(
    store: ClientStore, tmp_path: Path
) -> None:
    store.save("a", 0, 1, state(1.5))
    assert same(store.load("a", 1), state(1.5))
    assert same(ClientStore(tmp_path / "state", "job").load("a", 1), state(1.5))


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(6.0)[::2], np.arange(6.0)[::-1]])
def test_state_of_any_layout_in_memory_is_kept(store: ClientStore, array: np.ndarray) -> None:
    store.save("a", 0, 1, (array,))
    np.testing.assert_array_equal(store.load("a", 1)[0], array)


def test_a_lost_reply_leaves_the_state_that_the_server_knows_of(store: ClientStore) -> None:
    store.save("a", 0, 1, state(1))  # used
    store.save("a", 1, 2, state(2))  # its reply was lost
    assert same(store.load("a", 1), state(1))
    store.save("a", 1, 3, state(3))  # went on from round 1
    assert same(store.load("a", 3), state(3))
    assert same(store.load("a", 1), state(1))
    assert store.load("a", 2) == ()


def test_round_0_is_no_state_even_after_rounds_were_played(store: ClientStore) -> None:
    store.save("a", 0, 1, state(1))
    assert store.load("a", 0) == ()


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@settings(deadline=None)  # each writes to the disk
def test_two_generations_are_kept_at_most_and_the_used_one_always(
    tmp_path_factory: pytest.TempPathFactory, used_flags: list[bool]
) -> None:
    root = tmp_path_factory.mktemp("state")
    store, used = ClientStore(root, "job"), 0
    for number, is_used in enumerate(used_flags, start=1):
        assert same(store.load("a", used), state(used) if used else ())
        store.save("a", used, number, state(number))
        assert len(files(root)) <= 2
        used = number if is_used else used
    assert same(store.load("a", used), state(used) if used else ())


def test_a_round_played_again_replaces_its_state(store: ClientStore, tmp_path: Path) -> None:
    store.save("a", 0, 1, state(1))
    store.save("a", 0, 1, state(9))
    assert same(store.load("a", 1), state(9))
    assert len(files(tmp_path)) == 1


def test_a_file_cut_short_anywhere_is_as_if_it_had_never_been_written(store: ClientStore, tmp_path: Path) -> None:
    store.save("a", 0, 1, state(1))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for length in [*range(16), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert store.load("a", 1) == ()
    store.save("a", 0, 2, state(2))
    assert same(store.load("a", 2), state(2))


def test_clients_and_jobs_have_states_of_their_own(tmp_path: Path) -> None:
    stores = [ClientStore(tmp_path, job) for job in ("one", "two", "../one")]
    for index, store in enumerate(stores):
        for offset, client in enumerate(NAMES):
            store.save(client, 0, 1, state(100 * index + offset))
    for index, store in enumerate(stores):
        for offset, client in enumerate(NAMES):
            assert same(store.load(client, 1), state(100 * index + offset))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_client_or_job_is_called_its_files_stay_below_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "root"
    for client, job in ((name, "job"), ("client", name)):
        store = ClientStore(root, job)
        store.save(client, 0, 1, state(1))
        assert same(store.load(client, 1), state(1))
    assert files(tmp_path) == files(root)
    assert len(files(root)) == 2


def test_a_state_of_no_arrays_is_kept_as_such(store: ClientStore) -> None:
    store.save("a", 0, 1, ())
    assert store.load("a", 1) == ()

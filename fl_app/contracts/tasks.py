"""What holds for every task."""

# ruff: noqa: S101

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from flwr.client import NumPyClient

from fl_app import registry
from fl_app.contracts.runs import run_inline
from strategies.work import Curvature, Delta, Gradient, LocalWork, check_template
from tasks import dp_sgd
from tasks.base import Arrays, Config, KeepsState, Rows, Schema, Shard, Task


class TaskContract:
    """Subclass it as `class TestMyTask(TaskContract)` and set `target`; override what does not fit.

    `schema` and `rows` are what the task is tried on, by default three classes; `keys` are those of a run on the
    inline engine, whose data must suit the task as well.
    """

    target: ClassVar[str]
    """The task's name or module:Attr."""
    args: ClassVar[str] = ""
    """As in the run's task-args."""
    fit_config: ClassVar[Mapping[str, Any]] = {}
    """Over the usual keys of a fit config."""
    keys: ClassVar[Mapping[str, Any]] = {
        "data": "synthetic",
        "data-args": "features=3 classes=3 examples=30",
        "batch-size": 8,
    }

    def schema(self) -> Schema:
        """What the columns are called."""
        return Schema(("a", "b", "c"), "y", ("no", "yes", "maybe"))

    def rows(self) -> Rows:
        """Some thirty rows that fit the schema."""
        x = np.random.default_rng(0).normal(size=(30, 3))
        return Rows(x, np.arange(30) % 3)

    # ---------------------------------------------------------------------------------------------- fixtures

    @pytest.fixture
    def task(self) -> Task:
        """A new one."""
        task: Task = registry.build("task", self.target, self.args, self.schema())
        return task

    @pytest.fixture
    def shard(self) -> Shard:
        """Two thirds of the rows to train on; nothing can write to them."""
        rows = self.rows()
        cut = 2 * len(rows) // 3
        train, test = Rows(rows.x[:cut], rows.y[:cut]), Rows(rows.x[cut:], rows.y[cut:])
        for array in (train.x, train.y, test.x, test.y):
            array.setflags(write=False)
        return Shard("00", train, test)

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        """What fit is told in a round."""
        return {
            "work": "train", "round": 1, "solver": "sgd", "local-epochs": 2, "local-steps": 0, "batch-size": 4,
            "learning-rate": 0.1, "l1": 0.0, "l2": 0.01, "seed": 5, "metrics": True, **self.fit_config,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------------- params

    def test_the_first_params_have_names_and_are_pure_in_the_seed(self, task: Task) -> None:
        first, again = task.initial_arrays(1), task.initial_arrays(1)
        assert len(first) == len(task.array_names) == len(set(task.array_names))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a is not b
            assert np.isfinite(a).all()
            assert a.dtype in (np.float32, np.float64)

    def test_two_tasks_built_from_the_same_words_are_the_same(self, task: Task) -> None:
        other: Task = registry.build("task", self.target, self.args, self.schema())
        for name in ("array_names", "metric_names", "reports", "server_reports"):
            assert getattr(other, name) == getattr(task, name)
        _same(task.initial_arrays(3), other.initial_arrays(3))

    # ---------------------------------------------------------------------------------------------------- fit

    def test_fit_keeps_shapes_and_dtypes_and_counts_the_training_rows(
        self, task: Task, shard: Shard, config: Config
    ) -> None:
        params = task.initial_arrays(0)
        assert isinstance(task.make_client(shard), NumPyClient)
        arrays, num_examples, _ = _fit(task, shard, params, config)
        assert type(num_examples) is int
        assert num_examples == len(shard.train)
        check_template(arrays, Delta().returns(params))
        assert any(not np.array_equal(new, old) for new, old in zip(arrays, params, strict=True))

    @pytest.mark.parametrize("work", [Delta(), Gradient(), Curvature()], ids=lambda work: work.request)
    def test_work_is_done_on_read_only_inputs_or_refused_before_the_run(
        self, task: Task, shard: Shard, config: Config, work: LocalWork
    ) -> None:
        """Params come read-only, and the rows too: what writes to them raises."""
        asked = {**config, "work": work.request}
        try:
            task.check_config(asked)
        except ValueError:
            assert work.request != "train"
            return
        params = task.initial_arrays(0)
        for array in params:
            array.setflags(write=False)
        client = task.make_client(shard)
        arrays, _, _ = client.fit(list(params), dict(asked))
        client.evaluate(list(params), dict(asked))
        check_template(tuple(np.asarray(array) for array in arrays), work.returns(params))
        assert not any(np.shares_memory(new, old) for new in arrays for old in params)
        assert all(np.isfinite(array).all() for array in arrays)

    def test_fit_is_pure_in_what_it_receives_and_the_seed(self, task: Task, shard: Shard, config: Config) -> None:
        first = _fit(task, shard, task.initial_arrays(0), config)
        again = _fit(task, shard, task.initial_arrays(0), config)
        _same(first[0], again[0])
        assert first[1:] == again[1:]
        client = task.make_client(shard)
        for _ in range(2):  # nothing stays in the client either, but its personal arrays
            if task.personal_names:
                cast(KeepsState, client).state = ()
            arrays, _, _ = client.fit([a.copy() for a in task.initial_arrays(0)], dict(config))
            _same(first[0], tuple(arrays))

    # ------------------------------------------------------------------------------- arrays that do not travel

    def test_what_it_holds_has_names_of_its_own_is_pure_in_the_seed_and_is_not_changed_by_training(
        self, task: Task, shard: Shard, config: Config
    ) -> None:
        held = task.initial_held(1)
        assert len(held) == len(task.held_names) == len(task.held) == len(set(task.held_names) - set(task.array_names))
        _same(held, task.initial_held(1))
        started = task.holding(held)
        before = tuple(array.copy() for array in held)
        _fit(started, shard, started.initial_arrays(1), config)
        _same(started.held, before)

    def test_personal_arrays_are_given_used_and_given_back(self, task: Task, shard: Shard, config: Config) -> None:
        if not task.personal_names:
            return
        params, client = task.initial_arrays(0), task.make_client(shard)
        kept = cast(KeepsState, client)
        assert list(kept.state) == []
        client.fit([a.copy() for a in params], dict(config))
        check_template(kept.state, Delta().returns(task.personal_start))
        assert not all(np.array_equal(*pair) for pair in zip(kept.state, task.personal_start, strict=True))
        other = task.make_client(shard)
        cast(KeepsState, other).state = kept.state
        expected = task.measure((*params, *kept.state), shard.test)
        assert expected != task.measure(params, shard.test)
        assert other.evaluate([a.copy() for a in params], dict(config))[2] == expected
        assert other.fit([a.copy() for a in params], dict(config))[2] == expected

    def test_clients_trained_at_once_get_what_fit_gives_each_and_the_same_bits_in_any_company(
        self, task: Task, shard: Shard, config: Config
    ) -> None:
        if not task.fits_many(config):
            pytest.skip("it trains one client at a time")
        half = Rows(shard.train.x[::2], shard.train.y[::2])
        params, shards, seeds = task.initial_arrays(0), [shard, Shard("01", half, shard.test), shard], [1, 2, 3]
        together = task.fit_many(params, shards, config, seeds)
        for each, seed, result in zip(shards, seeds, together, strict=True):
            (alone,) = task.fit_many(params, [each], config, [seed])
            assert not isinstance(alone, Exception)
            assert not isinstance(result, Exception)
            _same(tuple(alone[0]), tuple(result[0]))
            arrays, num_examples, metrics = _fit(task, each, params, {**config, "seed": seed})
            assert (num_examples, metrics) == result[1:]
            for ours, theirs in zip(result[0], arrays, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)

    # ------------------------------------------------------------------------ what strategies may ask for besides

    def test_it_names_only_options_that_there_are(self, task: Task) -> None:
        assert set(task.fit_options) <= {"proximal-mu", "correction", *dp_sgd.OPTIONS}

    def test_a_proximal_term_keeps_fit_near_what_it_received(self, task: Task, shard: Shard, config: Config) -> None:
        if "proximal-mu" not in task.fit_options:
            pytest.skip("it does not heed proximal-mu")
        params = task.initial_arrays(0)
        free, none, tied = (
            _fit(task, shard, params, {**config, **option})[0]
            for option in ({}, {"proximal-mu": 0.0}, {"proximal-mu": 0.5 / float(config["learning-rate"])})
        )
        _same(free, none)
        assert 0 < _distance(tied, params) < _distance(free, params)

    def test_a_correction_is_added_to_every_gradient_and_the_mean_of_these_returned(
        self, task: Task, shard: Shard, config: Config
    ) -> None:
        """Where the mean is zero, a parameter is not trained by gradients."""
        if "correction" not in task.fit_options:
            pytest.skip("it does not heed correction")
        rng, rate, steps = np.random.default_rng(0), 0.01, 3
        asked = {**config, "solver": "sgd", "learning-rate": rate, "local-steps": steps, "correction": True}
        params = task.initial_arrays(0)
        shift = tuple(rng.normal(size=a.shape).astype(a.dtype) for a in params)
        zero = tuple(np.zeros_like(a) for a in params)
        plain = _fit(task, shard, params, {**asked, "correction": False})[0]
        still, moved = (_fit(task, shard, (*params, *h), asked)[0] for h in (zero, shift))
        once = [_fit(task, shard, (*params, *h), {**asked, "local-steps": 1})[0] for h in (zero, shift)]
        for arrays in (still, moved, *once):
            check_template(arrays, Delta().returns(params) * 2)
        count = len(params)
        assert any(mean.any() for mean in still[count:])
        for i, start in enumerate(params):
            tolerance = 1e-9 if start.dtype == np.float64 else 1e-5
            np.testing.assert_allclose(still[i], plain[i], rtol=0, atol=tolerance)
            if not still[count + i].any():
                continue
            mean = (start - moved[i]) / (steps * rate) - shift[i]
            np.testing.assert_allclose(moved[count + i], mean, rtol=0, atol=tolerance * 100)
            np.testing.assert_allclose(once[1][i], once[0][i] - rate * shift[i], rtol=0, atol=tolerance)
            np.testing.assert_allclose(once[1][count + i], once[0][count + i], rtol=0, atol=tolerance * 100)

    # ------------------------------------------------------------------------------------------------ metrics

    def test_metrics_are_of_the_received_params_on_the_test_rows_and_only_on_demand(
        self, task: Task, shard: Shard, config: Config
    ) -> None:
        params = task.initial_arrays(0)
        expected = task.measure(params, shard.test)
        assert tuple(expected) == task.metric_names
        assert _fit(task, shard, params, config)[2] == expected
        assert _fit(task, shard, params, {**config, "metrics": False})[2] == {}
        _, num_examples, sums = task.make_client(shard).evaluate([a.copy() for a in params], dict(config))
        assert num_examples == len(shard.test)
        assert sums == expected

    def test_sums_over_any_split_add_up_to_the_sums_over_all(self, task: Task, shard: Shard, config: Config) -> None:
        arrays, rows = _fit(task, shard, task.initial_arrays(0), config)[0], shard.train
        whole = task.measure(arrays, rows)
        tolerance = 1e-13 if all(array.dtype == np.float64 for array in arrays) else 1e-5
        for cut in range(len(rows) + 1):
            head, tail = (
                task.measure(arrays, Rows(rows.x[part], rows.y[part])) for part in (slice(cut), slice(cut, None))
            )
            for name, total in whole.items():
                assert type(head[name]) is type(tail[name]) is type(total), name
                assert head[name] + tail[name] == (
                    total if isinstance(total, int) else pytest.approx(total, rel=tolerance, abs=tolerance)
                ), name

    def test_means_are_those_of_the_sums_and_nan_without_rows(self, task: Task, shard: Shard) -> None:
        params = task.initial_arrays(0)
        sums = task.measure(params, shard.test)
        task.check_sums(sums)
        means = task.summarise(sums)
        assert tuple(means) == task.reports
        assert all(isinstance(value, float) for value in means.values())
        exact = task.summarise({name: Fraction(value) for name, value in sums.items()})
        assert exact == pytest.approx(means, rel=1e-12)
        nothing = task.summarise(task.measure(params, Rows(shard.test.x[:0], shard.test.y[:0])))
        assert all(math.isnan(value) for value in nothing.values())

    def test_evaluation_holds_the_means_and_what_it_announces_besides(self, task: Task, shard: Shard) -> None:
        params = task.initial_arrays(0)
        means = task.summarise(task.measure(params, shard.test))
        found = task.evaluate(params, shard.test)
        assert means.items() <= found.items()
        assert set(found) - set(means) <= set(task.server_reports)

    def test_metrics_of_rows_are_of_each_row_alone(self, task: Task, shard: Shard) -> None:
        """So that one row adds no more to a release with noise than its range (strategies/private_metrics.py)."""
        params, rows = task.initial_arrays(0), shard.test
        found = task.measure_rows(params, rows)
        assert set(found) == set(task.metric_ranges)
        for index in range(len(rows)):
            alone = task.measure_rows(params, Rows(rows.x[index : index + 1], rows.y[index : index + 1]))
            for name, values in found.items():
                assert values.shape == (len(rows),)
                assert alone[name] == pytest.approx(values[index : index + 1], rel=1e-4, abs=1e-5), name
        for name, (low, high) in task.metric_ranges.items():
            assert -math.inf < low < high < math.inf
            assert found[name].mean() == pytest.approx(task.summarise(task.measure(params, rows))[name], rel=1e-5)

    def test_sums_that_no_rows_can_give_are_refused(self, task: Task, shard: Shard) -> None:
        sums = task.measure(task.initial_arrays(0), shard.test)
        assert "examples" in sums
        for wrong in (-1, Fraction(1, 2)):
            with pytest.raises(ValueError, match="examples"):
                task.check_sums({**sums, "examples": wrong})

    def test_a_config_that_clients_would_refuse_is_refused_before(self, task: Task, config: Config) -> None:
        task.check_config(config)
        with pytest.raises(ValueError, match="learning-rate"):
            task.check_config({**config, "learning-rate": -1.0})

    # ---------------------------------------------------------------------------------------------- whole runs

    def test_a_run_ends_with_finite_metrics_and_the_same_params_for_any_number_of_nodes(self, tmp_path: Path) -> None:
        keys = {"task": self.target, "task-args": self.args, "num-clients": 2, "rounds": 2, **self.keys}
        ends = [run_inline(tmp_path / f"{nodes}-nodes", keys, nodes=nodes)[0] for nodes in (1, 3)]
        for summary in ends:
            assert summary["status"] == "completed"
            assert summary["client_updates"] == 4
            assert summary["metrics"]
            assert all(value is not None for value in summary["metrics"].values()), summary["metrics"]
        assert ends[0]["params_sha256"] == ends[1]["params_sha256"]


def _fit(task: Task, shard: Shard, params: Arrays, config: Config) -> tuple[Arrays, Any, dict[str, Any]]:
    arrays, num_examples, metrics = task.make_client(shard).fit([array.copy() for array in params], dict(config))
    return tuple(np.asarray(array) for array in arrays), num_examples, metrics


def _distance(arrays: Arrays, others: Arrays) -> float:
    return float(np.sqrt(sum(float(np.square(a - b).sum()) for a, b in zip(arrays, others, strict=True))))


def _same(first: Arrays, second: Arrays) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)

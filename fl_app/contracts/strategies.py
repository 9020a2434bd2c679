"""What holds for every strategy."""

# ruff: noqa: S101

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.client import NumPyClient

from fl_app import registry
from fl_app.contracts.runs import run_inline
from strategies.base import Basics, ComposedStrategy
from strategies.transform import Round, chain
from strategies.update import FixedPoint, Update
from strategies.work import template_of
from tasks.base import Shard
from tasks.logistic import LogisticTask

LOOP = {name for name, member in vars(ComposedStrategy).items() if callable(member) and name != "__init__"}
ABSENT = "00"


class StrategyContract:
    """Subclass it as `class TestMyStrategy(StrategyContract)` and set `target`; override what does not fit."""

    target: ClassVar[str]
    """The strategy's name or module:Attr."""
    args: ClassVar[str] = ""
    """As in the run's strategy-args."""
    keys: ClassVar[Mapping[str, Any]] = {"rounds": 8, "learning-rate": 0.2, "local-epochs": 2, "num-clients": 10}
    """Of a run on the inline engine in which the strategy learns."""
    loss: ClassVar[str] = "log_loss"
    """The metric that has to fall from the first round to the last."""
    reproducible: ClassVar[bool] = True
    """False where keys come from the operating system: then no two runs are the same. A strategy that promises privacy
    says so itself: its noise does."""

    def _build(self) -> ComposedStrategy:
        strategy: ComposedStrategy = registry.build("strategy", self.target, self.args, Basics())
        return strategy

    def _run(self, out: Path, *, nodes: int = 2, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        keys = {"strategy": self.target, "strategy-args": self.args, **self.keys, **more}
        return run_inline(out, keys, nodes=nodes)

    # ------------------------------------------------------------------------------------------------- parts

    def test_it_chooses_parts_and_overrides_nothing(self) -> None:
        cls = registry.resolve("strategy", self.target)
        assert cls.__bases__ == (ComposedStrategy,)
        assert not set(vars(cls)) & LOOP

    def test_server_and_node_build_the_same_pipeline_from_the_same_words(self) -> None:
        here, there = self._build(), self._build()
        assert here.pipeline == there.pipeline == chain(here.pipeline)
        assert here.work.request == there.work.request
        assert type(here.aggregator) is type(there.aggregator)
        assert here.server_optimizer == there.server_optimizer

    def test_it_documents_itself_and_each_argument(self) -> None:
        cls = registry.resolve("strategy", self.target)
        assert registry.summary_line(cls)
        for argument in registry.arguments(cls):
            assert argument.doc, f"{argument.name}: say what it is in the Args: section of the docstring"

    def test_no_client_weighs_more_than_the_bound_that_the_sum_is_scaled_by(self) -> None:
        pipeline = self._build().pipeline
        arrays = (np.ones((2, 3)), np.zeros(4))
        info = Round(1, 0, FixedPoint(20), template=template_of(arrays))
        info = replace(info, public=pipeline.announce(pipeline.begin(), info))
        for examples in (1, 49, 50, 51, 10**6, 10**9):
            update = Update(arrays, ("a",), num_examples=examples)
            assert 1 <= pipeline.encode(update, (), info)[0].weight <= pipeline.max_weight(examples)

    # ------------------------------------------------------------------------------------------------- whole runs

    def test_it_learns(self, tmp_path: Path) -> None:
        summary, lines = self._run(tmp_path / "out")
        losses = [line["metrics"][self.loss] for line in lines]
        assert summary["status"] == "completed"
        assert losses[-1] < losses[0], losses

    def test_the_result_does_not_depend_on_how_clients_are_spread_over_nodes(self, tmp_path: Path) -> None:
        if not self.reproducible or self._build().protection is not None:
            pytest.skip("no two runs are the same")
        ends = [self._run(tmp_path / f"{nodes}-nodes", nodes=nodes, rounds=3)[0] for nodes in (1, 3)]
        assert ends[0]["params_sha256"] == ends[1]["params_sha256"]

    def test_it_survives_a_client_that_fails_in_every_round(self, tmp_path: Path) -> None:
        task = f"{__name__}:{OneClientFails.__name__}"
        summary, lines = self._run(tmp_path / "out", rounds=3, task=task)
        assert summary["status"] == "completed"
        if self._build().sampler.secret:  # who was drawn, and so who was dropped, is nobody's to know
            assert all((line["good"], line["dropped"]) == (None, []) for line in lines)
            return
        dropped = [entry for line in lines for entry in line["dropped"]]
        assert dropped == [{"client": ABSENT, "reason": "raised"}] * len(dropped)
        assert dropped


class OneClientFails(LogisticTask):
    """Logistic regression in which one client raises whenever it is to train."""

    def make_client(self, shard: Shard) -> Any:
        """The first client is one that fails."""
        return _Failing() if shard.client == ABSENT else super().make_client(shard)


class _Failing(NumPyClient):
    def fit(self, parameters: Any, config: Any) -> Any:
        raise RuntimeError("this client fails, as the contract wants it")

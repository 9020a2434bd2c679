"""Contract suites: what holds for every task, strategy and transform. They need pytest.

To check a class of your own, one line each in a test file:

    from fl_app.contracts import StrategyContract, TaskContract, TransformContract

    class TestMyTask(TaskContract): target = "my_task:MyTask"; args = "scale=0.1"
    class TestMyStrategy(StrategyContract): target = "my_strategy:MyStrategy"
    class TestMyTransform(TransformContract): transform = MyTransform(bits=8)

What a suite cannot know (other data, other keys of the run) is an attribute or a method to override.
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in ("tasks", "strategies", "transforms")))

from fl_app.contracts.strategies import StrategyContract  # noqa: E402 - after the line above
from fl_app.contracts.tasks import TaskContract  # noqa: E402
from fl_app.contracts.transforms import TransformContract  # noqa: E402

__all__ = ["StrategyContract", "TaskContract", "TransformContract"]

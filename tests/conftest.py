"""One BLAS thread for every test, as for every process of a run: more make small products slower.

absl, which dp-accounting brings, keeps the stderr that it is first imported with and may close it at a later time.
Under pytest that is the file of captured output; import-linter (tests/test_layers.py) reconfigures logging, which has
absl close it, and pytest ends in the middle. So absl is imported here, with the stderr of the process.

Hypothesis judges no test by its time: other work may have the same cores.
"""

import sys
from contextlib import redirect_stderr

import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

with redirect_stderr(sys.__stderr__):
    import absl.logging  # noqa: F401

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield

"""A promise of privacy in words: no number in it is smaller than what it stands for."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fl_app.console import round_line
from fl_app.page.headline import tiles
from fl_app.page.privacy import privacy_section
from fl_app.privacy_words import as_bound, odds, rounded_up


@given(st.floats(1e-6, 1e6), st.integers(1, 6))
@example(2.3, 2)
@example(99.96, 3)
def test_a_bound_is_never_rounded_down_nor_by_more_than_its_last_digit(value: float, digits: int) -> None:
    found = rounded_up(value, digits)
    assert value * (1 - 1e-8) <= found <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-8)
    assert rounded_up(found, digits) == pytest.approx(found, rel=1e-12)


def test_whoever_reads_an_epsilon_reads_no_less_than_was_spent() -> None:
    assert (as_bound(2.00001), as_bound(2.0), as_bound(0.0), as_bound(128.41)) == ("2.001", "2", "0", "128.5")
    assert "at most 7.47 times" in odds(2.01, 1e-5)  # exp(2.01) is 7.463
    summary = {"privacy": {"unit": "client", "epsilon": 2.0011, "delta": 1e-5}}
    for part in (tiles(summary), privacy_section(summary, [])):
        assert " 2.01" in str(part)
        assert " 2.00" not in str(part)
    line = {"round": 1, "expected_clients": 9, "good": 9, "epsilon": 2.0011, "seconds": {"total": 1.0}}
    assert "epsilon 2.002" in round_line(line, 1, 9)

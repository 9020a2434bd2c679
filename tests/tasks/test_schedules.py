"""Learning rates by round."""

import math
from itertools import pairwise

import pytest

from tasks.schedules import learning_rate


def rates(schedule, rounds=20):
    return [learning_rate(schedule, 0.4, round, rounds) for round in range(1, rounds + 1)]


def test_constant():
    assert rates("constant") == [0.4] * 20


def test_step_falls_after_every_so_many_rounds():
    assert rates("step every=10 factor=0.5") == [0.4] * 10 + [0.2] * 10
    assert rates("step") == rates("step every=10 factor=0.5")
    assert rates("step factor=0.1 every=1", 3) == pytest.approx([0.4, 0.04, 0.004])


def test_cosine_falls_from_the_base_rate_towards_its_floor():
    plain, floored = rates("cosine"), rates("cosine floor=0.25")
    assert plain[0] == floored[0] == 0.4
    assert plain[10] == pytest.approx(0.2)
    assert plain == sorted(plain, reverse=True)
    assert 0 < plain[-1] < 0.01
    assert floored[10] == pytest.approx(0.1 + 0.3 / 2)
    assert floored[-1] == pytest.approx(0.1, abs=0.003)


def test_inv_sqrt():
    assert rates("inv-sqrt") == pytest.approx([0.4 / math.sqrt(round) for round in range(1, 21)])


def test_cosine_warms_up_in_equal_steps_and_then_falls_as_without():
    warm, plain = rates("cosine warmup=4"), rates("cosine")
    assert warm[:4] == pytest.approx([0.25 * warm[3], 0.5 * warm[3], 0.75 * warm[3], warm[3]])
    assert warm[3] == warm[4] == plain[0]
    assert all(a > b for a, b in pairwise(warm[4:]))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", "unknown lr-schedule 'cosin': did you mean 'cosine'"),
        ("", "unknown lr-schedule ''"),
        ("step evry=3", "unknown argument of lr-schedule step 'evry': did you mean 'every'"),
        ("constant every=3", "unknown argument of lr-schedule constant 'every': known are none"),
        ("step every=3.5", "every must be a whole number"),
        ("step every", "every must be a whole number, written every=VALUE"),
        ("cosine floor=low", "floor must be a number"),
        ("step every=3 every=4", "given twice"),
        ("step every=0", "needs every >= 1"),
        ("step factor=1.5", "0 < factor <= 1"),
        ("cosine floor=nan", "0 <= floor <= 1"),
        ("cosine warmup=999", "0 <= warmup < rounds"),
    ],
)
def test_a_wrong_schedule_is_refused_with_what_to_do(schedule, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(schedule, 0.1, 1, 10)


@pytest.mark.parametrize("round", [0, 11])
def test_rounds_count_from_one(round):
    with pytest.raises(ValueError, match="within 1 and rounds = 10"):
        learning_rate("constant", 0.1, round, 10)

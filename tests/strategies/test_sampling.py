"""Cohorts depend on (seed, round, clients) alone."""

import numpy as np

from strategies.roster import Member, Roster
from strategies.sampling import Draw, Everyone, FixedSize, clients_per_round, round_rng

CLIENTS = tuple(f"{i:02}" for i in range(20))


def test_a_cohort_is_the_same_each_time_and_another_in_another_round_or_run():
    draw = {(s, r): FixedSize(7).sample(CLIENTS, Draw(r, round_rng(s, r))) for s in (0, 1) for r in (1, 2)}
    assert draw[0, 1] == FixedSize(7).sample(CLIENTS, Draw(1, round_rng(0, 1)))
    assert len(set(draw.values())) == 4


def test_a_fixed_size_cohort_has_distinct_clients_in_order_and_every_client_equally_often():
    counts = dict.fromkeys(CLIENTS, 0)
    rounds = 4_000
    for number in range(rounds):
        cohort = FixedSize(5).sample(CLIENTS, Draw(number, round_rng(3, number)))
        assert len(set(cohort)) == 5
        assert list(cohort) == sorted(cohort)
        for client in cohort:
            counts[client] += 1
    p = 5 / 20
    spread = np.sqrt(rounds * p * (1 - p))
    assert max(abs(count - rounds * p) for count in counts.values()) < 4.5 * spread


def test_zero_clients_per_round_means_everyone_and_more_than_there_are_means_all():
    assert clients_per_round(0) == Everyone()
    assert clients_per_round(0).sample(CLIENTS, Draw(1, round_rng(0, 1))) == CLIENTS
    assert FixedSize(99).sample(CLIENTS, Draw(1, round_rng(0, 1))) == CLIENTS
    assert FixedSize(99).cohort_size(20) == 20


def test_over_selection_draws_more_and_waits_for_as_many_as_without():
    sampler = clients_per_round(10, 0.3)
    assert [sampler.cohort_size(there) for there in (100, 12, 5)] == [13, 12, 5]
    assert [sampler.awaited(drawn) for drawn in (13, 12, 5)] == [10, 10, 5]
    assert clients_per_round(100, 0.07).cohort_size(200) == 107
    assert clients_per_round(10, 0.01).cohort_size(200) == 11
    plain = clients_per_round(10)
    assert (plain.cohort_size(100), plain.awaited(10)) == (10, 10)


def test_a_roster_sorts_its_clients_and_groups_them_by_node():
    roster = Roster([Member("b", 1, 5), Member("c", 2, 5), Member("a", 1, 5)])
    assert roster.clients == ("a", "b", "c")
    assert roster.by_node(roster.clients) == {1: ("a", "b"), 2: ("c",)}
    assert len(roster) == 3


def test_where_any_node_can_work_for_any_client_each_gets_as_many():
    members = [Member(client, 1 if client < "15" else 2, 5) for client in CLIENTS]
    cohort = CLIENTS[:7]
    assert {node: len(own) for node, own in Roster(members, anywhere=True).by_node(cohort).items()} == {1: 4, 2: 3}
    assert Roster(members).by_node(cohort) == {1: cohort}

"""Whole histories of a cluster, by seed: nothing is lost, and the index comes out true."""

from __future__ import annotations

import pytest

from tests.simulation import world

SEEDS = range(12)
REQUESTS = 60


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_lost_on_the_way_every_request_is_served_and_the_index_is_true(
    seed: int,
) -> None:
    played = world.run(seed, requests=REQUESTS)
    assert played.completed == REQUESTS, played.history
    assert played.disagreements() == [], played.history
    for worker in played.engines:
        owed = played.router.core.ledger.of(worker)
        assert owed.requests >= 0


def test_one_seed_is_one_history_and_another_is_another() -> None:
    first, again, other = (world.run(seed, requests=30) for seed in (3, 3, 4))
    assert first.history == again.history
    assert first.history != other.history

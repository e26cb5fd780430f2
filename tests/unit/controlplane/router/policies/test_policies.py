"""Policies over plain data: tables of candidates and who must win."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from controlplane.router.policies.base import Candidates, Floats, Prompt, State, Weighed, pick
from controlplane.router.policies.blind import round_robin
from controlplane.router.policies.catalog import POLICIES, Catalog
from controlplane.router.policies.kv import kv
from controlplane.router.settings import RouterSettings
from tests.unit.controlplane.router.policies.tables import Row, table


def state(weight: float = 1.0, seed: int = 0) -> State:
    return State(random.Random(seed), RouterSettings(prefill_weight=weight).knobs)


def costs(*values: float) -> Floats:
    return np.array(values)


def weigh(name: str, prompt: Prompt, candidates: Candidates, where: State) -> Floats:
    found = Catalog().policy(name)(prompt, candidates, where)
    return found.costs if isinstance(found, Weighed) else found


def winner(name: str, prompt: Prompt, candidates: Candidates, weight: float = 1.0) -> str:
    where = state(weight)
    weighed = weigh(name, prompt, candidates, where)
    return candidates.workers[pick(candidates, weighed, where.rng, 0.0)]


def test_kr3_the_documented_example() -> None:
    """Prefill 8, 5, 2 blocks and decode 10, 5, 9 cost 18, 10 and 11: the second wins."""
    prompt = Prompt(tokens=0, expected_output_tokens=0)
    candidates = table(
        Row("1", queued=8, decode=10),
        Row("2", queued=5, decode=5),
        Row("3", queued=2, decode=9),
    )
    assert kv(prompt, candidates, state()).tolist() == [18, 10, 11]
    assert winner("kv", prompt, candidates) == "2"


def test_kr1_requests_are_priced_by_what_they_cost() -> None:
    """A short prompt, a long one, and the next turn of a long one are three different things."""
    cold, warm = Row("cold"), Row("warm", overlap=2_400)

    def price(tokens: int, output: int, worker: Row) -> float:
        return float(kv(Prompt(tokens, output), table(worker), state(8.0))[0])

    short, long, turn = price(100, 10, cold), price(40_000, 500, cold), price(40_000, 500, warm)
    assert short < turn < long / 3


def test_kr4_affinity_is_a_hint_that_overload_overrides() -> None:
    prompt = Prompt(1_600, 100)
    crowded = Row("home", overlap=90, queued=400, decode=900, requests=30)
    assert winner("kv", prompt, table(crowded, Row("away")), 8.0) == "away"


def test_kr7_a_perfect_hit_with_a_terrible_queue_may_lose() -> None:
    prompt = Prompt(160, 10)
    assert winner("kv", prompt, table(Row("hit", overlap=10, queued=50), Row("cold"))) == ("cold")


def test_kr7_a_hit_with_a_short_queue_wins() -> None:
    prompt = Prompt(1_600, 10)
    assert winner("kv", prompt, table(Row("hit", overlap=100, queued=5), Row("cold"))) == ("hit")


def test_kr17_more_weight_favours_the_cache() -> None:
    prompt = Prompt(320, 16)
    candidates = table(Row("cached", overlap=20, decode=60), Row("idle"))
    assert winner("kv", prompt, candidates, 1.0) == "idle"
    assert winner("kv", prompt, candidates, 8.0) == "cached"
    assert winner("kv", prompt, candidates, 0.0) == "idle"


def test_round_robin_takes_turns_whoever_comes_and_goes() -> None:
    where, prompt = state(), Prompt(10, 10)
    names = ["a", "b", "c"]

    def turn(*present: str) -> str:
        candidates = table(*(Row(name) for name in present))
        return candidates.workers[int(round_robin(prompt, candidates, where).argmin())]

    assert [turn(*names) for _ in range(4)] == ["a", "b", "c", "a"]
    assert turn("a", "c") == "c"
    assert turn("b", "c") == "b"


def test_least_loaded_counts_requests() -> None:
    candidates = table(
        Row("a", requests=3),
        Row("b", requests=1),
        Row("c", requests=2),
    )
    assert winner("least_loaded", Prompt(10, 10), candidates) == "b"


def test_lmetric_multiplies_new_tokens_by_the_batch_and_neither_is_zero() -> None:
    prompt = Prompt(160, 10)
    candidates = table(
        Row("idle"),
        Row("holder", overlap=10, requests=99),
        Row("half", overlap=5, requests=2),
        Row("crowded holder", overlap=10, requests=400),
    )
    assert weigh("lmetric", prompt, candidates, state()).tolist() == [160, 100, 240, 401]


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round_robin"}))
def test_an_idle_fleet_is_used_whole(name: str) -> None:
    """Ties are not settled by name: the first worker would get everything."""
    where, prompt = state(), Prompt(100, 10)
    candidates = table(*(Row(str(i)) for i in range(4)))
    chosen = Counter(
        pick(candidates, weigh(name, prompt, candidates, where), where.rng, 0.0) for _ in range(400)
    )
    assert min(chosen[i] for i in range(4)) > 50


def test_ties_go_to_who_has_fewest_requests() -> None:
    candidates = table(Row("a", requests=2), Row("b", requests=1))
    assert pick(candidates, costs(1.0, 1.0), random.Random(0), 0.0) == 1


def test_temperature_spreads_and_zero_does_not() -> None:
    candidates = table(Row("a"), Row("b"), Row("c"))
    rng = random.Random(0)
    assert {pick(candidates, costs(1.0, 2.0, 9.0), rng, 0.0) for _ in range(50)} == {0}
    spread = Counter(pick(candidates, costs(1.0, 2.0, 9.0), rng, 1.0) for _ in range(600))
    assert spread[0] > spread[1] > spread[2] > 0


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="least_loaded"):
        Catalog().policy("magic")

"""Affinity: the same worker for the same key, as long as nobody is drowned by it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.router.policies.affinity import BOUND, consistent_hash
from controlplane.router.policies.base import Prompt, State, Weighed
from controlplane.router.policies.catalog import Catalog
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from tests.unit.controlplane.router.policies.tables import Row, table

KEYS = st.integers(0, (1 << 64) - 1)
NAMES = [f"w{i}" for i in range(8)]


def state() -> State:
    return State(random.Random(0), RouterSettings().knobs)


def hashed(key: int | None, *rows: Row) -> str:
    costs = consistent_hash(Prompt(160, 10, key), table(*rows), state())
    return rows[int(costs.argmin())].name


@given(KEYS, st.permutations(NAMES), st.sampled_from(NAMES))
def test_a_worker_that_leaves_moves_its_own_keys_only(
    key: int, names: list[str], leaver: str
) -> None:
    before = hashed(key, *(Row(name) for name in names))
    after = hashed(key, *(Row(name) for name in names if name != leaver))
    assert after == before or before == leaver


def test_keys_are_spread_over_all_workers() -> None:
    rows, rng = [Row(name) for name in NAMES], random.Random(0)
    taken = Counter(hashed(rng.getrandbits(64), *rows) for _ in range(2_000))
    assert min(taken[name] for name in NAMES) > 150


@given(KEYS, st.integers(1, 400))
def test_one_hot_key_drowns_nobody(key: int, requests: int) -> None:
    load = Counter[str]()
    for _ in range(requests):
        load[hashed(key, *(Row(name, requests=load[name]) for name in NAMES))] += 1
    assert max(load.values()) <= BOUND * requests / len(NAMES) + 1


@given(KEYS)
def test_a_key_comes_home_when_there_is_room_again(key: int) -> None:
    home = hashed(key, *(Row(name) for name in NAMES))
    crowded = [Row(name, requests=50 if name == home else 0) for name in NAMES]
    assert hashed(key, *crowded) != home
    assert hashed(key, *(Row(name, requests=5) for name in NAMES)) == home


def test_without_a_key_it_is_least_loaded() -> None:
    assert hashed(None, Row("a", requests=2), Row("b", requests=1)) == "b"


@pytest.mark.parametrize("name", ["kv", "slo"])
@pytest.mark.parametrize("home", ["a", "b"])
def test_kr4_among_equals_a_session_stays_where_it_is(name: str, home: str) -> None:
    rows = Row("a", overlap=20, requests=3), Row("b", overlap=20, requests=3)
    assert best(name, home, *rows) == home


@pytest.mark.parametrize("name", ["kv", "slo"])
def test_kr4_affinity_is_outweighed_by_load_and_by_cache(name: str) -> None:
    assert best(name, "a", Row("a", requests=9, queued=30, decode=300), Row("b")) == "b"
    assert best(name, "a", Row("a", overlap=20), Row("b", overlap=40)) == "b"


@pytest.mark.parametrize("name", ["kv", "slo"])
def test_kr4_a_home_that_is_gone_changes_nothing(name: str) -> None:
    rows = Row("a", queued=3), Row("b")
    assert best(name, "gone", *rows) == best(name, None, *rows) == "b"


def best(name: str, home: str | None, *rows: Row) -> str:
    prompt = Prompt(1_600, 100, home=None if home is None else WorkerId(home))
    found = Catalog().policy(name)(prompt, table(*rows), state())
    costs = found.costs if isinstance(found, Weighed) else found
    return rows[int(costs.argmin())].name

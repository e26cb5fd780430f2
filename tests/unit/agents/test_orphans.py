from __future__ import annotations

from agents.adapters.protocol import EngineHash, Stored
from agents.orphans import Orphans


def run(parent: EngineHash, *hashes: EngineHash) -> Stored:
    return Stored(hashes, parent, tokens=[0] * len(hashes), block_tokens=1)


def test_runs_wait_for_their_parent() -> None:
    orphans = Orphans(blocks_max=10)
    one, two, other = run(1, 2, 3), run(1, 4), run(9, 5)
    for each in (one, two, other):
        orphans.keep(each)
    assert len(orphans) == 4
    assert orphans.children_of(1) == [one, two]
    assert orphans.children_of(1) == []
    assert len(orphans) == 1


def test_the_same_run_is_kept_once() -> None:
    orphans = Orphans(blocks_max=10)
    orphans.keep(run(1, 2, 3))
    orphans.keep(run(1, 2, 3))
    assert len(orphans) == 2


def test_over_the_bound_the_oldest_go() -> None:
    orphans = Orphans(blocks_max=3)
    for first in (10, 20, 30):
        orphans.keep(run(first, first + 1, first + 2))
    assert len(orphans) == 2
    assert orphans.children_of(10) == orphans.children_of(20) == []
    assert len(orphans.children_of(30)) == 1


def test_a_run_over_the_bound_is_not_kept() -> None:
    orphans = Orphans(blocks_max=1)
    orphans.keep(run(1, 2, 3))
    assert len(orphans) == 0


def test_clear_forgets_everything() -> None:
    orphans = Orphans(blocks_max=10)
    orphans.keep(run(1, 2))
    orphans.clear()
    assert len(orphans) == 0
    assert orphans.children_of(1) == []

"""The table of names: what is spilled, what moves up, what survives growth."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.router.blocktable import LANES, BlockTable, Moved
from proto.hashing import Words

BUCKETS = 8
SAME_BUCKET = [3 + BUCKETS * i for i in range(1, LANES + 4)]
"""More names than a bucket has lanes."""


def words(names: list[int]) -> Words:
    return np.array(names, dtype=np.uint64)


def set_all(table: BlockTable, names: list[int], mark: int) -> list[Moved]:
    return table.rewrite(names, lambda _: mark)


@pytest.fixture
def full() -> BlockTable:
    """One bucket is full, and three more names belong there."""
    table = BlockTable(BUCKETS)
    for mark, name in enumerate(SAME_BUCKET, start=1):
        set_all(table, [name], mark)
    return table


def test_names_beyond_a_full_bucket_are_found_too(full: BlockTable) -> None:
    assert len(full) == len(SAME_BUCKET)
    assert full.marks(words(SAME_BUCKET)).tolist() == list(range(1, len(SAME_BUCKET) + 1))
    assert [full.mark(name) for name in SAME_BUCKET] == list(range(1, len(SAME_BUCKET) + 1))


def test_a_name_that_is_not_there_has_no_mark(full: BlockTable) -> None:
    absent = 3 + BUCKETS * 100  # it belongs in the full bucket
    assert full.mark(absent) == 0
    assert full.marks(words([absent, SAME_BUCKET[0], 4])).tolist() == [0, 1, 0]


@pytest.mark.parametrize("gone", SAME_BUCKET)
def test_whichever_goes_the_others_stay(full: BlockTable, gone: int) -> None:
    set_all(full, [gone], 0)
    left = [name for name in SAME_BUCKET if name != gone]
    assert full.mark(gone) == 0
    assert all(full.mark(name) == SAME_BUCKET.index(name) + 1 for name in left)
    assert len(full) == len(left)


def test_a_spilled_name_can_get_another_mark(full: BlockTable) -> None:
    set_all(full, SAME_BUCKET, 9)
    assert set(full.marks(words(SAME_BUCKET)).tolist()) == {9}
    assert len(full) == len(SAME_BUCKET)


def test_emptied_and_filled_again_nothing_is_left_over(full: BlockTable) -> None:
    set_all(full, SAME_BUCKET, 0)
    assert len(full) == 0
    set_all(full, SAME_BUCKET[:2], 5)
    assert full.marks(words(SAME_BUCKET)).tolist() == [5, 5, 0, 0, 0, 0, 0]


def test_growth_keeps_every_name_and_mark(full: BlockTable) -> None:
    full.reserve(10_000)
    assert full.buckets >= 10_000 // LANES
    assert full.marks(words(SAME_BUCKET)).tolist() == list(range(1, len(SAME_BUCKET) + 1))
    assert len(full) == len(SAME_BUCKET)


def test_rewriting_tells_what_moved_run_by_run() -> None:
    table = BlockTable(BUCKETS)
    assert set_all(table, [1, 2], 5) == [Moved(0, 5, 2, 1 ^ 2)]
    assert table.rewrite([1, 7, 2], lambda mark: mark + 1) == [
        Moved(5, 6, 1, 1),
        Moved(0, 1, 1, 7),
        Moved(5, 6, 1, 2),
    ]


def test_a_name_that_comes_twice_moves_once() -> None:
    table = BlockTable(BUCKETS)
    assert set_all(table, [4, 4], 5) == [Moved(0, 5, 1, 4)]
    assert set_all(table, [4, 4], 0) == [Moved(5, 0, 1, 4)]


def test_marked_names_are_found_bucket_by_bucket(full: BlockTable) -> None:
    set_all(full, [5, 6], 2)
    wanted = words([2, 6, 7])
    found = [full.marked(wanted, first, 1) for first in range(full.buckets)]
    assert sorted(found[3]) == sorted([SAME_BUCKET[1], SAME_BUCKET[5], SAME_BUCKET[6]])
    assert (found[5], found[6]) == ([5], [6])
    assert sum(map(len, found)) == 5

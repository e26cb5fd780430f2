"""A table of a fixed size: two homes a name, and a place for those who find none."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.router.cuckoo import Cuckoo, Moved
from proto.hashing import Words

CELLS = 8
SAME_HOMES = [i << 40 | 4 << 32 | i << 8 | 2 for i in range(1, 8)]
"""Seven names for the same two cells."""


def words(names: list[int]) -> Words:
    return np.array(names, dtype=np.uint64)


def set_all(table: Cuckoo, names: list[int], mark: int) -> list[Moved]:
    return table.rewrite(names, lambda _: mark)


@pytest.fixture
def crowded() -> Cuckoo:
    """Two cells are taken, and five more names belong there."""
    table = Cuckoo(CELLS)
    for mark, name in enumerate(SAME_HOMES, start=1):
        set_all(table, [name], mark)
    return table


def test_names_without_a_home_are_found_too(crowded: Cuckoo) -> None:
    assert len(crowded) == len(SAME_HOMES)
    assert crowded.marks(words(SAME_HOMES)).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [crowded.mark(name) for name in SAME_HOMES] == [1, 2, 3, 4, 5, 6, 7]


def test_a_name_that_is_not_there_has_no_mark(crowded: Cuckoo) -> None:
    absent = 9 << 40 | 4 << 32 | 2  # its homes are taken
    assert crowded.mark(absent) == crowded.mark(0) == 0
    assert crowded.marks(words([absent, SAME_HOMES[0], 4, 0])).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("gone", SAME_HOMES)
def test_whichever_goes_the_others_stay(crowded: Cuckoo, gone: int) -> None:
    set_all(crowded, [gone], 0)
    left = [name for name in SAME_HOMES if name != gone]
    assert crowded.mark(gone) == 0
    assert all(crowded.mark(name) == SAME_HOMES.index(name) + 1 for name in left)
    assert len(crowded) == len(left)
    set_all(crowded, [gone], 9)
    assert (crowded.mark(gone), len(crowded)) == (9, len(SAME_HOMES))


def test_who_is_thrown_out_finds_its_other_home() -> None:
    table = Cuckoo(CELLS)
    first, second, third = (i << 40 | home << 32 | 2 for i, home in ((1, 4), (2, 6), (3, 8)))
    for name in (first, second, third):
        set_all(table, [name], name >> 40)
    assert table.marks(words([first, second, third])).tolist() == [1, 2, 3]


def test_marks_change_wherever_a_name_is(crowded: Cuckoo) -> None:
    set_all(crowded, SAME_HOMES, 9)
    assert set(crowded.marks(words(SAME_HOMES)).tolist()) == {9}
    assert len(crowded) == len(SAME_HOMES)


def test_emptied_and_filled_again_nothing_is_left_over(crowded: Cuckoo) -> None:
    set_all(crowded, SAME_HOMES, 0)
    assert len(crowded) == 0
    set_all(crowded, SAME_HOMES[:2], 5)
    assert crowded.marks(words(SAME_HOMES)).tolist() == [5, 5, 0, 0, 0, 0, 0]


def test_rewriting_tells_what_moved_run_by_run() -> None:
    table = Cuckoo(CELLS)
    assert set_all(table, [1, 2], 5) == [Moved(0, 5, 2, 1 ^ 2)]
    assert table.rewrite([1, 7, 2], lambda mark: mark + 1) == [
        Moved(5, 6, 1, 1),
        Moved(0, 1, 1, 7),
        Moved(5, 6, 1, 2),
    ]


def test_a_name_that_comes_twice_moves_once() -> None:
    table = Cuckoo(CELLS)
    assert set_all(table, [4, 4], 5) == [Moved(0, 5, 1, 4)]
    assert set_all(table, [4, 4], 0) == [Moved(5, 0, 1, 4)]


def test_what_is_popped_or_emptied_is_told_and_gone(crowded: Cuckoo) -> None:
    assert crowded.pop(words([SAME_HOMES[2], 77])).tolist() == [[SAME_HOMES[2], 3]]
    rest = [pair for first in range(0, CELLS, 3) for pair in crowded.empty(first, 3).tolist()]
    assert sorted(rest) == [[SAME_HOMES[i], i + 1] for i in (0, 1, 3, 4, 5, 6)]
    assert len(crowded) == 0


def test_many_are_put_at_once_as_one_by_one(crowded: Cuckoo) -> None:
    table = Cuckoo(CELLS)
    set_all(table, SAME_HOMES[:1], 1)
    table.put(words(SAME_HOMES[1:]), words([2, 3, 4, 5, 6, 7]))
    assert table.marks(words(SAME_HOMES)).tolist() == crowded.marks(words(SAME_HOMES)).tolist()
    assert len(table) == len(SAME_HOMES)


@pytest.mark.parametrize("cells", [CELLS, 64 * CELLS])
def test_many_are_updated_at_once_as_one_by_one(cells: int) -> None:
    table = Cuckoo(cells)
    set_all(table, SAME_HOMES[:4], 4)
    names = words([*SAME_HOMES, 77])
    seen: list[int] = []

    def decide(old: Words) -> Words:
        seen.extend(old.tolist())
        return words([0, 4, 9, 4, 3, 0, 1, 1])

    table.update(names, decide)
    assert seen == [4, 4, 4, 4, 0, 0, 0, 0]
    assert table.marks(names).tolist() == [0, 4, 9, 4, 3, 0, 1, 1]
    assert len(table) == 6


def test_marked_names_are_found_range_by_range(crowded: Cuckoo) -> None:
    set_all(crowded, [10, 14], 2)
    found = [n for at in range(0, CELLS, 2) for n in crowded.marked(words([2, 6, 7]), at, 2)]
    wanted = [10, 14, SAME_HOMES[1], SAME_HOMES[5], SAME_HOMES[6]]
    assert sorted(found) == sorted(wanted)

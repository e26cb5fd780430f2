from __future__ import annotations

from agents.rooted import Rooted


def test_what_lies_behind_a_hole_waits_until_it_is_filled() -> None:
    rooted = Rooted()
    assert rooted.add(1, None) == [1]
    assert rooted.add(2, 1) == [2]
    assert rooted.add(3, 2) == [3]
    assert rooted.discard(1, None) == [3, 2, 1]
    assert rooted.add(4, 3) == []
    assert rooted.add(1, None) == [1, 2, 3, 4]


def test_a_hole_in_one_branch_leaves_the_others_alone() -> None:
    rooted = Rooted()
    for block, parent in ((1, None), (2, 1), (3, 1), (4, 1), (5, 3)):
        rooted.add(block, parent)
    assert rooted.discard(3, 1) == [5, 3]
    assert [block in rooted for block in (1, 2, 3, 4, 5)] == [True, True, False, True, False]


def test_a_long_chain_is_deeper_than_the_stack() -> None:
    rooted = Rooted()
    for block in range(3_000, 1, -1):
        assert rooted.add(block, block - 1) == []
    assert len(rooted.add(1, None)) == 3_000


def test_blocks_that_follow_each_other_in_a_ring_are_never_rooted() -> None:
    rooted = Rooted()
    assert rooted.add(1, 2) == rooted.add(2, 1) == []
    assert rooted.discard(1, 2) == []

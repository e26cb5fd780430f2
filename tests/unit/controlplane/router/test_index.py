"""The index: leading blocks only, holes, leaving in O(1), bits that come back."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.router.index import MATCH_BLOCKS, PrefixIndex
from proto.hashing import Words
from proto.ids import WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
CHAIN = list(range(101, 111))


def words(names: list[int]) -> Words:
    return np.array(names, dtype=np.uint64)


def swept(index: PrefixIndex, entries_max: int = 100) -> int:
    """How many slices it took."""
    slices = 1
    while index.sweep(entries_max):
        slices += 1
    return slices


@pytest.fixture
def index() -> PrefixIndex:
    index = PrefixIndex()
    for worker in (A, B, C):
        index.join(worker)
    return index


def test_depths_are_told_worker_by_worker(index: PrefixIndex) -> None:
    index.store(A, CHAIN)
    index.store(B, CHAIN[:4])
    assert index.match(words(CHAIN)) == {A: 10, B: 4}
    assert index.match(words(CHAIN[:2])) == {A: 2, B: 2}
    assert index.match(words([])) == {}


def test_a_hole_ends_the_prefix_however_much_comes_after_it(index: PrefixIndex) -> None:
    index.store(A, CHAIN)
    index.store(B, CHAIN)
    index.remove(A, [CHAIN[3]])
    index.remove(B, [CHAIN[0]])
    assert index.match(words(CHAIN)) == {A: 3}


def test_holes_of_one_do_not_hide_what_another_holds(index: PrefixIndex) -> None:
    index.store(A, CHAIN[::2])
    index.store(B, CHAIN)
    assert index.match(words(CHAIN)) == {A: 1, B: 10}


def test_prompts_longer_than_one_look_up_are_exact(index: PrefixIndex) -> None:
    long = list(range(1, 2 * MATCH_BLOCKS + 500))
    index.store(A, long)
    index.store(B, long[: MATCH_BLOCKS + 1])
    index.store(C, long[:MATCH_BLOCKS])
    index.remove(A, [long[-1]])
    assert index.match(words(long)) == {
        A: len(long) - 1,
        B: MATCH_BLOCKS + 1,
        C: MATCH_BLOCKS,
    }


def test_the_same_blocks_told_twice_count_once(index: PrefixIndex) -> None:
    index.store(A, CHAIN)
    index.store(A, CHAIN)
    assert index.count(A) == 10
    index.remove(A, CHAIN)
    index.remove(A, CHAIN)
    assert (index.count(A), index.digest(A), len(index)) == (0, 0, 0)


def test_who_leaves_is_unseen_at_once_and_swept_later(index: PrefixIndex) -> None:
    index.store(A, CHAIN)
    index.store(B, CHAIN[:2])
    index.leave(A)
    assert index.match(words(CHAIN)) == {B: 2}
    assert len(index) == 10
    swept(index)
    assert len(index) == 2
    assert index.match(words(CHAIN)) == {B: 2}


def test_a_bit_is_given_out_again_only_after_its_sweep(index: PrefixIndex) -> None:
    index.store(A, CHAIN)
    index.leave(A)
    index.join(WorkerId("new"))
    assert index.match(words(CHAIN)) == {}
    index.sweep(1)
    index.join(WorkerId("newer"))
    assert index.match(words(CHAIN)) == {}


def test_a_sweep_goes_on_in_slices_while_the_world_does(index: PrefixIndex) -> None:
    index.store(A, [*CHAIN, *range(300, 400)])
    index.store(B, CHAIN[5:])
    index.leave(A)
    assert index.sweep(200)
    index.store(C, CHAIN[:7])
    index.remove(B, CHAIN[8:])
    assert swept(index, 200) > 5
    assert index.match(words(CHAIN)) == {C: 7}
    assert index.match(words(CHAIN[5:])) == {B: 3, C: 2}
    assert len(index) == 8


def test_growing_in_the_middle_of_a_sweep_hides_nothing_dead(index: PrefixIndex) -> None:
    index.store(A, list(range(1, 2_000)))
    index.leave(A)
    index.sweep(64)
    index.sweep(64)
    index.store(B, list(range(5_000, 12_000)))
    swept(index, 64)
    assert len(index) == index.count(B) == 7_000


def test_clearing_costs_nothing_and_leaves_nothing(index: PrefixIndex) -> None:
    index.store(A, CHAIN)
    index.clear(A)
    assert (index.count(A), index.digest(A)) == (0, 0)
    assert index.match(words(CHAIN)) == {}
    index.store(A, CHAIN[:3])
    assert index.match(words(CHAIN)) == {A: 3}
    swept(index)
    assert len(index) == 3


def test_sets_of_holders_are_given_back_when_unused(index: PrefixIndex) -> None:
    for _ in range(50):
        for worker in (A, B, C):
            index.store(worker, CHAIN)
        for worker in (B, A, C):
            index.remove(worker, CHAIN)
    assert (index.holder_sets, len(index)) == (0, 0)


def test_many_workers_of_one_depth_are_all_told() -> None:
    index = PrefixIndex()
    fleet = [WorkerId(f"w{i}") for i in range(300)]
    for worker in fleet:
        index.join(worker)
        index.store(worker, CHAIN)
    assert index.match(words(CHAIN)) == dict.fromkeys(fleet, 10)
    assert (len(index), index.holder_sets) == (10, 1)


def test_the_name_that_marks_an_empty_cell_is_not_kept(index: PrefixIndex) -> None:
    index.store(A, [0, *CHAIN])
    index.remove(A, [0])
    assert index.count(A) == 10
    assert index.match(words([0, *CHAIN])) == {}

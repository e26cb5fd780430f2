"""The index: leading blocks only, one seat a worker, leaving in O(1), bits that come back."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.router.index import PrefixIndex
from proto.hashing import Words, mix, pack
from proto.ids import WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def names(first: int, end: int) -> list[int]:
    """As well mixed as real ones."""
    mixed: list[int] = mix(np.arange(first, end, dtype=np.uint64)).tolist()
    return mixed


CHAIN = names(101, 111)


def words(names: list[int]) -> Words:
    return np.array(names, dtype=np.uint64)


def depths(index: PrefixIndex, names: list[int]) -> dict[WorkerId, int]:
    return index.by_worker(index.match(words(names)))


def store(index: PrefixIndex, worker: WorkerId, names: list[int]) -> None:
    index.apply(worker, stored=pack(words(names)))


def remove(index: PrefixIndex, worker: WorkerId, names: list[int]) -> None:
    index.apply(worker, removed=pack(words(names)))


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


def test_depths_are_told_seat_by_seat(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    store(index, B, CHAIN[:4])
    told = index.match(words(CHAIN))
    assert [told[index.seat(worker)] for worker in (A, B, C)] == [10, 4, 0]
    assert len(told) == index.seats == 3
    assert depths(index, CHAIN) == {A: 10, B: 4}


def test_a_prompt_may_be_short_or_unknown_or_have_no_block(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    assert depths(index, CHAIN[:1]) == {A: 1}
    assert depths(index, CHAIN[5:] + CHAIN[:5]) == {A: 10}
    assert depths(index, names(1, 5)) == depths(index, []) == {}
    assert depths(index, CHAIN[:3] + names(1, 5)) == {A: 3}


def test_a_hole_ends_the_prefix_where_it_is_seen(index: PrefixIndex) -> None:
    """A set with holes is no truth; what is behind one may count, what is before one does."""
    store(index, A, CHAIN)
    store(index, B, CHAIN)
    remove(index, A, [CHAIN[-1]])
    remove(index, B, [CHAIN[0]])
    assert depths(index, CHAIN) == {A: 9}
    remove(index, A, [CHAIN[3]])
    assert 3 <= depths(index, CHAIN)[A] <= 9


def test_a_worker_that_joins_takes_a_seat_of_its_own(index: PrefixIndex) -> None:
    before = index.seatings
    index.join(A)
    assert index.seatings == before
    index.leave(B)
    index.join(WorkerId("d"))
    assert index.seatings > before
    seats = [index.seat(worker) for worker in index.workers]
    assert len(set(seats)) == 3
    assert max(seats) < index.seats


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_every_depth_of_a_long_prompt_is_exact(steps: int) -> None:
    index, prompt = PrefixIndex(), names(1, 3_000)
    held = {WorkerId(f"w{i}"): len(prompt) * i // steps for i in range(1, steps + 1)}
    for worker, depth in held.items():
        index.join(worker)
        store(index, worker, prompt[:depth])
    assert depths(index, prompt) == held
    assert depths(index, prompt[:1_000]) == {w: min(d, 1_000) for w, d in held.items()}


def test_the_same_blocks_told_twice_count_once(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    store(index, A, CHAIN)
    assert index.count(A) == 10
    remove(index, A, CHAIN)
    remove(index, A, CHAIN)
    assert (index.count(A), index.digest(A), len(index)) == (0, 0, 0)


def test_who_leaves_is_unseen_at_once_and_swept_later(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    store(index, B, CHAIN[:2])
    index.leave(A)
    assert depths(index, CHAIN) == {B: 2}
    assert len(index) == 10
    swept(index)
    assert len(index) == 2
    assert depths(index, CHAIN) == {B: 2}


def test_equal_holders_are_one_run_though_one_mark_had_a_worker_that_left(
    index: PrefixIndex,
) -> None:
    store(index, A, CHAIN)
    store(index, B, CHAIN[:5])
    index.leave(B)
    assert depths(index, CHAIN) == {A: 10}
    swept(index)
    assert depths(index, CHAIN) == {A: 10}


def test_changes_of_many_workers_are_made_at_once_and_in_order(index: PrefixIndex) -> None:
    """What is said of one block by several, or first stored and then removed, keeps its order."""
    chains = [names(1_000 * i, 1_000 * i + 120) for i in range(1, 5)]
    for chain in chains:
        for worker in (A, B):
            store(index, worker, chain[:60])
            store(index, worker, chain[60:])
        remove(index, B, chain[100:])
        store(index, C, [chain[0], 0, chain[0], *chain[1:20]])
        remove(index, C, chain[10:20])
        store(index, C, chain[10:12])
    for chain in chains:
        assert depths(index, chain) == {A: 120, B: 100, C: 12}
    assert [index.count(worker) for worker in (A, B, C)] == [480, 400, 48]
    assert len(index) == 480


def test_names_that_are_not_whole_change_nothing(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    with pytest.raises(ValueError, match="whole number"):
        index.apply(A, cleared=True, removed=b"1234567", stored=pack(words(CHAIN)))
    assert depths(index, CHAIN) == {A: 10}


def test_a_bit_is_given_out_again_only_after_its_sweep(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    index.leave(A)
    index.join(WorkerId("new"))
    assert depths(index, CHAIN) == {}
    index.sweep(1)
    index.join(WorkerId("newer"))
    assert depths(index, CHAIN) == {}


def test_who_takes_a_seat_after_another_holds_nothing_of_what_that_one_held(
    index: PrefixIndex,
) -> None:
    for worker in (A, B):
        store(index, worker, CHAIN)
    seat = index.seat(A)
    index.leave(A)
    swept(index)
    index.join(WorkerId("new"))
    assert index.seat(WorkerId("new")) == seat
    assert depths(index, CHAIN) == {B: 10}


def test_a_sweep_goes_on_in_slices_while_the_world_does(index: PrefixIndex) -> None:
    store(index, A, [*CHAIN, *names(300, 400)])
    store(index, B, CHAIN[:5])
    index.leave(A)
    assert index.sweep(200)
    store(index, C, CHAIN[:7])
    remove(index, B, CHAIN[3:])
    assert swept(index, 200) > 5
    assert depths(index, CHAIN) == {B: 3, C: 7}
    assert len(index) == 7


def test_growing_in_the_middle_of_a_sweep_hides_nothing_dead(index: PrefixIndex) -> None:
    store(index, A, names(1, 2_000))
    index.leave(A)
    index.sweep(64)
    index.sweep(64)
    store(index, B, names(5_000, 12_000))
    swept(index, 64)
    assert len(index) == index.count(B) == 7_000


def test_a_sweep_also_ends_a_growth_that_no_write_goes_on_with(index: PrefixIndex) -> None:
    store(index, A, names(1, 28_000))
    store(index, A, names(28_000, 28_300))
    assert index.sweep(1_000)
    assert depths(index, names(1, 28_300)) == {A: 28_299}
    assert swept(index, 1_000) > 2
    assert depths(index, names(1, 28_300)) == {A: 28_299}


def test_clearing_costs_nothing_and_leaves_nothing(index: PrefixIndex) -> None:
    store(index, A, CHAIN)
    index.clear(A)
    assert (index.count(A), index.digest(A)) == (0, 0)
    assert depths(index, CHAIN) == {}
    store(index, A, CHAIN[:3])
    assert depths(index, CHAIN) == {A: 3}
    swept(index)
    assert len(index) == 3


def test_sets_of_holders_are_given_back_when_unused(index: PrefixIndex) -> None:
    for _ in range(50):
        for worker in (A, B, C):
            store(index, worker, CHAIN)
        for worker in (B, A, C):
            remove(index, worker, CHAIN)
    assert (index.holder_sets, len(index)) == (0, 0)


def test_many_workers_of_one_depth_are_all_told() -> None:
    index = PrefixIndex()
    fleet = [WorkerId(f"w{i}") for i in range(300)]
    for worker in fleet:
        index.join(worker)
        store(index, worker, CHAIN)
    assert depths(index, CHAIN) == dict.fromkeys(fleet, 10)
    assert (len(index), index.holder_sets) == (10, 1)


def test_the_name_that_marks_an_empty_cell_is_not_kept(index: PrefixIndex) -> None:
    store(index, A, [0, *CHAIN])
    remove(index, A, [0])
    assert index.count(A) == 10
    assert depths(index, [0, *CHAIN]) == {}

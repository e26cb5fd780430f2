"""Runs found by halving, or from memory, against runs found by reading."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controlplane.router.gallop import Gallop
from proto.hashing import Words

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


class Prompts:
    """Prompts with one beginning: their blocks are named by their places, and marked as told."""

    def __init__(self, *, same: bool = False) -> None:
        self._marks = np.empty(0, dtype=np.uint64)
        self._same = same
        self._gallop = Gallop(self, lambda one, other: same and one // 2 == other // 2)
        self.looked_at = 0

    def mark(self, name: int) -> int:
        self.looked_at += 1
        return int(self._marks[name])

    def marks(self, names: Words) -> Words:
        self.looked_at += len(names)
        return self._marks[names]

    def holders(self, marks: list[int]) -> list[int]:
        """What is found, block by block; equal holders by one number."""
        self._marks = np.array(marks, dtype=np.uint64)
        found = self._gallop.runs(np.arange(len(marks), dtype=np.uint64), marks[0])
        blocks = found.bounds[1:] - found.bounds[:-1]
        assert (blocks > 0).all()
        return [int(mark) // (1 + self._same) for mark in np.repeat(found.marks, blocks)]


def chain(lengths: list[int]) -> list[int]:
    """Marks of a prompt whose holders change after so many blocks each."""
    return [run + 1 for run, length in enumerate(lengths) for _ in range(length)]


@given(lengths)
def test_every_change_of_a_shrinking_chain_is_found(lengths: list[int]) -> None:
    assert Prompts().holders(chain(lengths)) == chain(lengths)


@given(lengths, st.data())
def test_different_marks_may_stand_for_equal_holders(
    lengths: list[int], data: st.DataObject
) -> None:
    holders = chain(lengths)
    marks = [2 * each + data.draw(st.integers(0, 1)) for each in holders]
    assert Prompts(same=True).holders(marks) == holders


@given(
    st.lists(st.integers(1, 6), min_size=8, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 3), st.integers(1, 130)), max_size=6),
)
def test_what_is_remembered_of_one_prompt_never_misleads_about_the_next(
    lengths: list[int], later: list[tuple[int, int, int]]
) -> None:
    """The next one is longer or shorter, or has one change at another place."""
    prompts = Prompts()
    assert prompts.holders(chain(lengths)) == chain(lengths)
    for which, more, blocks in later:
        lengths[which % len(lengths)] += more
        marks = chain(lengths)[:blocks]
        assert prompts.holders(marks) == marks


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_what_is_no_shrinking_chain_is_cut_where_marks_change(marks: list[int]) -> None:
    found = Prompts().holders(marks)
    changes = [i for i in range(1, len(marks)) if found[i] != found[i - 1]]
    assert len(found) == len(marks)
    assert all(marks[i - 1] != marks[i] == found[i] for i in changes)


def test_one_depth_takes_a_dozen_look_ups_however_long_the_prompt() -> None:
    for depth in (1, 700, 4_095):
        prompts = Prompts()
        prompts.holders([1] * depth + [0] * (4_096 - depth))
        assert prompts.looked_at <= 14


def test_many_depths_are_read_once_and_then_looked_at_where_they_change() -> None:
    prompts = Prompts()
    marks = chain([16] * 64)
    prompts.holders(marks)
    assert prompts.looked_at >= len(marks)
    prompts.looked_at = 0
    assert prompts.holders([*marks, *[64] * 500]) == [*marks, *[64] * 500]
    assert prompts.looked_at == 2 * 64

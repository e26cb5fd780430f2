"""Runs found by halving against runs found by reading."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controlplane.router.gallop import runs
from proto.hashing import Words

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


class Prompt:
    """Its blocks are named by their places, and marked as told."""

    def __init__(self, marks: list[int]) -> None:
        self._marks = np.array(marks, dtype=np.uint64)
        self.names: Words = np.arange(len(marks), dtype=np.uint64)
        self.read = 0

    def mark(self, name: int) -> int:
        self.read += 1
        return int(self._marks[name])

    def marks(self, names: Words) -> Words:
        self.read += len(names)
        return self._marks[names]

    def holders(self, same: bool) -> list[int]:
        """What is found, block by block; equal holders by one number if `same`."""
        found = runs(self.names, self.mark(0), self, lambda a, b: same and a // 2 == b // 2)
        ends = found.bounds[1:] - found.bounds[:-1]
        assert (ends > 0).all()
        marks = np.repeat(found.marks, ends)
        return [int(mark) // (2 if same else 1) for mark in marks]


@given(lengths)
def test_every_change_of_a_shrinking_chain_is_found(lengths: list[int]) -> None:
    marks = [run + 1 for run, length in enumerate(lengths) for _ in range(length)]
    assert Prompt(marks).holders(same=False) == marks


@given(lengths, st.data())
def test_different_marks_may_stand_for_equal_holders(
    lengths: list[int], data: st.DataObject
) -> None:
    holders = [run + 1 for run, length in enumerate(lengths) for _ in range(length)]
    marks = [2 * each + data.draw(st.integers(0, 1)) for each in holders]
    assert Prompt(marks).holders(same=True) == holders


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_what_is_no_shrinking_chain_is_cut_where_marks_change(marks: list[int]) -> None:
    found = Prompt(marks).holders(same=False)
    changes = [i for i in range(1, len(marks)) if found[i] != found[i - 1]]
    assert len(found) == len(marks)
    assert all(marks[i - 1] != marks[i] == found[i] for i in changes)


def test_one_depth_takes_a_dozen_look_ups_however_long_the_prompt() -> None:
    for depth in (1, 700, 4_095):
        prompt = Prompt([1] * depth + [0] * (4_096 - depth))
        prompt.holders(same=False)
        assert prompt.read <= 14

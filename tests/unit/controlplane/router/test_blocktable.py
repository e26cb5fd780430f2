"""The table of names: it grows in slices, and nobody sees it."""

from __future__ import annotations

import numpy as np

from controlplane.router.blocktable import (
    LOAD_LIMIT,
    LOAD_MAX,
    SLICE_CELLS,
    TOUCHED_PAGES,
    BlockTable,
)
from controlplane.router.cuckoo import PAGE_CELLS, Moved
from proto.hashing import Words, mix

NAMES: Words = mix(np.arange(1, 100_000, dtype=np.uint64))
CELLS = 8 * SLICE_CELLS
FITTING = int(CELLS * LOAD_MAX)
PAGES = 2 * CELLS // PAGE_CELLS
"""Of the table that comes after."""


def set_all(table: BlockTable, names: Words, mark: int) -> list[Moved]:
    return table.rewrite(names.tolist(), lambda _: mark)


def full() -> BlockTable:
    """Full, and one write into its growth."""
    table = BlockTable(CELLS)
    set_all(table, NAMES[:FITTING], 1)
    set_all(table, NAMES[FITTING : FITTING + 16], 2)
    assert table.cells == CELLS
    return table


def growing() -> BlockTable:
    """In the middle of being moved."""
    table = full()
    for _ in range(PAGES // TOUCHED_PAGES + 3):
        assert table.settle()
    assert table.cells == 2 * CELLS
    return table


def test_a_table_doubles_in_slices_and_every_name_stays_readable() -> None:
    table = full()
    slices = 0
    while table.settle():
        slices += 1
        assert (table.marks(NAMES[:FITTING]) == 1).all()
        assert [table.mark(name) for name in NAMES[:50].tolist()] == [1] * 50
    assert slices > PAGES // TOUCHED_PAGES + 4
    assert table.marks(NAMES[FITTING : FITTING + 20]).tolist() == [2] * 16 + [0] * 4
    assert len(table) == FITTING + 16


def test_writes_go_on_with_the_growth() -> None:
    table = full()
    writes = PAGES // TOUCHED_PAGES + CELLS // SLICE_CELLS
    for start in range(FITTING + 16, FITTING + 16 + 16 * writes, 16):
        set_all(table, NAMES[start : start + 16], 2)
    assert not table.settle()


def test_a_table_that_fills_faster_than_the_next_is_ready_uses_it_at_once() -> None:
    table = full()
    set_all(table, NAMES[FITTING + 16 : int(CELLS * LOAD_LIMIT) + 1], 2)
    assert table.cells == 2 * CELLS
    assert (table.marks(NAMES[:FITTING]) == 1).all()


def test_what_is_rewritten_during_growth_is_found_in_both_halves() -> None:
    table = growing()
    everything = NAMES[: FITTING + 16]
    moved = set_all(table, everything[::2], 3)
    assert sum(move.names for move in moved) == len(everything[::2])
    assert (table.marks(everything[::2]) == 3).all()
    set_all(table, everything[1::2], 0)
    assert len(table) == len(everything[::2])
    assert not table.marks(everything[1::2]).any()


def test_a_batch_larger_than_the_table_makes_room_for_itself() -> None:
    table = BlockTable(64)
    set_all(table, NAMES[:40], 1)
    set_all(table, NAMES[40:20_000], 2)
    set_all(table, NAMES[20_000:90_000], 3)
    assert len(table) == 90_000 <= table.cells * LOAD_LIMIT
    wanted = [1] * 40 + [2] * 19_960 + [3] * 70_000
    assert table.marks(NAMES[:90_000]).tolist() == wanted

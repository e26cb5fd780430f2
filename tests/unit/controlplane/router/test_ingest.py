"""Each way in which a worker's stream can break, by name."""

from __future__ import annotations

import pytest

from controlplane.router.ingest import Lane
from proto.ids import WorkerId
from proto.kv import KvBatch
from proto.load import LoadReport

WORKER = WorkerId("w")


def batch(name: int) -> KvBatch:
    return KvBatch(WORKER, name.to_bytes(8, "little"))


def hear(lane: Lane, incarnation: int, *sequences: int) -> list[int]:
    """Offer batches; returns the numbers of those that were applied (0 for a clearing)."""
    return [
        int.from_bytes(each.stored, "little")
        for sequence in sequences
        for each in lane.offer(incarnation, sequence, batch(sequence))
    ]


def report(sequence: int, blocks: int, digest: int) -> LoadReport:
    return LoadReport(WORKER, 0, 0, 0, 0, 0, 0, sequence, blocks, digest)


def test_an_agent_heard_from_its_first_batch_needs_no_snapshot() -> None:
    lane = Lane()
    assert hear(lane, 1, 1, 2, 3) == [0, 1, 2, 3]
    assert lane.needs is None


def test_a_late_joiner_needs_a_snapshot_and_keeps_what_it_hears() -> None:
    lane = Lane()
    assert hear(lane, 1, 7, 8) == [0]
    assert lane.needs == "joined"
    assert [int.from_bytes(b.stored, "little") for b in lane.install(1, 7)] == [8]
    assert lane.needs is None


def test_duplicates_are_dropped() -> None:
    lane = Lane()
    hear(lane, 1, 1, 2)
    assert hear(lane, 1, 2, 1, 3) == [3]


def test_disorder_heals_itself() -> None:
    lane = Lane()
    assert hear(lane, 1, 1, 3) == [0, 1]
    assert lane.needs == "gap"
    assert hear(lane, 1, 2) == [2, 3]
    assert lane.needs is None


def test_a_gap_needs_a_snapshot_that_covers_it() -> None:
    lane = Lane()
    hear(lane, 1, 1, 4, 5)
    assert list(lane.install(1, 3)) == [batch(4), batch(5)]
    assert (lane.sequence, lane.needs) == (5, None)


def test_a_snapshot_that_leaves_a_gap_is_not_enough() -> None:
    lane = Lane()
    hear(lane, 1, 1, 5)
    assert list(lane.install(1, 3)) == []
    assert lane.needs == "gap"


def test_a_restarted_agent_voids_its_past() -> None:
    lane = Lane()
    hear(lane, 1, 1, 2, 3)
    assert hear(lane, 2, 1) == [0, 1]
    assert hear(lane, 1, 4) == []


def test_a_restart_whose_first_batch_was_lost_needs_a_snapshot() -> None:
    lane = Lane()
    hear(lane, 1, 1, 2, 3)
    assert hear(lane, 2, 2) == [0]
    assert lane.needs == "joined"


def test_a_snapshot_of_an_earlier_life_is_refused() -> None:
    lane = Lane()
    hear(lane, 2, 1, 2)
    with pytest.raises(ValueError, match="older"):
        list(lane.install(1, 50))


def test_what_comes_while_a_snapshot_is_installed_waits() -> None:
    lane = Lane()
    hear(lane, 1, 7)
    lane.paused = True
    assert hear(lane, 1, 8) == []
    assert list(lane.install(1, 7)) == [batch(8)]


def test_the_buffer_is_bounded_and_a_later_snapshot_still_heals() -> None:
    lane = Lane(held_max=2)
    hear(lane, 1, 1, 3, 4, 5, 6)
    assert list(lane.install(1, 4)) == [batch(5), batch(6)]


@pytest.mark.parametrize(
    ("told", "agrees", "needs"),
    [
        (report(3, 3, 1 ^ 2 ^ 3), True, None),
        (report(3, 2, 1 ^ 2 ^ 3), False, "digest"),
        (report(3, 3, 9), False, "digest"),
        (report(4, 3, 0), False, "behind"),
        (report(2, 9, 9), True, None),
    ],
)
def test_a_load_report_is_held_against_our_copy(
    told: LoadReport, agrees: bool, needs: str | None
) -> None:
    lane = Lane()
    hear(lane, 1, 1, 2, 3)
    assert lane.check(told, 1, 3, 1 ^ 2 ^ 3) is agrees
    assert lane.needs == needs


def test_a_report_of_an_earlier_life_says_nothing() -> None:
    lane = Lane()
    hear(lane, 2, 1)
    assert lane.check(report(9, 9, 9), 1, 1, 1)

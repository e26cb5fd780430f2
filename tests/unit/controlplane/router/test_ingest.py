"""Each way in which a worker's stream can break, by name (KR9, KR10, KR11)."""

from __future__ import annotations

from itertools import islice

import msgspec
import pytest

from controlplane.router.ingest import (
    BATCH_BYTES,
    CHUNKS_MAX,
    PIECE_BYTES,
    RETRY_MAX_S,
    BadSnapshot,
    Held,
    Lane,
    Snapshot,
    retry_pause_s,
)
from proto.hashing import HASH_BYTES, unpack
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.load import LoadReport, TierSum

WORKER = WorkerId("w")
CLEAR = tuple(KvBatch(WORKER, cleared=True, tier=tier) for tier in Tier)


def batch(name: int) -> KvBatch:
    return KvBatch(WORKER, name.to_bytes(HASH_BYTES, "little"))


def hear(lane: Lane, incarnation: int, *sequences: int) -> list[int]:
    """Offer batches; returns the numbers of those that were applied (0 for a clearing of all)."""
    return [
        int.from_bytes(each.stored, "little")
        for sequence in sequences
        for each in lane.offer(incarnation, sequence, batch(sequence))
        if each not in CLEAR[1:]
    ]


def report(sequence: int, blocks: int, digest: int) -> LoadReport:
    return LoadReport(WORKER, 0, 0, 0, 0, 0, 0, sequence, blocks, digest)


def chunk(
    number: int = 0,
    *,
    incarnation: int = 1,
    sequence: int = 1,
    names: bytes = b"",
    last: bool = True,
    snapshot: int = 9,
) -> KvSnapshotChunk:
    return KvSnapshotChunk(WORKER, incarnation, sequence, snapshot, number, last, Tier.GPU, names)


def snapshot(incarnation: int, sequence: int, names: bytes = b"") -> Snapshot:
    whole = Snapshot(WORKER)
    whole.add(chunk(incarnation=incarnation, sequence=sequence, names=names))
    return whole


def install(lane: Lane, incarnation: int, sequence: int) -> list[int]:
    """Install an empty snapshot; returns the numbers of what is applied on top of it."""
    applied = tuple(lane.install(snapshot(incarnation, sequence)))
    assert applied[: len(CLEAR)] == CLEAR
    return [int.from_bytes(each.stored, "little") for each in applied[len(CLEAR) :]]


@pytest.fixture
def lane() -> Lane:
    return Lane(WORKER)


class TestOrder:
    def test_an_agent_heard_from_its_first_batch_needs_no_snapshot(self, lane: Lane) -> None:
        assert hear(lane, 1, 1, 2, 3) == [0, 1, 2, 3]
        assert lane.needs is None

    def test_a_worker_that_is_registered_needs_a_snapshot(self, lane: Lane) -> None:
        assert lane.registered(1) == CLEAR
        assert lane.needs == "joined"
        assert lane.registered(1) == ()

    def test_unless_its_first_batch_comes_first(self, lane: Lane) -> None:
        lane.registered(1)
        assert hear(lane, 1, 1) == [1]
        assert lane.needs is None

    def test_or_it_says_that_it_holds_nothing_yet(self, lane: Lane) -> None:
        lane.registered(1)
        lane.check(report(0, 0, 0), 1, Held())
        assert lane.needs is None

    def test_a_late_joiner_needs_a_snapshot_and_keeps_what_it_hears(self, lane: Lane) -> None:
        assert hear(lane, 1, 7, 8) == [0]
        assert lane.needs == "joined"
        assert install(lane, 1, 7) == [8]
        assert lane.sequence == 8
        assert lane.needs is None

    def test_a_snapshot_that_comes_when_nothing_is_missing_any_more_changes_nothing(
        self, lane: Lane
    ) -> None:
        hear(lane, 1, 1, 3)
        assert lane.needs == "gap"
        hear(lane, 1, 2)
        assert lane.needs is None
        assert tuple(lane.install(snapshot(1, 3))) == ()
        assert lane.sequence == 3 and lane.needs is None

    def test_duplicates_are_dropped(self, lane: Lane) -> None:
        hear(lane, 1, 1, 2)
        assert hear(lane, 1, 2, 1, 3) == [3]

    def test_a_duplicate_of_what_is_held_is_dropped(self, lane: Lane) -> None:
        assert hear(lane, 1, 1, 3, 3, 2) == [0, 1, 2, 3]

    def test_disorder_heals_itself(self, lane: Lane) -> None:
        assert hear(lane, 1, 1, 3) == [0, 1]
        assert lane.needs == "gap"
        assert hear(lane, 1, 2) == [2, 3]
        assert lane.needs is None

    def test_a_batch_with_a_piece_of_a_name_counts_as_lost(self, lane: Lane) -> None:
        hear(lane, 1, 1)
        with pytest.raises(ValueError, match="piece"):
            lane.offer(1, 2, KvBatch(WORKER, b"1234", b"5678"))
        hear(lane, 1, 3)
        assert (lane.sequence, lane.needs) == (1, "gap")


class TestGaps:
    def test_a_gap_needs_a_snapshot_that_covers_it(self, lane: Lane) -> None:
        hear(lane, 1, 1, 4, 5)
        assert install(lane, 1, 3) == [4, 5]
        assert (lane.sequence, lane.needs) == (5, None)

    def test_a_snapshot_that_leaves_a_gap_is_not_enough(self, lane: Lane) -> None:
        hear(lane, 1, 1, 5)
        assert install(lane, 1, 3) == []
        assert (lane.sequence, lane.needs) == (3, "gap")

    def test_what_a_report_says_during_an_installation_is_not_forgotten(self, lane: Lane) -> None:
        """Batch 5 was sent before the report, and is lost."""
        hear(lane, 1, 1, 4)
        pieces = lane.install(snapshot(1, 3))
        next(pieces)
        lane.check(report(5, 1, 1), 1, Held(0, 0))
        assert [each for each in pieces if not each.cleared] == [batch(4)]
        assert (lane.sequence, lane.needs) == (4, "gap")

    def test_two_gaps_need_one_snapshot(self, lane: Lane) -> None:
        hear(lane, 1, 1, 3, 5)
        assert install(lane, 1, 4) == [5]
        assert lane.needs is None

    def test_what_is_held_is_bounded_and_a_later_snapshot_still_heals(self) -> None:
        lane = Lane(WORKER, held_bytes_max=2 * (BATCH_BYTES + HASH_BYTES))
        hear(lane, 1, 1, 3, 4, 5, 6)
        assert install(lane, 1, 4) == [5, 6]

    def test_a_snapshot_too_old_for_what_is_still_held_leaves_a_gap(self) -> None:
        lane = Lane(WORKER, held_bytes_max=2 * (BATCH_BYTES + HASH_BYTES))
        hear(lane, 1, 1, 3, 4, 5, 6)
        assert install(lane, 1, 3) == []
        assert lane.needs == "gap"

    def test_without_a_snapshot_news_beats_none_and_the_need_remains(self, lane: Lane) -> None:
        hear(lane, 1, 1, 3, 5)
        assert [unpack(each.stored) for each in lane.make_do()] == [[3], [5]]
        assert hear(lane, 1, 6) == [6]
        assert lane.needs == "gap"
        assert lane.make_do() == []

    def test_a_snapshot_after_making_do_is_brought_up_to_date(self, lane: Lane) -> None:
        """What was applied in the meantime is applied again, as the snapshot does not have it."""
        hear(lane, 1, 1, 3, 5)
        lane.make_do()
        hear(lane, 1, 6)
        assert install(lane, 1, 4) == [5, 6]
        assert lane.needs is None

    def test_what_a_worker_missed_and_then_got_late_is_applied_in_order(self, lane: Lane) -> None:
        hear(lane, 1, 1, 3)
        lane.make_do()
        assert hear(lane, 1, 2) == []
        assert lane.needs == "gap"  # 2 after 3 may be wrong; only a snapshot can tell


class TestLives:
    def test_a_restarted_agent_that_numbers_from_1_again_voids_its_past(self, lane: Lane) -> None:
        hear(lane, 1, 1, 2, 3)
        assert hear(lane, 2, 1) == [0, 1]
        assert hear(lane, 1, 4) == []
        assert (lane.incarnation, lane.sequence, lane.needs) == (2, 1, None)

    def test_a_restart_whose_first_batch_was_lost_needs_a_snapshot(self, lane: Lane) -> None:
        hear(lane, 1, 1, 2, 3)
        assert hear(lane, 2, 2) == [0]
        assert lane.needs == "joined"
        assert hear(lane, 2, 1) == [1, 2]
        assert lane.needs is None

    def test_a_restart_that_only_the_registry_tells_of_voids_the_past(self, lane: Lane) -> None:
        hear(lane, 1, 1, 2, 3)
        assert lane.registered(2) == CLEAR
        assert lane.needs == "joined"

    def test_a_restart_that_only_a_load_report_tells_of_voids_the_past(self, lane: Lane) -> None:
        hear(lane, 1, 1, 2, 3)
        assert lane.check(report(5, 4, 7), 2, Held(3, 0)) == CLEAR
        assert (lane.incarnation, lane.needs) == (2, "joined")

    def test_what_was_held_of_an_earlier_life_is_never_applied(self, lane: Lane) -> None:
        hear(lane, 1, 1, 3)
        assert hear(lane, 2, 1, 2) == [0, 1, 2]

    def test_a_snapshot_of_an_earlier_life_is_refused(self, lane: Lane) -> None:
        hear(lane, 2, 2)
        with pytest.raises(BadSnapshot, match="earlier life"):
            install(lane, 1, 50)

    def test_a_snapshot_of_a_later_life_begins_it(self, lane: Lane) -> None:
        hear(lane, 1, 1, 3)
        assert install(lane, 2, 40) == []
        assert (lane.incarnation, lane.sequence, lane.needs) == (2, 40, None)


class TestInstalling:
    def test_a_snapshot_is_applied_in_pieces(self, lane: Lane) -> None:
        lane.registered(1)
        applied = list(lane.install(snapshot(1, 5, bytes(PIECE_BYTES + HASH_BYTES))))
        assert [len(each.stored) for each in applied] == [0, 0, 0, PIECE_BYTES, HASH_BYTES]

    def test_what_comes_meanwhile_waits_and_follows(self, lane: Lane) -> None:
        hear(lane, 1, 7)
        pieces = lane.install(snapshot(1, 7, bytes(HASH_BYTES)))
        next(pieces)
        assert hear(lane, 1, 8) == []
        assert lane.check(report(8, 9, 9), 1, Held(0, 0)) == ()
        assert [unpack(each.stored) for each in pieces if not each.cleared] == [[0], [8]]
        assert (lane.sequence, lane.needs) == (8, None)

    def test_what_comes_during_the_last_steps_follows_in_order(self, lane: Lane) -> None:
        hear(lane, 1, 8, 9)
        pieces = lane.install(snapshot(1, 7))
        assert (*islice(pieces, 4),) == (*CLEAR, batch(8))
        assert hear(lane, 1, 10) == []
        assert list(pieces) == [batch(9), batch(10)]

    def test_a_new_life_ends_it(self, lane: Lane) -> None:
        hear(lane, 1, 7)
        pieces = lane.install(snapshot(1, 7, bytes(HASH_BYTES)))
        next(pieces)
        assert hear(lane, 2, 1) == [0, 1]
        assert list(pieces) == []
        assert (lane.incarnation, lane.sequence, lane.needs) == (2, 1, None)

    def test_given_up_halfway_the_lane_is_not_taken_for_true(self, lane: Lane) -> None:
        hear(lane, 1, 7)
        pieces = lane.install(snapshot(1, 7, bytes(HASH_BYTES)))
        next(pieces)
        del pieces
        hear(lane, 1, 1, 2, 3, 4, 5, 6)
        assert lane.needs is not None

    def test_one_that_is_older_than_what_was_applied_is_refused_before_it_does_harm(
        self, lane: Lane
    ) -> None:
        hear(lane, 1, 1, 2, 3)
        lane.check(report(3, 99, 0), 1, Held(3, 0))
        with pytest.raises(BadSnapshot, match="older"):
            next(lane.install(snapshot(1, 2)))
        assert install(lane, 1, 3) == []
        assert lane.needs is None

    def test_a_lane_that_went_on_is_brought_back_to_the_snapshot_and_forward(
        self, lane: Lane
    ) -> None:
        """A digest did not match, so the lane goes on with what it has; batches that overtake the
        snapshot are kept and applied on top of it."""
        hear(lane, 1, 1, 2, 3)
        lane.check(report(3, 99, 0), 1, Held(3, 0))
        assert hear(lane, 1, 4, 5) == [4, 5]
        assert install(lane, 1, 4) == [5]
        assert (lane.sequence, lane.needs) == (5, None)


class TestReports:
    @pytest.mark.parametrize(
        ("told", "needs"),
        [
            (report(3, 3, 1 ^ 2 ^ 3), None),
            (report(3, 2, 1 ^ 2 ^ 3), "digest"),
            (report(3, 3, 9), "digest"),
            (report(4, 3, 0), "behind"),
            (report(2, 9, 9), None),
        ],
    )
    def test_a_report_is_held_against_our_copy(
        self, lane: Lane, told: LoadReport, needs: str | None
    ) -> None:
        hear(lane, 1, 1, 2, 3)
        lane.check(told, 1, Held(3, 1 ^ 2 ^ 3))
        assert lane.needs == needs

    def test_a_report_of_an_earlier_life_says_nothing(self, lane: Lane) -> None:
        hear(lane, 2, 1)
        assert lane.check(report(9, 9, 9), 1, Held(1, 1)) == ()
        assert lane.needs is None

    def test_a_report_that_overtakes_its_batch_needs_nothing_once_that_comes(
        self, lane: Lane
    ) -> None:
        hear(lane, 1, 1)
        lane.check(report(2, 2, 1 ^ 2), 1, Held(1, 1))
        assert lane.needs == "behind"
        assert hear(lane, 1, 2) == [2]
        assert lane.needs is None

    @pytest.mark.parametrize(
        ("said", "needs"),
        [
            (None, None),
            ((TierSum(Tier.HOST, 1, 5),), None),
            ((TierSum(Tier.HOST, 1, 4),), "digest"),
            ((TierSum(Tier.DISK, 1, 5),), "digest"),
            ((), "digest"),
        ],
    )
    def test_slower_tiers_are_checked_where_the_agent_speaks_of_them(
        self, lane: Lane, said: tuple[TierSum, ...] | None, needs: str | None
    ) -> None:
        hear(lane, 1, 1)
        told = msgspec.structs.replace(report(1, 1, 1), slower=said)
        lane.check(told, 1, Held(1, 1, (TierSum(Tier.HOST, 1, 5),)))
        assert lane.needs == needs

    def test_a_digest_that_does_not_match_is_not_healed_by_more_batches(self, lane: Lane) -> None:
        hear(lane, 1, 1)
        lane.check(report(1, 1, 77), 1, Held(1, 1))
        hear(lane, 1, 2, 3)
        assert lane.needs == "digest"

    def test_equal_numbers_prove_a_copy_right_whatever_was_wrong(self, lane: Lane) -> None:
        hear(lane, 1, 1, 3)
        lane.make_do()
        lane.check(report(3, 2, 5), 1, Held(2, 5))
        assert lane.needs is None


class TestSnapshots:
    def test_chunks_are_asked_for_one_by_one_under_the_same_number(self) -> None:
        whole = Snapshot(WORKER)
        assert whole.next_request == KvSnapshotRequest(0, 0)
        whole.add(chunk(0, last=False, sequence=4, snapshot=77))
        assert whole.next_request == KvSnapshotRequest(77, 1)
        assert not whole.complete
        whole.add(chunk(1, last=True, sequence=4, snapshot=77))
        assert whole.complete
        assert (whole.incarnation, whole.sequence) == (1, 4)

    @pytest.mark.parametrize(
        "wrong",
        [
            chunk(2),
            chunk(0),
            chunk(1, snapshot=8),
            chunk(1, incarnation=2),
            chunk(1, sequence=2),
            chunk(1, names=b"12345"),
        ],
        ids=["lost", "again", "other snapshot", "other life", "other moment", "broken names"],
    )
    def test_chunks_that_do_not_fit_are_refused(self, wrong: KvSnapshotChunk) -> None:
        whole = Snapshot(WORKER)
        whole.add(chunk(0, last=False))
        with pytest.raises(BadSnapshot):
            whole.add(wrong)

    def test_an_agent_that_never_ends_is_not_believed(self) -> None:
        whole = Snapshot(WORKER)
        for number in range(CHUNKS_MAX):
            whole.add(chunk(number, last=False))
        with pytest.raises(BadSnapshot, match="more than"):
            whole.add(chunk(CHUNKS_MAX))

    def test_pauses_between_attempts_grow_to_a_limit(self) -> None:
        pauses = [retry_pause_s(failures) for failures in range(1, 60)]
        assert pauses == sorted(pauses)
        assert 0 < pauses[0] < pauses[1]
        assert pauses[-1] == RETRY_MAX_S

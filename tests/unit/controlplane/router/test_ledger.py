"""Work in flight: booked, moved, freed, and never counted twice."""

from __future__ import annotations

from controlplane.router.ledger import Ledger
from proto.ids import RequestId, WorkerId
from proto.progress import Booking

A, B = WorkerId("a"), WorkerId("b")


def booking(request: str, worker: WorkerId = A, prefill: int = 100, decode: int = 10) -> Booking:
    return Booking(RequestId(request), worker, prefill, decode)


def sums(ledger: Ledger, worker: WorkerId = A) -> tuple[int, int, int]:
    owed = ledger.of(worker)
    return owed.requests, owed.prefill_tokens, owed.decode_blocks


def test_prefill_ends_at_the_first_token_and_the_rest_at_the_end() -> None:
    ledger = Ledger(silence_s=60)
    ledger.book(booking("1"), 0.0)
    ledger.book(booking("2"), 0.0)
    assert sums(ledger) == (2, 200, 20)
    ledger.first_token(RequestId("1"), A, 1.0)
    ledger.first_token(RequestId("1"), A, 1.0)
    assert sums(ledger) == (2, 100, 20)
    ledger.end(RequestId("1"), A)
    ledger.end(RequestId("1"), A)
    assert sums(ledger) == (1, 100, 10)
    ledger.end(RequestId("2"), A)
    assert sums(ledger) == (0, 0, 0)


def test_a_booking_told_twice_counts_once() -> None:
    ledger = Ledger(silence_s=60)
    ledger.book(booking("1"), 0.0)
    ledger.book(booking("1"), 0.0)
    assert sums(ledger) == (1, 100, 10)


def test_a_booking_that_comes_after_its_end_stays_ended() -> None:
    ledger = Ledger(silence_s=60)
    ledger.end(RequestId("1"), A)
    ledger.book(booking("1"), 0.0)
    assert sums(ledger) == (0, 0, 0)


def test_a_retry_is_another_workers_work() -> None:
    ledger = Ledger(silence_s=60)
    ledger.book(booking("1", A), 0.0)
    ledger.book(booking("1", B), 0.0)
    ledger.end(RequestId("1"), A)
    assert sums(ledger, A) == (0, 0, 0)
    assert sums(ledger, B) == (1, 100, 10)


def test_silence_ends_a_booking_and_age_does_not() -> None:
    ledger = Ledger(silence_s=60)
    ledger.book(booking("silent"), 0.0)
    ledger.book(booking("long"), 0.0)
    for now_s in range(0, 600, 50):
        ledger.alive(RequestId("long"), A, float(now_s))
        ledger.expire(float(now_s))
    assert sums(ledger) == (1, 100, 10)
    assert ledger.expire(700.0) == 1
    assert len(ledger) == 0


def test_a_worker_that_leaves_takes_its_work_along() -> None:
    ledger = Ledger(silence_s=60)
    ledger.book(booking("1", A), 0.0)
    ledger.book(booking("2", B), 0.0)
    ledger.forget(A)
    assert (sums(ledger, A), sums(ledger, B)) == ((0, 0, 0), (1, 100, 10))
    ledger.end(RequestId("1"), A)  # a late word about it changes nothing
    assert sums(ledger, A) == (0, 0, 0)

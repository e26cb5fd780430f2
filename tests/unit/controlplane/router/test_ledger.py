"""Work in flight: booked, moved, freed, and never counted twice."""

from __future__ import annotations

from itertools import islice, permutations

import pytest

from controlplane.router.ledger import ENDED_KEPT_S, NOTHING, WITHDRAWN_MAX, Ledger
from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress, Withdrawn

A, B = WorkerId("a"), WorkerId("b")


def booking(
    request: str, worker: WorkerId = A, prefill: int = 100, decode: int = 10, attempt: int = 1
) -> Booking:
    return Booking(RequestId(request), worker, prefill, decode, attempt)


def said(phase: Phase, request: str = "1", worker: WorkerId = A, attempt: int = 1) -> Progress:
    return Progress(RequestId(request), worker, attempt, phase)


def sums(ledger: Ledger, worker: WorkerId = A) -> tuple[int, int, int]:
    owed = ledger.of(worker)
    return owed.requests, owed.prefill_tokens, owed.decode_blocks


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(silence_s=60)


def test_prefill_ends_at_the_first_token_and_the_rest_at_the_end(ledger: Ledger) -> None:
    ledger.book(booking("1"), 0.0)
    ledger.book(booking("2"), 0.0)
    assert sums(ledger) == (2, 200, 20)
    ledger.hear(said(Phase.DISPATCHED), 0.5)
    assert sums(ledger) == (2, 200, 20)
    ledger.hear(said(Phase.FIRST_TOKEN), 1.0)
    assert sums(ledger) == (2, 100, 20)
    ledger.hear(said(Phase.ENDED), 2.0)
    assert sums(ledger) == (1, 100, 10)
    ledger.hear(said(Phase.ENDED, "2"), 2.0)
    assert sums(ledger) == (0, 0, 0)
    assert len(ledger) == 0


def test_words_that_come_twice_count_once(ledger: Ledger) -> None:
    ledger.book(booking("1"), 0.0)
    ledger.book(booking("1"), 0.0)
    assert sums(ledger) == (1, 100, 10)
    for phase in (Phase.FIRST_TOKEN, Phase.FIRST_TOKEN, Phase.ENDED, Phase.ENDED):
        ledger.hear(said(phase), 1.0)
    assert sums(ledger) == (0, 0, 0)


@pytest.mark.parametrize("order", list(permutations(["booked", "first_token", "ended"])))
def test_a_booking_from_elsewhere_ends_in_whatever_order_its_words_come(
    ledger: Ledger, order: tuple[str, ...]
) -> None:
    for word in order:
        if word == "booked":
            ledger.book(booking("1"), 0.0)
        else:
            ledger.hear(said(Phase(word)), 0.0)
    assert sums(ledger) == (0, 0, 0)
    assert len(ledger) == 0


def test_a_booking_that_comes_after_its_first_token_counts_no_prefill(ledger: Ledger) -> None:
    ledger.hear(said(Phase.FIRST_TOKEN), 0.0)
    ledger.book(booking("1"), 0.1)
    assert sums(ledger) == (1, 0, 10)


def test_a_sign_of_life_stands_for_a_first_token_that_was_lost(ledger: Ledger) -> None:
    ledger.book(booking("1"), 0.0)
    ledger.hear(said(Phase.ALIVE), 5.0)
    assert sums(ledger) == (1, 0, 10)


def test_a_retry_elsewhere_is_another_workers_work(ledger: Ledger) -> None:
    ledger.book(booking("1", A), 0.0)
    ledger.book(booking("1", B), 0.0)
    ledger.hear(said(Phase.ENDED), 0.0)
    assert (sums(ledger, A), sums(ledger, B)) == ((0, 0, 0), (1, 100, 10))


def test_a_retry_on_the_same_worker_counts_although_the_first_attempt_ended(
    ledger: Ledger,
) -> None:
    ledger.book(booking("1"), 0.0)
    ledger.hear(said(Phase.ENDED, attempt=1), 0.0)
    ledger.book(booking("1", attempt=2), 0.1)
    assert sums(ledger) == (1, 100, 10)


def test_late_words_about_an_attempt_do_not_end_the_next_one(ledger: Ledger) -> None:
    ledger.book(booking("1"), 0.0)
    ledger.hear(said(Phase.DISPATCHED, attempt=1), 0.0)
    ledger.book(booking("1", prefill=70, attempt=2), 0.1)
    ledger.hear(said(Phase.ENDED, attempt=1), 0.2)
    ledger.book(booking("1", attempt=1), 0.2)
    assert sums(ledger) == (1, 70, 10)
    ledger.hear(said(Phase.ENDED, attempt=2), 0.3)
    assert sums(ledger) == (0, 0, 0)


def test_a_retry_whose_first_word_comes_before_its_booking_counts(ledger: Ledger) -> None:
    ledger.book(booking("1"), 0.0)
    ledger.hear(said(Phase.FIRST_TOKEN, attempt=2), 0.2)
    assert sums(ledger) == (0, 0, 0)  # nobody serves the first attempt any more
    ledger.book(booking("1", prefill=70, attempt=2), 0.3)
    assert sums(ledger) == (1, 0, 10)


def test_silence_ends_a_booking_and_age_does_not(ledger: Ledger) -> None:
    ledger.book(booking("silent"), 0.0)
    ledger.book(booking("long"), 0.0)
    for now_s in range(0, 600, 50):
        ledger.hear(said(Phase.ALIVE, "long"), float(now_s))
        ledger.expire(float(now_s))
    assert sums(ledger) == (1, 0, 10)
    assert ledger.expire(700.0) == 1
    assert (sums(ledger), len(ledger)) == ((0, 0, 0), 0)


def test_an_end_is_remembered_for_a_while_and_then_forgotten(ledger: Ledger) -> None:
    ledger.hear(said(Phase.ENDED), 0.0)
    ledger.expire(ENDED_KEPT_S / 2)
    ledger.book(booking("1"), ENDED_KEPT_S / 2)
    assert sums(ledger) == (0, 0, 0)
    ledger.expire(ENDED_KEPT_S * 2)
    ledger.book(booking("1"), ENDED_KEPT_S * 2)
    assert sums(ledger) == (1, 100, 10)


def test_a_worker_that_leaves_takes_its_work_along(ledger: Ledger) -> None:
    ledger.book(booking("1", A), 0.0)
    ledger.book(booking("2", B), 0.0)
    ledger.forget(A)
    assert (sums(ledger, A), sums(ledger, B)) == ((0, 0, 0), (1, 100, 10))
    ledger.hear(said(Phase.ENDED), 0.0)  # a late word about it changes nothing
    assert (sums(ledger, A), len(ledger)) == ((0, 0, 0), 1)


def test_what_is_withdrawn_ends_everywhere_but_where_it_is_kept(ledger: Ledger) -> None:
    for worker in (A, B):
        ledger.book(booking("1", worker), 0.0)
        ledger.book(booking("other", worker), 0.0)
    ledger.withdraw(Withdrawn(RequestId("1"), 1, kept=B), 0.1)
    assert (sums(ledger, A), sums(ledger, B)) == ((1, 100, 10), (2, 200, 20))
    ledger.book(booking("1", A), 0.2)  # a late word
    assert sums(ledger, A) == (1, 100, 10)
    ledger.withdraw(Withdrawn(RequestId("1"), 2), 0.3)  # an attempt that nobody has heard of
    assert sums(ledger, B) == (2, 200, 20)
    ledger.withdraw(Withdrawn(RequestId("1"), 1), 0.4)
    assert sums(ledger, B) == (1, 100, 10)


def test_what_is_booked_only_after_it_was_withdrawn_counts_only_where_it_is_kept(
    ledger: Ledger,
) -> None:
    """A router that was away books what it was asked long ago, and says so to the others."""
    ledger.withdraw(Withdrawn(RequestId("1"), 1, kept=B), 0.0)
    ledger.expire(59.0)
    for worker in (A, B):
        ledger.book(booking("1", worker), 59.0)
    assert (sums(ledger, A), sums(ledger, B)) == ((0, 0, 0), (1, 100, 10))
    assert (ledger.wants(booking("1", A)), ledger.wants(booking("1", B))) == (False, True)
    ledger.book(booking("1", A, attempt=2), 59.0)
    assert sums(ledger, A) == (1, 100, 10)
    ledger.expire(60.5)
    assert ledger.wants(booking("1", A))


def test_so_many_withdrawn_requests_are_remembered_and_no_more(ledger: Ledger) -> None:
    for number in range(WITHDRAWN_MAX + 1):
        ledger.withdraw(Withdrawn(RequestId(f"{number}"), 1), 0.0)
    assert ledger.wants(booking("0"))
    assert not ledger.wants(booking("1"))


def test_prefill_that_a_worker_is_done_with_ends_without_a_word_of_it(ledger: Ledger) -> None:
    for number in range(3):
        ledger.book(booking(f"{number}"), float(number))
    ledger.hear(said(Phase.DISPATCHED, "0"), 1.5)
    ledger.prefilled(A, 1.0, 0.0)
    assert sums(ledger) == (3, 300, 30)
    ledger.prefilled(A, 2.0, 0.0)
    assert sums(ledger) == (3, 100, 30)
    assert ledger.take_changed() == {A}
    for phase in (Phase.FIRST_TOKEN, Phase.ENDED):
        ledger.hear(said(phase, "0"), 3.0)
    assert sums(ledger) == (2, 100, 20)
    ledger.prefilled(B, 9.0, 0.0)
    assert sums(ledger) == (2, 100, 20)


def test_a_prompt_has_the_time_that_it_takes(ledger: Ledger) -> None:
    ledger.book(booking("long", prefill=1_000), 0.0)
    ledger.book(booking("short", prefill=100), 0.0)
    ledger.prefilled(A, 2.0, 0.01)
    assert sums(ledger) == (2, 1_000, 20)
    ledger.prefilled(A, 10.1, 0.01)
    assert sums(ledger) == (2, 0, 20)


def test_a_booking_that_comes_after_its_worker_has_left_leaves_nothing_for_ever(
    ledger: Ledger,
) -> None:
    ledger.forget(A)
    ledger.book(booking("1"), 0.0)
    ledger.expire(61.0)
    assert ledger.of(A) is NOTHING


def all_bookings(ledger: Ledger, part: int) -> list[Booking]:
    """What another router is told that asks for so many at a time."""
    told: list[Booking] = []
    after = (WorkerId(""), RequestId(""))
    while more := list(islice(ledger.bookings(after), part)):
        told += more
        after = (more[-1].worker, more[-1].request)
    return told


@pytest.mark.parametrize("part", [1, 2, 100])
def test_another_ledger_that_is_told_everything_comes_to_the_same(
    ledger: Ledger, part: int
) -> None:
    for number in range(4):
        ledger.book(booking(f"a{number}", A, attempt=number + 1), 0.0)
        ledger.book(booking(f"b{number}", B), 0.0)
    ledger.hear(said(Phase.FIRST_TOKEN, "a1", attempt=2), 0.0)
    ledger.hear(said(Phase.ENDED, "b2", B), 0.0)
    told, other = all_bookings(ledger, part), Ledger(silence_s=60)
    assert len(told) == len(ledger) == 7
    for each in (*told, *told):
        other.book(each, 1.0)
    assert (sums(other, A), sums(other, B)) == (sums(ledger, A), sums(ledger, B))
    assert all_bookings(other, part) == told


def test_what_ended_while_it_was_being_told_does_not_come_back(ledger: Ledger) -> None:
    ledger.book(booking("1"), 0.0)
    told, other = all_bookings(ledger, 10), Ledger(silence_s=60)
    other.hear(said(Phase.ENDED), 0.0)
    for each in told:
        other.book(each, 0.1)
    assert sums(other) == (0, 0, 0)

"""Who is busy, who is passed over for it, and what is answered when all are."""

from __future__ import annotations

import random

import pytest

from controlplane.router.busy import BusyLimits
from controlplane.router.core import RouterCore
from controlplane.router.drain import ENDS_MIN, Drain
from controlplane.router.refusals import all_busy
from controlplane.router.requests import booking_of
from controlplane.router.settings import RouterSettings
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.route import ALL_BUSY, Chosen, Rejected
from tests.support.router_core import PROMPT, chosen, question, record

BATCH = len(PROMPT)
"""One prompt fills a batch; a worker with two has more than one queued."""


def router(*names: str, policy: str = "least_loaded", **limits: float) -> RouterCore:
    settings = RouterSettings(policy=policy, **limits)
    core = RouterCore(settings, "r", random.Random(0))
    for name in names:
        core.worker_joined(record(name, max_batched_tokens=BATCH))
    return core


def fill(core: RouterCore, count: int) -> list[Chosen]:
    return [chosen(core.decide(question(f"fill-{i}", blocks={}), 0.0)) for i in range(count)]


def refused(core: RouterCore, now_s: float = 0.0) -> Rejected:
    reply = core.decide(question("late", blocks={}), now_s)
    assert isinstance(reply, Rejected)
    assert reply.reason == ALL_BUSY
    return reply


def said(request: RequestId, worker: WorkerId, phase: Phase) -> Progress:
    return Progress(request, worker, 1, phase)


def test_kr15_a_busy_worker_is_passed_over_and_the_reason_told() -> None:
    core = router("a", "b", busy_prefill_batches=1)
    core.observe_load(LoadReport(WorkerId("a"), 0, 1, BATCH + 1, 0, 0, 0, 0, 0, 0), 0.0)
    terms = [chosen(core.decide(question(str(i), explain=True), 0.0)).terms for i in range(2)]
    assert [t.excluded for each in terms for t in each if t.worker == "a"] == ["busy_prefill"] * 2


def test_gw14_only_when_all_are_busy_a_request_is_refused_with_each_ones_reason() -> None:
    core = router("a", "b", busy_prefill_batches=1)
    fill(core, 4)
    assert "a is busy_prefill, b is busy_prefill" in refused(core).detail


def test_the_first_token_ends_it() -> None:
    core = router("a", busy_prefill_batches=1)
    first = fill(core, 2)[0]
    refused(core)
    core.progress(said(RequestId("fill-0"), first.worker, Phase.FIRST_TOKEN), 1.0)
    assert chosen(core.decide(question("late"), 1.0)).worker == "a"


def test_answers_that_are_not_streamed_make_a_worker_that_has_computed_their_prompts_not_busy() -> (
    None
):
    core = router("a", busy_prefill_batches=1)
    fill(core, 2)
    for i in range(2):
        core.progress(said(RequestId(f"fill-{i}"), WorkerId("a"), Phase.DISPATCHED), 0.0)
    for now_s in (0.25, 0.5):
        refused(core, now_s)
        core.observe_load(LoadReport(WorkerId("a"), 2, 0, 0, 0, 0, 0, 0, 0, 0), now_s)
    assert chosen(core.decide(question("late"), 0.5)).worker == "a"


def test_decode_counts_as_a_share_of_the_cache() -> None:
    core = router(busy_decode_share=0.5)
    blocks = (len(PROMPT) + 128) // 16  # what one request takes on average
    core.worker_joined(record("a", total_blocks=3 * blocks))
    fill(core, 2)
    assert "a is busy_decode" in refused(core).detail
    core.progress(said(RequestId("fill-0"), WorkerId("a"), Phase.FIRST_TOKEN), 1.0)
    refused(core, 1.0)
    core.progress(said(RequestId("fill-0"), WorkerId("a"), Phase.ENDED), 2.0)
    chosen(core.decide(question("late"), 2.0))


def test_replicas_share_it() -> None:
    core, other = router("a", busy_prefill_batches=1), router("a", busy_prefill_batches=1)
    for i, reply in enumerate(fill(core, 2)):
        other.booked_elsewhere(booking_of(question(f"fill-{i}", blocks={}), reply), 0.0)
    refused(other)


def test_it_expires_with_the_bookings_and_reports_that_it_follows_from() -> None:
    core = router("a", busy_prefill_batches=1)
    core.observe_load(LoadReport(WorkerId("a"), 0, 1, BATCH + 1, 0, 0, 0, 0, 0, 0), 0.0)
    refused(core, 4.9)
    assert core.anyone_free("m", 5.1)  # the report is too old
    fill(core, 2)
    refused(core, 5.1)
    core.expire(61.0)
    assert core.anyone_free("m", 61.0)


def test_limits_are_on_what_was_there_before_so_an_idle_worker_is_never_busy() -> None:
    core = router("a", busy_prefill_batches=0.001, busy_decode_share=0.001)
    fill(core, 1)
    refused(core)


@pytest.mark.parametrize("limits", [BusyLimits(0, 0), BusyLimits(16, 0)])
def test_without_limits_and_by_default_a_full_batch_or_ten_make_nobody_busy(
    limits: BusyLimits,
) -> None:
    worker = record("a")
    assert limits.exceeded(worker, 10 * worker.max_batched_tokens, 1 << 40) == ""


def test_a_worker_that_does_not_say_what_its_cache_holds_has_no_limit_there() -> None:
    assert BusyLimits(0, 0.5).exceeded(record("a", total_blocks=0), 0, 1 << 40) == ""


def test_when_to_ask_again_follows_from_how_fast_requests_end() -> None:
    core = router("a", busy_prefill_batches=1)
    fill(core, 2)
    refused(core)
    for i in range(1, ENDS_MIN + 1):
        core.progress(said(RequestId(f"fill-{i - 1}"), WorkerId("a"), Phase.ENDED), 3.0 * i)
        core.decide(question(f"fill-{i + 1}", blocks={}), 3.0 * i)
        refused(core, 3.0 * i)
    assert refused(core, 3.0 * (ENDS_MIN + 1)).retry_after_s == 3.0
    assert core.too_busy("m", 4, 3.0 * (ENDS_MIN + 1)).retry_after_s == 15.0
    assert core.too_busy("m", 400, 3.0 * (ENDS_MIN + 1)).retry_after_s == 60.0


def test_ends_while_somebody_is_free_say_nothing_of_how_fast_requests_end() -> None:
    """A quiet hour, a burst, another quiet hour, and the next burst."""
    core = router("a", busy_prefill_batches=1)
    for hour in (0.0, 3_600.0):
        for i in range(ENDS_MIN):
            now_s = hour + 10.0 * i
            core.decide(question(f"quiet-{now_s}", blocks={}), now_s)
            request = RequestId(f"quiet-{now_s}")
            core.progress(said(request, WorkerId("a"), Phase.ENDED), now_s + 1.0)
        now_s = hour + 3_000.0
        for i in range(2):
            core.decide(question(f"burst-{hour}-{i}", blocks={}), now_s)
        refused(core, now_s)
        assert core.wait_s("m", 0, now_s) is None
        for i in range(2):
            request = RequestId(f"burst-{hour}-{i}")
            core.progress(said(request, WorkerId("a"), Phase.ENDED), now_s + 1.0)


def test_ends_that_come_at_once_count_although_the_first_one_makes_somebody_free() -> None:
    core = router(*"abcd", busy_prefill_batches=1)
    for i in range(8):
        core.decide(question(f"{i}", blocks={}), 0.0)
    refused(core)
    for now_s in (1.0, 2.0):
        for booking in list(core.ledger.bookings((WorkerId(""), RequestId("")))):
            core.progress(said(booking.request, booking.worker, Phase.ENDED), now_s)
        for i in range(8):
            core.decide(question(f"{now_s}-{i}", blocks={}), now_s)
        refused(core, now_s)
    assert core.wait_s("m", 0, 3.0) == pytest.approx((3.0 - 1.0) / 16)


def test_a_pace_that_is_not_known_is_not_made_up() -> None:
    drain = Drain()
    for _ in range(ENDS_MIN - 1):
        drain.ended(1.0)
    assert drain.wait_s(0, 2.0) is None
    drain.ended(2.0)
    assert drain.wait_s(3, 3.0) == pytest.approx(4 * 2.0 / ENDS_MIN)


def test_who_finds_all_taken_by_those_who_wait_is_told_so() -> None:
    """Workers that have just become free are not busy, and yet not for whoever comes now."""
    assert "for requests that wait already" in all_busy({}, 0, 1.0).detail
    assert "w is busy_decode" in all_busy({WorkerId("w"): "busy_decode"}, 1, 1.0).detail

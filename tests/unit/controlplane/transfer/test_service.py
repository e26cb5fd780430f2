"""The coordinator over a bus, in virtual time: asked, told, restarted, and left alone."""

from __future__ import annotations

from collections import Counter

import anyio
import msgspec
import pytest
import trio.testing

from controlplane.transfer.ticket import over
from proto.ids import WorkerId
from proto.transfers import (
    Denied,
    Granted,
    Local,
    Outcome,
    Part,
    Report,
    State,
    Step,
    Stepped,
    Ticket,
    Verb,
)
from proto.wire.errors import RequestRefused
from proto.wire.ports import BucketSpec
from proto.workers import HandoffOrder, Role
from tests.unit.controlplane.transfer.world import (
    SUBJECTS,
    TRANSFER,
    World,
    begin,
    load,
    record,
    run,
    world,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def granted(made: World, request: str = "r") -> Ticket:
    reply = await made.asker.begin(begin(request))
    assert isinstance(reply, Granted)
    return reply.ticket


async def stepped(made: World, ticket: Ticket, step: Step, **news: object) -> Ticket:
    reply = await made.asker.report(ticket, step, **news)
    assert isinstance(reply, Stepped), reply
    return reply.ticket


def path(made: World, ticket: Ticket) -> list[State]:
    return [each.after for each in made.seen if each.ticket == ticket.id]


async def test_a_movement_from_begin_to_release() -> None:
    large = TRANSFER.model_copy(update={"block_bytes": 1 << 16})
    fleet = record("p0", Role.PREFILL, transfer=large), record("d0", Role.DECODE, transfer=large)
    async with world(*fleet) as made:
        ticket = await granted(made)
        assert ticket.state is State.PREFILLING
        assert (ticket.prefill.worker, ticket.decode.worker) == ("p0", "d0")
        assert ticket.blocks == 256 and ticket.kv_bytes == 256 << 16
        ticket = await stepped(made, ticket, Step.TRANSFER, handle=b"where")
        assert ticket.state is State.TRANSFERRING and ticket.handle == b"where"
        await anyio.sleep(0.5)
        ticket = await stepped(made, ticket, Step.LAND, seconds=0.1)
        assert ticket.state is State.RELEASED
        took_s = made.metrics[0].get_sample_value("tokenplane_transfer_seconds_sum")
        assert took_s == pytest.approx(0.5, abs=0.05)
        await anyio.sleep(1)
        assert path(made, ticket) == [
            State.RESERVED,
            State.PREFILLING,
            State.STAGED,
            State.TRANSFERRING,
            State.LANDED,
            State.RELEASED,
        ]
        assert [each.sequence for each in made.seen] == [1, 2, 3, 4, 5, 6]
        assert made.agents.told == []
        rate = made.services[0].core.rates.link_bytes_per_s(ticket.link)
        assert rate == pytest.approx(ticket.kv_bytes / 0.1)
        await anyio.sleep(20)
        assert len(made.services[0].core.book) == 0


async def test_a_short_prompt_stays_where_it_is() -> None:
    async with world() as made:
        reply = await made.asker.begin(begin(tokens=100))
        # All of it is new, so only its length speaks against moving: both bounds must hold.
        assert isinstance(reply, Granted)
        asked = begin(tokens=1000)
        cached = Part(asked.decode.worker, 1, 300)
        reply = await made.asker.begin(msgspec.structs.replace(asked, decode=cached))
        assert reply == Local("short")


async def test_who_does_not_match_is_refused_before_anything_is_sent() -> None:
    other = TRANSFER.model_copy(update={"dtype": "fp8"})
    fleet = record("p0", Role.PREFILL, transfer=other), record("d0", Role.DECODE)
    async with world(*fleet) as made:
        reply = await made.asker.begin(begin())
        assert isinstance(reply, Local) and reply.fallback
        assert reply.reason == "incompatible" and "dtype 'fp8' and 'auto'" in reply.detail
        assert made.seen == []


async def test_a_dead_gateways_ticket_expires_and_the_engines_are_told() -> None:
    async with world(prefill_s=5.0) as made:
        ticket = await granted(made)
        await anyio.sleep(6)
        assert path(made, ticket)[-1] is State.EXPIRED
        assert made.agents.told == [("p0", Verb.ABORT_PREFILL)]
        late = await made.asker.report(ticket, Step.TRANSFER, handle=b"late")
        assert isinstance(late, Denied) and late.reason == "illegal"


async def test_staged_blocks_that_nobody_may_read_any_more_are_released() -> None:
    async with world(transfers_max=1) as made:
        one = await stepped(made, await granted(made, "a"), Step.TRANSFER, handle=b"1")
        assert one.state is State.TRANSFERRING
        two = await stepped(made, await granted(made, "b"), Step.TRANSFER, handle=b"2")
        assert two.state is State.STAGED  # not let in: both ends have enough to move
        await anyio.sleep(28)
        assert path(made, two)[-1] is State.EXPIRED
        assert made.agents.told == [("p0", Verb.RELEASE)]
        late = await made.asker.report(two, Step.TRANSFER)
        assert isinstance(late, Denied) and late.state is State.EXPIRED, late


async def test_a_lease_counts_from_when_blocks_may_have_been_staged() -> None:
    """And not from when a gateway that had stood still told of them."""
    async with world() as made:
        fresh = await stepped(made, await granted(made, "a"), Step.TRANSFER, handle=b"1", age_s=5.0)
        assert fresh.lease_until_s == pytest.approx(fresh.changed_s + fresh.lease_s - 5.0)
        old = await granted(made, "b")
        late = await made.asker.report(old, Step.TRANSFER, handle=b"2", age_s=28.0)
        assert isinstance(late, Denied) and late.reason == "lease_over"


async def test_a_transfer_that_waits_is_let_in_when_another_ends() -> None:
    async with world(transfers_max=1) as made:
        one = await stepped(made, await granted(made, "a"), Step.TRANSFER, handle=b"1")
        two = await granted(made, "b")

        async def land() -> None:
            await anyio.sleep(0.5)
            await stepped(made, one, Step.LAND, seconds=0.5)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(land)
            two = await stepped(made, two, Step.TRANSFER, handle=b"2")
        assert two.state is State.TRANSFERRING


async def test_a_cancel_in_the_middle_of_a_transfer_waits_for_its_end() -> None:
    async with world(cancel_s=2.0) as made:
        ticket = await stepped(made, await granted(made), Step.TRANSFER, handle=b"h")
        ticket = await stepped(made, ticket, Step.CANCEL, cause="client")
        assert ticket.state is State.TRANSFERRING and ticket.cancelling
        await anyio.sleep(1)
        assert made.agents.told == [("d0", Verb.ABORT_DECODE)]
        ended = await stepped(made, ticket, Step.FAIL, cause="aborted")
        assert ended.state is State.CANCELLED and not ended.quarantined
        await anyio.sleep(1)
        assert made.agents.told[1:] == [("p0", Verb.RELEASE)]


async def test_a_transfer_that_does_not_end_is_given_up_and_quarantined() -> None:
    async with world(cancel_s=2.0) as made:
        made.agents.outcome = Outcome.BY_LEASE
        ticket = await stepped(made, await granted(made), Step.TRANSFER, handle=b"h")
        await stepped(made, ticket, Step.CANCEL, cause="client")
        await anyio.sleep(3)
        book = made.services[0].core.book
        assert book.quarantined == 1
        await anyio.sleep(40)
        assert len(book) == 0 and book.quarantined == 0


async def test_another_prefill_worker_takes_over_under_a_new_fence() -> None:
    fleet = (
        record("p0", Role.PREFILL),
        record("p1", Role.PREFILL),
        record("d0", Role.DECODE),
    )
    async with world(*fleet) as made:
        first = await granted(made)
        second = await stepped(made, first, Step.OTHER_PREFILL, exclude=(WorkerId("p0"),))
        assert second.state is State.PREFILLING and second.prefill.worker == "p1"
        assert second.fence == first.fence + 1
        stale = await made.asker.report(first, Step.TRANSFER, handle=b"of p0")
        assert isinstance(stale, Denied) and stale.reason == "fenced"
        none = await made.asker.report(
            second, Step.OTHER_PREFILL, exclude=(WorkerId("p0"), WorkerId("p1"))
        )
        assert isinstance(none, Denied) and none.reason == "no_worker"
        await anyio.sleep(0.1)
        assert path(made, second)[-1] is State.FAILED


@pytest.mark.parametrize("step", [Step.OTHER_PREFILL, Step.FAIL])
async def test_what_an_owner_gives_up_is_aborted_nowhere_that_it_goes_on(step: Step) -> None:
    """It has closed its exchange with the decode engine, and asks it again under the same id."""
    async with world() as made:
        ticket = await stepped(made, await granted(made), Step.TRANSFER, handle=b"h")
        await made.asker.report(ticket, step, exclude=(WorkerId("p0"),))
        await anyio.sleep(1)
        assert path(made, ticket)[-1] is State.FAILED
        assert made.agents.told == [("p0", Verb.RELEASE)]


async def test_dg14_who_prefills_instead_keeps_blocks_for_as_long_as_its_own_engine_does() -> None:
    short = TRANSFER.model_copy(update={"lease_s": 10.0})
    fleet = (
        record("p0", Role.PREFILL),
        record("p1", Role.PREFILL, transfer=short),
        record("d0", Role.DECODE),
    )
    async with world(*fleet) as made:
        ticket = await granted(made)
        ticket = await stepped(made, ticket, Step.OTHER_PREFILL, exclude=(WorkerId("p0"),))
        assert (ticket.prefill.worker, ticket.lease_s) == ("p1", 10.0)
        late = await made.asker.report(ticket, Step.TRANSFER, handle=b"h", age_s=8.0)
        assert isinstance(late, Denied) and late.reason == "lease_over"


async def test_whoever_prefills_anew_is_read_where_nothing_was_aborted() -> None:
    fleet = (*(record(f"p{n}", Role.PREFILL) for n in (0, 1)), record("d0", Role.DECODE))
    async with world(*fleet) as made:
        ticket = await stepped(made, await granted(made), Step.TRANSFER, handle=b"h")
        lost = ticket.prefill.worker
        await stepped(made, ticket, Step.OTHER_PREFILL, exclude=(lost,))
        await anyio.sleep(1)
        assert made.agents.told == [(lost, Verb.RELEASE)]


async def test_another_decode_worker_reads_what_is_staged() -> None:
    fleet = (record("p0", Role.PREFILL), record("d0", Role.DECODE), record("d1", Role.DECODE))
    async with world(*fleet) as made:
        ticket = await stepped(made, await granted(made), Step.TRANSFER, handle=b"h")
        again = await stepped(made, ticket, Step.OTHER_DECODE, exclude=(WorkerId("d0"),))
        assert again.state is State.TRANSFERRING and again.decode.worker == "d1"
        assert again.handle == b"h" and again.fence == ticket.fence + 1
        await anyio.sleep(1)
        assert made.agents.told == [("d0", Verb.ABORT_DECODE)]


async def test_an_overlapped_handoff_begins_both_legs_at_once() -> None:
    both = TRANSFER.model_copy(update={"order": HandoffOrder.OVERLAPPED, "bootstrap": "h:1"})
    fleet = record("p0", Role.PREFILL, transfer=both), record("d0", Role.DECODE, transfer=both)
    async with world(*fleet) as made:
        ticket = await granted(made)
        assert ticket.state is State.TRANSFERRING
        assert (await stepped(made, ticket, Step.LAND)).state is State.RELEASED


async def test_a_request_waits_for_a_place_and_takes_it_when_there_is_one() -> None:
    fleet = record("p0", Role.PREFILL), record("d0", Role.DECODE, max_running=1)
    async with world(*fleet) as made:
        first = await granted(made, "a")

        async def leave() -> None:
            await anyio.sleep(0.5)
            await stepped(made, first, Step.FAIL, cause="gone")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            await granted(made, "b")
        reply = await made.asker.begin(begin("c"))
        assert isinstance(reply, Local) and reply.reason == "decode_full" and reply.fallback


async def test_dg23_those_who_ask_at_once_get_no_more_places_than_there_are() -> None:
    fleet = record("p0", Role.PREFILL), record("d0", Role.DECODE, max_running=2)
    async with world(*fleet) as made:
        replies: list[object] = []

        async def ask(number: int) -> None:
            replies.append(await made.asker.begin(begin(f"r{number}")))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, number)
            await anyio.sleep(0.5)
            first = [each for each in replies if isinstance(each, Granted)]
            assert len(first) == 2
            await stepped(made, first[0].ticket, Step.FAIL, cause="gone")
        assert Counter(type(each) for each in replies) == {Granted: 3, Local: 17}
        assert made.services[0].core.book.reserved[WorkerId("d0")] == 2


async def test_dg23_no_more_transfers_are_let_in_at_once_than_may_be_under_way() -> None:
    async with world(transfers_max=1) as made:
        tickets = [await granted(made, f"r{number}") for number in range(20)]
        states: list[State] = []

        async def transfer(ticket: Ticket) -> None:
            ticket = await stepped(made, ticket, Step.TRANSFER, handle=b"h")
            states.append(ticket.state)

        for begun in range(3):  # at once; and whenever one of them ends
            async with anyio.create_task_group() as tasks:
                for ticket in tickets:
                    tasks.start_soon(transfer, ticket)
            under_way = [t for t in made.services[0].core.book if t.state is State.TRANSFERRING]
            assert len(under_way) == 1
            assert states.count(State.TRANSFERRING) == begun + 1
            await stepped(made, under_way[0], Step.LAND)
            tickets = [each for each in tickets if each.id != under_way[0].id]


async def test_what_could_not_be_stored_holds_nothing() -> None:
    async with world() as made:
        service = made.services[0]
        service._bus.cut()  # type: ignore[attr-defined]
        with anyio.move_on_after(1):
            await service._reserve(begin())
        assert not any(service.core.book.sums().values())
        service._bus.mend()  # type: ignore[attr-defined]


async def test_a_report_whose_answer_was_lost_may_be_made_again() -> None:
    async with world() as made:
        ticket = await granted(made)
        for _ in range(2):
            assert (await stepped(made, ticket, Step.TRANSFER, handle=b"h")).sequence == 4
        for _ in range(2):
            assert (await stepped(made, ticket, Step.LAND)).state is State.RELEASED
        await anyio.sleep(0.1)
        assert len(path(made, ticket)) == 6


async def test_asking_again_for_another_worker_after_a_lost_answer_gets_the_same_one() -> None:
    fleet = (*(record(f"p{n}", Role.PREFILL) for n in (0, 1)), record("d0", Role.DECODE))
    async with world(*fleet, record("d1", Role.DECODE)) as made:
        ticket = await granted(made)
        other = {"exclude": (ticket.prefill.worker,)}
        for _ in range(2):
            again = await stepped(made, ticket, Step.OTHER_PREFILL, **other)
            assert (again.fence, again.state) == (ticket.fence + 1, State.PREFILLING)
        ticket = await stepped(made, again, Step.TRANSFER, handle=b"h")
        other = {"exclude": (ticket.decode.worker,)}
        for _ in range(2):
            again = await stepped(made, ticket, Step.OTHER_DECODE, **other)
            assert (again.fence, again.decode.worker) == (ticket.fence + 1, "d1")


async def test_a_replica_that_is_behind_looks_again_before_it_refuses() -> None:
    fleet = (*(record(f"p{n}", Role.PREFILL) for n in (0, 1)), record("d0", Role.DECODE))
    async with world(*fleet, replicas=2) as made:
        first = await granted(made)
        await anyio.sleep(0.1)
        behind = made.services[1]
        before = behind.core.book.get(first.id)
        assert before is not None
        second = await stepped(made, first, Step.OTHER_PREFILL, exclude=(first.prefill.worker,))
        await anyio.sleep(0.1)
        behind.core.book.drop(first.id)
        behind.core.book.put(*before)
        said = Report(second.id, second.fence, Step.TRANSFER, handle=b"h")
        reply = await behind._hear(said)
        assert isinstance(reply, Stepped) and reply.ticket.state is State.TRANSFERRING
        late = await behind._hear(msgspec.structs.replace(said, fence=first.fence))
        assert isinstance(late, Denied) and late.reason == "fenced"


async def test_a_second_begin_of_a_request_ends_its_first_ticket() -> None:
    async with world() as made:
        first, second = await granted(made), await granted(made)
        await anyio.sleep(0.1)
        assert path(made, first)[-1] is State.CANCELLED
        assert path(made, second)[-1] is State.PREFILLING
        await anyio.sleep(1)
        assert made.agents.told == [("p0", Verb.ABORT_PREFILL)]


async def test_a_coordinator_that_starts_anew_goes_on_with_what_there_is() -> None:
    async with world(prefill_s=5.0) as made, anyio.create_task_group() as tasks:
        staged = await stepped(made, await granted(made, "a"), Step.TRANSFER, handle=b"h")
        orphan = await granted(made, "b")
        made.services[0]._bus.cut()  # type: ignore[attr-defined]
        fresh = made.service("transfer-new", made.services[0]._settings)
        await tasks.start(run, fresh)
        assert (await stepped(made, staged, Step.LAND)).state is State.RELEASED
        await anyio.sleep(6)
        assert path(made, orphan)[-1] is State.EXPIRED
        tasks.cancel_scope.cancel()


async def test_a_coordinator_that_cannot_read_the_tickets_yet_waits_until_it_can() -> None:
    async with world() as made, anyio.create_task_group() as tasks:
        ticket = await granted(made)
        fresh = made.service("transfer-new", made.services[0]._settings)
        fresh._bus.cut()  # type: ignore[attr-defined]

        async def mend() -> None:
            await anyio.sleep(60)
            fresh._bus.mend()  # type: ignore[attr-defined]

        tasks.start_soon(mend)
        await tasks.start(run, fresh)
        assert fresh.core.book.get(ticket.id) is not None
        tasks.cancel_scope.cancel()


async def spoil(made: World, id: str, value: bytes) -> None:
    """Write a ticket as no coordinator of this build does."""
    bucket = await made.hub.connect("other").bucket(made.services[0]._shelf._spec)
    if (cell := await bucket.get(id)) is None:
        assert await bucket.create(id, value)
    else:
        assert await bucket.update(id, value, revision=cell.revision)


def newer(ticket: Ticket, **changes: object) -> bytes:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(ticket))
    return msgspec.msgpack.encode(fields | changes)


async def test_a_ticket_that_cannot_be_read_stops_no_coordinator_and_none_that_starts() -> None:
    async with world() as made, anyio.create_task_group() as tasks:
        ticket = await granted(made, "a")
        await spoil(made, "f" * 24, newer(ticket, id="f" * 24, state="paused"))
        await spoil(made, "e" * 24, b"\xc1 no ticket")
        await anyio.sleep(0.1)
        await granted(made, "b")
        unreadable = "tokenplane_transfer_unreadable_total"
        assert made.metrics[0].get_sample_value(unreadable) == 2
        fresh = made.service("transfer-new", made.services[0]._settings)
        await tasks.start(run, fresh)
        assert len(fresh.core.book) == 2
        assert made.metrics[1].get_sample_value(unreadable)
        tasks.cancel_scope.cancel()


async def test_a_ticket_that_can_no_longer_be_read_is_left_to_who_can() -> None:
    async with world(prefill_s=2.0) as made:
        ticket = await granted(made)
        await spoil(made, ticket.id, newer(ticket, state="paused"))
        await anyio.sleep(0.1)
        assert not any(made.services[0].core.book.sums().values())
        reply = await made.asker.report(ticket, Step.TRANSFER, handle=b"h")
        assert isinstance(reply, Denied) and reply.reason == "unknown"
        await anyio.sleep(5)
        assert path(made, ticket)[-1] is State.PREFILLING


async def test_several_replicas_make_each_step_once() -> None:
    async with world(replicas=3, prefill_s=2.0, duty_retry_s=30.0) as made:
        tickets = [await granted(made, f"r{n}") for n in range(30)]
        for ticket in tickets[:15]:
            await stepped(made, ticket, Step.TRANSFER, handle=b"h")
            await stepped(made, ticket, Step.LAND)
        await anyio.sleep(5)
        steps = Counter((each.ticket, each.sequence) for each in made.seen)
        assert set(steps.values()) == {1}
        ends = Counter(path(made, ticket)[-1] for ticket in tickets)
        assert ends == {State.RELEASED: 15, State.EXPIRED: 15}
        assert made.agents.told == [("p0", Verb.ABORT_PREFILL)] * 15
        for service in made.services:
            assert all(over(ticket) for ticket in service.core.book)


async def test_load_tells_how_fast_a_worker_prefills_and_who_waits() -> None:
    fleet = (record("p0", Role.PREFILL), record("p1", Role.PREFILL), record("d0", Role.DECODE))
    async with world(*fleet) as made:
        await made.tell(load("p0", queued_prefill_tokens=50_000), load("p1"))
        assert (await granted(made)).prefill.worker == "p1"


async def test_dg23_a_prefill_worker_holds_no_more_for_others_than_it_may() -> None:
    async with world(staged_bytes_max=1) as made:
        await stepped(made, await granted(made, "a"), Step.TRANSFER, handle=b"1")
        reply = await made.asker.begin(begin("b"))
        assert isinstance(reply, Local)
        assert (reply.reason, reply.fallback) == ("staged_full", True)


async def test_dg27_what_moves_and_what_does_not_is_counted() -> None:
    async with world() as made:
        done = await stepped(made, await granted(made, "a"), Step.TRANSFER, handle=b"1")
        await anyio.sleep(0.1)
        open_ = await stepped(made, await granted(made, "b"), Step.TRANSFER, handle=b"2")
        await anyio.sleep(0.1)

        def told(name: str, **labels: str) -> float | None:
            return made.metrics[0].get_sample_value(f"tokenplane_transfer_{name}", labels)

        assert (told("in_flight"), told("staged_bytes")) == (2, 2 * done.kv_bytes)
        await stepped(made, done, Step.LAND, seconds=0.1)
        await stepped(made, open_, Step.FAIL, cause="remote_disconnect")
        await anyio.sleep(0.1)
        assert told("bytes_total", link=done.link) == done.kv_bytes
        failed = {"ended": "failed transferring", "cause": "remote_disconnect"}
        assert told("failures_total", **failed) == 1
        assert told("post_seconds_count") == 2
        assert told("in_flight") == told("staged_bytes") == 0


async def test_a_full_bucket_has_room_again_once_tickets_are_forgotten() -> None:
    async with world(prefill_s=5.0, keep_s=20.0) as made:
        for number in range(5):
            await stepped(made, await granted(made, f"over-{number}"), Step.CANCEL)
            await granted(made, f"live-{number}")
        bus, spec = made.hub.connect("filler"), BucketSpec(SUBJECTS.tickets_bucket, 3600.0, 1 << 20)
        cells = await (await bus.bucket(spec)).list()
        used_bytes = sum(len(cell.key) + len(cell.value or b"") for cell in cells)
        await bus.bucket(msgspec.structs.replace(spec, max_bytes=used_bytes))
        with pytest.raises(RequestRefused, match="full"):
            await granted(made, "too-much")
        await anyio.sleep(60.0)
        await granted(made, "new")

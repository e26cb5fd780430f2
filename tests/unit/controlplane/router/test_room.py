"""Waiting for a worker: who gets it, who gives up, and that nobody leaves a trace."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.abc import TaskGroup

from controlplane.router.core import RouterCore
from controlplane.router.drain import ENDS_MIN
from controlplane.router.room import WaitingRoom
from controlplane.router.settings import RouterSettings
from proto.constraints import Constraints
from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress, Withdrawn
from proto.route import ALL_BUSY, NO_WORKER, Chosen, Queued, Rejected, RouteReply, Verdict
from tests.support.router_core import PROMPT, question, record

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

BATCH = len(PROMPT)


@dataclass
class Scene:
    """A room before a fleet whose workers are busy with two prompts each."""

    core: RouterCore
    room: WaitingRoom
    tasks: TaskGroup
    replies: dict[str, RouteReply] = field(default_factory=dict)
    """In the order in which they came."""
    looks: int = 0
    """How often somebody has looked for a worker."""
    replied: dict[str, anyio.Event] = field(default_factory=dict)

    async def come(self, name: str, **other: object) -> anyio.CancelScope:
        """Somebody asks, and waits if it must."""
        request = question(name, **{"blocks": {}, "deadline_s": 60.0, **other})
        scope, replied = anyio.CancelScope(), anyio.Event()
        self.replied[name] = replied

        def decide(now_s: float) -> Verdict:
            self.looks += 1
            return self.core.decide(request, now_s)

        async def ask() -> None:
            with scope:
                self.replies[name] = await self.room.answer(request, anyio.current_time(), decide)
                replied.set()

        self.tasks.start_soon(ask)
        await wait_all_tasks_blocked()
        return scope

    async def reply_to(self, name: str) -> None:
        """Wait for it where time must pass."""
        with anyio.fail_after(5):
            await self.replied[name].wait()

    async def free(self, worker: str = "a") -> None:
        """One of the worker's prompts is done."""
        [name, *_] = [booking.request for booking in self.booked(worker)]
        progress = Progress(name, WorkerId(worker), 1, Phase.ENDED)
        self.core.progress(progress, anyio.current_time())
        self.room.stir()
        await wait_all_tasks_blocked()

    def booked(self, worker: str) -> list[Booking]:
        every = self.core.ledger.bookings((WorkerId(""), RequestId("")))
        return [booking for booking in every if booking.worker == worker]

    @property
    def served(self) -> list[str]:
        return [name for name, reply in self.replies.items() if isinstance(reply, Chosen)]

    def refusal(self, name: str) -> Rejected:
        reply = self.replies[name]
        assert isinstance(reply, Rejected)
        assert reply.reason == ALL_BUSY
        return reply


@asynccontextmanager
async def scene(*workers: str, waiting_max: int = 100) -> AsyncIterator[Scene]:
    settings = RouterSettings(policy="least_loaded", busy_prefill_batches=1)
    core = RouterCore(settings, "r", random.Random(0))
    for name in workers or ("a",):
        core.worker_joined(record(name, max_batched_tokens=BATCH))
    async with anyio.create_task_group() as tasks:
        room = WaitingRoom(core, waiting_max)
        tasks.start_soon(room.usher)
        ours = Scene(core, room, tasks)
        for number in range(2 * len(core.workers)):
            await ours.come(f"0-{number}")
        assert len(ours.served) == 2 * len(core.workers)
        ours.replies.clear()
        yield ours
        tasks.cancel_scope.cancel()


async def test_kr16_who_finds_all_busy_waits_until_someone_is_free(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("1")
        assert (ours.replies, len(ours.room)) == ({}, 1)
        await ours.free()
        assert (ours.served, len(ours.room)) == (["1"], 0)


async def test_kr16_priority_decides_and_then_the_deadline(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("late", deadline_s=50.0)
        await ours.come("soon", deadline_s=40.0)
        await ours.come("urgent", deadline_s=60.0, priority=1)
        for _ in range(3):
            await ours.free()
        assert ours.served == ["urgent", "soon", "late"]


async def test_a_tenant_that_floods_does_not_starve_another(anyio_backend: str) -> None:
    async with scene() as ours:
        for number in range(10):
            await ours.come(f"flood-{number}", tenant="flood", deadline_s=20.0)
        await ours.come("other", tenant="other")
        await ours.free()
        await ours.free()
        assert "other" in ours.served


async def test_who_comes_while_others_wait_does_not_overtake(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("first", deadline_s=50.0)
        ended = Progress(RequestId("0-0"), WorkerId("a"), 1, Phase.ENDED)
        ours.core.progress(ended, anyio.current_time())  # and the usher has not heard of it
        await ours.come("second")
        assert ours.served == ["first"]
        await ours.free()
        assert ours.served == ["first", "second"]


async def test_one_that_nobody_free_can_serve_holds_up_nobody(anyio_backend: str) -> None:
    async with scene("a", "b") as ours:
        await ours.come("not-a", deadline_s=10.0, exclude=(WorkerId("a"),))
        await ours.come("any")
        await ours.free("a")
        assert ours.served == ["any"]
        await ours.free("b")
        assert ours.served == ["any", "not-a"]


async def test_those_that_a_free_worker_cannot_serve_do_not_all_look_at_it(
    anyio_backend: str,
) -> None:
    async with scene() as ours:
        ours.core.worker_joined(record("reserved", taints=("batch",)))
        for number in range(5):
            await ours.come(f"any-{number}")
        ours.looks = 0
        ours.room.stir()
        await wait_all_tasks_blocked()
        assert ours.looks == 1
        tolerant = Constraints(tolerations=("batch",))
        await ours.come("batch", deadline_s=100.0, constraints=tolerant)
        assert ours.served == ["batch"]


async def test_one_that_nobody_can_serve_at_all_is_told_so_at_once(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("waits")
        await ours.come("never", exclude=(WorkerId("a"),))
        reply = ours.replies["never"]
        assert isinstance(reply, Rejected)
        assert reply.reason == NO_WORKER


async def test_several_that_become_free_are_all_given_away(anyio_backend: str) -> None:
    async with scene("a", "b") as ours:
        for number in range(3):
            await ours.come(str(number))
        for number in range(4):
            worker = "a" if ours.booked("a") and number % 2 else "b"
            name = ours.booked(worker)[0].request
            ours.core.progress(Progress(name, WorkerId(worker), 1, Phase.ENDED), 0.0)
        ours.room.stir()
        await wait_all_tasks_blocked()
        assert ours.served == ["0", "1", "2"]


async def test_a_deadline_that_passes_is_a_refusal_with_its_reasons(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("1", deadline_s=0.02)
        await ours.reply_to("1")
        assert "a is busy_prefill" in ours.refusal("1").detail
        await gone(ours)


async def gone(ours: Scene) -> None:
    """Nobody waits, and a worker that becomes free is booked for nobody."""
    before = len(ours.core.ledger)
    assert len(ours.room) == 0
    await ours.free()
    assert len(ours.core.ledger) == before - 1


async def test_who_wants_to_hear_something_meanwhile_does(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("before", deadline_s=10.0)
        await ours.come("1", answer_s=0.02)
        await ours.reply_to("1")
        assert ours.replies == {"1": Queued(ahead=1)}
        assert len(ours.room) == 1


async def test_who_gives_up_leaves_no_trace(anyio_backend: str) -> None:
    async with scene() as ours:
        scope = await ours.come("1")
        scope.cancel()
        await wait_all_tasks_blocked()
        await gone(ours)


async def test_who_gives_up_when_called_lets_the_next_one_go(anyio_backend: str) -> None:
    async with scene() as ours:
        scope = await ours.come("1", deadline_s=10.0)
        await ours.come("2", deadline_s=20.0)
        scope.cancel()
        await ours.free()
        assert ours.served == ["2"]


async def test_who_is_withdrawn_does_not_wait_any_longer(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("1")
        await ours.come("2", attempt=2)
        ours.room.withdraw(Withdrawn(RequestId("1"), 1))
        ours.room.withdraw(Withdrawn(RequestId("2"), 1))
        await wait_all_tasks_blocked()
        assert ours.refusal("1")
        await ours.free()
        assert ours.served == ["2"]


async def test_without_room_the_greediest_goes(anyio_backend: str) -> None:
    async with scene(waiting_max=3) as ours:
        for number in range(3):
            await ours.come(f"flood-{number}", tenant="flood", deadline_s=10.0 + number)
        await ours.come("other", tenant="other")
        assert "no room" in ours.refusal("flood-2").detail
        await ours.come("urgent", priority=1)
        assert "no room" in ours.refusal("flood-1").detail
        await ours.come("idle", priority=-1)
        assert "no room" in ours.refusal("idle").detail
        assert len(ours.room) == 3


async def test_a_room_without_places_refuses_at_once(anyio_backend: str) -> None:
    async with scene(waiting_max=0) as ours:
        await ours.come("1")
        assert ours.refusal("1")


async def test_a_wait_that_is_hopeless_is_not_begun(anyio_backend: str) -> None:
    async with scene() as ours:
        now_s = anyio.current_time()
        busy = ours.core.decide(question("early", blocks={}), now_s - 10.0 * ENDS_MIN)
        assert isinstance(busy, Rejected)
        for number in range(ENDS_MIN):
            past, ended_s = RequestId(f"past-{number}"), now_s - 10.0 * (ENDS_MIN - number)
            ours.core.booked_elsewhere(Booking(past, WorkerId("a"), 1, 1), ended_s)
            ours.core.progress(Progress(past, WorkerId("a"), 1, Phase.ENDED), ended_s)
        await ours.come("impatient", deadline_s=2.0)
        await ours.come("patient", deadline_s=30.0)
        assert 9 < ours.refusal("impatient").retry_after_s < 11
        assert len(ours.room) == 1


async def test_a_quiet_time_makes_no_wait_hopeless(anyio_backend: str) -> None:
    async with scene() as ours:
        now_s = anyio.current_time()
        for number in range(ENDS_MIN):
            past, ended_s = RequestId(f"past-{number}"), now_s - 10.0 * (ENDS_MIN - number)
            ours.core.booked_elsewhere(Booking(past, WorkerId("a"), 1, 1), ended_s)
            ours.core.progress(Progress(past, WorkerId("a"), 1, Phase.ENDED), ended_s)
        await ours.come("impatient", deadline_s=2.0)
        assert (ours.replies, len(ours.room)) == ({}, 1)


async def test_a_room_that_closes_sends_its_guests_to_another(anyio_backend: str) -> None:
    async with scene() as ours:
        await ours.come("asks-again", answer_s=30.0)
        await ours.come("does-not")
        ours.room.close()
        await wait_all_tasks_blocked()
        assert isinstance(ours.replies["asks-again"], Queued)
        assert "leaving" in ours.refusal("does-not").detail
        await ours.come("too-late", answer_s=30.0)
        assert isinstance(ours.replies["too-late"], Queued)
        await gone(ours)


async def test_a_decision_that_fails_is_its_own_requests_trouble(anyio_backend: str) -> None:
    async with scene() as ours:
        failed = False
        bad = question("bad", blocks={}, deadline_s=60.0)

        async def fail() -> None:
            nonlocal failed
            try:
                await ours.room.answer(bad, anyio.current_time(), bug)
            except ZeroDivisionError:
                failed = True

        calls = iter([Rejected(ALL_BUSY, "")])

        def bug(_: float) -> Verdict:
            if (decision := next(calls, None)) is None:
                raise ZeroDivisionError
            return decision

        ours.tasks.start_soon(fail)
        await wait_all_tasks_blocked()
        await ours.come("good")
        await ours.free()
        assert failed
        assert ours.served == ["good"]

"""What a coordinator grants, and nobody hears: the gateway takes it back."""

from __future__ import annotations

import anyio
import msgspec
import pytest
import trio.testing

from controlplane.gateway.tickets import Tickets
from proto.transfers import Denied, Granted, Local, Report, State, Step, Ticket, TicketId
from proto.wire.errors import RequestRefused
from proto.wire.memory.faults import Deliver, Drop
from proto.workers import Role
from tests.unit.controlplane.transfer.world import (
    World,
    asking,
    begin,
    record,
    world,
)

pytestmark = pytest.mark.anyio

ONE_PLACE = record("p0", Role.PREFILL), record("d0", Role.DECODE, max_running=1)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def granted(tickets: Tickets, request: str) -> Ticket:
    reply = await tickets.begin(begin(request))
    assert isinstance(reply, Granted), reply
    return reply.ticket


def live(made: World) -> list[str]:
    states = made.services[0].core.book
    return [each.request for each in states if each.state is State.PREFILLING]


async def test_clients_that_leave_while_they_wait_for_a_place_take_none() -> None:
    async with world(*ONE_PLACE) as made, asking(made) as tickets:
        first = await granted(tickets, "first")

        async def leaves(number: int) -> None:
            with anyio.move_on_after(0.2):
                await tickets.begin(begin(f"gone{number}"))

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(leaves, number)
        await anyio.sleep(0.1)
        tickets.give_up(first, Step.FAIL, "over")
        await anyio.sleep(0.1)
        assert live(made) == []
        await granted(tickets, "later")


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_place_that_is_granted_to_who_has_left_is_free_again_soon(replicas: int) -> None:
    """Also where one replica hears that it is not wanted, and another one is about to grant it."""
    async with world(*ONE_PLACE, replicas=replicas) as made, asking(made) as tickets:
        for number in range(6):
            first = await granted(tickets, f"first{number}")
            with anyio.move_on_after(0.2):
                await tickets.begin(begin(f"gone{number}"))
            tickets.give_up(first, Step.FAIL, "over")
            await anyio.sleep(2)
            assert live(made) == []
        await tickets.settled()


async def test_a_grant_whose_answer_is_lost_is_taken_back() -> None:
    lost = True

    def loses(sender: str, subject: str, receiver: str) -> Drop | Deliver:
        return Drop() if lost and subject.startswith("_INBOX.asking") else Deliver()

    async with world(*ONE_PLACE, fault=loses) as made, asking(made) as tickets:
        reply = await tickets.begin(begin("unheard"))
        assert isinstance(reply, Local) and reply.reason == "no_coordinator"
        assert live(made) == ["unheard"]
        lost = False
        await tickets.settled()
        assert live(made) == []
        # The request is prefilled where it decodes, under the same id.
        assert all(worker != "d0" for worker, _ in made.agents.told)


async def test_a_coordinator_does_not_go_on_waiting_with_who_has_given_up() -> None:
    async with world(*ONE_PLACE, place_wait_s=5.0) as made:
        await made.asker.begin(begin("first"))
        id, replies = TicketId("4711"), []

        async def ask() -> None:
            replies.append(await made.asker.begin(msgspec.structs.replace(begin("b"), id=id)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.sleep(0.1)
            began_s = anyio.current_time()
            reply = await made.asker.say(Report(id, 1, Step.CANCEL))
        assert isinstance(reply, Denied) and reply.reason == "unknown"
        assert isinstance(replies[0], Local) and anyio.current_time() - began_s < 0.1


async def test_what_nobody_has_heard_need_not_be_taken_back() -> None:
    async with world(*ONE_PLACE) as made, asking(made) as tickets:
        await made.services[0].drain()
        assert isinstance(await tickets.begin(begin("a")), Local)
        with anyio.fail_after(0.1):
            await tickets.settled()


async def test_a_begin_that_comes_twice_is_granted_once() -> None:
    asked = msgspec.structs.replace(begin("a"), id=TicketId("4711"))
    async with world() as made:
        first, second = await made.asker.begin(asked), await made.asker.begin(asked)
        assert isinstance(first, Granted) and first.ticket.id == "4711"
        assert isinstance(second, Granted) and second.ticket == first.ticket
        await made.asker.report(first.ticket, Step.FAIL)
        with pytest.raises(RequestRefused, match="409"):
            await made.asker.begin(asked)


async def test_a_name_that_cannot_be_a_tickets_is_refused() -> None:
    async with world() as made:
        with pytest.raises(RequestRefused, match="400"):
            await made.asker.begin(msgspec.structs.replace(begin("a"), id=TicketId("a b.>")))

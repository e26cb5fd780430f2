"""An answer that is not streamed tells only at its end that its blocks had landed."""

from __future__ import annotations

import anyio
import pytest
import trio.testing

from proto.transfers import Granted, State, Step, Stepped, Ticket, Verb
from tests.unit.controlplane.transfer.world import World, asking, begin, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def transferring(made: World) -> Ticket:
    reply = await made.asker.begin(begin())
    assert isinstance(reply, Granted)
    moved = await made.asker.report(reply.ticket, Step.TRANSFER, handle=b"h")
    assert isinstance(moved, Stepped) and moved.ticket.state is State.TRANSFERRING
    return moved.ticket


def states(made: World) -> list[State]:
    return [each.after for each in made.seen]


@pytest.mark.parametrize("replicas", [1, 2])
async def test_its_ticket_waits_for_as_long_as_its_gateway_does(replicas: int) -> None:
    async with world(transfer_s=6.0, replicas=replicas) as made, asking(made) as tickets:
        ticket = await transferring(made)
        with tickets.kept(ticket):
            await anyio.sleep(100)
        landed = await made.asker.report(ticket, Step.LAND)
        assert isinstance(landed, Stepped) and landed.ticket.state is State.RELEASED
        assert made.agents.told == []


async def test_it_is_over_soon_after_its_gateway_is() -> None:
    async with world(transfer_s=6.0) as made:
        async with asking(made) as tickets:
            ticket = await transferring(made)
            with tickets.kept(ticket):
                await anyio.sleep(20)
        await anyio.sleep(7)
        assert states(made)[-1] is State.EXPIRED
        assert ("d0", Verb.ABORT_DECODE) in made.agents.told


async def test_what_is_to_be_cancelled_is_not_kept() -> None:
    async with world(transfer_s=6.0, cancel_s=2.0) as made, asking(made) as tickets:
        ticket = await transferring(made)
        with tickets.kept(ticket):
            await made.asker.report(ticket, Step.CANCEL)
            await anyio.sleep(4)
        assert states(made)[-1] is State.CANCELLED

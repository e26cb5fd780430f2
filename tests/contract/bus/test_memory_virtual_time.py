"""The bus in memory under a clock that jumps: hours in no time, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import anyio
from trio.testing import MockClock

from proto.wire.errors import BusTimeout
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.faults import Delay, Deliver, Drop, Duplicate
from proto.wire.ports import Message, StreamSpec
from tests.contract.bus.carriers import ECHO, echo

T = TypeVar("T")
Outcome = Deliver | Drop | Delay | Duplicate

HOUR_S = 3600.0


def in_virtual_time(main: Callable[[], Awaitable[T]]) -> T:
    options = {"clock": MockClock(autojump_threshold=0)}
    return anyio.run(main, backend="trio", backend_options=options)


def test_an_hour_passes_in_no_time() -> None:
    async def main() -> list[float]:
        async def slowly(message: Message) -> bytes:
            await anyio.sleep(HOUR_S)
            return message.data

        hub = MemoryHub(ack_wait_s=HOUR_S)
        bus, began_s = hub.connect("a"), anyio.current_time()
        moments_s: list[float] = []
        async with bus.serve(ECHO, [echo(slowly)]):
            await bus.request("echo", b"", timeout_s=2 * HOUR_S)
            moments_s.append(anyio.current_time() - began_s)
            try:
                await bus.request("echo", b"", timeout_s=HOUR_S / 2)
            except BusTimeout:
                moments_s.append(anyio.current_time() - began_s)
        await bus.ensure_stream(StreamSpec("S", ("stored",), 9 * HOUR_S, 1 << 20))
        moments_s.append(anyio.current_time() - began_s)
        await bus.append("stored", b"", timeout_s=1.0)
        async with bus.consume("S") as deliveries:
            await anext(deliveries)
            await anext(deliveries)  # not acknowledged, so it comes again
        moments_s.append(anyio.current_time() - began_s)
        return moments_s

    # Leaving the service at 1.5 h waits for the second handler, until 2 h.
    assert [round(each / HOUR_S, 3) for each in in_virtual_time(main)] == [1.0, 1.5, 2.0, 3.0]


def test_an_append_is_tried_again_and_stored_once() -> None:
    lost: list[Outcome] = [Drop(), Drop()]  # the first message, and the confirmation of the second

    def fault(sender: str, subject: str, receiver: str) -> Outcome:
        if lost and (receiver == "S") == (len(lost) == 2):
            return lost.pop()
        return Duplicate()

    async def main() -> list[int]:
        bus = MemoryHub(fault).connect("a")
        await bus.ensure_stream(StreamSpec("S", ("stored",), HOUR_S, 1 << 20))
        return [await bus.append("stored", b"", timeout_s=HOUR_S) for _ in range(2)]

    assert in_virtual_time(main) == [1, 2]
    assert not lost


def heard(seed: int) -> list[tuple[float, bytes]]:
    """What comes of 300 messages, and when, if everything may happen to them."""
    random = Random(seed)

    def fault(sender: str, subject: str, receiver: str) -> Outcome:
        delay = Delay(random.uniform(0, HOUR_S))
        outcomes: list[Outcome] = [Deliver(), Drop(), Duplicate(), delay]
        return random.choice(outcomes)

    async def main() -> list[tuple[float, bytes]]:
        began_s = anyio.current_time()
        arrived: list[tuple[float, bytes]] = []
        async with MemoryHub(fault) as hub:
            sender, receiver = hub.connect("a"), hub.connect("b")
            async with receiver.subscribe("s") as messages:
                for n in range(300):
                    await sender.publish("s", b"%d" % n)
                with anyio.move_on_after(HOUR_S):
                    async for message in messages:
                        arrived.append((anyio.current_time() - began_s, message.data))  # noqa: PERF401 cut short
        return arrived

    return in_virtual_time(main)


def test_a_seed_repeats_a_run() -> None:
    first = heard(7)
    assert len({data for _, data in first}) < 300 < len(first) + 100
    assert [data for _, data in first] != sorted(data for _, data in first)
    assert first == heard(7)
    assert first != heard(8)

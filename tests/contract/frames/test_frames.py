"""What every `Frames` carrier promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing

import anyio
import pytest
from anyio.lowlevel import checkpoint

from proto.wire.errors import FramesError
from proto.wire.inbox import TURN_MESSAGES
from proto.wire.ports import FrameStream
from proto.wire.zmq import ZmqFrames
from tests.contract.frames.peers import MemoryPeer, Peer, ZmqPeer, no_answer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

DEADLINE_S = 10.0
SILENCE_S = 0.05


@pytest.fixture(params=["memory", "zmq"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    if request.param == "memory":
        yield MemoryPeer()
        return
    frames = ZmqFrames()
    yield ZmqPeer(frames)
    frames.close()


async def take(
    stream: FrameStream | AsyncIterator[Sequence[bytes]], count: int
) -> list[list[bytes]]:
    messages = aiter(stream)
    with anyio.fail_after(DEADLINE_S):
        return [list(await anext(messages)) for _ in range(count)]


def numbered(count: int) -> list[list[bytes]]:
    return [[b"topic", n.to_bytes(8, "big"), b"x" * (n % 50)] for n in range(count)]


async def test_messages_arrive_whole_and_in_order(peer: Peer) -> None:
    async with peer.up(no_answer), peer.frames.subscribe(peer.events) as stream:
        await peer.heard_by(1)
        for frames in numbered(1000):
            peer.publish(frames)
        assert await take(stream, 1000) == numbered(1000)
        assert stream.dropped == 0


async def test_every_subscriber_hears_every_message(peer: Peer) -> None:
    async with (
        peer.up(no_answer),
        peer.frames.subscribe(peer.events) as one,
        peer.frames.subscribe(peer.events) as two,
    ):
        await peer.heard_by(2)
        peer.publish([b"to all"])
        assert await take(one, 1) == await take(two, 1) == [[b"to all"]]


async def test_a_full_queue_drops_the_newest_and_counts_them(peer: Peer) -> None:
    async with peer.up(no_answer), peer.frames.subscribe(peer.events, queue_messages=10) as stream:
        await peer.heard_by(1)
        for frames in numbered(10):
            peer.publish(frames)
        with anyio.fail_after(DEADLINE_S):
            while stream.dropped < 3:  # the real publisher may hold some back for a moment
                peer.publish([b"too many"])
                await checkpoint()
        assert await take(stream, 10) == numbered(10)


async def test_a_reader_of_a_full_queue_lets_others_have_a_turn(peer: Peer) -> None:
    count = 4 * TURN_MESSAGES
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with peer.up(no_answer), peer.frames.subscribe(peer.events) as stream:
        await peer.heard_by(1)
        for frames in numbered(count):
            peer.publish(frames)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await take(stream, count)
            tasks.cancel_scope.cancel()
    assert turns >= 3


async def test_a_subscriber_outlives_the_publisher_and_hears_its_successor(peer: Peer) -> None:
    async with peer.frames.subscribe(peer.events) as stream:
        for life in (b"first", b"second"):
            async with peer.up(no_answer):
                await peer.heard_by(1)
                peer.publish([life])
                assert await take(stream, 1) == [[life]]


async def test_a_cancelled_wait_loses_no_message(peer: Peer) -> None:
    async with peer.up(no_answer), peer.frames.subscribe(peer.events) as stream:
        await peer.heard_by(1)
        with anyio.move_on_after(SILENCE_S) as waiting:
            await take(stream, 1)
        assert waiting.cancelled_caught
        peer.publish([b"later"])
        assert await take(stream, 1) == [[b"later"]]


async def test_leaving_by_an_error_raises_that_very_error(peer: Peer) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with peer.frames.subscribe(peer.events):
            raise KeyError("mine")


async def test_a_subscription_ends_when_it_is_cancelled(peer: Peer) -> None:
    with anyio.move_on_after(SILENCE_S) as scope:
        async with peer.frames.subscribe(peer.events) as stream:
            await anext(aiter(stream))
    assert scope.cancelled_caught


async def test_replies_come_until_the_caller_hangs_up(peer: Peer) -> None:
    def echo(request: Sequence[bytes]) -> Iterator[list[bytes]]:
        return ([*request, bytes([n])] for n in range(5))

    async with (
        peer.up(echo),
        aclosing(peer.frames.ask(peer.replay, [b"", b"start"], silence_s=5)) as replies,
    ):
        assert await take(replies, 3) == [[b"", b"start", bytes([n])] for n in range(3)]


async def test_silence_after_the_last_reply_is_an_error(peer: Peer) -> None:
    async with (
        peer.up(lambda _: [[b"only"]]),
        aclosing(peer.frames.ask(peer.replay, [b"?"], silence_s=0.5)) as replies,
    ):
        assert await take(replies, 1) == [[b"only"]]
        with pytest.raises(FramesError, match="silent"):
            await take(replies, 1)


async def test_nobody_to_ask_is_an_error(peer: Peer) -> None:
    async with aclosing(peer.frames.ask(peer.replay, [b"?"], silence_s=SILENCE_S)) as replies:
        with pytest.raises(FramesError, match="silent"):
            await take(replies, 1)


async def test_an_endpoint_that_zeromq_does_not_know_is_misuse() -> None:
    frames = ZmqFrames()
    with pytest.raises(ValueError, match="nonsense"):
        async with frames.subscribe("nonsense"):
            pass
    frames.close()

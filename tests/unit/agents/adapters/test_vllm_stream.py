"""Every batch once and in order, or word that some are lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from agents.adapters import vllm_stream
from agents.adapters.protocol import EngineEvent, EngineUnfit, LossReason, Lost, Stored
from agents.adapters.vllm_events import VllmEvents
from agents.adapters.vllm_stream import VllmStream
from tests.unit.agents.engine import END, EVENTS, REPLAY, MemoryEngine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

DEADLINE_S = 10.0
GAP, RESTART, MALFORMED = LossReason.GAP, LossReason.RESTART, LossReason.MALFORMED

Told = int | LossReason


class Listener:
    """What was delivered: of a stored run the first token, of a loss the reason."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def deliver(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            assert isinstance(event, Stored | Lost)
            self.told.append(event.reason if isinstance(event, Lost) else event.tokens[0])

    async def has_heard(self, *told: Told) -> None:
        with anyio.move_on_after(DEADLINE_S):
            while self.told != list(told):
                await checkpoint()
        assert self.told == list(told)


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(block_tokens=1)


@asynccontextmanager
async def attached(
    engine: MemoryEngine, replay: str | None = REPLAY
) -> AsyncGenerator[Listener, None]:
    """A listener that has caught up and now listens."""
    listener = Listener()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            VllmStream(engine.frames, EVENTS, replay, VllmEvents()).follow, listener.deliver
        )
        await anyio.wait_all_tasks_blocked()
        yield listener
        tasks.cancel_scope.cancel()


def speak(engine: MemoryEngine, *tokens: int) -> None:
    """A batch for each token."""
    for token in tokens:
        engine.serve([token])


def miss(engine: MemoryEngine, *tokens: int) -> None:
    """Batches that do not arrive."""
    engine.deaf = True
    speak(engine, *tokens)
    engine.deaf = False


async def test_one_who_comes_late_hears_the_past_first(engine: MemoryEngine) -> None:
    speak(engine, 1, 2)
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 3)
            await listener.has_heard(1, 2, 3)


async def test_without_replay_the_past_is_unknown(engine: MemoryEngine) -> None:
    speak(engine, 1, 2)
    async with attached(engine, replay=None) as listener:
        speak(engine, 3)
        await listener.has_heard(3)


async def test_what_comes_live_during_a_replay_is_heard_once(engine: MemoryEngine) -> None:
    speak(engine, 1)

    def replay(request: Sequence[bytes]) -> list[list[bytes]]:
        if request[1] == bytes(8):
            speak(engine, 2, 3)
        return [*([b"", *message] for message in engine.kept), [b"", b"", END, b""]]

    with engine.frames.respond(REPLAY, replay):
        async with attached(engine) as listener:
            speak(engine, 4)
            await listener.has_heard(1, 2, 3, 4)


async def test_a_hole_is_filled_by_replay(engine: MemoryEngine) -> None:
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            miss(engine, 2, 3)
            speak(engine, 4)
            await listener.has_heard(1, 2, 3, 4)


async def test_a_hole_before_the_first_live_batch_is_seen(engine: MemoryEngine) -> None:
    """Lost between the replay and the moment the subscription took hold."""
    with engine.replaying():
        async with attached(engine) as listener:
            miss(engine, 1)
            speak(engine, 2)
            await listener.has_heard(1, 2)


async def test_a_hole_without_a_replay_socket_is_a_loss(engine: MemoryEngine) -> None:
    async with attached(engine, replay=None) as listener:
        speak(engine, 1)
        miss(engine, 2)
        speak(engine, 3, 4)
        await listener.has_heard(1, GAP, 3, 4)


async def test_what_the_replay_has_no_more_is_a_loss(engine: MemoryEngine) -> None:
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            miss(engine, 2, 3)
            for _ in range(2):
                engine.kept.popleft()
            speak(engine, 4)
            await listener.has_heard(1, GAP, 3, 4)


async def test_a_replay_that_does_not_answer_is_a_loss(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_stream, "REPLAY_SILENCE_S", 0.01)
    async with attached(engine) as listener:
        await anyio.sleep(0.05)
        speak(engine, 1)
        miss(engine, 2)
        speak(engine, 3)
        await listener.has_heard(1, GAP, 3)


async def test_a_lost_last_batch_is_found_when_it_is_quiet(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_stream, "QUIET_S", 0.02)
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            miss(engine, 2)
            await listener.has_heard(1, 2)


async def test_numbers_from_zero_are_a_restart(engine: MemoryEngine) -> None:
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1, 2)
            engine.restart()
            speak(engine, 3, 4)
            await listener.has_heard(1, 2, RESTART, 3, 4)


async def test_a_restart_whose_first_batches_were_missed_is_replayed(engine: MemoryEngine) -> None:
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1, 2, 3)
            engine.restart()
            miss(engine, 4)
            speak(engine, 5)
            await listener.has_heard(1, 2, 3, RESTART, 4, 5)


async def test_a_restart_right_after_the_first_batch_is_seen(engine: MemoryEngine) -> None:
    """The sequence is 0 again, and not greater than 0."""
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            engine.restart()
            speak(engine, 2)
            await listener.has_heard(1, RESTART, 2)


async def test_a_restart_whose_numbers_have_caught_up_is_seen(engine: MemoryEngine) -> None:
    """What arrives next looks like a hole in the old life."""
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1, 2)
            engine.restart()
            miss(engine, 3, 4, 5)
            speak(engine, 6)
            await listener.has_heard(1, 2, RESTART, 3, 4, 5, 6)


async def test_a_restart_without_a_word_is_seen_when_it_is_quiet(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_stream, "QUIET_S", 0.02)
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            engine.restart()
            await listener.has_heard(1, RESTART)
            await anyio.sleep(0.1)
            speak(engine, 2)
            await listener.has_heard(1, RESTART, 2)


async def test_a_recheck_finds_a_restart_at_once(engine: MemoryEngine) -> None:
    listener = Listener()
    stream = VllmStream(engine.frames, EVENTS, REPLAY, VllmEvents())
    with engine.replaying():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.follow, listener.deliver)
            await anyio.wait_all_tasks_blocked()
            speak(engine, 1)
            await listener.has_heard(1)
            await anyio.wait_all_tasks_blocked()
            stream.recheck()
            await anyio.wait_all_tasks_blocked()
            assert listener.told == [1]
            engine.restart()
            stream.recheck()
            await listener.has_heard(1, RESTART)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("topic", [True, False])
async def test_replies_are_read_with_and_without_a_topic(engine: MemoryEngine, topic: bool) -> None:
    speak(engine, 1, 2)

    def replay(request: Sequence[bytes]) -> list[list[bytes]]:
        del request
        messages = [*engine.kept, [b"", END, b""]]
        return [[b"", *(message if topic else message[1:])] for message in messages]

    with engine.frames.respond(REPLAY, replay):
        async with attached(engine) as listener:
            await listener.has_heard(1, 2)


async def test_a_nonsense_reply_ends_the_replay(engine: MemoryEngine) -> None:
    with engine.frames.respond(REPLAY, lambda _: [[b"what?"]]):
        async with attached(engine) as listener:
            speak(engine, 1)
            await listener.has_heard(1)


async def test_a_message_of_strange_shape_is_a_loss(engine: MemoryEngine) -> None:
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            engine.frames.publish(EVENTS, [b"lonely"])
            engine.frames.publish(EVENTS, [b"", b"short", b""])
            await listener.has_heard(1, MALFORMED, MALFORMED)


async def test_an_unreadable_batch_is_a_loss_and_the_next_is_heard(engine: MemoryEngine) -> None:
    with engine.replaying():
        async with attached(engine) as listener:
            speak(engine, 1)
            engine.frames.publish(EVENTS, [b"", (1).to_bytes(8, "big"), b"\xc1"])
            engine.frames.publish(EVENTS, [b"", (2).to_bytes(8, "big"), _stored_nine()])
            await listener.has_heard(1, MALFORMED, 9)


async def test_what_the_listener_raises_ends_the_stream(engine: MemoryEngine) -> None:
    def refuse(events: Sequence[EngineEvent]) -> None:
        raise EngineUnfit(f"{len(events)} events too many")

    speak(engine, 1)
    with engine.replaying(), pytest.raises(EngineUnfit, match="1 events"):
        await VllmStream(engine.frames, EVENTS, REPLAY, VllmEvents()).follow(refuse)


def _stored_nine() -> bytes:
    event = {"type": "BlockStored", "block_hashes": [1], "token_ids": [9], "block_size": 1}
    return msgspec.msgpack.encode([1.0, [event], 0])

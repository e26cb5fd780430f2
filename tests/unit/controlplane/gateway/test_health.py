"""Workers that hang with their doors open: found by their streams, probed, and let back in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial

import anyio
import pytest

from controlplane.gateway.health import STUCK, Standstill
from proto.ids import WorkerId
from proto.progress import Phase
from proto.wire.memory.http import Answer, Request
from tests.support.gateway_world import (
    DONE,
    PIECES,
    SETTINGS,
    Client,
    World,
    records,
    whole,
    world,
)

A, B = WorkerId("a"), WorkerId("b")
WATCHFUL = SETTINGS.model_copy(
    update={"stuck_s": 0.2, "probe_s": 0.1, "gap_s": 30.0, "total_s": 60.0}
)
Body = Callable[[], AsyncGenerator[bytes]]


def test_a_worker_stands_still_when_nothing_of_it_moves() -> None:
    seen = Standstill()
    assert seen.look({A: True, B: False}, 1.0) == {A: 0.0, B: 0.0}
    assert seen.look({A: False, B: False}, 3.0) == {A: 2.0, B: 2.0}
    assert seen.look({A: True, B: False}, 4.0) == {A: 0.0, B: 3.0}
    assert seen.look({A: False}, 5.0) == {A: 1.0}
    assert seen.look({A: False, B: False}, 6.0) == {A: 2.0, B: 0.0}, "B was waited for by nobody"


def hung(ours: World, name: str, healed: anyio.Event) -> None:
    """An engine whose streams stop after the first token, and that answers nothing else either
    until it is healed."""

    async def stream() -> AsyncGenerator[bytes]:
        yield PIECES[0]
        await anyio.sleep_forever()

    async def silence() -> AsyncGenerator[bytes]:
        await anyio.sleep_forever()
        yield b""

    async def token() -> AsyncGenerator[bytes]:
        yield b"{}"

    def origin(request: Request) -> Answer:
        probe = b'"stream"' not in request.body
        if healed.is_set():
            body: Body = token if probe else whole
        else:
            body = silence if probe else stream
        return Answer(200, body(), {"content-type": "text/event-stream"})

    ours.http.origins[f"http://{name}"] = origin


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_hung_worker_is_quarantined_and_let_back_when_it_answers(
    anyio_backend: str,
) -> None:
    healed = anyio.Event()
    async with world(settings=WATCHFUL, watched=True) as ours:
        hung(ours, "a", healed)
        ours.engine("b", whole)
        with anyio.fail_after(10):
            client = Client()
            await ours.serve(client)  # broken off long before the engine's silence is too long
        assert STUCK.encode() in client.read and DONE not in client.read
        told = [p for p in await ours.told(2) if p.worker_failed]
        assert {(p.worker, p.phase, p.outcome) for p in told} == {("a", Phase.ENDED, STUCK)}

        client = Client()
        await ours.serve(client)
        assert ours.routed[-1].exclude == ("a",)
        assert client.headers["x-tokenplane-worker"] == "b"

        healed.set()
        with anyio.fail_after(10):
            while ours.routed[-1].exclude:
                await ours.serve(Client(), max_tokens=1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_pause_that_a_probe_survives_breaks_nothing_off(anyio_backend: str) -> None:
    probed, resume = anyio.Event(), anyio.Event()

    async def paused() -> AsyncGenerator[bytes]:
        yield PIECES[0]
        await resume.wait()
        yield PIECES[1] + DONE

    async def token() -> AsyncGenerator[bytes]:
        yield b"{}"
        probed.set()

    def origin(request: Request) -> Answer:
        body: Body = paused if b'"stream"' in request.body else token
        return Answer(200, body(), {"content-type": "text/event-stream"})

    async with world(settings=WATCHFUL, watched=True) as ours, anyio.create_task_group() as tasks:
        ours.http.origins["http://a"] = origin
        client = Client()
        tasks.start_soon(ours.serve, client)
        with anyio.fail_after(10):
            await probed.wait()
        resume.set()
    assert client.read == PIECES[0] + PIECES[1] + DONE


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("last_words", [b"", DONE])
async def test_a_stream_that_has_said_all_when_its_worker_hangs_is_whole(
    anyio_backend: str, last_words: bytes
) -> None:
    finished = b'data: {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}\n\n'

    async def hangs() -> AsyncGenerator[bytes]:
        yield finished + last_words
        await anyio.sleep_forever()

    async def silence() -> AsyncGenerator[bytes]:
        await anyio.sleep_forever()
        yield b""

    def origin(request: Request) -> Answer:
        body: Body = hangs if b'"stream"' in request.body else silence
        return Answer(200, body(), {"content-type": "text/event-stream"})

    async with world(settings=WATCHFUL, watched=True) as ours:
        ours.http.origins["http://a"] = origin
        client = Client()
        with anyio.fail_after(10):
            await ours.serve(client)
        assert client.read == finished + DONE
        [written] = await records(ours, 1)
        assert written.outcome == "completed"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("stream", [False, True])
async def test_routers_hear_of_an_answer_of_which_nothing_has_come_yet(
    anyio_backend: str, stream: bool
) -> None:
    """A booking that nobody speaks of is dropped, however much its engine has to do."""
    heard_of = anyio.Event()

    async def body() -> AsyncGenerator[bytes]:
        await heard_of.wait()
        yield DONE if stream else b"{}"

    settings = WATCHFUL.model_copy(update={"alive_s": 0.1})
    async with world(settings=settings, watched=True) as ours, anyio.create_task_group() as tasks:
        ours.engine("a", body)
        tasks.start_soon(partial(ours.serve, Client(), stream=stream))
        with anyio.fail_after(5):
            while [each.phase for each in ours.progress].count(Phase.DISPATCHED) < 3:
                ours.heard = anyio.Event()
                await ours.heard.wait()
        heard_of.set()
        assert (await ours.told())[-1].phase is Phase.ENDED
    assert {(each.worker, each.attempt) for each in ours.progress} == {("a", 1)}

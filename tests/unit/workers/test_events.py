"""KV events: byte for byte what vLLM sent, live and replayed, and true to the cache."""

from __future__ import annotations

import gzip
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import zmq
import zmq.asyncio

from tests.unit.workers.sim_process import EVENTUALLY_S, Client, SimProcess, client, sim
from workers.sim.cache import CacheEvent, Cleared, Removed, Stored
from workers.sim.events import EventEncoder, EventFormat, HashFormat
from workers.sim.naming import BlockNamer

COMPLETIONS = "/v1/completions"
END = [b"", b"", b"\xff" * 8, b""]


@dataclass
class Owner:
    """A sequence of which nothing but the announced blocks is known."""

    tokens: array[int]
    cache_salt: str | None


def cache_event(wire: dict[str, Any]) -> tuple[CacheEvent, Owner]:
    """What the cache must have said for this to be on the wire."""
    match wire["type"]:
        case "BlockStored":
            [salt] = wire["extra_keys"][0] or [None]
            names, tokens = wire["block_hashes"], wire["token_ids"]
            parent = wire["parent_block_hash"]
            return Stored(parent, tuple(names), "owner", 0), Owner(array("I", tokens), salt)
        case "BlockRemoved":
            return Removed(tuple(wire["block_hashes"])), Owner(array("I"), None)
        case _:
            return Cleared(), Owner(array("I"), None)


@pytest.mark.parametrize("recording", ["a_bs32.bin", "ev_eviction.bin", "replay_from0.bin.gz"])
def test_events_are_written_as_vllm_wrote_them(recording: str, shared_data: Path) -> None:
    count = 0
    for frames in recorded(shared_data / "vllm" / recording):
        if frames[-2:] == END[-2:]:
            continue
        timestamp, events, rank = msgspec.msgpack.decode(frames[-1])
        encoder = EventEncoder(32, EventFormat.MAP, HashFormat.INT)
        wire: list[object] = []
        for event in events:
            said, owner = cache_event(event)
            wire += encoder.encode([said], lambda _, owner=owner: owner)  # type: ignore[misc]
        assert msgspec.msgpack.encode([timestamp, wire, rank]) == frames[-1]
        count += len(events)
    assert count >= 5


def test_older_versions_wrote_arrays_and_digests() -> None:
    owner = Owner(array("I", [1, 2, 3, 4]), "salt")
    events: list[CacheEvent] = [Stored(None, (7 << 64 | 5, 6), "o", 0), Removed((5, 6)), Cleared()]
    encoder = EventEncoder(2, EventFormat.ARRAY, HashFormat.INT)
    assert encoder.encode(events, lambda _: owner) == [
        ["BlockStored", [5, 6], None, [1, 2, 3, 4], 2, None, "GPU", None, [["salt"], None]],
        ["BlockRemoved", [5], "GPU"],
        ["BlockRemoved", [6], "GPU"],
        ["AllBlocksCleared"],
    ]
    encoder = EventEncoder(2, EventFormat.MAP, HashFormat.BYTES)
    [stored, *_] = encoder.encode(events, lambda _: owner)
    assert isinstance(stored, dict)
    digests = [(7 << 64 | 5).to_bytes(32, "big"), (6).to_bytes(32, "big")]
    assert stored["block_hashes"] == digests


@pytest.fixture(scope="module")
def engine() -> Iterator[SimProcess]:
    """A cache of 40 blocks, as small as that of the recording with evictions."""
    options = ("--speed", "20", "--block-size", "32", "--blocks", "40", "--event-topic", "kv")
    with sim(*options, events=True) as started:
        yield started


pytest_anyio = pytest.mark.anyio


@pytest_anyio
async def test_what_the_events_say_is_what_the_cache_holds(engine: SimProcess) -> None:
    async with client(engine) as c, subscriber(engine) as live:
        first = await _until_heard(c, live)
        namer = BlockNamer(32)
        prompts = [[1000 + p] * (100 + 20 * p) for p in range(24)]
        for prompt in prompts:
            await _complete(c, prompt)
        await c.post("/reset_prefix_cache", {})
        for prompt in prompts:
            await _complete(c, prompt)
        replayed = await replay(engine, 0)
        assert [int.from_bytes(frames[2], "big") for frames in replayed] == [*range(len(replayed))]

        # Live and replayed are the same batches, in the same frames.
        sequence = int.from_bytes(first[1], "big")
        heard = [first, *[await receive(live) for _ in replayed[sequence + 1 :]]]
        assert heard == [frames[1:] for frames in replayed[sequence:]]
        assert {frames[0] for frames in heard} == {b"kv"}

        cached = live_blocks(replayed)
        assert 0 < len(cached) <= 40
        for prompt in prompts:
            low = [name & (2**64 - 1) for name in namer.names(prompt, None)]
            expected = 0
            while expected < (len(prompt) - 1) // 32 and low[expected] in cached:
                expected += 1
            usage = (await _complete(c, prompt))["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == expected * 32
            # Asking changed the cache: follow it.
            cached = live_blocks(await replay(engine, 0))


@pytest_anyio
async def test_replay_starts_where_it_is_asked_to(engine: SimProcess) -> None:
    async with client(engine) as c:
        for salt in ("a", "b", "c"):
            await _complete(c, [7] * 64, cache_salt=salt)
    everything = await replay(engine, 0)
    assert await replay(engine, len(everything) - 2) == everything[-2:]
    assert await replay(engine, len(everything) + 100) == []
    events = [event for frames in everything for event in msgspec.msgpack.decode(frames[3])[1]]
    stored = [event for event in events if event["type"] == "BlockStored"]
    assert [event["extra_keys"] for event in stored[-3:]] == [[[s], None] for s in "abc"]


@pytest_anyio
async def test_a_request_that_is_no_replay_request_is_passed_over(engine: SimProcess) -> None:
    async with replay_socket(engine) as socket:
        await socket.send_multipart([b"", b"nonsense, but long"])
        await socket.send_multipart([b"no", b"idea", b"what", b"this is"])
    assert await replay(engine, 2**40) == []


@pytest_anyio
async def test_the_frames_of_a_replay_are_vllms(engine: SimProcess, shared_data: Path) -> None:
    *batches, end = recorded(shared_data / "vllm" / "replay_from0.bin.gz")
    async with replay_socket(engine) as socket:
        await socket.send_multipart([b"", (0).to_bytes(8, "big")])
        ours = [await receive(socket)]
        while ours[-1][2] != END[2]:
            ours.append(await receive(socket))
    assert ours[-1] == end == END
    for frames in (batches[0], ours[0]):
        assert [len(frame) for frame in frames[:3:2]] == [0, 8]
        assert len(frames) == 4


@pytest_anyio
async def test_a_reset_is_told_with_the_next_step(engine: SimProcess) -> None:
    async with client(engine) as c:
        await _complete(c, [8] * 64)
        before = len(await replay(engine, 0))
        await c.post("/reset_prefix_cache", {})
        assert len(await replay(engine, 0)) == before
        await _complete(c, [8] * 64)
        [frames] = await replay(engine, before)
    kinds = [event["type"] for event in msgspec.msgpack.decode(frames[3])[1]]
    assert kinds == ["AllBlocksCleared", "BlockStored"]


async def _complete(c: Client, prompt: list[int], **more: object) -> Any:
    return await c.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 3, **more})


async def _until_heard(c: Client, live: zmq.asyncio.Socket) -> list[bytes]:
    """A subscription takes a moment to arrive: say something new until it is heard."""
    with anyio.fail_after(EVENTUALLY_S):
        for salt in range(1_000_000):
            await _complete(c, [5] * 32, cache_salt=f"hear {salt}")
            if await live.poll(10):
                return await receive(live)
    raise AssertionError


def recorded(path: Path) -> list[list[bytes]]:
    """Messages of a recording: `u8 frames`, then each frame after its `u32be` length."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    messages, at = [], 0
    while at < len(data):
        count, at, frames = data[at], at + 1, []
        for _ in range(count):
            start = at + 4
            at = start + int.from_bytes(data[at:start], "big")
            frames.append(data[start:at])
        messages.append(frames)
    return messages


def live_blocks(batches: list[list[bytes]]) -> set[int]:
    live: set[int] = set()
    for frames in batches:
        for event in msgspec.msgpack.decode(frames[3])[1]:
            match event["type"]:
                case "BlockStored":
                    assert live.isdisjoint(event["block_hashes"])
                    live.update(event["block_hashes"])
                case "BlockRemoved":
                    live.remove(*event["block_hashes"])
                case "AllBlocksCleared":
                    live.clear()
    return live


async def receive(socket: zmq.asyncio.Socket) -> list[bytes]:
    with anyio.fail_after(EVENTUALLY_S):
        frames: list[bytes] = await socket.recv_multipart()
        return frames


async def replay(engine: SimProcess, start: int) -> list[list[bytes]]:
    async with replay_socket(engine) as socket:
        await socket.send_multipart([b"", start.to_bytes(8, "big")])
        batches = []
        while (frames := await receive(socket)) != END:
            batches.append(frames)
        return batches


@asynccontextmanager
async def replay_socket(engine: SimProcess) -> AsyncIterator[zmq.asyncio.Socket]:
    async with _connected(zmq.DEALER, engine.replay_port) as socket:
        yield socket


@asynccontextmanager
async def subscriber(engine: SimProcess) -> AsyncIterator[zmq.asyncio.Socket]:
    async with _connected(zmq.SUB, engine.events_port) as socket:
        socket.subscribe(b"kv")
        yield socket


@asynccontextmanager
async def _connected(kind: int, port: int) -> AsyncIterator[zmq.asyncio.Socket]:
    with zmq.asyncio.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.connect(f"tcp://127.0.0.1:{port}")
        yield socket

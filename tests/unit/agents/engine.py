"""An engine within the test's own process: looks like vLLM through the `Http` and `Frames` ports.

It caches prompts and nothing else; the test is its scheduler.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
from anyio.lowlevel import checkpoint

from proto.hashing import BlockHasher, Scope
from proto.wire.errors import HttpUnreachable
from proto.wire.memory.frames import MemoryFrames
from proto.wire.ports import DEFAULT_TIMEOUTS, NO_HEADERS, Headers, HttpTimeouts

MODEL = "tiny"
URL = "http://engine"
EVENTS, REPLAY = "memory://engine/events", "memory://engine/replay"
END = b"\xff" * 8


class MemoryEngine:
    """One engine; `frames` and itself (as `Http`) are given to an agent."""

    def __init__(self, *, block_tokens: int = 4, total_blocks: int = 64) -> None:
        self.frames = MemoryFrames()
        self.block_tokens = block_tokens
        self.total_blocks = total_blocks
        self.tells_start = True
        self.told_block_tokens: int | None = None
        """What the metrics say instead of the truth."""
        self.running = 0
        self.waiting = 0
        self.used_blocks = 0
        """By sequences, and by what is kept for another engine; not by what is merely cached."""
        self.reachable = True
        self.answers: dict[str, str | None] = {}
        """Other answers than usual, by path; None is a 404."""
        self.deaf = False
        """Nobody hears what it publishes."""
        self.kept: deque[list[bytes]] = deque(maxlen=10_000)
        self._begin(started_s=1000.0)

    def _begin(self, started_s: float) -> None:
        self.started_s = started_s
        self.queried_tokens = 0
        self._sequence = 0
        self._blocks: dict[int, tuple[int, ...]] = {}
        self._copies: Counter[int] = Counter()
        self._unpublished: list[dict[str, Any]] = []
        self.kept.clear()

    # --- what a test does

    def restart(self, *, block_tokens: int | None = None) -> None:
        """Another life: nothing cached, numbers from 0."""
        self.block_tokens = block_tokens or self.block_tokens
        self._begin(self.started_s + 60)

    def serve(self, prompt: Sequence[int], *, copy_from: int | None = None) -> None:
        """Cache a prompt; blocks from `copy_from` on are computed again although cached."""
        self.queried_tokens += len(prompt)
        paths = [
            tuple(prompt[:end])
            for end in range(self.block_tokens, len(prompt) + 1, self.block_tokens)
        ]
        first = next((k for k, p in enumerate(paths) if _hash(p) not in self._blocks), len(paths))
        first = first if copy_from is None else min(first, copy_from)
        if first < len(paths):
            self._blocks |= {_hash(path): path for path in paths[first:]}
            self._copies.update(_hash(path) for path in paths[first:])
            self._unpublished.append(self._stored(paths, first))
        self.publish()

    def caches(self, prompt: Sequence[int]) -> bool:
        """Whether the last block of a prompt is cached."""
        return self.tail(prompt) in self._blocks

    def tail(self, prompt: Sequence[int]) -> int:
        """What it calls the last block of a prompt."""
        return _hash(self._last_block(prompt))

    def evict(self, prompt: Sequence[int]) -> None:
        """Drop one copy of the last block of a prompt."""
        path = self._last_block(prompt)
        self._copies[_hash(path)] -= 1
        if not self._copies[_hash(path)]:
            del self._blocks[_hash(path)]
        self._unpublished.append(
            {"type": "BlockRemoved", "block_hashes": [_hash(path)], "medium": "GPU"}
        )
        self.publish()

    def reset(self) -> None:
        """As vLLM: the event goes out with the next batch only."""
        self._blocks.clear()
        self._copies.clear()
        self._unpublished.append({"type": "AllBlocksCleared"})

    def publish(self) -> None:
        """One batch with what has happened."""
        if not self._unpublished:
            return
        payload = msgspec.msgpack.encode([1.0, self._unpublished, 0])
        message = [b"", self._sequence.to_bytes(8, "big"), payload]
        self._unpublished = []
        self._sequence += 1
        self.kept.append(message)
        if not self.deaf:
            self.frames.publish(EVENTS, message)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """With its replay socket bound."""
        with self.frames.respond(REPLAY, self._replay):
            yield

    def names(self, secret: bytes) -> set[int]:
        """Canonical names of what a look-up can find: blocks that it caches with all before."""
        hasher = BlockHasher(secret, Scope(MODEL), self.block_tokens)
        return {int(hasher.names(path)[-1]) for path in self._blocks.values() if self._finds(path)}

    def _finds(self, path: Sequence[int]) -> bool:
        ends = range(self.block_tokens, len(path) + 1, self.block_tokens)
        return all(_hash(path[:end]) in self._blocks for end in ends)

    # --- what an agent sees

    def exchange(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Headers = NO_HEADERS,
        timeouts: HttpTimeouts = DEFAULT_TIMEOUTS,
    ) -> Any:
        """The `Http` port."""
        del method, body, headers, timeouts
        return self._exchange(url.removeprefix(URL))

    @asynccontextmanager
    async def _exchange(self, path: str) -> AsyncGenerator[_Response, None]:
        await checkpoint()
        if not self.reachable:
            raise HttpUnreachable("refused")
        models = {"data": [{"id": MODEL, "max_model_len": 2048}]}
        answers = {
            "/v1/models": json.dumps(models),
            "/health": "",
            "/version": json.dumps({"version": "0.32.0"}),
            "/server_info": json.dumps({"vllm_config": {}}),
            "/metrics": self._metrics(),
            **self.answers,
        }
        answer = answers.get(path)
        yield _Response(404 if answer is None else 200, (answer or "").encode())

    def _metrics(self) -> str:
        labels = f'engine="0",model_name="{MODEL}"'
        used = self._used() / self.total_blocks
        block_tokens = self.told_block_tokens or self.block_tokens
        started = f"process_start_time_seconds {self.started_s}\n" if self.tells_start else ""
        return (
            f"{started}"
            f"vllm:num_requests_running{{{labels}}} {self.running}\n"
            f"vllm:num_requests_waiting{{{labels}}} {self.waiting}\n"
            f"vllm:kv_cache_usage_perc{{{labels}}} {used}\n"
            f"vllm:prefix_cache_queries_total{{{labels}}} {self.queried_tokens}\n"
            f'vllm:cache_config_info{{{labels},block_size="{block_tokens}",'
            f'num_gpu_blocks="{self.total_blocks}"}} 1.0\n'
        )

    def _used(self) -> int:
        return self.used_blocks

    def _last_block(self, prompt: Sequence[int]) -> tuple[int, ...]:
        return tuple(prompt[: len(prompt) // self.block_tokens * self.block_tokens])

    def _stored(self, paths: Sequence[tuple[int, ...]], first: int) -> dict[str, Any]:
        return {
            "type": "BlockStored",
            "block_hashes": [_hash(path) for path in paths[first:]],
            "parent_block_hash": _hash(paths[first - 1]) if first else None,
            "token_ids": paths[-1][first * self.block_tokens :],
            "block_size": self.block_tokens,
            "medium": "GPU",
        }

    def _replay(self, request: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        start = int.from_bytes(request[1], "big")
        for message in list(self.kept):
            if int.from_bytes(message[1], "big") >= start:
                yield [b"", *message]
        yield [b"", b"", END, b""]


class _Response:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.headers: Headers = {}
        self._body = body

    async def read(self, *, limit_bytes: int = 64 << 20) -> bytes:
        return self._body[:limit_bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body


def _hash(path: Sequence[int]) -> int:
    return int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[-8:], "big")

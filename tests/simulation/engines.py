"""Engines in virtual time that hand blocks over: they die, hang up, and never lie about what they
have read. Told apart by what a stream must say, which follows from its prompt alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from proto.wire.errors import HttpBroken, HttpUnreachable
from proto.wire.ports import (
    DEFAULT_TIMEOUTS,
    NO_HEADERS,
    Headers,
    HttpResponse,
    HttpTake,
    HttpTimeouts,
)
from tests.unit.agents.engine import URL, MemoryEngine

PREFILL_S, STEP_S, PIECE_S, PIECES = 0.2, 0.02, 0.02, 5
WHOLE_S = 15.0
"""Of an answer that is not streamed: longer than a transfer may take."""
LEASE_S = 30.0
TOKENS = 4
DONE = b"data: [DONE]\n\n"

Body = AsyncGenerator[bytes, None]


def answer(prompt: Sequence[int]) -> list[str]:
    """What any engine says to a prompt."""
    digest = hashlib.sha256(repr(list(prompt)).encode()).hexdigest()
    return [digest[4 * n : 4 * n + 4] for n in range(TOKENS)]


@dataclass
class _Staged:
    prompt: tuple[int, ...]
    request: str
    until_s: float


class SplitEngine(MemoryEngine):
    """One engine; `peers` are those it may read from."""

    def __init__(self, name: str, peers: Mapping[str, SplitEngine]) -> None:
        super().__init__()
        self.name = name
        self.peers = peers
        self.life = 0
        self.alive = True
        self.staged: dict[str, _Staged] = {}
        self.expired = 0
        self._calls: dict[anyio.CancelScope, str] = {}
        self._killed: set[anyio.CancelScope] = set()
        self.answers["/server_info"] = json.dumps({"vllm_config": {"kv_transfer": TRANSFER}})

    # --- what a schedule does

    def kill(self) -> None:
        """`kill -9`: whoever talks to it sees the connection break; what it held is gone."""
        self.alive = self.reachable = False
        self.staged.clear()
        for scope in list(self._calls):
            self._killed.add(scope)
            scope.cancel()

    def start(self) -> None:
        """Another life, that knows nothing of the one before."""
        self.life += 1
        self.restart()
        self.alive = self.reachable = True

    @property
    def busy(self) -> int:
        """Calls under way."""
        return len(self._calls)

    # --- as a server

    async def handle(self, path: str, body: bytes, headers: Headers) -> tuple[int, Body]:
        """The head of an answer and what follows. Raises `HttpUnreachable`, `HttpBroken`."""
        await checkpoint()
        if not self.alive:
            raise HttpUnreachable(f"{self.name} is dead")
        asked: dict[str, Any] = json.loads(body)
        if path == "/release_kv":
            known = self.staged.pop(str(asked.get("remote_request_id")), None) is not None
            return 200, _once({"known": known})
        request = headers.get("x-request-id", "")
        if path == "/abort_requests":
            return 200, _once({"known": self._abort(asked["request_ids"])})
        params = asked.get("kv_transfer_params") or {}
        prompt = tuple(asked["prompt"])
        with self._call(request):
            if params.get("do_remote_decode"):
                await anyio.sleep(PREFILL_S)
                self.serve(prompt)
                return 200, _once({"kv_transfer_params": self._stage(prompt, request)})
            if params.get("do_remote_prefill"):
                if why := await self._fetch(params, prompt):
                    return 500, _once({"error": {"message": why, "type": "KVLoadError"}})
            else:
                await anyio.sleep(PREFILL_S)
            self.serve(prompt)
        if asked.get("stream") is False:
            return 200, self._whole(prompt, request)
        return 200, self._stream(prompt, request)

    def _used(self) -> int:
        now_s = anyio.current_time()
        kept = [kept.prompt for kept in self.staged.values() if kept.until_s > now_s]
        return sum(len(prompt) // self.block_tokens for prompt in kept)

    async def _whole(self, prompt: tuple[int, ...], request: str) -> Body:
        with self._call(request):
            await anyio.sleep(WHOLE_S)
        yield json.dumps({"choices": [{"text": "".join(answer(prompt))}]}).encode()

    async def _stream(self, prompt: tuple[int, ...], request: str) -> Body:
        for token in answer(prompt):
            if not self.alive:
                raise HttpBroken(f"{self.name} is dead")
            with self._call(request):
                await anyio.sleep(STEP_S)
            yield f'data: {{"choices": [{{"text": "{token}"}}]}}\n\n'.encode()
        yield DONE

    def _stage(self, prompt: tuple[int, ...], request: str) -> dict[str, object]:
        id = f"{request}-{len(self.staged)}-{anyio.current_time()}"
        self.staged[id] = _Staged(prompt, request, anyio.current_time() + LEASE_S)
        return {
            "do_remote_prefill": True,
            "remote_engine_id": f"{self.name}/{self.life}",
            "remote_request_id": id,
        }

    async def _fetch(self, params: Mapping[str, Any], prompt: tuple[int, ...]) -> str:
        """Piece by piece, as the source may die in between; "" if all of it is right."""
        name, _, life = params["remote_engine_id"].partition("/")
        id, source = params["remote_request_id"], self.peers[name]
        for _ in range(PIECES):
            kept = source.staged.get(id)
            if not source.alive or source.life != int(life):
                return f"{name} is not what it was"
            if kept is None or kept.until_s <= anyio.current_time():
                return "nothing is kept, or not any more"
            if kept.prompt != prompt:
                return "these are the blocks of another prompt"
            await anyio.sleep(PIECE_S)
        source.staged.pop(id, None)
        return ""

    def _abort(self, requests: Sequence[str]) -> bool:
        ids = [id for id, kept in self.staged.items() if kept.request in requests]
        for id in ids:
            del self.staged[id]
        scopes = [scope for scope, request in self._calls.items() if request in requests]
        for scope in scopes:
            self._killed.add(scope)
            scope.cancel()
        return bool(ids or scopes)

    @contextmanager
    def _call(self, request: str) -> Iterator[None]:
        with anyio.CancelScope() as scope:
            self._calls[scope] = request
            try:
                yield
            finally:
                del self._calls[scope]
        if scope in self._killed:
            self._killed.discard(scope)
            raise HttpBroken(f"{self.name} hung up")


TRANSFER = {
    "connector": "sim-tcp",
    "order": "prefill_first",
    "dtype": "auto",
    "layout": "virtual",
    "tensor_parallel": 1,
    "block_bytes": 1024,
    "lease_s": LEASE_S,
}


class SplitHttp:
    """The `Http` port: gateways and agents reach engines by their names."""

    def __init__(self, engines: Mapping[str, SplitEngine]) -> None:
        self._engines = engines

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Headers = NO_HEADERS,
        timeouts: HttpTimeouts = DEFAULT_TIMEOUTS,
    ) -> AsyncIterator[HttpResponse]:
        name, _, path = url.removeprefix("http://").partition("/")
        engine = self._engines[name]
        if method == "GET":
            async with engine.exchange(method, f"{URL}/{path}", timeouts=timeouts) as response:
                yield response
            return
        lowered = {key.lower(): value for key, value in headers.items()}
        status, pieces = await engine.handle(f"/{path}", body, lowered)
        try:
            yield _Response(status, pieces)
        finally:
            with anyio.CancelScope(shield=True):
                await pieces.aclose()


class _Response:
    def __init__(self, status: int, pieces: Body) -> None:
        self.status = status
        self.headers: Headers = {"content-type": "text/event-stream"}
        self._pieces = pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece

    async def pour(self, take: HttpTake) -> bool:
        async for piece in self._pieces:
            if not take(piece, anyio.current_time()):
                return False
        return True

    async def read(self, *, limit_bytes: int = 64 << 20) -> bytes:
        return b"".join([piece async for piece in self._pieces])[:limit_bytes]


async def _once(body: object) -> Body:
    yield json.dumps(body).encode()

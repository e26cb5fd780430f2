"""The peer's selection service: engines that feed it over ZeroMQ, and its decisions over HTTP.

It listens on every interface, as it cannot be told otherwise, for as long as it runs.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import anyio
import msgspec
import zmq

from bench.deciders import Decision, Form, WrongAnswer
from bench.http import HttpConnection, request
from bench.ours import BLOCK_TOKENS, MODEL
from bench.peer import hash_blocks
from bench.prompts import Prompt, Tokens, Workload
from bench.rig import Rig
from controlplane.local.ports import LOOPBACK, free_ports

NAME = "peer"
THREADS = 4
EVENT_BLOCKS = 64
JOIN_S = 0.5
FED_S = 60.0
POLL_S = 0.01
FIRST_WORKER = 1
"""Workers are numbered from here; `Decision` and `Prompt` number them from 0."""

encode, decode = msgspec.json.encode, msgspec.json.decode


class _Overlap(msgspec.Struct, frozen=True):
    gpu: int = 0


class _Selected(msgspec.Struct, frozen=True):
    worker_id: int
    overlap: _Overlap = _Overlap()


class _Score(msgspec.Struct, frozen=True):
    worker_id: int
    device_blocks: int


class _Scores(msgspec.Struct, frozen=True):
    workers: list[_Score]


class PeerDecider:
    """Selections over one connection a caller. Bodies are made beforehand, which favours the
    peer; a reservation is freed by a second request."""

    def __init__(
        self,
        connections: Sequence[HttpConnection],
        prompts: Sequence[Prompt],
        form: Form,
        *,
        reserve: bool,
    ) -> None:
        self._connections = connections
        self._reserve = reserve
        self._path = "/select_and_reserve" if reserve else "/select"
        self._bodies = [_body(prompt, form) for prompt in prompts]
        self._numbers = count()

    async def decide(self, prompt: int, caller: int) -> Decision:
        name = f"{id(self)}-{next(self._numbers)}"
        body = self._bodies[prompt]
        if self._reserve:
            body = b'{"selection_id":"%s",%s' % (name.encode(), body[1:])
        answer = await self._connections[caller].ask(request("POST", self._path, body))
        if answer.status != 200:
            raise WrongAnswer(f"{answer.status}: {answer.body[:200]!r}")
        selected = decode(answer.body, type=_Selected)
        return Decision(selected.worker_id - FIRST_WORKER, selected.overlap.gpu, name)

    async def free(self, decision: Decision, caller: int) -> None:
        if self._reserve:
            path = f"/reservations/{decision.name}"
            answer = await self._connections[caller].ask(request("DELETE", path))
            if answer.status >= 300:
                raise WrongAnswer(f"{answer.status}: {answer.body[:200]!r}")


@asynccontextmanager
async def serving(
    rig: Rig, work: Workload, callers: int
) -> AsyncIterator[Sequence[HttpConnection]]:
    """A service whose workers hold the workload's chains, and a connection for each caller."""
    (port,) = free_ports(1)
    argv = (sys.executable, "-m", "dynamo.select_service", "--port", str(port))
    ready = f"http://{LOOPBACK}:{port}/health"
    more = ("--threads", str(THREADS))
    await rig.start(NAME, (*argv, *more), ready, {"DYN_LOG": "error"})
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rig.stop, NAME)
        connections = [
            await stack.enter_async_context(await HttpConnection.open(LOOPBACK, port))
            for _ in range(callers)
        ]
        with zmq.Context() as context:
            engines = [_Engine(context) for _ in work.chains]
            for number, engine in enumerate(engines):
                body = encode(_worker(number, engine.endpoint))
                answer = await connections[0].ask(request("POST", "/workers", body))
                if answer.status != 201:
                    raise WrongAnswer(f"{answer.status}: {answer.body!r}")
            await anyio.sleep(JOIN_S)  # until its sockets have found the engines
            for engine, chains in zip(engines, work.chains, strict=True):
                for tokens in chains:
                    engine.store(tokens)
            with anyio.fail_after(FED_S):
                for number, chains in enumerate(work.chains):
                    await _until_known(connections[0], number, chains[-1])
            yield connections
            for engine in engines:
                engine.socket.close(linger=0)


class _Engine:
    """Publishes KV events as vLLM does."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.PUB)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.endpoint = f"tcp://{LOOPBACK}:{self.socket.bind_to_random_port(f'tcp://{LOOPBACK}')}"
        self._sequence = count()
        self._hashes = count(1)

    def store(self, tokens: Tokens) -> None:
        """One chain, in several events."""
        parent: int | None = None
        step = EVENT_BLOCKS * BLOCK_TOKENS
        for start in range(0, len(tokens), step):
            piece = tokens[start : start + step].tolist()
            hashes = [next(self._hashes) for _ in range(len(piece) // BLOCK_TOKENS)]
            event = ["BlockStored", hashes, parent, piece, BLOCK_TOKENS, None, "GPU"]
            number = struct.pack(">Q", next(self._sequence))
            said = msgspec.msgpack.encode([1.0, [event], 0])
            self.socket.send_multipart([b"kv-events", number, said])
            parent = hashes[-1]


async def _until_known(connection: HttpConnection, number: int, tokens: Tokens) -> None:
    """The service has heard of a worker's last chain, and so of all before."""
    body = encode({"model_name": MODEL, "token_ids": tokens.tolist()})
    wanted = _Score(number + FIRST_WORKER, len(tokens) // BLOCK_TOKENS)
    while True:
        answer = await connection.ask(request("POST", "/overlap_scores", body))
        if wanted in decode(answer.body, type=_Scores).workers:
            return
        await anyio.sleep(POLL_S)


def _worker(number: int, events: str) -> dict[str, object]:
    return {
        "worker_id": number + FIRST_WORKER,
        "model_name": MODEL,
        "routing_group": "default",
        "endpoint": f"http://{LOOPBACK}:{10_000 + number}",
        "block_size": BLOCK_TOKENS,
        "data_parallel_start_rank": 0,
        "data_parallel_size": 1,
        "kv_events_endpoints": {"0": events},
        "max_num_batched_tokens": 8192,
        "total_kv_blocks": 1_000_000,
    }


def _body(prompt: Prompt, form: Form) -> bytes:
    asked: dict[str, object] = {"model_name": MODEL, "routing_group": "default"}
    if form == "tokens":
        asked["token_ids"] = prompt.tokens
    else:
        hashes = [_signed(each) for each in hash_blocks()(prompt.tokens, BLOCK_TOKENS)]
        asked |= {"block_hashes": hashes, "sequence_hashes": hashes}
        asked["isl_tokens"] = len(prompt.tokens)
    return encode(asked)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word

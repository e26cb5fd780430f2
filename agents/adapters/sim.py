"""The simulated engine: vLLM's dialect, and calls of its own for handing blocks over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import anyio
import msgspec

from agents.adapters.protocol import (
    EngineAway,
    EngineFacts,
    EngineHandoff,
    EngineHash,
    EngineRefused,
    EngineUnfit,
)
from agents.adapters.vllm import VllmAdapter, VllmOptions
from proto.transfers import Command, CommandReply, Outcome
from proto.wire.errors import HttpError
from proto.wire.ports import NO_HEADERS, Frames, Headers, Http, HttpTimeouts
from proto.workers import HandoffOrder, KvTransfer

TIMEOUTS = HttpTimeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0)
REPLICATE_S = 60.0
BODY_BYTES_MAX = 1 << 20
SAY = {"prompt": "Say the same", "max_tokens": 24, "temperature": 0, "return_token_ids": True}

T = TypeVar("T")


class _Transfer(msgspec.Struct):
    connector: str
    order: HandoffOrder
    dtype: str
    layout: str
    tensor_parallel: int
    block_bytes: int
    lease_s: float
    bootstrap: str = ""
    copies: bool = False


class _Config(msgspec.Struct):
    kv_transfer: _Transfer | None = None


class _Info(msgspec.Struct):
    vllm_config: _Config


class _Choice(msgspec.Struct):
    token_ids: list[int]


class _Said(msgspec.Struct):
    choices: list[_Choice]


class _Answer(msgspec.Struct):
    known: bool
    bytes: int = 0
    blocks: int = 0
    error: str = ""
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"")


class _Chain(msgspec.Struct):
    block_hash: int | str


class _Chains(msgspec.Struct):
    chains: list[_Chain]


class SimAdapter(VllmAdapter):
    """One simulated engine."""

    def __init__(self, http: Http, frames: Frames, options: VllmOptions) -> None:
        super().__init__(http, frames, options)
        self._handoff = SimHandoff(http, options.url)

    @property
    def handoff(self) -> EngineHandoff:
        return self._handoff

    async def cancel(self, request: str) -> bool:
        """By the id that it came with."""
        try:
            await self._ask.post("/abort_requests", {"request_ids": [request]})
        except EngineRefused:
            return False
        return True

    async def speculate(self, *, on: bool) -> None:
        """Use drafts from the next step on, or none."""
        await self._ask.post("/speculation", {"enabled": on})

    async def say(self) -> Sequence[int]:
        """See `DraftSwitch`."""
        answer = await self._ask.post("/v1/completions", SAY)
        try:
            return msgspec.json.decode(answer, type=_Said).choices[0].token_ids
        except (msgspec.DecodeError, IndexError) as error:
            raise EngineUnfit(f"/v1/completions told no token ids: {error}") from error

    async def probe(self) -> EngineFacts:
        """With what it says of its transfers."""
        facts = await super().probe()
        told = (await self._ask.read("/server_info", _Info)).vllm_config.kv_transfer
        if told is None or facts.transfer is not None:
            return facts
        transfer = KvTransfer(
            connector=told.connector,
            order=told.order,
            dtype=told.dtype,
            layout=told.layout,
            tensor_parallel=told.tensor_parallel,
            block_bytes=told.block_bytes,
            lease_s=told.lease_s,
            bootstrap=told.bootstrap,
            copies=told.copies,
        )
        return msgspec.structs.replace(facts, transfer=transfer)


class SimHandoff:
    """An `EngineHandoff` over HTTP."""

    def __init__(self, http: Http, url: str) -> None:
        self._http = http
        self._url = url

    async def abort(self, command: Command) -> CommandReply:
        body = msgspec.json.encode({"request_ids": [command.request]})
        answer = await self._post("/abort_requests", body, TIMEOUTS)
        return CommandReply(Outcome.DONE if answer.known else Outcome.GONE)

    async def release(self, command: Command) -> CommandReply:
        answer = await self._post("/release_kv", command.handle or b"{}", TIMEOUTS)
        return CommandReply(Outcome.DONE if answer.known else Outcome.GONE)

    async def replicate(self, command: Command) -> CommandReply:
        patient = HttpTimeouts(connect_s=1.0, first_byte_s=REPLICATE_S, idle_s=REPLICATE_S)
        named = {"x-request-id": command.request}
        answer = await self._post("/replicate_kv", command.handle, patient, named)
        outcome = Outcome.DONE if answer.known else Outcome.FAILED
        return CommandReply(outcome, answer.error, kv_bytes=answer.bytes, blocks=answer.blocks)

    async def offer(self, command: Command, block: EngineHash) -> CommandReply:
        body = msgspec.json.encode({"request_id": command.request, "block_hash": _told(block)})
        answer = await self._post("/offer_kv", body, TIMEOUTS)
        if not answer.known:
            return CommandReply(Outcome.GONE)
        handle = bytes(answer.kv_transfer_params)
        return CommandReply(Outcome.DONE, blocks=answer.blocks, handle=handle)

    async def latest(self, most: int) -> Sequence[EngineHash]:
        answer = await self._exchange("GET", f"/kv_chains?limit={most}", b"", TIMEOUTS)
        chains = _decoded(answer, "/kv_chains", _Chains).chains
        return [_heard(chain.block_hash) for chain in chains]

    async def _post(
        self, path: str, body: bytes, timeouts: HttpTimeouts, named: Headers = NO_HEADERS
    ) -> _Answer:
        return _decoded(await self._exchange("POST", path, body, timeouts, named), path, _Answer)

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes,
        timeouts: HttpTimeouts,
        named: Headers = NO_HEADERS,
    ) -> bytes:
        url = self._url + path
        headers = {"content-type": "application/json", **named}
        try:
            with anyio.fail_after(timeouts.connect_s + timeouts.first_byte_s):
                async with self._http.exchange(
                    method, url, body=body, headers=headers, timeouts=timeouts
                ) as response:
                    answer = await response.read(limit_bytes=BODY_BYTES_MAX)
                    if response.status != 200:
                        raise EngineAway(f"{method} {url} answered {response.status}")
            return answer
        except (HttpError, TimeoutError) as error:
            raise EngineAway(f"{method} {url}: {error}") from error


def _decoded(answer: bytes, path: str, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=shape)
    except msgspec.DecodeError as error:
        raise EngineUnfit(f"{path} is not what it should answer: {error}") from error


def _told(block: EngineHash) -> int | str:
    return block.hex() if isinstance(block, bytes) else block


def _heard(block: int | str) -> EngineHash:
    return bytes.fromhex(block) if isinstance(block, str) else block

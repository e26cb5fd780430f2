"""The simulated engine: vLLM's dialect, and calls of its own for handing blocks over."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import msgspec

from agents.adapters.protocol import (
    EngineAway,
    EngineFacts,
    EngineHandoff,
    EngineRefused,
    EngineUnfit,
)
from agents.adapters.vllm import VllmAdapter, VllmOptions
from proto.transfers import Command, CommandReply, Outcome
from proto.wire.errors import HttpError
from proto.wire.ports import Frames, Http, HttpTimeouts
from proto.workers import HandoffOrder, KvTransfer

TIMEOUTS = HttpTimeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0)
REPLICATE_S = 60.0
BODY_BYTES_MAX = 1 << 20
SAY = {"prompt": "Say the same", "max_tokens": 24, "temperature": 0, "return_token_ids": True}


class _Transfer(msgspec.Struct):
    connector: str
    order: HandoffOrder
    dtype: str
    layout: str
    tensor_parallel: int
    block_bytes: int
    lease_s: float
    bootstrap: str = ""


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
        answer = await self._post("/replicate_kv", command.handle, patient)
        return CommandReply(Outcome.DONE if answer.known else Outcome.GONE, kv_bytes=answer.bytes)

    async def _post(self, path: str, body: bytes, timeouts: HttpTimeouts) -> _Answer:
        url = self._url + path
        headers = {"content-type": "application/json"}
        try:
            with anyio.fail_after(timeouts.connect_s + timeouts.first_byte_s):
                async with self._http.exchange(
                    "POST", url, body=body, headers=headers, timeouts=timeouts
                ) as response:
                    answer = await response.read(limit_bytes=BODY_BYTES_MAX)
                    if response.status != 200:
                        raise EngineAway(f"POST {url} answered {response.status}")
            return msgspec.json.decode(answer, type=_Answer)
        except (HttpError, TimeoutError) as error:
            raise EngineAway(f"POST {url}: {error}") from error
        except msgspec.DecodeError as error:
            raise EngineUnfit(f"{path} is not what it should answer: {error}") from error

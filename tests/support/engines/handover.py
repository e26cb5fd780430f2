"""How SGLang and TensorRT-LLM pass a request's blocks on, as their documents have it.

Only what is said is checked, not that blocks move: both engines compute the whole prompt.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.support.engines.standin import Complete

Fields = Mapping[str, Any]
MEETING_S = 10.0


def refusal(why: str) -> web.Response:
    """An error of the engine's own; a test finds `why` in it."""
    return web.json_response({"error": {"message": why, "code": 500}}, status=500)


class SglangMeeting:
    """Both engines of a pair: whoever is asked first waits for the other, in the same room."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.rooms: list[int] = []
        self._sides: dict[int, set[str]] = {}
        self._changed = asyncio.Condition()

    async def complete(
        self, side: str, request: web.Request, go_on: Complete
    ) -> web.StreamResponse:
        """Answer a request that came to the `side` engine."""
        asked: Fields = json.loads(await request.read())
        where = (asked.get("bootstrap_host"), asked.get("bootstrap_port"))
        room = asked.get("bootstrap_room")
        if where != (self.host, self.port) or not isinstance(room, int):
            return refusal(f"{side}: nobody to meet at {where} in room {room}")
        async with self._changed:
            self._sides.setdefault(room, set()).add(side)
            self._changed.notify_all()
            try:
                async with asyncio.timeout(MEETING_S):
                    await self._changed.wait_for(lambda: len(self._sides[room]) == 2)
            except TimeoutError:
                return refusal(f"{side}: nobody came to room {room}")
        if side == "decode":
            self.rooms.append(room)
        return await go_on(request)


class TrtllmHandover:
    """A context server and a generation server; the state between them is opaque."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self._staged: dict[int, str] = {}

    async def complete(
        self, side: str, request: web.Request, go_on: Complete
    ) -> web.StreamResponse:
        """Answer a request that came to the `side` server."""
        told = json.loads(await request.read()).get("disaggregated_params") or {}
        if side == "prefill":
            return await self._stage(told, request, go_on)
        number = int(told.get("ctx_request_id") or 0)
        state = self._staged.pop(number, None)
        if told.get("request_type") != "generation_only":
            return refusal(f"request_type {told.get('request_type')!r}")
        if state is None or told.get("encoded_opaque_state") != state:
            return refusal(f"no blocks are staged for {number}")
        self.taken.append(number)
        return await go_on(request)

    async def _stage(self, told: Fields, request: web.Request, go_on: Complete) -> web.Response:
        if told.get("request_type") != "context_only":
            return refusal(f"request_type {told.get('request_type')!r}")
        answer = await go_on(request)
        assert isinstance(answer, web.Response) and isinstance(answer.body, bytes)
        said = json.loads(answer.body)
        number = len(self._staged) + len(self.taken) + 2048
        state = base64.b64encode(b"opaque to everybody but the engines %d" % number).decode()
        self._staged[number] = state
        said["choices"][0]["disaggregated_params"] = {
            "request_type": "context_only",
            "first_gen_tokens": [7],
            "ctx_request_id": number,
            "encoded_opaque_state": state,
            "draft_tokens": None,
        }
        return web.json_response(said)

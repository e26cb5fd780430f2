"""Asking an engine over HTTP: an answer of the shape expected, or `EngineAway` or `EngineUnfit`."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from agents.adapters.protocol import EngineAway, EngineRefused, EngineUnfit
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts

TIMEOUTS = HttpTimeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0)
ANSWER_BYTES_MAX = 8 << 20
JSON = {"content-type": "application/json"}

T = TypeVar("T")


class Asking:
    """One engine's HTTP side. `engine` is its name, for what is said when it is another one."""

    def __init__(
        self, http: Http, url: str, engine: str, timeouts: HttpTimeouts = TIMEOUTS
    ) -> None:
        self._http = http
        self._url = url
        self._engine = engine
        self._timeouts = timeouts

    async def get(self, path: str) -> bytes:
        """The body of a 200. Raises `EngineAway`."""
        return await self._ask("GET", path, b"")

    async def text(self, path: str) -> str:
        """As `get`."""
        return (await self.get(path)).decode(errors="replace")

    async def post(self, path: str, body: object = None) -> bytes:
        """As `get`; `body` is sent as JSON."""
        return await self._ask("POST", path, b"" if body is None else msgspec.json.encode(body))

    async def read(self, path: str, shape: type[T]) -> T:
        """JSON of a 200, in that shape. Raises `EngineAway`, `EngineUnfit`."""
        try:
            return msgspec.json.decode(await self.get(path), type=shape)
        except msgspec.DecodeError as error:
            raise EngineUnfit(f"{path} is not what {self._engine} answers: {error}") from error

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        url = self._url + path
        exchange = self._http.exchange(
            method, url, body=body, headers=JSON if body else {}, timeouts=self._timeouts
        )
        try:
            async with exchange as response:
                if response.status != 200:
                    raise EngineRefused(f"{method} {url} answered {response.status}")
                return await response.read(limit_bytes=ANSWER_BYTES_MAX)
        except HttpError as error:
            raise EngineAway(f"{method} {url}: {error}") from error

"""HTTP to engines, on aiohttp. Nothing outside this module knows an HTTP client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import anyio

from proto.wire.errors import HttpBroken, HttpTimeout, HttpUnreachable
from proto.wire.ports import (
    DEFAULT_TIMEOUTS,
    NO_HEADERS,
    Headers,
    HttpResponse,
    HttpTimeouts,
)

CONNECTIONS_MAX = 10_000
KEPT_ALIVE_S = 15.0
READ_BUFFER_BYTES = 64 << 10
"""What one response may hold unread: a slow reader then slows the engine's socket."""


class AiohttpClient:
    """The `Http` port; an async context manager with one pool of connections."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AiohttpClient:
        connector = aiohttp.TCPConnector(
            limit=CONNECTIONS_MAX,
            limit_per_host=0,
            keepalive_timeout=KEPT_ALIVE_S,
            use_dns_cache=True,
            ttl_dns_cache=30,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER_BYTES,
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
        )
        return self

    async def __aexit__(self, *details: object) -> None:
        assert self._session is not None
        with anyio.CancelScope(shield=True):
            await self._session.close()

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
        assert self._session is not None, "an AiohttpClient must be entered first"
        try:
            response = await self._head(self._session, method, url, body, headers, timeouts)
        except aiohttp.ClientConnectorError as error:
            raise HttpUnreachable(f"{url}: {error.os_error or error}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise HttpTimeout("connect", timeouts.connect_s) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise HttpBroken(f"{url}: {error or type(error).__name__}") from error
        try:
            yield _Response(response, timeouts)
        finally:
            # An unfinished answer closes its connection, which is what stops the engine.
            response.close()

    async def _head(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        body: bytes,
        headers: Headers,
        timeouts: HttpTimeouts,
    ) -> aiohttp.ClientResponse:
        with anyio.move_on_after(timeouts.connect_s + timeouts.first_byte_s):
            return await session.request(
                method,
                url,
                data=body or None,
                headers=dict(headers),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s),
            )
        raise HttpTimeout("first_byte", timeouts.first_byte_s)


class _Response:
    """The head of an answer; its body comes in pieces."""

    def __init__(self, response: aiohttp.ClientResponse, timeouts: HttpTimeouts) -> None:
        self._response = response
        self._timeouts = timeouts

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Headers:
        return {name.lower(): value for name, value in self._response.headers.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        idle_s = self._timeouts.idle_s
        content = self._response.content
        try:
            while True:
                chunk = b""
                with anyio.move_on_after(idle_s) as waiting:
                    chunk = await content.readany()
                if waiting.cancelled_caught:
                    raise HttpTimeout("idle", idle_s)
                if not chunk:
                    return
                yield chunk
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
            raise HttpBroken(f"{self._response.url}: {error or type(error).__name__}") from error

    async def read(self, *, limit_bytes: int = 64 << 20) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit_bytes:
                raise HttpBroken(f"{self._response.url}: more than {limit_bytes} bytes")
            parts.append(chunk)
        return b"".join(parts)

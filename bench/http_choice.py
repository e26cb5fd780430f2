"""What HTTP libraries cost a streamed token and a request: `python -m bench.http_choice`.

Servers run one after the other, each as one process, with the same small application
(`http_servers`) under the same clients; clients read the same streams in this process, one library
after the other. Processor time says most: it hardly depends on what else the machine does. uvicorn
and granian are those below `.venv-peers/http`, which `make bench-peers` builds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import anyio
import httpx2 as httpx
import psutil

from bench.callers import Caller, drive
from bench.gateway_peers import ROOT
from bench.http import request
from bench.http_servers import EVENTS
from bench.rig import cpu_s
from controlplane.local.ports import LOOPBACK, free_ports
from proto.wire.http import HttpClient

STREAMS, ROUNDS = 50, 2
REQUESTS, CALLERS = 3_000, 32
BODY = b'{"prompt":[' + b"12345," * 999 + b"12345]}"
START_S, POLL_S = 20.0, 0.05

Read = Callable[[str], Awaitable[None]]


def _servers(port: int) -> Iterator[tuple[str, Sequence[str]]]:
    at, words = ROOT / "http" / "bin", ("--host", LOOPBACK, "--port", str(port))
    app = "bench.http_servers:app"
    for name in ("ours", "aiohttp"):
        yield name, (sys.executable, "-m", "bench.http_servers", name, "--port", str(port))
    if at.exists():
        plain = ("--loop", "uvloop", "--http", "httptools", "--log-level", "error")
        yield "uvicorn", (str(at / "uvicorn"), app, *words, *plain, "--no-access-log")
        asgi = ("--interface", "asgi", "--loop", "uvloop", "--no-ws", "--log-level", "error")
        yield "granian", (str(at / "granian"), app, *words, *asgi)


@contextmanager
def _running(words: Sequence[str]) -> Iterator[psutil.Process]:
    process = subprocess.Popen(words, cwd=ROOT.parent)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=START_S)


async def _until_open(port: int) -> None:
    with anyio.fail_after(START_S):
        while True:
            try:
                (await Caller.open(LOOPBACK, port)).close()
            except OSError:
                await anyio.sleep(POLL_S)
            else:
                return


async def _server(name: str, words: Sequence[str], port: int) -> None:
    with _running(words) as process:
        await _until_open(port)

        async def used_s(path: str, count: int, callers: int) -> tuple[float, float]:
            asks = [request("POST", path, BODY)] * count
            await drive(LOOPBACK, port, asks[:callers], callers)
            every = (process, *process.children(recursive=True))
            before_s = cpu_s(*every)
            load = await drive(LOOPBACK, port, asks, callers)
            return cpu_s(*every) - before_s, load.wall_s

        stream_s, _ = await used_s("/stream", STREAMS * ROUNDS, STREAMS)
        whole_s, wall_s = await used_s("/whole", REQUESTS, CALLERS)
    token_us, request_us = 1e6 * stream_s / STREAMS / ROUNDS / EVENTS, 1e6 * whole_s / REQUESTS
    per_s = REQUESTS / wall_s
    print(f"| {name} | {token_us:.1f} | {request_us:.0f} | {per_s:,.0f} |", flush=True)


async def _ours(url: str) -> None:
    async with HttpClient() as client:
        await _all(lambda: _read_ours(client, url))


async def _read_ours(client: HttpClient, url: str) -> None:
    async with client.exchange("POST", url, body=BODY) as response:
        async for _ in response.chunks():
            pass


async def _aiohttp(url: str) -> None:
    async def read() -> None:
        async with session.post(url, data=BODY) as response:
            async for _ in response.content.iter_any():
                pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await _all(read)


async def _httpx(url: str) -> None:
    async def read() -> None:
        async with client.stream("POST", url, content=BODY) as response:
            async for _ in response.aiter_raw():
                pass

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        await _all(read)


async def _all(read: Callable[[], Coroutine[object, object, None]]) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(STREAMS):
            tasks.start_soon(read)


async def _clients(port: int) -> None:
    clients: dict[str, Read] = {"ours": _ours, "aiohttp": _aiohttp, "httpx2": _httpx}
    for name, read in clients.items():
        await read(f"http://{LOOPBACK}:{port}/stream")
        before_s = time.process_time()
        for _ in range(ROUNDS):
            await read(f"http://{LOOPBACK}:{port}/stream")
        used_s = time.process_time() - before_s
        print(f"| {name} | {1e6 * used_s / STREAMS / ROUNDS / EVENTS:.1f} |", flush=True)


async def run() -> None:
    """Print two tables."""
    [port] = free_ports(1)
    print("| server | CPU of a token, us | CPU of a request, us | requests a second |\n|-|-|-|-|")
    for name, words in _servers(port):
        await _server(name, words, port)
    print("\n| client | CPU of a token, us |\n|-|-|")
    ours = dict(_servers(port))["ours"]
    with _running(ours):
        await _until_open(port)
        await _clients(port)


if __name__ == "__main__":
    anyio.run(run, backend="asyncio", backend_options={"use_uvloop": True})

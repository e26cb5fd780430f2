"""A simulated engine as a real process, for tests that talk to it as anybody would."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec

from controlplane.local.ports import free_ports
from tests.conftest import REPOSITORY

READY_S = 40.0
EVENTUALLY_S = 40.0


class SimProcess:
    """The process and where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.url = ""
        self.events_port = self.replay_port = 0
        self._output = output

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def output(self) -> str:
        return self._output.read_text()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def free_port() -> int:
    (port,) = free_ports(1)
    return port


@contextmanager
def sim(*options: str, events: bool = False) -> Iterator[SimProcess]:
    """Start an engine on free ports and wait until it listens; kill it at the end."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = (free_port(), free_port()) if events else (0, 0)
        if events:
            options += ("--events-port", str(ports[0]), "--replay-port", str(ports[1]))
        started = start(directory / "output", "--port", "0", *options)
        started.events_port, started.replay_port = ports
        try:
            _wait_until_listening(started)
            yield started
        finally:
            started.process.kill()
            started.process.wait()


def start(output: Path, *options: str) -> SimProcess:
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.sim", *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    return SimProcess(process, output)


def _wait_until_listening(started: SimProcess) -> None:
    deadline_s = time.monotonic() + READY_S
    while not (found := re.search(r"on (http://\S+)", started.output())):
        assert started.process.poll() is None, started.output()
        assert time.monotonic() < deadline_s, started.output()
        time.sleep(0.01)
    started.url = found[1]


class Client:
    """What a client of the engine does, in short."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def post(self, path: str, body: object, status: int = 200) -> Any:
        async with self.session.post(path, json=body) as response:
            text = await response.text()
            assert response.status == status, text
            return msgspec.json.decode(text) if text else None

    async def get(self, path: str) -> Any:
        async with self.session.get(path) as response:
            assert response.status == 200
            return await response.json()

    async def stream(self, path: str, body: dict[str, object]) -> list[Any]:
        """All events of a stream, which must end with [DONE]."""
        async with self.session.post(path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return [event async for event in events_of(response)]

    async def metric(self, name: str) -> float:
        """A sample of /metrics, summed over its labels."""
        async with self.session.get("/metrics") as response:
            text = await response.text()
        values = re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
        assert values, f"no {name} in\n{text}"
        return sum(map(float, values))

    async def wait_for_metric(self, name: str, value: float, *, or_more: bool = False) -> None:
        with anyio.fail_after(EVENTUALLY_S):
            while True:
                now = await self.metric(name)
                if now == value or (or_more and now > value):
                    return
                await anyio.sleep(0.005)


@asynccontextmanager
async def client(engine: SimProcess) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield Client(session)


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """Decoded events up to [DONE], after which nothing may come."""
    done = False
    async for line in response.content:
        assert not done or not line.strip(), "something came after [DONE]"
        if line.strip() == b"data: [DONE]":
            done = True
        elif line.strip():
            yield msgspec.json.decode(line.removeprefix(b"data: "))
    assert done, "the stream broke off before [DONE]"


def ask_and_stall(engine: SimProcess, tokens: int, n: int) -> socket.socket:
    """Send a request and read nothing, with room for little on the way.

    Its id is long and comes back in every chunk, to fill what room there is.
    """
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", engine.port))
    body = json.dumps({"prompt": "stall", "max_tokens": tokens, "n": n, "stream": True})
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n"
    reader.sendall(f"{head}X-Request-Id: {'x' * 8000}\r\n\r\n{body}".encode())
    return reader

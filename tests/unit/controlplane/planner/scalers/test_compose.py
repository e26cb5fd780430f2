"""Containers started and stopped over a unix socket, by a small server that answers as Docker
documents it."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest

from controlplane.planner.scalers.compose import ComposeActuator
from controlplane.planner.scalers.follow import ScalerTrouble
from proto.ids import WorkerId
from proto.wire.http.client import HttpClient
from tests.unit.agents.reader import wait_until
from tests.unit.controlplane.planner.scalers.test_follow import word

pytestmark = pytest.mark.anyio


class Docker(socketserver.ThreadingUnixStreamServer):
    """Three workers of two containers each, the first one running, beside somebody else's."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, _Handler)
        self.running = {"engine-w0", "agent-w0"}
        self.calls: list[str] = []
        self.unwilling: set[str] = set()
        """What is refused, as `start engine-w1`."""
        self.drained = threading.Event()
        self.drained.set()

    def containers(self) -> list[dict[str, object]]:
        return [
            {
                "Id": f"{part}-{worker}",
                "State": "running" if f"{part}-{worker}" in self.running else "exited",
                "Labels": {
                    "com.docker.compose.project": "tp",
                    "tokenplane.model": "m",
                    "tokenplane.role": "aggregated",
                    "tokenplane.hardware": "h",
                    "tokenplane.worker": worker,
                    "tokenplane.part": part,
                },
            }
            for worker in ("w0", "w1", "w2")
            for part in ("engine", "agent")
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Docker

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path != "/containers/json":
            self._send(400, b'{"message": "client version 1.41 is too old"}')
            return
        [filters] = parse_qs(parts.query)["filters"]
        wanted = dict(label.split("=", 1) for label in json.loads(filters)["label"])
        found = [
            each
            for each in self.server.containers()
            if wanted.items() <= dict(each["Labels"]).items()  # type: ignore[call-overload]
        ]
        self._send(200, json.dumps(found).encode())

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        container, verb = parts.path.split("/")[-2:]
        self.server.calls.append(f"{verb} {container} {parts.query}".strip())
        if f"{verb} {container}" in self.server.unwilling:
            self._send(500, b'{"message": "port is already allocated"}')
            return
        if verb == "start":
            self.server.running.add(container)
        else:
            if container.startswith("agent"):
                self.server.drained.wait(10)
            self.server.running.discard(container)
        self._send(204, b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    with Docker(str(tmp_path / "docker.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_workers_are_started_whole_and_drained_before_their_engine_stops(
    docker: Docker,
) -> None:
    async with (
        HttpClient(unix_socket=str(docker.server_address)) as http,
        anyio.create_task_group() as tasks,
    ):
        scaler = ComposeActuator(http, tasks, project="tp", drain_s=90)
        await scaler.act(word(3))
        assert docker.calls == [
            "start engine-w1", "start agent-w1", "start engine-w2", "start agent-w2",
        ]  # fmt: skip
        assert (await scaler.observe(word(3))).replicas == 3
        docker.calls.clear()
        docker.drained.clear()
        order = (WorkerId("w1"), WorkerId("w0"), WorkerId("w2"))
        await scaler.act(word(2, retire=order))
        scaled = await scaler.observe(word(2))
        assert (scaled.replicas, scaled.draining) == (2, 1)
        await scaler.act(word(2))
        await wait_until(lambda: bool(docker.calls))
        assert docker.calls == ["stop agent-w1 t=90"], "nothing else while it drains"
        docker.drained.set()
        await wait_until(lambda: len(docker.calls) == 2 and "engine-w1" not in docker.running)
        assert docker.calls == ["stop agent-w1 t=90", "stop engine-w1 t=10"]
        assert docker.running == {"engine-w0", "agent-w0", "engine-w2", "agent-w2"}


async def test_what_died_is_started_again_and_too_few_containers_are_told(docker: Docker) -> None:
    docker.running.discard("agent-w0")
    async with (
        HttpClient(unix_socket=str(docker.server_address)) as http,
        anyio.create_task_group() as tasks,
    ):
        scaler = ComposeActuator(http, tasks, project="tp", drain_s=90)
        await scaler.act(word(1))
        assert docker.calls == ["start agent-w0"]
        with pytest.raises(ScalerTrouble, match="containers for 3"):
            await scaler.act(word(5))
        assert (await scaler.observe(word(5))).replicas == 3


async def test_one_that_cannot_be_started_stands_in_nobodys_way(docker: Docker) -> None:
    docker.unwilling.add("start engine-w1")
    async with (
        HttpClient(unix_socket=str(docker.server_address)) as http,
        anyio.create_task_group() as tasks,
    ):
        scaler = ComposeActuator(http, tasks, project="tp", drain_s=90)
        with pytest.raises(ScalerTrouble, match="already allocated"):
            await scaler.act(word(2))
        assert docker.running == {"engine-w0", "agent-w0", "engine-w2", "agent-w2"}
        await scaler.act(word(2))
        docker.calls.clear()
        docker.running.remove("agent-w0")
        docker.unwilling.add("start agent-w0")
        await scaler.act(word(1, retire=(WorkerId("w2"), WorkerId("w0"))))
        await wait_until(lambda: "engine-w0" not in docker.running)
    assert docker.running == {"engine-w2", "agent-w2"}, "who is not whole goes first"


async def test_one_that_would_not_stop_is_not_started_again(docker: Docker) -> None:
    docker.running |= {"engine-w1", "agent-w1"}
    docker.unwilling.add("stop engine-w1")
    retire = (WorkerId("w1"), WorkerId("w0"))
    async with HttpClient(unix_socket=str(docker.server_address)) as http:
        for refused in (True, False):
            async with anyio.create_task_group() as tasks:
                scaler = ComposeActuator(http, tasks, project="tp", drain_s=90)
                await scaler.act(word(1, retire=retire))
            assert ("engine-w1" in docker.running) is refused
            docker.unwilling.clear()
    assert docker.running == {"engine-w0", "agent-w0"}
    assert not [call for call in docker.calls if call.startswith("start")]


async def test_a_docker_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with (
        HttpClient(unix_socket=str(tmp_path / "nothing.sock")) as http,
        anyio.create_task_group() as tasks,
    ):
        with pytest.raises(ScalerTrouble, match="socket mounted"):
            await ComposeActuator(http, tasks, project="tp", drain_s=1).act(word(1))

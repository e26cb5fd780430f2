"""The scale subresource, spoken to a small server that answers as Kubernetes documents it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from controlplane.planner.scalers.follow import ScalerTrouble
from controlplane.planner.scalers.kubernetes import KubernetesActuator
from proto.ids import WorkerId
from proto.wire.http.client import HttpClient
from tests.unit.controlplane.planner.scalers.test_follow import word

pytestmark = pytest.mark.anyio

SCALE = "/apis/apps/v1/namespaces/ns/deployments/engines/scale"
POD = "/api/v1/namespaces/ns/pods/"


class ApiServer(ThreadingHTTPServer):
    """One deployment and its pods."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replicas = 2
        self.costs: dict[str, str] = {}
        self.patches: list[str] = []
        self.token = "secret-1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ApiServer

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer(None)

    def do_PATCH(self) -> None:
        length = int(self.headers["content-length"])
        assert self.headers["content-type"] == "application/merge-patch+json"
        self._answer(json.loads(self.rfile.read(length)))

    def _answer(self, patch: dict[str, dict[str, object]] | None) -> None:
        server = self.server
        if self.headers["authorization"] != f"Bearer {server.token}":
            self._send(401, {"kind": "Status", "code": 401})
        elif self.path == SCALE:
            if patch:
                server.replicas = int(str(patch["spec"]["replicas"]))
                server.patches.append(self.path)
            self._send(
                200,
                {
                    "kind": "Scale",
                    "apiVersion": "autoscaling/v1",
                    "metadata": {"name": "engines"},
                    "spec": {"replicas": server.replicas},
                    "status": {"replicas": 3, "selector": "app=engines"},
                },
            )
        elif self.path.startswith(POD) and patch and not self.path.endswith("gone"):
            annotations = patch["metadata"]["annotations"]
            assert isinstance(annotations, dict)
            [server.costs[self.path.removeprefix(POD)]] = annotations.values()
            self._send(200, {"kind": "Pod"})
        else:
            self._send(404, {"kind": "Status", "code": 404})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def actuator(
    http: HttpClient,
    api: ApiServer,
    workload: str = "deployments/engines",
    token: Callable[[], str] = lambda: "secret-1",
) -> KubernetesActuator:
    return KubernetesActuator(
        http,
        server=api.url,
        namespace="ns",
        workloads={word(1).pool.name: workload},
        token=token,
    )


async def test_the_scale_is_written_once(api: ApiServer) -> None:
    async with HttpClient() as http:
        scaler = actuator(http, api)
        await scaler.act(word(5))
        await scaler.act(word(5))
        assert api.replicas == 5 and api.patches == [SCALE]
        scaled = await scaler.observe(word(5))
        assert (scaled.replicas, scaled.draining, scaled.decision) == (3, 0, "d1")


async def test_those_that_are_to_go_are_marked_first(api: ApiServer) -> None:
    retire = (WorkerId("pod-b"), WorkerId("gone"), WorkerId("pod-a"))
    async with HttpClient() as http:
        scaler = actuator(http, api)
        await scaler.act(word(4))
        await scaler.act(word(1, retire=retire))
        assert api.replicas == 1 and api.costs == {"pod-b": "-1000", "pod-a": "-998"}
        assert (await scaler.observe(word(1))).draining == 2


async def test_a_mark_that_is_no_longer_meant_is_taken_back(api: ApiServer) -> None:
    """The pod of a start that was withdrawn goes before any that is marked."""
    async with HttpClient() as http:
        scaler = actuator(http, api)
        await scaler.act(word(4))
        await scaler.act(word(3, retire=(WorkerId("pod-a"), WorkerId("pod-b"), WorkerId("pod-c"))))
        await scaler.act(word(2, retire=(WorkerId("pod-b"), WorkerId("pod-c"), WorkerId("pod-a"))))
    ranked = sorted(api.costs, key=lambda pod: int(api.costs[pod]))
    assert ranked == ["pod-b", "pod-c", "pod-a"]


async def test_a_token_that_cannot_be_read_is_told(api: ApiServer) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory", "/var/run/secrets/token")

    async with HttpClient() as http:
        scaler = actuator(http, api, token=gone)
        with pytest.raises(ScalerTrouble, match="token cannot be read"):
            await scaler.act(word(1))


async def test_refusals_say_what_to_do(api: ApiServer) -> None:
    async with HttpClient() as http:
        with pytest.raises(ScalerTrouble, match="no such workload"):
            await actuator(http, api, "deployments/others").act(word(1))
        api.token = "renewed"
        with pytest.raises(ScalerTrouble, match="token is not accepted"):
            await actuator(http, api).act(word(1))
        with pytest.raises(ScalerTrouble, match=r"scaler\.workloads"):
            await actuator(http, api).act(word(1, hardware="unknown"))
        with pytest.raises(ValueError, match="deployments/NAME"):
            actuator(http, api, "jobs/engines")

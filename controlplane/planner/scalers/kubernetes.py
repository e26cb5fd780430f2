"""The actuator of a Kubernetes cluster: writes the scale subresource of one workload a pool.

A pod is an engine with its agent beside it; its grace period lets the agent drain. Of a
Deployment's pods the ones with the lowest deletion cost go first, so all that a word ranks have
their ranks written as costs before there are to be fewer, which takes back those of earlier words;
for that a pod's name must be its worker's id.
API: `get` and `patch` on `deployments/scale` (or `statefulsets/scale`) of `apps`, `patch` on `pods`
(https://kubernetes.io/docs/reference/kubernetes-api/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote

import msgspec

from controlplane.planner.scalers.follow import ScalerTrouble
from proto.ids import WorkerId
from proto.scaling import Desired, Scaled
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts

CALL = HttpTimeouts(connect_s=3.0, first_byte_s=10.0, idle_s=10.0)
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
LOWEST_COST = -1_000
MERGE = "application/merge-patch+json"
KINDS = ("deployments", "statefulsets")
REFUSED = {
    401: "the service account's token is not accepted",
    403: "the service account may not do this: it needs get and patch on the scale subresource",
    404: "there is no such workload in this namespace",
}


class _Replicas(msgspec.Struct):
    replicas: int = 0


class _Scale(msgspec.Struct):
    """`autoscaling/v1` Scale, as far as it matters."""

    spec: _Replicas = msgspec.field(default_factory=_Replicas)
    status: _Replicas = msgspec.field(default_factory=_Replicas)


class KubernetesActuator:
    """Scales by the API server. `workloads` says which one a pool is, `deployments/NAME` or
    `statefulsets/NAME` by the pool's name; `token` is asked each time, as tokens are renewed, and
    may raise OSError. ValueError for a workload that is none."""

    name = "kubernetes"

    def __init__(
        self,
        http: Http,
        *,
        server: str,
        namespace: str,
        workloads: Mapping[str, str],
        token: Callable[[], str],
    ) -> None:
        for workload in workloads.values():
            kind, _, name = workload.partition("/")
            if kind not in KINDS or not name:
                raise ValueError(
                    f"{workload!r} is none of: {', '.join(f'{k}/NAME' for k in KINDS)}"
                )
        self._http = http
        self._root = server.rstrip("/")
        self._namespace = quote(namespace, safe="")
        self._workloads = workloads
        self._token = token

    async def act(self, word: Desired) -> None:
        """Write how many there should be, unless that is written. Raises `ScalerTrouble`."""
        scale = await self._scale(word)
        surplus = scale.spec.replicas - word.replicas
        if not surplus:
            return
        for rank, worker in enumerate(word.retire if surplus > 0 else ()):
            await self._rank(worker, rank)
        body = msgspec.json.encode({"spec": {"replicas": word.replicas}})
        await self._call("PATCH", self._path(word), body)

    async def observe(self, word: Desired) -> Scaled:
        """As the workload's status has it. Raises `ScalerTrouble`."""
        scale = await self._scale(word)
        return Scaled(
            model=word.model,
            role=word.role,
            hardware=word.hardware,
            decision=word.decision,
            replicas=min(scale.status.replicas, scale.spec.replicas),
            draining=max(0, scale.status.replicas - scale.spec.replicas),
            scaler=self.name,
        )

    async def _scale(self, word: Desired) -> _Scale:
        body = await self._call("GET", self._path(word))
        try:
            return msgspec.json.decode(body, type=_Scale)
        except msgspec.DecodeError as error:
            raise ScalerTrouble(f"the scale of {word.pool.name} cannot be read: {error}") from error

    def _path(self, word: Desired) -> str:
        workload = self._workloads.get(word.pool.name)
        if workload is None:
            raise ScalerTrouble(
                f"pool {word.pool.name} has no workload; name it in scaler.workloads"
            )
        return f"/apis/apps/v1/namespaces/{self._namespace}/{workload}/scale"

    async def _rank(self, worker: WorkerId, rank: int) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{quote(worker, safe='')}"
        annotations = {DELETION_COST: str(LOWEST_COST + rank)}
        body = msgspec.json.encode({"metadata": {"annotations": annotations}})
        await self._call("PATCH", path, body, missing_ok=True)

    async def _call(
        self, method: str, path: str, body: bytes = b"", *, missing_ok: bool = False
    ) -> bytes:
        try:
            token = self._token()
        except OSError as error:
            raise ScalerTrouble(f"the service account's token cannot be read: {error}") from error
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        if body:
            headers["content-type"] = MERGE
        url = f"{self._root}{path}"
        try:
            async with self._http.exchange(
                method, url, body=body, headers=headers, timeouts=CALL
            ) as answer:
                text = await answer.read()
        except HttpError as error:
            raise ScalerTrouble(f"the API server does not answer: {error}") from error
        if answer.status == 200 or (missing_ok and answer.status == 404):
            return text
        why = REFUSED.get(answer.status, text.decode(errors="replace")[:200])
        raise ScalerTrouble(f"{method} {path} was answered with {answer.status}: {why}")

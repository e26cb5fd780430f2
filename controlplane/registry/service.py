"""The registry service: answers who is there, from the live view."""

from __future__ import annotations

import anyio
from anyio.abc import TaskStatus
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from controlplane.registry.metrics import RegistryMetrics
from controlplane.registry.view import RegistryView
from controlplane.runtime.tracing import extract, tracer
from controlplane.runtime.version import VERSION
from proto.subjects import Subjects
from proto.wire.errors import RequestRefused
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo
from proto.workers import WorkersReply, WorkersRequest

_tracer = tracer(__name__)


class RegistryService:
    """A service: the endpoint `registry.workers`, as JSON both ways.

    Any number of replicas share the questions; each answers from the view it is given, which
    must be running. A stale view is answered from too, and says so.
    """

    name = "registry"

    def __init__(
        self, bus: Bus, subjects: Subjects, view: RegistryView, metrics: CollectorRegistry
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._view = view
        self._metrics = RegistryMetrics(view, metrics)
        self._draining = anyio.Event()
        self._drained = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Answer until cancelled, or until `drain`."""
        info = ServiceInfo("tokenplane-registry", VERSION, "Who is there")
        endpoint = Endpoint("workers", self._subjects.registry_workers, self._answer)
        async with self._bus.serve(info, [endpoint]):
            task_status.started()
            await self._draining.wait()
        self._drained.set()
        await anyio.sleep_forever()

    async def drain(self) -> None:
        """Refuse new questions and answer those under way."""
        self._draining.set()
        await self._drained.wait()

    async def _answer(self, message: Message) -> bytes:
        with _tracer.start_as_current_span(
            "registry.workers", context=extract(message.headers), kind=SpanKind.SERVER
        ) as span:
            try:
                request = WorkersRequest.model_validate_json(message.data or b"{}")
            except ValidationError as error:
                self._metrics.requests.labels("refused").inc()
                raise RequestRefused(400, f"not a WorkersRequest: {error}") from error
            reply = self._reply(request)
            span.set_attribute("tokenplane.workers", len(reply.workers))
            self._metrics.requests.labels("answered").inc()
            return reply.model_dump_json().encode()

    def _reply(self, request: WorkersRequest) -> WorkersReply:
        return WorkersReply(
            workers=tuple(
                record
                for _, record in sorted(self._view.workers.items())
                if request.model in ("", record.model)
            ),
            stale=self._view.stale_since is not None,
        )

"""The HTTP border: OpenAI's paths in, a `Sink` for the answer out.

A client that goes away cancels its handler, and with it everything down to the engine.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

from opentelemetry.trace import SpanKind

from controlplane.gateway import apipage, openapi
from controlplane.gateway.admission import Admission
from controlplane.gateway.demands import constraints_of, workload_of
from controlplane.gateway.dispatch import Dispatcher
from controlplane.gateway.flight import ClientStalled, Sink
from controlplane.gateway.idempotency import Answers, fingerprint
from controlplane.gateway.models import context_tokens
from controlplane.gateway.openai import Api, ClientError, model_list, read, salted
from controlplane.gateway.routing import Hints
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import Tenant
from controlplane.registry.view import RegistryView
from controlplane.runtime.service import CannotServe
from controlplane.runtime.tls import server_context
from controlplane.runtime.tracing import extract, step, tracer
from controlplane.runtime.underway import Underway
from proto.ids import NAME_MAX_CHARS, BadName, RequestId, new_request_id, request_id_after
from proto.wire.errors import HttpCannotListen, HttpTimeout
from proto.wire.ports import Headers, HttpCall, HttpLimits, HttpPort, HttpServing

log = logging.getLogger(__name__)
spans = tracer("tokenplane.gateway")

JSON = "application/json"
REFUSED_CODES = {413: "body_too_large", 500: "internal_error"}
"""The machine's word for what is refused by its head alone; else it is a bad request."""

Handler = Callable[[HttpCall], Awaitable[None]]


class PortTaken(CannotServe):
    """The gateway's port cannot be had."""


class Front(NamedTuple):
    """What stands behind the border."""

    dispatcher: Dispatcher
    admission: Admission
    answers: Answers
    view: RegistryView


class Border:
    """Answers HTTP requests; counts what is under way."""

    def __init__(self, settings: GatewaySettings, front: Front) -> None:
        self._settings = settings
        self._front = front
        self._rng = random.SystemRandom()
        self._underway = Underway()
        self._draining = False
        self._port: HttpPort | None = None
        self._routes: dict[str, dict[str, Handler]] = {
            **{api.value: {"POST": partial(self._infer, api)} for api in Api},
            "/v1/models": {"GET": self._models},
            openapi.PATH: {"GET": self._openapi},
            apipage.PATH: {"GET": self._page},
            "/health": {"GET": self._health},
            "/live": {"GET": self._live},
        }

    @asynccontextmanager
    async def listening(self, server: HttpServing) -> AsyncIterator[None]:
        """Requests are answered while this is open. Raises `PortTaken`."""
        settings = self._settings
        limits = HttpLimits(settings.body_bytes_max, stall_s=settings.stall_s)
        try:
            async with server.serve(
                settings.host,
                settings.port,
                self.answer,
                refuse=_refused,
                limits=limits,
                shared=settings.shared,
                tls=server_context(settings.cert, settings.key, settings.client_ca),
            ) as self._port:
                yield
        except HttpCannotListen as error:
            raise PortTaken(
                f"cannot listen on {settings.host}:{settings.port} ({error}); "
                "choose another port with --gateway.port"
            ) from error

    async def drain(self) -> None:
        """Refuse new requests and wait for those under way; `/live` stays."""
        self._draining = True
        if self._port is not None:
            self._port.retire(stop_listening=self._settings.shared)
        await self._underway.none()

    async def answer(self, call: HttpCall) -> None:
        """Any request; what goes wrong is told as OpenAI's clients expect it."""
        methods = self._routes.get(call.path)
        try:
            if methods is None:
                raise ClientError(404, f"there is no {call.path} here", code="not_found")
            handler = methods.get("GET" if call.method == "HEAD" else call.method)
            if handler is None:
                allowed = ", ".join(methods)
                error = ClientError(
                    405, f"{call.path} is asked by {allowed}", code="method_not_allowed"
                )
                await _reply(call, 405, {**_JSON_HEADERS, "allow": allowed}, error.body())
                return
            await handler(call)
        except ClientError as error:
            await _reply(call, error.status, _headers_of(error), error.body())

    async def _infer(self, api: Api, call: HttpCall) -> None:
        if self._draining:
            raise ClientError(
                503, "this gateway is shutting down", code="draining", retry_after_s=1.0
            )
        request_id = self._request_id(call.headers)
        with self._underway:
            try:
                with spans.start_as_current_span(
                    "gateway.request", context=extract(call.headers), kind=SpanKind.SERVER
                ) as span:
                    if given := call.headers.get("x-request-id"):
                        span.set_attribute("tokenplane.client_request", given[:NAME_MAX_CHARS])
                    await self._serve(api, request_id, call)
            except ClientError as error:
                headers = {**_headers_of(error), "x-request-id": request_id}
                await _reply(call, error.status, headers, error.body())
            except ClientStalled as error:
                log.warning("request %s: %s", request_id, error)
                raise ConnectionResetError(str(error)) from error

    async def _serve(self, api: Api, request_id: RequestId, call: HttpCall) -> None:
        headers, sink = call.headers, _Sink(call)
        with step(spans, "gateway.admit"):
            tenant = self._tenant(headers)
            ask = read(api, call.body)
            if salt := self._front.admission.salt(tenant):
                ask = salted(ask, salt)
            hints = Hints(
                policy=headers.get("x-tokenplane-policy", ""),
                session=headers.get("x-tokenplane-session", ""),
                tenant=tenant,
                constraints=constraints_of(headers, tenant),
                workload=workload_of(headers, ask),
            )
        run = partial(self._front.dispatcher.serve, request_id, ask, hints)
        if key := headers.get("idempotency-key"):
            asked = fingerprint(api.value, ask.body)
            await self._front.answers.serve(tenant.name, key, asked, run, sink)
        else:
            await run(sink)

    async def _models(self, call: HttpCall) -> None:
        self._tenant(call.headers)
        models = context_tokens(self._front.view)
        await _reply(call, 200, _JSON_HEADERS, model_list(models, int(time.time())))

    async def _openapi(self, call: HttpCall) -> None:
        await _reply(call, 200, _JSON_HEADERS, openapi.document())

    async def _page(self, call: HttpCall) -> None:
        headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": apipage.POLICY,
        }
        await _reply(call, 200, headers, apipage.page())

    async def _health(self, call: HttpCall) -> None:
        await _reply(call, 503 if self._draining else 200, {}, b"")

    async def _live(self, call: HttpCall) -> None:
        await _reply(call, 200, {}, b"")

    def _tenant(self, headers: Headers) -> Tenant:
        return self._front.admission.tenant(headers.get("authorization", ""))

    def _request_id(self, headers: Headers) -> RequestId:
        """A new one, which begins with the client's own where that can be a name."""
        given = headers.get("x-request-id")
        if given is None:
            return new_request_id(self._rng)
        try:
            return request_id_after(given, self._rng)
        except BadName:
            return new_request_id(self._rng)


class _Sink(Sink):
    """The answer to one HTTP request; waits for the client, but not for ever."""

    def __init__(self, call: HttpCall) -> None:
        self._call = call

    def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        self._call.start(status, headers, length)

    def put(self, data: bytes) -> bool:
        return self._call.put(data)

    async def writable(self) -> None:
        try:
            await self._call.writable()
        except HttpTimeout as error:
            raise ClientStalled(f"the client did not read for {error.seconds:g} s") from error

    def finish(self) -> None:
        self._call.finish()


async def _reply(call: HttpCall, status: int, headers: Headers, body: bytes) -> None:
    call.start(status, headers, len(body))
    await call.write(body)


def _refused(status: int, why: str) -> tuple[Headers, bytes]:
    """What the server says by itself, in our form."""
    error = ClientError(status, why, code=REFUSED_CODES.get(status, "bad_request"))
    return _headers_of(error), error.body()


_JSON_HEADERS = {"content-type": JSON}


def _headers_of(error: ClientError) -> Headers:
    if error.retry_after_s is None:
        return _JSON_HEADERS
    return {**_JSON_HEADERS, "retry-after": str(max(1, round(error.retry_after_s)))}

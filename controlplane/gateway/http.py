"""The HTTP border, on aiohttp's server: OpenAI's paths in, a `Sink` for the answer out.

A client that goes away cancels its handler, and with it everything down to the engine.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

import anyio
from aiohttp import web
from opentelemetry.trace import SpanKind

from controlplane.gateway.admission import Admission
from controlplane.gateway.demands import constraints_of
from controlplane.gateway.dispatch import Dispatcher
from controlplane.gateway.flight import ClientStalled
from controlplane.gateway.idempotency import Answers
from controlplane.gateway.models import context_tokens
from controlplane.gateway.openai import Api, ClientError, model_list, read, salted
from controlplane.gateway.routing import Hints
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import Tenant
from controlplane.registry.view import RegistryView
from controlplane.runtime.service import CannotServe
from controlplane.runtime.tracing import extract, tracer
from proto.ids import BadName, RequestId, check_name, new_request_id

log = logging.getLogger(__name__)
spans = tracer("tokenplane.gateway")

JSON = "application/json"
CLOSE_S = 2.0
BACKLOG = 4096

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PortTaken(CannotServe):
    """The gateway's port cannot be had."""


class Front(NamedTuple):
    """What stands behind the border."""

    dispatcher: Dispatcher
    admission: Admission
    answers: Answers
    view: RegistryView


class HttpServer:
    """Listens while its context is open; counts what is under way."""

    def __init__(self, settings: GatewaySettings, front: Front) -> None:
        self._settings = settings
        self._front = front
        self._rng = random.SystemRandom()
        self._open = 0
        self._idle = anyio.Event()
        self._draining = False
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> HttpServer:
        application = web.Application(
            client_max_size=self._settings.body_bytes_max, middlewares=[_in_openai_form]
        )
        for api in Api:
            application.router.add_post(api.value, partial(self._infer, api))
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/health", self._health)
        application.router.add_get("/live", self._live)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        settings = self._settings
        site = web.TCPSite(self._runner, settings.host, settings.port, backlog=BACKLOG)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise PortTaken(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                "choose another port with --gateway.port"
            ) from error
        return self

    async def __aexit__(self, *details: object) -> None:
        assert self._runner is not None
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self._runner.cleanup()

    async def drain(self) -> None:
        """Refuse new requests and wait for those under way; `/live` stays."""
        self._draining = True
        while self._open:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def _infer(self, api: Api, request: web.Request) -> web.StreamResponse:
        if self._draining:
            raise ClientError(
                503, "this gateway is shutting down", code="draining", retry_after_s=1.0
            )
        self._open += 1
        request_id = self._request_id(request)
        try:
            with spans.start_as_current_span(
                "gateway.request", context=extract(request.headers), kind=SpanKind.SERVER
            ):
                tenant = self._tenant(request)
                ask = read(api, await request.read())
                if salt := self._front.admission.salt(tenant):
                    ask = salted(ask, salt)
                sink = _Sink(request, self._settings.stall_s)
                hints = Hints(
                    policy=request.headers.get("x-tokenplane-policy", ""),
                    session=request.headers.get("x-tokenplane-session", ""),
                    tenant=tenant,
                    constraints=constraints_of(request.headers, tenant),
                )
                run = partial(self._front.dispatcher.serve, request_id, ask, hints)
                if key := request.headers.get("idempotency-key"):
                    await self._front.answers.serve(tenant.name, key, ask.body, run, sink)
                else:
                    await run(sink)
                return await sink.end()
        except ClientError as error:
            refusal = _refusal(error)
            refusal.headers["x-request-id"] = request_id
            return refusal
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._tenant(request)
        models = context_tokens(self._front.view)
        return web.Response(body=model_list(models, int(time.time())), content_type=JSON)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(status=503 if self._draining else 200)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response()

    def _tenant(self, request: web.Request) -> Tenant:
        return self._front.admission.tenant(request.headers.get("authorization", ""))

    def _request_id(self, request: web.Request) -> RequestId:
        """The client's own, where it can be a name, else a new one."""
        try:
            return RequestId(check_name(request.headers.get("x-request-id", ""), "request"))
        except BadName:
            return new_request_id(self._rng)


class _Sink:
    """The answer to one HTTP request; waits for the client, but not for ever."""

    def __init__(self, request: web.Request, stall_s: float) -> None:
        self._request = request
        self._stall_s = stall_s
        self._response: web.StreamResponse | None = None

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self._response = web.StreamResponse(status=status, headers=headers)
        await self._response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        assert self._response is not None, "an answer starts with its head"
        with anyio.move_on_after(self._stall_s) as waiting:
            await self._response.write(data)
        if waiting.cancelled_caught:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ClientStalled(f"the client did not read for {self._stall_s:g} s")

    async def end(self) -> web.StreamResponse:
        assert self._response is not None
        await self._response.write_eof()
        return self._response


@web.middleware
async def _in_openai_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as OpenAI's clients expect it."""
    try:
        return await handler(request)
    except ClientError as error:
        return _refusal(error)
    except web.HTTPRequestEntityTooLarge as error:
        return _refusal(ClientError(413, str(error.text), code="body_too_large"))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _refusal(ClientError(error.status, error.reason, code="not_found"))
    except ClientStalled as error:
        log.warning("%s", error)
        raise ConnectionResetError(str(error)) from error


def _refusal(error: ClientError) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return web.Response(status=error.status, body=error.body(), content_type=JSON, headers=headers)

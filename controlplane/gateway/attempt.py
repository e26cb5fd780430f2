"""One attempt on one worker: send the client's bytes, forward the engine's, tell who must know."""

from __future__ import annotations

from contextlib import nullcontext

from opentelemetry.trace import SpanKind, get_current_span

from controlplane.gateway.flight import EngineFailed, Flight, Sink
from controlplane.gateway.forwarding import Forwarding, gave_up
from controlplane.gateway.health import Health, Stream
from controlplane.gateway.migration import Leg
from controlplane.gateway.openai import ClientError
from controlplane.gateway.routing import Routing
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.sse import MalformedStream, SseScanner, given_up_in, refusal_in, usage_of
from controlplane.gateway.telling import Teller
from controlplane.runtime.tracing import inject, step, tracer
from controlplane.runtime.version import VERSION
from proto.progress import CANCELLED, COMPLETED, Phase
from proto.route import Chosen
from proto.wire.errors import HttpError, HttpTimeout, HttpTooLong, HttpUnreachable
from proto.wire.ports import Http, HttpResponse, HttpTimeouts

spans = tracer("tokenplane.gateway")

CLIENTS_FAULTS = frozenset({*range(400, 500), 501}) - {429}
"""Statuses by which an engine says that the request is wrong, or wants what it cannot do; any other
is no answer, and another engine may do better."""
ANSWER_BYTES_MAX = 64 << 20
"""Of an answer that is not streamed; it is in memory as a whole."""
REFUSAL_BYTES_MAX = 1 << 20
JSON = "application/json"


class Attempts:
    """Carries a flight to a chosen worker and back."""

    def __init__(
        self,
        settings: GatewaySettings,
        http: Http,
        routing: Routing,
        health: Health,
        teller: Teller,
    ) -> None:
        self._settings = settings
        self._http = http
        self._routing = routing
        self._health = health
        self._teller = teller

    def adopt(self, settings: GatewaySettings) -> None:
        """Wait by other settings from now on; exchanges under way keep theirs."""
        self._settings = settings
        self._health.adopt(settings)

    async def make(self, flight: Flight, chosen: Chosen, leg: Leg, sink: Sink) -> None:
        """Returns when the answer is whole. Raises `EngineFailed` when the engine is at fault,
        `ClientError` when the engine finds the request wrong before anything was sent."""
        outcome, failed = CANCELLED, False
        self._routing.opened(chosen.worker)
        with step(spans, "gateway.engine", SpanKind.CLIENT) as span:
            span.set_attribute("tokenplane.worker", chosen.worker)
            span.set_attribute("tokenplane.attempt", flight.attempts)
            span.set_attribute("tokenplane.engine", flight.engine)
            try:
                self._teller.tell(flight, chosen, Phase.DISPATCHED)
                with nullcontext() if flight.ask.stream else self._health.unseen(flight, chosen):
                    await self._exchange(flight, chosen, leg, sink)
                outcome = COMPLETED
            except EngineFailed as error:
                outcome, failed = error.reason, True
                raise
            except ClientError as error:
                outcome = error.code
                raise
            finally:
                self._routing.closed(chosen.worker)
                self._teller.tell(flight, chosen, Phase.ENDED, outcome, worker_failed=failed)

    async def _exchange(self, flight: Flight, chosen: Chosen, leg: Leg, sink: Sink) -> None:
        settings, ask = self._settings, flight.ask
        # An engine that does not stream says nothing at all until it has finished.
        first_s, gap_s = settings.first_token_s, settings.gap_s
        patience = (first_s, gap_s, first_s) if ask.stream else (settings.total_s,) * 3
        exchange = self._http.exchange(
            "POST",
            chosen.url + leg.path,
            body=leg.body,
            headers={"content-type": JSON, "x-request-id": flight.request, **inject()},
            timeouts=HttpTimeouts(settings.connect_s, *patience),
        )
        try:
            async with exchange as response:
                if response.status != 200:
                    await self._refused(response)
                elif ask.stream:
                    with self._health.watched(flight, chosen) as stream:
                        await self._stream(stream, leg, response, sink)
                else:
                    await self._whole(flight, chosen, response, sink)
        except HttpUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error)) from error
        except HttpTimeout as error:
            raise EngineFailed("engine_silent", str(error)) from error
        except HttpError as error:
            raise EngineFailed("engine_lost", str(error)) from error
        except MalformedStream as error:
            raise EngineFailed("engine_malformed", str(error)) from error

    async def _stream(self, stream: Stream, leg: Leg, response: HttpResponse, sink: Sink) -> None:
        flight, chosen = stream.flight, stream.chosen

        def begin() -> None:
            sink.start(200, _headers(flight, chosen, response))

        def first() -> None:
            get_current_span().add_event("first_token")
            self._teller.tell(flight, chosen, Phase.FIRST_TOKEN)

        scanner = SseScanner(leg.reshape)
        await Forwarding(stream, scanner, sink, begin=begin, first=first).run(response)

    async def _whole(
        self, flight: Flight, chosen: Chosen, response: HttpResponse, sink: Sink
    ) -> None:
        try:
            body = await response.read(limit_bytes=ANSWER_BYTES_MAX)
        except HttpTooLong as error:
            raise ClientError(
                502,
                f"the answer is longer than {ANSWER_BYTES_MAX >> 20} MiB; ask for less at once",
                code="answer_too_long",
            ) from error
        if given_up := given_up_in(body):
            raise gave_up(given_up)
        flight.saw_usage(usage_of(body))
        sink.start(200, _headers(flight, chosen, response), len(body))
        flight.started = True
        await sink.write(body)

    async def _refused(self, response: HttpResponse) -> None:
        try:
            body = await response.read(limit_bytes=REFUSAL_BYTES_MAX)
        except HttpTooLong:  # engines may repeat the request in it
            body = b"the engine's reason is too long to be told"
        if response.status not in CLIENTS_FAULTS:
            beginning = body[:200].decode(errors="replace")
            raise EngineFailed("engine_refused", f"HTTP {response.status}: {beginning}")
        said = refusal_in(body)
        raise ClientError(response.status, said.message, code="engine_rejected", param=said.param)


def _headers(flight: Flight, chosen: Chosen, response: HttpResponse) -> dict[str, str]:
    headers = {
        "content-type": response.headers.get("content-type", JSON),
        "cache-control": "no-store",
        "x-request-id": flight.request,
        "x-tokenplane-worker": chosen.worker,
        "x-tokenplane-engine": flight.engine,
        "x-tokenplane-version": VERSION,
        "x-tokenplane-policy": chosen.policy,
    }
    if flight.hints.tenant.sees_overlap:
        headers["x-tokenplane-overlap-tokens"] = str(flight.predicted_cached_tokens)
    return headers

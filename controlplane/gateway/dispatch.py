"""A request's whole way: tokenise, admit, route, carry, and try again where that is safe.

Nothing here knows an HTTP server: the answer goes into a `Sink`. A second attempt is made only
while the client has seen nothing, and under a budget. After that an answer goes on elsewhere from
its last token, where that is right (`migration`); else the engine's failure becomes the one typed
event that ends the stream, and a cut-off stream never carries `[DONE]`.
"""

from __future__ import annotations

import logging
from array import array

import anyio

from controlplane.gateway.accounting import Accounting
from controlplane.gateway.admission import Admission
from controlplane.gateway.flight import ClientStalled, EngineFailed, Flight, Sink
from controlplane.gateway.handover import Handover
from controlplane.gateway.migration import (
    CannotContinue,
    Leg,
    continuation,
    obstacle,
    settle,
    traced,
)
from controlplane.gateway.models import engine_of, served
from controlplane.gateway.openai import Api, Ask, ClientError
from controlplane.gateway.pools import Attempt, Pools
from controlplane.gateway.routing import Hints, Routing
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tokenizer import Tokenizers
from controlplane.gateway.transcript import Transcript
from controlplane.registry.membership import Change, Joined, ModelChanged, Updated
from controlplane.registry.view import RegistryView
from controlplane.runtime.tracing import step, tracer
from proto.ids import RequestId
from proto.progress import CANCELLED
from proto.route import Chosen, Rejected
from proto.wire.errors import RequestRefused
from proto.workers import WorkerState

log = logging.getLogger(__name__)
spans = tracer("tokenplane.gateway")

RETRY_BURST = 100.0
"""Of failures, each by itself; no load for a fleet."""
_PROMPT_FIELDS = {
    Api.COMPLETIONS: "prompt",
    Api.CHAT: "messages",
    Api.RESPONSES: "input",
    Api.EMBEDDINGS: "input",
}


class RetryBudget:
    """Every request earns a share of a retry; a failure spends one. Full at the start.

    All that was with an engine when it died has failed once: it was let in before, and is tried
    elsewhere whatever is left. What comes afterwards and fails is what retries must not multiply.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._saved = RETRY_BURST

    def earn(self) -> None:
        """There is a request."""
        self._saved = min(RETRY_BURST, self._saved + self.share)

    def spend(self, attempt: Attempt) -> bool:
        """Whether what has failed may be tried again."""
        if not attempt.fails_anew:
            return True
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class Dispatcher:
    """Serves requests, any number at once."""

    def __init__(
        self,
        settings: GatewaySettings,
        view: RegistryView,
        routing: Routing,
        attempts: Handover,
        admission: Admission,
        accounting: Accounting,
    ) -> None:
        self._settings = settings
        self._view = view
        self._routing = routing
        self._attempts = attempts
        self._admission = admission
        self._accounting = accounting
        self._tokenizers = Tokenizers()
        self._budget = RetryBudget(settings.retry_share)
        self._pools = Pools(settings.pool_requests_max, anyio.current_time)

    def adopt(self, settings: GatewaySettings) -> None:
        """Serve by other settings from now on; those that are no live ones stay."""
        self._settings = settings
        self._attempts.adopt(settings)
        self._routing.adopt(settings)
        self._budget.share = settings.retry_share
        self._pools.requests_max = settings.pool_requests_max

    def hear(self, change: Change) -> None:
        """A change of the fleet: a model that will be asked for; a worker that is ready now and may
        be well where others failed."""
        match change:
            case ModelChanged(card):
                self._tokenizers.hear(card)
                return
            case Joined(record):
                renewed = True
            case Updated(record, before):
                renewed = (before.state, before.incarnation) != (record.state, record.incarnation)
            case _:
                return
        if renewed and record.state is WorkerState.READY:
            self._pools.renewed(record.model)

    async def run(self) -> None:
        """Get ready for what may be asked for, until cancelled."""
        await self._tokenizers.run()

    async def serve(self, request: RequestId, ask: Ask, hints: Hints, sink: Sink) -> str:
        """Returns the outcome when the sink has the whole answer, or its one error event.

        Raises `ClientError` while nothing has been sent, and `ClientStalled`.
        """
        flight = self._accounting.opened(request, ask, hints)
        self._budget.earn()
        try:
            with (
                self._pools.entered(ask.model),
                anyio.move_on_after(self._settings.total_s) as total,
            ):
                await self._carry(flight, sink)
            if total.cancelled_caught:
                raise ClientError(
                    504, f"not finished within {self._settings.total_s:g} s", code="deadline"
                )
        except ClientError as error:
            flight.outcome = error.code
            if not flight.started:
                raise
            log.warning("request %s ended after its first byte: %s", request, error)
            if not ask.stream:  # its length has been told: nothing may follow
                raise ClientStalled(f"the client has not all of its answer: {error}") from error
            await sink.write(error.event(ask.api))
        except ClientStalled:
            flight.outcome = "client_stalled"
            raise
        except anyio.get_cancelled_exc_class():
            flight.outcome = CANCELLED
            raise
        except Exception:
            flight.outcome = "internal_error"
            raise
        finally:
            if flight.reservation is not None:
                self._admission.settle(hints.tenant, flight.reservation, flight.used_tokens)
            self._accounting.ended(flight)
        return flight.outcome

    async def _carry(self, flight: Flight, sink: Sink) -> None:
        tokens = flight.tokens = await self._tokenise(flight)
        hints = flight.hints
        flight.reservation = self._admission.reserve(
            hints.tenant, flight.expected_tokens, hints.session
        )
        leg = self._first_leg(flight, tokens)
        known = tokens
        while True:
            with self._pools.attempt(flight.ask.model) as attempt:
                chosen = await self._choose(flight, known)
                attempt.worker = chosen.worker
                failure = await self._attempt(flight, chosen, leg, sink)
                attempt.ok = failure is None
            if failure is None:
                return
            if flight.started and tokens is not None:
                leg = await self._rest(flight, tokens, attempt, failure)
                known = tokens + flight.transcript.tokens if flight.transcript else tokens
            else:
                self._may_retry(flight, attempt, failure)

    async def _attempt(
        self, flight: Flight, chosen: Chosen, leg: Leg, sink: Sink
    ) -> EngineFailed | None:
        """One leg on one worker; what went wrong, if the worker is to blame."""
        flight.attempts += 1
        flight.worker, flight.policy, flight.router = chosen.worker, chosen.policy, chosen.router
        flight.engine = engine_of(self._view, chosen.worker)
        flight.predicted_cached_tokens = chosen.overlap_blocks * chosen.block_tokens
        if flight.transcript is not None:
            leg = traced(leg, flight.engine)
        try:
            await self._attempts.make(flight, chosen, leg, sink)
        except EngineFailed as failure:
            self._routing.inhibit(chosen.worker)
            flight.failed.append(chosen.worker)
            return failure
        return None

    def _first_leg(self, flight: Flight, tokens: array[int] | None) -> Leg:
        """The client's request; one that could go on elsewhere is watched from the start."""
        ask = flight.ask
        if tokens is not None and self._settings.migrations_max > 0 and not obstacle(ask):
            flight.transcript = Transcript(self._settings.migration_tokens_max)
        return Leg(ask.api.value, ask.body)

    async def _rest(
        self, flight: Flight, tokens: array[int], attempt: Attempt, failure: EngineFailed
    ) -> Leg:
        """What another engine must be asked to finish the answer. Raises the `ClientError` that
        the failure comes to if it cannot be finished."""
        final = _failed(failure)
        said = flight.transcript
        if said is None or flight.migrations >= self._settings.migrations_max:
            raise final from failure
        try:
            known = served(self._view, flight.ask.model)
            if known is None:
                raise CannotContinue("nobody serves its model any more")
            card = known.card
            settle(said, tokens, await self._tokenizers.detokeniser(card))
            leg = continuation(flight.ask, tokens, said, card.context_tokens)
        except CannotContinue as reason:
            log.warning("request %s cannot go on elsewhere: %s", flight.request, reason)
            raise final from failure
        if not self._budget.spend(attempt):
            raise final from failure
        flight.migrations += 1
        self._accounting.metrics.migrations.labels(failure.reason).inc()
        log.warning(
            "request %s goes on elsewhere after %d tokens: %s",
            flight.request, len(said.tokens), failure,
        )  # fmt: skip
        return leg

    async def _tokenise(self, flight: Flight) -> array[int] | None:
        """Token ids, or None without a usable tokenizer. Raises `ClientError` (400, 404)."""
        ask = flight.ask
        known = served(self._view, ask.model)
        if known is None:
            raise ClientError(
                404,
                f"the model {ask.model!r} does not exist",
                code="model_not_found",
                param="model",
            )
        card = known.card
        flight.base_model = card.name
        with step(spans, "gateway.tokenize") as span:
            tokens = await self._tokenizers.tokens(card, ask)
            if tokens is None:
                flight.prompt_tokens = ask.guessed_prompt_tokens
                self._accounting.metrics.untokenised.labels(ask.model).inc()
                return None
            span.set_attribute("gen_ai.usage.input_tokens", len(tokens))
        flight.prompt_tokens = len(tokens) + ask.unread_tokens
        if len(tokens) + (ask.max_tokens or 1) > card.context_tokens:
            raise ClientError(
                400,
                f"this model's context is {card.context_tokens} tokens; the prompt has "
                f"{len(tokens)} and asks for {ask.max_tokens or 1} more",
                code="context_length_exceeded",
                param=_PROMPT_FIELDS[ask.api],
            )
        return tokens

    async def _choose(self, flight: Flight, tokens: array[int] | None) -> Chosen:
        try:
            reply = await self._routing.choose(
                flight.request,
                flight.ask,
                tokens,
                flight.hints,
                flight.attempts + 1,
                flight.failed,
            )
        except RequestRefused as refusal:
            raise ClientError(400, refusal.description, code="bad_route_request") from refusal
        if isinstance(reply, Rejected):
            raise _no_worker(reply)
        return reply

    def _may_retry(self, flight: Flight, attempt: Attempt, failure: EngineFailed) -> None:
        """Raises the `ClientError` that the failure comes to if there is no other attempt."""
        if flight.started or flight.attempts >= self._settings.attempts_max:
            raise _failed(failure) from failure
        if not self._budget.spend(attempt):
            raise _failed(failure) from failure
        self._accounting.metrics.retries.labels(failure.reason).inc()
        log.warning("request %s: %s; trying another worker", flight.request, failure)


def _failed(failure: EngineFailed) -> ClientError:
    status = 504 if failure.reason == "engine_silent" else 502
    return ClientError(status, f"the engine failed: {failure}", code=failure.reason)


def _no_worker(rejected: Rejected) -> ClientError:
    return ClientError(
        503, rejected.detail, code=rejected.reason, retry_after_s=rejected.retry_after_s
    )

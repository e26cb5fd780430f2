"""The HTTP server: vLLM's routes in front of the driver.

A client that goes away takes its handler with it (aiohttp cancels it), and the handler takes its
requests out of the engine. A client that reads slowly holds up its own handler and nothing else:
what the engine makes meanwhile is a number that grows, not a queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from aiohttp import web

from workers.sim import responses, shapes
from workers.sim.bodies import AbortBody, SpeculationBody, decode
from workers.sim.driver import Driver, Refused
from workers.sim.embeddings import embeddings
from workers.sim.errors import ApiError, bad_request, unavailable
from workers.sim.generation import Generation
from workers.sim.kvparams import KvParams
from workers.sim.language import LanguageModel
from workers.sim.likelihood import Likelihood
from workers.sim.metrics import Metrics
from workers.sim.reader import Ask, Reader
from workers.sim.scheduler import RequestTooLarge
from workers.sim.shapes import Style
from workers.sim.tokens import ChatTokenizer

BODY_BYTES_MAX = 32 << 20

_JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """The model as clients know it, and what /server_info says of the engine."""

    model: str
    context_tokens: int
    info: dict[str, object]


class _Call:
    """The generations of one HTTP call, and the sign that one of them has news."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.generations: list[Generation] = []
        self._news = asyncio.Event()

    def notify(self) -> None:
        self._news.set()

    async def wait(self) -> None:
        """Until something is new since the last wait; raises `ApiError` if the engine gave up."""
        await self._news.wait()
        self._news.clear()
        for generation in self.generations:
            if generation.not_loaded:
                raise ApiError(500, str(generation.error), "KVLoadError")
            if generation.error is not None:
                raise unavailable(generation.error)

    @property
    def finished(self) -> bool:
        return all(generation.finished for generation in self.generations)


class _Handed(msgspec.Struct):
    kv_transfer_params: KvParams | None = None


class Server:
    """Handlers over one driver; `app` is what aiohttp serves."""

    def __init__(
        self, served: Served, tokenizer: ChatTokenizer, driver: Driver, metrics: Metrics
    ) -> None:
        self._served = served
        self._tokenizer = tokenizer
        self._driver = driver
        self._metrics = metrics
        self._reader = Reader(served.model, tokenizer, served.context_tokens)
        self._language = LanguageModel(tokenizer.words, tokenizer.end_id)
        self._created_s = int(time.time())
        self._calls: dict[str, list[_Call]] = {}
        self.app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_as_openai_error])
        self.app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat_completions),
                web.post("/v1/responses", self._responses),
                web.post("/v1/embeddings", self._embeddings),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.route("*", "/ping", self._health),
                web.get("/version", self._version),
                web.get("/server_info", self._server_info),
                web.get("/metrics", self._metrics_text),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.post("/reset_prefix_cache", self._reset_prefix_cache),
                web.get("/speculation", self._speculation),
                web.post("/speculation", self._speculate),
                web.post("/abort_requests", self._abort_requests),
                web.post("/release_kv", self._release_kv),
            ]
        )

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        ask = self._asked(self._reader.completion, await request.read())
        return await self._answer(request, ask)

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._asked(self._reader.chat, await request.read()))

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        ask = self._reader.response(await request.read())
        call = self._call(request, ask, "resp")
        [generation] = call.generations
        try:
            self._submit(generation)
            if ask.stream:
                return await self._stream_response(request, call, generation)
            while not call.finished:
                await call.wait()
            return _json(responses.whole(call.style, generation))
        finally:
            self._driver.cancel(generation)

    async def _stream_response(
        self, request: web.Request, call: _Call, generation: Generation
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": EVENT_STREAM})
        await stream.prepare(request)
        events = responses.ResponseStream(call.style, generation)
        await stream.write(events.open())
        try:
            while not generation.told:
                await call.wait()
                if delta := generation.take().text:
                    await stream.write(events.delta(delta))
            await stream.write(events.close())
        except ApiError as error:
            await stream.write(b"event: error\n" + shapes.event({"type": "error", **error.body()}))
        await stream.write_eof()
        return stream

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        prompts, as_base64 = self._reader.embedding(await request.read())
        return _json(embeddings(self._served.model, prompts, as_base64=as_base64))

    async def _answer(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        call = self._call(request, ask, "chatcmpl" if ask.chat else "cmpl")
        named = request.headers.get("X-Request-Id", "")
        self._calls.setdefault(named, []).append(call)
        try:
            for generation in call.generations:
                generation.client_request = named
                self._submit(generation)
            if ask.transfer is not None:
                await call.wait()  # whether its blocks have come decides how the answer begins
                call.notify()
            if ask.stream:
                return await self._stream(request, call, ask.include_usage)
            while not call.finished:
                await call.wait()
            return _json(shapes.whole(call.style, call.generations))
        finally:
            for generation in call.generations:
                self._driver.cancel(generation)
            self._calls[named].remove(call)
            if not self._calls[named]:
                del self._calls[named]

    def _asked(self, read: Callable[[bytes], Ask], body: bytes) -> Ask:
        """What a client wants; blocks that wait for what is refused are not wanted."""
        try:
            return read(body)
        except ApiError:
            with suppress(msgspec.DecodeError):
                self._decline(msgspec.json.decode(body, type=_Handed).kv_transfer_params)
            raise

    def _call(self, request: web.Request, ask: Ask, kind: str) -> _Call:
        # Unique inside whatever a client sends: two calls of one X-Request-Id are two calls.
        unique = uuid.uuid4().hex
        style = Style(
            id=f"{kind}-{request.headers.get('X-Request-Id', unique)}",
            created_s=int(time.time()),
            model=self._served.model,
            chat=ask.chat,
            return_token_ids=ask.return_token_ids,
            n=len(ask.samplings),
            likelihood=None if ask.logprobs is None else Likelihood(self._language, ask.logprobs),
        )
        call = _Call(style)
        for prompt in ask.prompts:
            for sampling in ask.samplings:
                call.generations.append(
                    Generation(
                        f"{unique}-{len(call.generations)}",
                        prompt,
                        sampling,
                        self._language,
                        context_tokens=self._served.context_tokens,
                        notify=call.notify,
                        transfer=ask.transfer,
                    )
                )
        return call

    def _submit(self, generation: Generation) -> None:
        try:
            self._driver.submit(generation)
        except Refused as error:
            self._decline(generation.transfer)
            raise unavailable(str(error)) from error
        except RequestTooLarge as error:
            self._decline(generation.transfer)
            raise bad_request(f"The request cannot be served: {error}.") from error

    def _decline(self, asked: KvParams | None) -> None:
        if self._driver.mover is not None:
            self._driver.mover.decline(asked)

    async def _abort_requests(self, request: web.Request) -> web.Response:
        """By the X-Request-Id that they came with; what was staged for them is let go, too."""
        asked = decode(await request.read(), AbortBody)
        calls = [call for id in asked.request_ids for call in self._calls.get(id, ())]
        for call in calls:
            for generation in call.generations:
                self._driver.cancel(generation)
                generation.fail("The request was aborted.")
        mover, copier = self._driver.mover, self._driver.copier
        staged = mover is not None and mover.release_of(asked.request_ids)
        coming = copier is not None and copier.abort(asked.request_ids)
        return _json({"known": bool(calls) or staged or coming})

    async def _release_kv(self, request: web.Request) -> web.Response:
        """Let blocks go that were staged; by the `kv_transfer_params` that told of them."""
        mover, asked = self._driver.mover, decode(await request.read(), KvParams)
        known = mover is not None and mover.release(asked.remote_request_id or "")
        return _json({"known": known})

    async def _stream(
        self, request: web.Request, call: _Call, include_usage: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM})
        await response.prepare(request)
        opened: set[int] = set()
        try:
            # What ends while another choice is being written has not been told yet.
            while not all(generation.told for generation in call.generations):
                await call.wait()
                for index, generation in enumerate(call.generations):
                    if chunks := _chunks(call.style, index, generation, opened):
                        await response.write(chunks)
            if include_usage:
                usage = shapes.usage_chunk(call.style, call.generations)
                await response.write(shapes.event(usage))
        except ApiError as error:
            await response.write(shapes.event(error.body()))
        await response.write(shapes.DONE)
        await response.write_eof()
        return response

    async def _models(self, request: web.Request) -> web.Response:
        del request
        served = self._served
        root = str(self._tokenizer.directory)
        return _json(shapes.models(served.model, root, self._created_s, served.context_tokens))

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=200 if self._driver.healthy else 503)

    async def _version(self, request: web.Request) -> web.Response:
        del request
        return _json({"version": shapes.VERSION})

    async def _server_info(self, request: web.Request) -> web.Response:
        del request
        return _json({"vllm_config": self._served.info})

    async def _metrics_text(self, request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=self._metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _tokenize(self, request: web.Request) -> web.Response:
        tokens = self._reader.tokenize(await request.read())
        return _json(
            {
                "count": len(tokens),
                "max_model_len": self._served.context_tokens,
                "tokens": tokens,
                "token_strs": None,
            }
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        return _json({"prompt": self._reader.detokenize(await request.read())})

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        del request
        if not self._driver.reset_cache():
            _log.warning("the prefix cache was not reset: blocks are in use")
        return web.Response()

    async def _speculation(self, request: web.Request) -> web.Response:
        del request
        return _json({"enabled": self._driver.speculating})

    async def _speculate(self, request: web.Request) -> web.Response:
        body = decode(await request.read(), SpeculationBody)
        try:
            self._driver.speculate(on=body.enabled)
        except ValueError as error:
            raise bad_request(f"Cannot speculate: {error}.", "enabled") from error
        return _json({"enabled": self._driver.speculating})


def _chunks(style: Style, index: int, generation: Generation, opened: set[int]) -> bytes:
    """The events that bring a client up to date with one choice; empty if it is."""
    delta = generation.take()
    if not delta.token_ids:
        return b""
    first = index not in opened
    opened.add(index)
    chunks = shapes.event(shapes.chunk(style, index, generation, delta, first=first))
    if first and style.chat:
        return shapes.event(shapes.opening_chunk(style, index, generation)) + chunks
    return chunks


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=shapes.plain(body), status=status, content_type=_JSON)


@web.middleware
async def _as_openai_error(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _refusal(error)
    except web.HTTPRequestEntityTooLarge:
        limit = f"The body is larger than {BODY_BYTES_MAX} bytes."
        return _refusal(ApiError(413, limit, "RequestEntityTooLarge"))
    except web.HTTPException as error:
        return _refusal(ApiError(error.status, error.reason, error.reason))


def _refusal(error: ApiError) -> web.Response:
    response = _json(error.body(), error.status)
    if error.status == 503:
        response.headers["Retry-After"] = "1"
    return response

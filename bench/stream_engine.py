"""An engine that costs next to nothing, so that what stands before it is measured and not it.

It speaks as much of vLLM's HTTP API as gateways and routers need, says words made beforehand, and
gives every stream one token a step, as engines do. `python -m bench.stream_engine --port P`
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from typing import cast

import msgspec
import uvloop

from bench.http import END_OF_HEAD, LENGTH

MODEL = "bench"
WORD, WORD_ID = "word ", 7
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"
TOKENS_DEFAULT = 16


class _Asked(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    return_token_ids: bool = False


_ASKED = msgspec.json.Decoder(_Asked)


class Engine:
    """All streams of one engine, each a token further every `step_s`."""

    def __init__(self, step_s: float) -> None:
        self.streams: set[Connection] = set()
        self.steps = 0
        self._step_s = step_s

    async def run(self) -> None:
        """Step until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + self._step_s, loop.time())
            await asyncio.sleep(due_s - loop.time())
            self.steps += 1
            for stream in tuple(self.streams):
                stream.step()


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._event = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._engine.streams.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(END_OF_HEAD)
        if end < 0:
            return
        head = bytes(self._received[:end])
        at = head.lower().find(LENGTH)
        length = int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        whole = end + len(END_OF_HEAD) + length
        if len(self._received) >= whole:
            body = bytes(self._received[whole - length : whole])
            del self._received[:whole]
            self._answer(head.split(b" ", 2)[1], body)

    def step(self) -> None:
        """One token more."""
        self._left -= 1
        if self._left:
            self._write(self._event)
        else:
            self._write(self._event + _chunk(DONE) + LAST_CHUNK)
            self._engine.streams.discard(self)

    def _answer(self, path: bytes, body: bytes) -> None:
        if not body:
            self._write(_json(_ABOUT.get(path, {})))
            return
        asked = _ASKED.decode(body)
        tokens = asked.max_tokens or asked.max_completion_tokens or TOKENS_DEFAULT
        chat = b"chat" in path
        if not asked.stream:
            self._write(_json(_whole(chat, tokens)))
            return
        self._event = _chunk(_EVENTS[chat, asked.return_token_ids])
        self._left = tokens
        self._write(CHUNKED)
        self._engine.streams.add(self)
        self.step()  # the first token is not waited for: what is added to it is to be seen

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _json(body: object) -> bytes:
    encoded = msgspec.json.encode(body)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(encoded) + encoded


def _event(chat: bool, ids: bool) -> bytes:
    """As vLLM writes it, so that it is as long."""
    choice: dict[str, object] = {"index": 0}
    choice |= {"delta": {"content": WORD}} if chat else {"text": WORD}
    choice |= {"logprobs": None, "finish_reason": None, "stop_reason": None}
    choice |= {"token_ids": [WORD_ID]} if ids else {}
    kind = "chat.completion.chunk" if chat else "text_completion"
    body = {"id": f"cmpl-{'0' * 32}", "object": kind, "created": 1, "model": MODEL}
    return b"data: " + msgspec.json.encode(body | {"choices": [choice], "usage": None}) + b"\n\n"


def _whole(chat: bool, tokens: int) -> dict[str, object]:
    text = WORD * tokens
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    kind = "chat.completion" if chat else "text_completion"
    choice = {"index": 0, "finish_reason": "length", **said}
    head = {"id": "cmpl-0", "object": kind, "created": 1, "model": MODEL}
    return head | {"choices": [choice], "usage": usage}


_EVENTS = {(chat, ids): _event(chat, ids) for chat in (False, True) for ids in (False, True)}
_ABOUT: dict[bytes, object] = {
    b"/v1/models": {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm",
                  "root": MODEL, "max_model_len": 131_072}],
    },
    b"/get_model_info": {"model_path": MODEL, "is_generation": True},
    b"/get_server_info": {"model_path": MODEL, "served_model_name": MODEL},
}  # fmt: skip


async def _serve(port: int, step_s: float) -> None:
    engine = Engine(step_s)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=4096)
    async with server:
        await engine.run()


def main() -> None:
    """`python -m bench.stream_engine`"""
    parser = argparse.ArgumentParser(description="An engine that costs next to nothing.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--step-ms", type=float, default=10.0)
    options = parser.parse_args()
    uvloop.run(_serve(options.port, options.step_ms / 1e3))


if __name__ == "__main__":
    main()

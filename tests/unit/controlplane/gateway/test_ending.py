"""An engine dies when all of an answer was said, and only its end was missing."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from proto.wire.errors import HttpBroken
from tests.support.gateway_world import DONE, Client, records, whole, world

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


def event(**fields: object) -> bytes:
    body = {"id": "first", "created": 7, "model": "m", "choices": [], **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


SAID = (
    event(choices=[{"index": 0, "text": "one ", "token_ids": [1]}]),
    event(choices=[{"index": 0, "text": "two", "token_ids": [2], "finish_reason": "stop"}]),
)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COUNTED = event(object="text_completion", usage=USAGE)
WITH_USAGE = {"include_usage": True}


async def dies() -> None:
    raise HttpBroken("died")


async def falls_silent() -> None:
    await anyio.sleep(60)


async def hangs_up() -> None: ...


async def answer(then: Callable[[], Awaitable[None]], *pieces: bytes) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece
    await then()


@pytest.mark.parametrize("then", [dies, falls_silent, hangs_up])
@pytest.mark.parametrize("pieces", [SAID, (*SAID, DONE), (SAID[0], SAID[1] + DONE)])
async def test_what_was_said_to_its_end_is_ended_once(
    anyio_backend: str, then: Callable[[], Awaitable[None]], pieces: tuple[bytes, ...]
) -> None:
    """By us, if need be: another engine would go on behind the end."""
    async with world() as ours:
        ours.engine("a", partial(answer, then, *pieces))
        ours.engine("b", whole)
        client = Client()
        await ours.serve(client)
        assert client.read == b"".join(SAID) + DONE
        assert len(ours.routed) == 1
        [written] = await records(ours, 1)
        assert (written.outcome, written.output_tokens) == ("completed", 2)


@pytest.mark.parametrize("pieces", [SAID, (*SAID, COUNTED), (SAID[0], SAID[1] + COUNTED)])
async def test_who_wants_the_count_gets_it_once(
    anyio_backend: str, pieces: tuple[bytes, ...]
) -> None:
    async with world() as ours:
        ours.engine("a", partial(answer, dies, *pieces))
        client = Client()
        await ours.serve(client, stream_options=WITH_USAGE)
        said, counted, done = client.read.removesuffix(b"\n\n").rsplit(b"\n\n", 2)
        assert said + b"\n\n" == b"".join(SAID)
        assert json.loads(counted.removeprefix(b"data:")) == json.loads(COUNTED[len(b"data:") :])
        assert done + b"\n\n" == DONE


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2},
        {"prompt": [[1, 2, 3], [4, 5]]},
        {"stream_options": {"include_usage": "please"}},
        {"stream_options": WITH_USAGE, "logprobs": 1},  # so that its tokens are not known
    ],
)
async def test_what_more_there_may_have_been_to_say_is_not_made_up(
    anyio_backend: str, asked: dict[str, Any]
) -> None:
    async with world() as ours:
        ours.engine("a", partial(answer, dies, *SAID))
        client = Client()
        await ours.serve(client, **asked)
        last = client.read.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
        assert b"[DONE]" not in client.read

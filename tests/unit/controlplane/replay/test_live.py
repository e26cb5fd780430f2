from __future__ import annotations

import socket

import anyio
import pytest
from aiohttp import web

from controlplane.replay.live import LiveTarget, NotServing, run_live, served_model
from controlplane.replay.report import Outcome, Status
from controlplane.replay.tokens import expand
from controlplane.replay.trace import TraceRequest
from proto.wire.http import HttpClient
from tests.unit.controlplane.replay.server import (
    MODEL,
    Behave,
    Server,
    serving,
    streamed,
    token,
    usage,
    well,
)

pytestmark = pytest.mark.anyio

ONE = TraceRequest(0.0, 700, 3, (1, 2))


def target(url: str, **fields: object) -> LiveTarget:
    defaults: dict[str, object] = {"model": MODEL, "policy": "kv", "block_tokens": 64}
    return LiveTarget(url=url, **(defaults | {"speed": 1000.0} | fields))  # type: ignore[arg-type]


async def replayed(
    behave: Behave, *requests: TraceRequest, **fields: object
) -> tuple[Server, list[Outcome]]:
    ended: list[int] = []
    with anyio.fail_after(20):
        async with serving(behave) as server, HttpClient() as http:
            run = await run_live(http, target(server.url, **fields), requests, ended.append)
    assert (run.policy, run.busy) == ("kv", None)
    assert ended == list(range(1, len(requests) + 1))
    return server, run.outcomes


async def test_requests_are_sent_as_the_trace_has_them() -> None:
    requests = (ONE, TraceRequest(1.0, 512, 1, (1,)))
    server, outcomes = await replayed(well, *requests, salt=7)
    assert server.policies == ["kv", "kv"]
    first, second = server.asked
    assert first["prompt"] == expand(ONE, salt=7).tolist()
    assert (first["model"], first["max_tokens"], first["ignore_eos"]) == (MODEL, 3, True)
    assert (first["stream"], first["stream_options"]) == (True, {"include_usage": True})
    assert (second["prompt"], second["max_tokens"]) == (expand(requests[1], salt=7).tolist(), 1)
    assert [o.status for o in outcomes] == [Status.COMPLETED] * 2
    assert [(o.prompt_blocks, o.cached_blocks) for o in outcomes] == [(10, 2), (8, 2)]
    assert outcomes[0].ttft_ms > 0
    assert outcomes[0].tpot_ms is not None
    assert outcomes[1].tpot_ms is None


async def test_an_engine_that_does_not_tell_of_its_cache_has_hit_nothing() -> None:
    async def silent(server: Server, request: web.Request, body: object) -> web.StreamResponse:
        return await streamed(request, token(), {"usage": {"completion_tokens": 1}})

    _, [outcome] = await replayed(silent, ONE)
    assert (outcome.status, outcome.cached_blocks) == (Status.COMPLETED, 0)


async def test_events_may_come_in_any_pieces() -> None:
    async def pieces(server: Server, request: web.Request, body: object) -> web.StreamResponse:
        text = 'data:{"choices":[{"text":"x"}],"error":null}\r\n\r\n: ping\n\nevent: x\ndata: {"cho'
        rest = 'ices":[{}],"usage":null}\n\ndata: {"usage":{"completion_tokens":2}}\n\n'
        return await streamed(request, text, rest)

    _, [outcome] = await replayed(pieces, ONE)
    assert outcome.status is Status.COMPLETED
    assert outcome.tpot_ms is not None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (503, Status.REJECTED),
        (429, Status.REJECTED),
        (500, Status.FAILED),
        (400, Status.FAILED),
        (404, Status.FAILED),
    ],
)
async def test_refusals_are_told_apart_from_failures(code: int, status: Status) -> None:
    async def refuse(server: Server, request: web.Request, body: object) -> web.StreamResponse:
        return web.Response(status=code, text="because of this")

    _, outcomes = await replayed(refuse, ONE, ONE)
    assert [o.status for o in outcomes] == [status] * 2
    assert outcomes[0].detail == f"HTTP {code}: because of this"


@pytest.mark.parametrize(
    ("events", "done", "why"),
    [
        ([token(), {"error": {"message": "engine died"}}], True, "engine died"),
        ([token(), usage(1)], False, "broke off"),
        ([usage(0)], True, "without a token"),
        ([token()], True, "without its usage"),
        (["data: not json\n\n"], True, "not a completion chunk"),
        ([], False, "broke off"),
        (["data: " + "x" * (3 << 20)], False, "an event of more than"),
    ],
)
async def test_a_stream_that_is_not_whole_is_a_failure(
    events: list[object], done: bool, why: str
) -> None:
    async def badly(server: Server, request: web.Request, body: object) -> web.StreamResponse:
        return await streamed(request, *events, done=done)

    _, [outcome] = await replayed(badly, ONE)
    assert outcome.status is Status.FAILED
    assert why in outcome.detail


async def test_nobody_there_is_a_failure_of_each_request() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with HttpClient() as http:
            run = await run_live(http, target(url), [ONE, ONE], lambda ended: None)
            with pytest.raises(NotServing, match="no cluster at"):
                await served_model(http, url, MODEL)
    assert [o.status for o in run.outcomes] == [Status.FAILED] * 2


async def test_no_more_are_open_than_allowed_and_waiting_counts() -> None:
    both_open = anyio.Event()

    async def in_pairs(
        server: Server, request: web.Request, body: dict[str, object]
    ) -> web.StreamResponse:
        if server.open == 2:
            both_open.set()
        await both_open.wait()
        return await well(server, request, body)

    server, outcomes = await replayed(in_pairs, *[ONE] * 8, concurrency=2)
    assert server.open_max == 2
    # All were due at once: who had to wait for a place is slower than who had not.
    assert outcomes[-1].ttft_ms > outcomes[0].ttft_ms


async def test_arrivals_keep_their_order_and_do_not_wait_for_answers() -> None:
    last_came = anyio.Event()

    async def until_the_last(
        server: Server, request: web.Request, body: dict[str, object]
    ) -> web.StreamResponse:
        if body["max_tokens"] == 5:
            last_came.set()
        await last_came.wait()
        return await well(server, request, body)

    requests = [TraceRequest(10 * n, 512, n, (n,)) for n in range(1, 6)]
    server, outcomes = await replayed(until_the_last, *requests)
    assert [body["max_tokens"] for body in server.asked] == [1, 2, 3, 4, 5]
    assert [o.status for o in outcomes] == [Status.COMPLETED] * 5
    # The first had to wait for the last to be sent, 40 ms later at this speed.
    assert outcomes[0].ttft_ms > 39


async def test_cancelling_a_replay_closes_its_streams() -> None:
    came, gone = anyio.Event(), anyio.Event()

    async def forever(server: Server, request: web.Request, body: object) -> web.StreamResponse:
        came.set()
        try:
            await anyio.sleep_forever()
        finally:
            gone.set()
        return web.Response()

    async with serving(forever) as server, HttpClient() as http:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_live, http, target(server.url), [ONE], lambda ended: None)
                await came.wait()
                tasks.cancel_scope.cancel()
            await gone.wait()


async def test_the_model_may_be_left_out_where_there_is_only_one() -> None:
    async with HttpClient() as http:
        async with serving(well) as server:
            assert await served_model(http, server.url, None) == MODEL
            assert await served_model(http, server.url + "/", MODEL) == MODEL
            with pytest.raises(NotServing, match="serves tiny; not 'large'"):
                await served_model(http, server.url, "large")
        async with serving(well, models=("a", "b")) as server:
            with pytest.raises(NotServing, match="serves a, b; say --model"):
                await served_model(http, server.url, None)

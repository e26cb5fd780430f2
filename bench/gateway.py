"""gateway: what it adds to an answer, beside other gateways in front of the same engines.

Engines that cost next to nothing say words made beforehand: the first at once, then one every
20 ms. All sides are asked by the same clients in one process, in turns. Ours is one gateway
process that asks a router over NATS for every request, or, `own router`, decides itself; requests a
second are the best of these, with one process or two that share a port. Processor time is that of
the gateway alone, with its own router where it has one. Dynamo's frontend has its own mocked
workers.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import anyio
import numpy as np

from bench import gateway_peers
from bench.callers import Caller, WrongStatus, drive
from bench.gateway_peers import DYNAMO, LITELLM, NAMES, SGLANG, VLLM, Side
from bench.gateway_side import engines_running, gateway_running
from bench.http import request
from bench.measure import percentile, turns
from bench.options import Options
from bench.rig import Rig, cpu_s, open_rig
from bench.rows import Bar, Row, row
from bench.scrape import scrape

log = logging.getLogger(__name__)

BARS = (
    Bar("100 streams*, added to the first token, p50", "ours", "at most", 2.0),
    Bar("100 streams*, event-loop lag, p99", "ours", "at most", 10.0),
    Bar("100 streams*, tokens a core-second | *-router", "ratio", "at least", 0.5),
    Bar("chat text, requests | litellm", "ratio", "at least", 5.0),
    Bar("chat text, requests | dynamo", "ratio", "at least", 1.0),
    Bar("token ids, requests | dynamo", "ratio", "at least", 1.0),
)
DIRECT, OURS, TWO = "direct", "ours", "ours, two processes"
OWN, TWO_OWN = "ours, own router", "ours, own routers, two processes"
DECIDING, TWO_DECIDING = "bench-own", "bench-own-two"
"""Their clusters."""
FORMS = {
    OURS: "one process",
    OWN: "one process, own router",
    TWO: "two processes",
    TWO_OWN: "two processes, own routers",
}
STREAMS, STREAMED_TOKENS = 100, (50, 150)
CALLERS = 32
PROMPT_WORDS = 1_000
STREAM_PROMPT_WORDS = 50
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs")
FOUND_S, POLL_S = 30.0, 0.2
TURN_S = 40.0
LAG = "tokenplane_gateway_loop_lag_seconds"

Stages = Mapping[str, Side]


class NotServed(Exception):
    """A side does not answer."""


class Pace(NamedTuple):
    """What one turn saw."""

    first_p50_ms: float
    first_p99_ms: float
    per_s: float
    cpu_s: float
    """Of the side's processes, for each request."""
    tokens: int
    lag_p99_ms: float
    """Of its event loop; 0 where it does not tell."""


class Case(NamedTuple):
    """One kind of load."""

    name: str
    callers: int
    requests: Callable[[int], Sequence[bytes]]
    """Those of a round, which nobody has seen before: what a side remembers of prompts is not
    what is measured."""


def run(options: Options) -> Iterator[Row]:
    """Rows for streams, then for short answers to long prompts."""
    backend = {"use_uvloop": True}
    paces = anyio.run(_measure, options, backend="asyncio", backend_options=backend)
    for side, form in ((OURS, ""), (OWN, ", own router")):
        yield from _stream_rows(paces, side, form)
    yield from _request_rows("chat text", paces)
    yield from _request_rows("token ids", paces)


async def _measure(options: Options) -> dict[tuple[str, str], Pace]:
    """Medians by case and side; a side that does not end a turn in time has none for its case."""
    rounds, share = (1, 0.1) if options.quick else (2, 1.0)
    taken: dict[tuple[str, str], list[Pace]] = {}
    async with _stage(options) as (rig, sides):
        for case in _cases(share):
            asked = [side for side in sides if _understands(sides[side], case)]
            stuck: set[str] = set()
            requests = cache(case.requests)
            for turn, (side, counts) in enumerate(turns(asked, rounds)):
                if side in stuck:
                    continue
                asks = requests(turn // len(asked))
                pace = await _turn_or_none(rig, sides[side], asks, case.callers)
                if pace is None:
                    log.warning("%s did not serve %r within %g s", side, case.name, TURN_S)
                    stuck.add(side)
                    taken.pop((case.name, side), None)
                elif counts:
                    taken.setdefault((case.name, side), []).append(pace)
    return {
        key: Pace(*map(statistics.median, zip(*all_, strict=True))) for key, all_ in taken.items()
    }


def _understands(side: Side, case: Case) -> bool:
    return side.token_ids or case.name != "token ids"


async def _turn_or_none(
    rig: Rig, side: Side, requests: Sequence[bytes], callers: int
) -> Pace | None:
    """None: not all of it was served, or not in time."""
    pace = None
    try:
        with anyio.move_on_after(TURN_S):
            pace = await _turn(rig, side, requests, callers)
    except* (WrongStatus, OSError) as failed:
        log.warning("%s", failed.exceptions[0])
    return pace


async def _turn(rig: Rig, side: Side, requests: Sequence[bytes], callers: int) -> Pace:
    processes = [
        process
        for name in side.processes
        for process in (rig.process(name), *rig.process(name).children(recursive=True))
    ]
    http = rig.carriers.http
    before, before_s = await scrape(http, side.metrics) if side.metrics else None, cpu_s(*processes)
    load = await drive("127.0.0.1", side.port, requests, callers)
    used_s = cpu_s(*processes) - before_s
    after = await scrape(http, side.metrics) if side.metrics else None
    firsts = [call.first_s for call in load.later]
    return Pace(
        first_p50_ms=1e3 * percentile(firsts, 0.5),
        first_p99_ms=1e3 * percentile(firsts, 0.99),
        per_s=len(load.calls) / load.wall_s,
        cpu_s=used_s / len(load.calls),
        tokens=sum(call.events for call in load.calls) // len(load.calls),
        lag_p99_ms=1e3 * after.quantile(before, LAG, 0.99) if after and before else 0.0,
    )


def _cases(share: float) -> Iterator[Case]:
    streams = int(max(2.0, 3 * share) * STREAMS)
    requests = int(max(300, 600 * share))

    def streamed(number: int) -> Sequence[bytes]:
        rng = np.random.default_rng((1, number))
        # Not all of one length: they would come and go all at once.
        lengths = rng.integers(*STREAMED_TOKENS, streams).tolist()
        return [_chat(rng, STREAM_PROMPT_WORDS, tokens, True) for tokens in lengths]

    def texts(number: int) -> Sequence[bytes]:
        rng = np.random.default_rng((2, number))
        return [_chat(rng, PROMPT_WORDS, 1, False) for _ in range(requests)]

    def ids(number: int) -> Sequence[bytes]:
        rng = np.random.default_rng((3, number))
        return [_ids(rng) for _ in range(requests)]

    yield Case("100 streams", STREAMS, streamed)
    yield Case("chat text", CALLERS, texts)
    yield Case("token ids", CALLERS, ids)


def _chat(rng: np.random.Generator, words: int, tokens: int, stream: bool) -> bytes:
    text = " ".join(rng.choice(WORDS, words).tolist())
    said = {"messages": [{"role": "user", "content": text}]}
    return _post("/v1/chat/completions", said, tokens, stream)


def _ids(rng: np.random.Generator) -> bytes:
    prompt = {"prompt": rng.integers(10, 1_000, PROMPT_WORDS).tolist()}
    return _post("/v1/completions", prompt, 1, False)


def _post(path: str, said: Mapping[str, object], tokens: int, stream: bool) -> bytes:
    body = {"model": "bench", "max_tokens": tokens, "stream": stream, "ignore_eos": True, **said}
    return request("POST", path, json.dumps(body).encode())


@asynccontextmanager
async def _stage(options: Options) -> AsyncIterator[tuple[Rig, Stages]]:
    """Everything that is asked, running."""
    with tempfile.TemporaryDirectory(prefix="tokenplane-bench-") as made:
        model = Path(made)
        clusters = (DECIDING, TWO_DECIDING)
        async with open_rig() as rig, engines_running(rig, model, *clusters) as (engines, first):
            sides = {DIRECT: first}
            sides[OURS] = await gateway_running(rig, processes=1)
            sides[OWN] = await gateway_running(rig, processes=1, cluster=DECIDING)
            if not options.quick:
                sides[TWO] = await gateway_running(rig, processes=2)
                sides[TWO_OWN] = await gateway_running(rig, processes=2, cluster=TWO_DECIDING)
            for name in NAMES:
                if gateway_peers.installed(name):
                    sides[name] = await gateway_peers.start(rig, name, engines, model)
            first_words = _chat(np.random.default_rng(0), 2, 1, stream=True)
            for name, side in tuple(sides.items()):
                try:
                    await _until_served(side, first_words)
                except NotServed as error:
                    log.warning("without %s, which does not serve: %s", name, error)
                    del sides[name]
            yield rig, sides


async def _until_served(side: Side, first_words: bytes) -> None:
    """The side has found its engines. Raises `NotServed`."""
    last: Exception | None = None
    with anyio.move_on_after(FOUND_S):
        while True:
            caller = await Caller.open("127.0.0.1", side.port)
            try:
                await caller.ask(first_words)
            except (WrongStatus, OSError) as error:
                last = error
            else:
                return
            finally:
                caller.close()
            await anyio.sleep(POLL_S)
    raise NotServed(str(last))


def _stream_rows(paces: Mapping[tuple[str, str], Pace], side: str, form: str) -> Iterator[Row]:
    streams = "100 streams"
    case = streams + form
    direct, ours = paces[streams, DIRECT], paces[streams, side]
    for share, field in (("p50", "first_p50_ms"), ("p99", "first_p99_ms")):
        base = getattr(direct, field)
        yield row(f"{case}, added to the first token, {share}", "ms", getattr(ours, field) - base)
        for name in (SGLANG, VLLM, LITELLM):
            if peer := paces.get((streams, name)):
                added = getattr(peer, field) - base
                mine = getattr(ours, field) - base
                yield row(f"{case}, added, {share} | {name}", "ms", mine, added)
    yield row(f"{case}, event-loop lag, p99", "ms", ours.lag_p99_ms)
    cost = 1e6 * ours.cpu_s / ours.tokens
    yield row(f"{case}, CPU of 1,000 tokens", "ms", cost)
    for name in (SGLANG, VLLM, LITELLM, DYNAMO):
        if peer := paces.get((streams, name)):
            mine, theirs = ours.tokens / ours.cpu_s, peer.tokens / peer.cpu_s
            yield row(f"{case}, tokens a core-second | {name}", "1/s", mine, theirs)
            their_cost = 1e6 * peer.cpu_s / peer.tokens
            yield row(f"{case}, CPU of 1,000 tokens | {name}", "ms", cost, their_cost)


def _request_rows(case: str, paces: Mapping[tuple[str, str], Pace]) -> Iterator[Row]:
    ours = paces[case, OURS]
    forms = {form: paces[case, side] for side, form in FORMS.items() if (case, side) in paces}
    best = max(pace.per_s for pace in forms.values())
    for form, pace in forms.items():
        yield row(f"{case}, requests, {form}", "1/s", pace.per_s)
        yield row(f"{case}, CPU of a request, {form}", "ms", 1e3 * pace.cpu_s)
    for name in (SGLANG, VLLM, LITELLM, DYNAMO):
        if peer := paces.get((case, name)):
            yield row(f"{case}, requests | {name}", "1/s", best, peer.per_s)
            yield row(f"{case}, CPU | {name}", "ms", 1e3 * ours.cpu_s, 1e3 * peer.cpu_s)
            yield row(f"{case}, p99 | {name}", "ms", ours.first_p99_ms, peer.first_p99_ms)

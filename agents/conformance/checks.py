"""What the control plane supposes of every engine, one function each.

A check returns if the engine does it, and raises `Failed` or `Skipped`. Its docstring's first line
is what the report calls it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio

from agents.adapters.protocol import Cleared, EngineAway
from agents.conformance.subject import Cache, Failed, Skipped, Subject, streamed
from proto.wire.errors import HttpError

Check = Callable[[Subject], Awaitable[None]]

ANSWER_TOKENS = 48
FILL_BLOCKS_MAX = 4096
"""Larger caches are not filled for a check: it would take too long."""
RESETS = ("/reset_prefix_cache", "/flush_cache")


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise Failed(otherwise)


async def tells_what_it_is(engine: Subject) -> None:
    """tells its model, version, blocks and context"""
    facts = engine.facts
    _require(bool(facts.version), "no version")
    _require(facts.total_blocks > 0, f"{facts.total_blocks} blocks")
    capacity = facts.total_blocks * facts.block_tokens
    _require(
        facts.context_tokens <= capacity,
        f"a context of {facts.context_tokens} tokens does not fit its {capacity}",
    )


async def says_when_it_is_idle(engine: Subject) -> None:
    """says that it has nothing to do when that is so"""
    await engine.idle()


async def streams(engine: Subject) -> None:
    """streams an answer in pieces, tells its usage, and ends it with [DONE]"""
    prompt = engine.prompt(blocks=1, more=3)
    answer = await engine.stream(prompt, ANSWER_TOKENS)
    _require(answer.status == 200, f"HTTP {answer.status}: {answer.text}")
    _require(answer.pieces > 1, f"the text came in {answer.pieces} pieces")
    _require(answer.reason == "length", f"finish_reason {answer.reason!r}")
    _require(answer.done, "no [DONE] at the end")
    counted = (answer.usage.get("prompt_tokens"), answer.usage.get("completion_tokens"))
    _require(counted == (len(prompt), ANSWER_TOKENS), f"usage counts {counted}")


async def answers_alike(engine: Subject) -> None:
    """answers the same prompt alike, cached or not, streamed or whole"""
    prompt = engine.prompt(blocks=2, more=3)
    answers = [
        await engine.complete(prompt, ANSWER_TOKENS),
        await engine.stream(prompt, ANSWER_TOKENS),
        await engine.complete(prompt, ANSWER_TOKENS),
    ]
    texts = {answer.text for answer in answers}
    _require(len(texts) == 1, f"{len(texts)} different answers")


async def goes_on(engine: Subject) -> None:
    """says the rest of an answer that another engine has begun"""
    prompt = engine.prompt(blocks=1, more=3)
    whole = await engine.complete(prompt, ANSWER_TOKENS, return_token_ids=True)
    if not whole.token_ids:
        raise Skipped("it does not tell token ids: an answer cut off by its death ends in an error")
    half = ANSWER_TOKENS // 2
    rest = await engine.complete(
        [*prompt, *whole.token_ids[:half]], ANSWER_TOKENS - half, return_token_ids=True
    )
    _require(rest.token_ids == whole.token_ids[half:], "the rest differs")


async def tells_what_it_caches(engine: Subject) -> None:
    """tells of every block that a prompt leaves in its cache, under names that we can make"""
    async with engine.followed() as cache:
        prompt = engine.prompt(blocks=4, more=1)
        await engine.complete(prompt)
        await _all_told(engine, cache, prompt)


async def finds_what_it_told(engine: Subject) -> None:
    """finds in its cache just what a router expects, turn after turn"""
    block_tokens = engine.facts.block_tokens
    async with engine.followed() as cache:
        conversation = engine.prompt(blocks=3, more=2)
        for _ in range(4):
            # A whole prompt is never taken from the cache: its last token is computed again.
            findable = (len(conversation) - 1) // block_tokens
            expected = min(cache.hit_blocks(engine.names(conversation)), findable) * block_tokens
            found = await _tokens_found(engine, conversation)
            _require(found == expected, f"found {found} tokens where {expected} were expected")
            await _all_told(engine, cache, conversation)
            conversation += engine.prompt(blocks=1, more=5)


async def keeps_tenants_apart(engine: Subject) -> None:
    """finds nothing of one tenant's for another, and tells whose a block is"""
    async with engine.followed() as cache:
        prompt = engine.prompt(blocks=3, more=1)
        mine, theirs = engine.names(prompt, "a"), engine.names(prompt, "b")
        answer = await engine.complete(prompt, cache_salt="a")
        if answer.status != 200:
            raise Skipped(f"it takes no cache_salt: tenants share its cache ({answer.text})")

        async def told() -> bool:
            return bool(cache.hit_blocks(mine) or cache.hit_blocks(engine.names(prompt)))

        await engine.until(told, lambda: "no block of a salted prompt is told")
        if not cache.hit_blocks(mine):
            raise Skipped("its events do not tell the salt: use no cache_salt with it")
        found = await _tokens_found(engine, prompt, salt="b")
        _require(not found, "it found another tenant's blocks")
        _require(not set(mine) & set(theirs), "both tenants' blocks have the same names")


async def _tokens_found(engine: Subject, prompt: Sequence[int], *, salt: str | None = None) -> int:
    """How many of a prompt's tokens it says that it found in its cache."""
    before = await engine.idle()
    await engine.complete(prompt, cache_salt=salt)
    after = await engine.settles(
        lambda load: load.queried_tokens > before.queried_tokens,
        "its counter of looked-up tokens stands still",
    )
    return after.cached_tokens - before.cached_tokens


async def _all_told(engine: Subject, cache: Cache, prompt: Sequence[int]) -> None:
    names = engine.names(prompt)

    async def told() -> bool:
        return cache.hit_blocks(names) == len(names)

    await engine.until(told, lambda: f"{cache.hit_blocks(names)} of {len(names)} blocks told")


async def tells_the_past(engine: Subject) -> None:
    """tells an agent that comes late what it has cached before"""
    prompt = engine.prompt(blocks=2, more=1)
    names = engine.names(prompt)
    async with engine.followed() as cache:
        await engine.complete(prompt)
        await _all_told(engine, cache, prompt)
    async with engine.followed() as later:
        if later.hit_blocks(names) < len(names):
            raise Skipped("it does not replay: what was cached before its agent came is unknown")


async def tells_of_evictions(engine: Subject) -> None:
    """tells what it evicts, and never to have more blocks than it has"""
    facts = engine.facts
    if facts.total_blocks > FILL_BLOCKS_MAX:
        raise Skipped(f"{facts.total_blocks} blocks are too many to fill for a check")
    async with engine.followed() as cache:
        first = engine.names(prompt := engine.prompt(blocks=2, more=1))
        await engine.complete(prompt, max_tokens=1)
        long = max(1, min(facts.context_tokens // facts.block_tokens - 1, facts.total_blocks // 2))
        for _ in range(-(-facts.total_blocks // long) + 2):
            await engine.complete(engine.prompt(blocks=long), max_tokens=1)

        async def evicted() -> bool:
            return cache.hit_blocks(first) == 0 and cache.live.blocks <= facts.total_blocks

        await engine.until(
            evicted,
            lambda: (
                f"{cache.live.blocks} live blocks of {facts.total_blocks}, and "
                f"{cache.hit_blocks(first)} of a prompt long gone"
            ),
        )


async def tells_of_a_reset(engine: Subject) -> None:
    """tells when its whole cache is emptied"""
    async with engine.followed() as cache:
        prompt = engine.prompt(blocks=2, more=1)
        await engine.complete(prompt)
        await engine.idle()
        if not await _reset(engine):
            raise Skipped("its cache cannot be emptied from outside, or only in developer mode")

        async def cleared() -> bool:
            await engine.complete(engine.prompt(blocks=1, more=1), max_tokens=1)
            gone = not cache.hit_blocks(engine.names(prompt))
            return gone and any(isinstance(event, Cleared) for event in cache.events)

        await engine.until(cleared, lambda: "a reset is never told")


async def _reset(engine: Subject) -> bool:
    for path in RESETS:
        if await engine.post(path) == 200:
            return True
    return False


async def says_how_busy_it_is(engine: Subject) -> None:
    """says that a request is running while it is"""
    await engine.idle()
    async with _long_answer(engine):
        await engine.settles(lambda load: load.running > 0, "nothing runs while an answer comes")
    await engine.idle()


async def stops_when_left(engine: Subject) -> None:
    """gives a request up when its client goes away"""
    async with _long_answer(engine):
        await engine.settles(lambda load: load.running > 0, "nothing runs while an answer comes")
    await engine.settles(
        lambda load: load.running == 0, "it goes on for a client that has gone away"
    )


async def stops_when_told(engine: Subject) -> None:
    """gives a request up when its agent says so"""
    request = f"conformance-{uuid4().hex}"
    async with _long_answer(engine, request) as answering:
        await engine.settles(lambda load: load.running > 0, "nothing runs while an answer comes")
        try:
            told = await engine.adapter.cancel(request)
        except EngineAway as error:
            raise Skipped(f"it cannot be told: {error}") from error
        if not told:
            raise Skipped("it cannot be told: who holds the connection must close it")
        with anyio.move_on_after(engine.settle_s) as waiting:
            await answering.ended.wait()
        _require(not waiting.cancelled_caught, "the answer goes on")
        _require(answering.reason != "length", "the answer came whole")
    await engine.settles(lambda load: load.running == 0, "the request goes on")


async def refuses(engine: Subject) -> None:
    """refuses what it cannot serve with a client error, and serves on"""
    too_long = engine.prompt(blocks=engine.facts.context_tokens // engine.facts.block_tokens + 2)
    answer = await engine.complete(too_long)
    _require(400 <= answer.status < 500, f"HTTP {answer.status} for a prompt that is too long")
    answer = await engine.complete(engine.prompt(blocks=1))
    _require(answer.status == 200, f"HTTP {answer.status} afterwards")


class _Answering:
    """An answer under way."""

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.reason: str | None = None
        """Why it ended: `length` where nothing has cut it short."""


@asynccontextmanager
async def _long_answer(engine: Subject, request: str = "") -> AsyncIterator[_Answering]:
    """Something to do until the caller leaves: a long answer, or one after the other where none
    has an id by which it could be ended."""
    facts = engine.facts
    tokens = facts.context_tokens - 2 * facts.block_tokens
    answering = _Answering()

    async def listen() -> None:
        prompt = engine.prompt(blocks=1)
        while not answering.ended.is_set():
            try:
                async with engine.ask(prompt, tokens, {"stream": True}, request) as response:
                    body = [chunk async for chunk in response.chunks()]
                    answering.reason = streamed(response.status, b"".join(body)).reason
            except HttpError:
                answering.reason = "closed"
            if request or answering.reason == "closed":
                answering.ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        try:
            yield answering
        finally:
            tasks.cancel_scope.cancel()


CHECKS: tuple[Check, ...] = (
    tells_what_it_is,
    says_when_it_is_idle,
    streams,
    answers_alike,
    goes_on,
    tells_what_it_caches,
    finds_what_it_told,
    keeps_tenants_apart,
    tells_the_past,
    says_how_busy_it_is,
    stops_when_left,
    stops_when_told,
    refuses,
    tells_of_evictions,
    tells_of_a_reset,
)

"""Blocks that go from one engine's cache to another's, for no request: offered, fetched, cached.

    engine that has them     POST /offer_kv {request_id, block_hash}    holds the chain, says where
    engine that gets them    POST /replicate_kv {handle of the offer}   fetches what it lacks

Whoever fetches asks first of what tokens the blocks were made, and names them by itself: so it
knows what must come, and announces them as if it had computed them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Collection

import msgspec
from aiohttp import web

from workers.sim import shapes
from workers.sim.bodies import decode
from workers.sim.driver import Driver
from workers.sim.errors import bad_request
from workers.sim.kvframes import BrokenTransfer, Question
from workers.sim.kvparams import KvParams
from workers.sim.library import Chain
from workers.sim.mover import Mover
from workers.sim.naming import BlockNamer

log = logging.getLogger(__name__)

CHAINS_MAX = 4096


class Offer(msgspec.Struct):
    """POST /offer_kv: a block as events name it, and by which name it may be aborted."""

    request_id: str
    block_hash: int | str


class Fetched(msgspec.Struct):
    """What came of a copy."""

    known: bool
    blocks: int = 0
    """Of the chain, those that had to be fetched."""
    bytes: int = 0
    error: str = ""


class Copier:
    """Of one engine."""

    def __init__(self, driver: Driver, mover: Mover, block_tokens: int) -> None:
        self._driver = driver
        self._mover = mover
        self._namer = BlockNamer(block_tokens)
        self._tasks: dict[str, asyncio.Task[Fetched]] = {}
        self._asked_by: dict[str, str] = {}
        self._stopped: set[str] = set()

    def offer(self, asked: Offer) -> tuple[int, KvParams | None]:
        """Hold a chain for another engine; how many blocks, and where it finds them."""
        try:
            chain = self._driver.library.chain(asked.block_hash)
        except ValueError as error:
            raise bad_request(str(error), "block_hash") from error
        if chain is None:
            return 0, None
        id = f"copy-{uuid.uuid4().hex}"
        held = self._driver.offer(id, chain.names)
        if held < len(chain.names):
            self._driver.released(id)
            return 0, None
        return held, self._mover.keep(id, chain, asked.request_id)

    async def fetch(self, where: KvParams, request: str) -> Fetched:
        """Cache a chain that is offered; twice is as good as once."""
        id = where.remote_request_id or ""
        if where.address is None or not id:
            raise bad_request("This is not where blocks are.", "remote_request_id")
        task = self._tasks.get(id)
        if task is None:
            task = self._tasks[id] = asyncio.create_task(self._copy(id, where))
            self._asked_by[id] = request
            task.add_done_callback(lambda _: self._forget(id))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stop(id)
            raise

    def abort(self, requests: Collection[str]) -> bool:
        """Fetch no more of what is fetched under these names."""
        ids = [id for id, request in self._asked_by.items() if request in requests]
        for id in ids:
            self._stop(id)
        return bool(ids)

    def leaves(self, most: int) -> list[tuple[int | str, int]]:
        """The last blocks of the chains used last, as events name them, and their lengths."""
        return [
            (self._driver.wire_name(name), blocks) for name, blocks in self._driver.leaves(most)
        ]

    async def _copy(self, id: str, where: KvParams) -> Fetched:
        try:
            chain = await self._describe(id, where)
            first = self._driver.accept(id, chain)
            if first is None:
                self._mover.decline(where)
                return Fetched(False, error="there is no room for it")
            whole = False
            try:
                moved = await self._read(id, where, chain, first)
                whole = True
            finally:
                self._driver.copied(id, whole=whole)
        except BrokenTransfer as error:
            log.warning("%s was not copied: %s", id, error)
            return Fetched(False, error=str(error))
        return Fetched(True, len(chain.names) - first, moved)

    async def _describe(self, id: str, where: KvParams) -> Chain:
        question = Question("describe", id, where.remote_engine_id or "")
        answer = await self._mover.ask(where, question)
        if not answer.ok or answer.tokens is None:
            raise BrokenTransfer(answer.error or "it does not say of what its blocks are made")
        names = self._namer.names(answer.tokens, answer.cache_salt)
        if not names or len(names) != answer.blocks:
            raise BrokenTransfer(f"{answer.blocks} blocks are not made of so many tokens")
        return Chain(names, answer.tokens, answer.cache_salt)

    async def _read(self, id: str, where: KvParams, chain: Chain, first: int) -> int:
        if first == len(chain.names):
            self._mover.decline(where)  # all of it is here
            return 0
        if id in self._stopped:
            raise BrokenTransfer("aborted")
        question = Question("read", id, where.remote_engine_id or "", skip=first)
        return await self._mover.read(id, where, question, chain.names[first:])

    def _stop(self, id: str) -> None:
        self._stopped.add(id)
        self._mover.stop_reading(id)

    def _forget(self, id: str) -> None:
        del self._tasks[id], self._asked_by[id]
        self._stopped.discard(id)


def routes(copier: Copier) -> list[web.RouteDef]:
    """What agents ask for on behalf of the control plane."""

    async def offer_kv(request: web.Request) -> web.Response:
        held, where = copier.offer(decode(await request.read(), Offer))
        return _json({"known": held > 0, "blocks": held, "kv_transfer_params": where})

    async def replicate_kv(request: web.Request) -> web.Response:
        where = decode(await request.read(), KvParams)
        return _json(await copier.fetch(where, request.headers.get("X-Request-Id", "")))

    async def kv_chains(request: web.Request) -> web.Response:
        try:
            most = min(int(request.query.get("limit", "64")), CHAINS_MAX)
        except ValueError as error:
            raise bad_request("limit is a number", "limit") from error
        chains = [{"block_hash": name, "blocks": n} for name, n in copier.leaves(most)]
        return _json({"chains": chains})

    return [
        web.post("/offer_kv", offer_kv),
        web.post("/replicate_kv", replicate_kv),
        web.get("/kv_chains", kv_chains),
    ]


def _json(body: object) -> web.Response:
    return web.Response(body=shapes.plain(body), content_type="application/json")

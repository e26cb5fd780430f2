"""Hands KV blocks over to other engines, and fetches theirs, in vLLM's words.

`kv_transfer_params` of a request say what is wanted: `do_remote_decode` keeps its blocks for
another engine and answers where they are; `do_remote_prefill` carries that answer, and fetches
them. With `bootstrap_room` both are asked at once, as by SGLang: whoever fetches waits at the
other's address until that room is staged.

Fetching happens on threads, so steps go on. What has not come, or is not what it should be, is
never used: the request fails, or computes its prompt by itself, as the engine was set up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from workers.sim.generation import Generation
from workers.sim.kvframes import (
    Answer,
    BrokenTransfer,
    Content,
    Question,
    length_of,
    pack,
)
from workers.sim.kvparams import KvParams
from workers.sim.kvreader import KvReader
from workers.sim.kvserver import KvServer
from workers.sim.library import Chain
from workers.sim.request import Fetch
from workers.sim.staging import Staging

log = logging.getLogger(__name__)

READS_AT_ONCE = 8
EXPIRY_S = 0.1
WORD_S = 2.0
BEATS_A_LEASE = 3
"""How often a reader says that it waits, in the time that a lease lasts."""


@dataclass
class Counts:
    """Of transfers, since the engine was made."""

    fetched_bytes: int = 0
    fetches: int = 0
    failed: int = 0
    expired: int = 0
    seconds: float = 0.0


Ended = Callable[[Generation, str], None]
"""A fetch is over: "" if all of it has landed, else why not."""


class Mover:
    """Of one engine. `on_fetched` and `on_released` are called on the event loop."""

    def __init__(
        self,
        server: KvServer,
        content: Content,
        engine_id: str,
        lease_s: float,
        *,
        on_fetched: Ended,
        on_released: Callable[[str], None],
    ) -> None:
        self._server = server
        self._content = content
        self._engine_id = engine_id
        self._lease_s = lease_s
        self._on_fetched = on_fetched
        self._on_released = on_released
        self._threads = ThreadPoolExecutor(READS_AT_ONCE, "kv-read")
        self._readers: dict[str, KvReader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._beats: dict[str, asyncio.Task[None]] = {}
        self._staged: dict[str, str] = {}
        """What is staged, and the request of a client that it was for."""
        self.counts = Counts()

    async def run(self) -> None:
        """Free what nobody fetches in time, until cancelled."""
        try:
            while True:
                await asyncio.sleep(EXPIRY_S)
                for id in self._server.expire():
                    self.counts.expired += 1
                    self.let_go(id)
        finally:
            for reader in self._readers.values():
                reader.abort()
            for task in [*self._tasks, *self._beats.values()]:
                task.cancel()
            self._server.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where other engines find what is staged here."""
        return self._server.address

    # --- for another engine

    def stage(self, generation: Generation, names: list[int]) -> KvParams:
        """Its blocks are kept; where another engine finds them."""
        asked = generation.transfer
        assert asked is not None
        pages = self._server.stage(generation.id, names, asked.bootstrap_room)
        self._staged[generation.id] = generation.client_request
        return self._where(generation.id, pages, generation.prompt_tokens)

    def keep(self, id: str, chain: Chain, request: str) -> KvParams:
        """The same for cached blocks that no request brought here; `request` may abort it."""
        pages = self._server.stage(id, chain.names, None, chain)
        self._staged[id] = request
        return self._where(id, pages, len(chain.tokens))

    def _where(self, id: str, pages: list[int], tokens: int) -> KvParams:
        host, port = self._server.address
        return KvParams(
            do_remote_prefill=True,
            remote_engine_id=self._engine_id,
            remote_request_id=id,
            remote_block_ids=[pages],
            remote_host=host,
            remote_port=port,
            remote_num_tokens=tokens,
            tp_size=1,
            transfer_mode="pull",
        )

    def release(self, id: str) -> bool:
        """Nobody is going to fetch it any more."""
        known = self._server.release(id)
        if known:
            self.let_go(id)
        return known

    def release_of(self, requests: Collection[str]) -> bool:
        """The same for all that was staged for these requests of clients."""
        ids = [id for id, request in self._staged.items() if request in requests]
        return sum(map(self.release, ids)) > 0

    def let_go(self, id: str) -> None:
        """It is no longer staged."""
        self._staged.pop(id, None)
        self._on_released(id)

    # --- from another engine

    def expect(self, generation: Generation) -> None:
        """It waits for a place here: see to it that its blocks are kept meanwhile."""
        asked = generation.transfer
        if asked is not None and asked.do_remote_prefill and asked.remote_request_id:
            self._beats[generation.id] = asyncio.create_task(self._beat(asked))

    def fetch(self, generation: Generation, what: Fetch, names: list[int]) -> None:
        """It has its place. `names` are those of all blocks of its prompt."""
        self._stop_beating(generation.id)
        task = asyncio.create_task(self._fetch(generation, what, names))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def give_up(self, generation: Generation) -> None:
        """Nobody wants its answer any more."""
        self._stop_beating(generation.id)
        self.stop_reading(generation.id)

    def stop_reading(self, id: str) -> None:
        """What is being read under this id is not wanted any more."""
        if reader := self._readers.get(id):
            reader.abort()

    def decline(self, asked: KvParams | None) -> None:
        """A request that is refused here: let the other engine have its blocks back at once."""
        if asked is None or not asked.do_remote_prefill or asked.address is None:
            return
        task = asyncio.create_task(self._say("done", asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def read(self, id: str, where: KvParams, question: Question, names: list[int]) -> int:
        """Fetch blocks of another engine and let it have them back; how many bytes it was. Raises
        `BrokenTransfer`. To be stopped by `stop_reading` alone, lest a thread go on."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert where.address is not None
        reader = self._readers[id] = KvReader(where.address, self._content)
        try:
            moved = await loop.run_in_executor(self._threads, reader.read, question, names)
        except BrokenTransfer:
            self.counts.failed += 1
            raise
        finally:
            self._readers.pop(id, None)
        self.counts.fetched_bytes += moved
        self.counts.fetches += 1
        self.counts.seconds += loop.time() - began_s
        return moved

    async def ask(self, where: KvParams, question: Question) -> Answer:
        """A word with another engine. Raises `BrokenTransfer`."""
        assert where.address is not None
        try:
            async with asyncio.timeout(WORD_S):
                reader, writer = await asyncio.open_connection(*where.address)
                try:
                    writer.write(pack(question))
                    length = length_of(await reader.readexactly(4))
                    return msgspec.json.decode(await reader.readexactly(length), type=Answer)
                finally:
                    writer.close()
        except (OSError, TimeoutError, EOFError, msgspec.DecodeError) as error:
            raise BrokenTransfer(f"{where.address} does not answer: {error}") from error

    async def _fetch(self, generation: Generation, what: Fetch, names: list[int]) -> None:
        asked, why = generation.transfer, ""
        assert asked is not None
        try:
            await self.read(generation.id, asked, *_question(generation, what, names))
        except BrokenTransfer as error:
            why = str(error)
        self._on_fetched(generation, why)

    async def _beat(self, asked: KvParams) -> None:
        while True:
            await asyncio.sleep(self._lease_s / BEATS_A_LEASE)
            await self._say("alive", asked)

    def _stop_beating(self, id: str) -> None:
        if task := self._beats.pop(id, None):
            task.cancel()

    async def _say(self, op: str, asked: KvParams) -> None:
        question = Question(op, asked.remote_request_id or "", asked.remote_engine_id or "")
        try:
            answer = await self.ask(asked, question)
        except BrokenTransfer as error:
            log.info("%s was not told %s: %s", asked.address, op, error)
        else:
            log.debug("%s: %s %s", op, asked.remote_request_id, answer.ok)


def _question(generation: Generation, what: Fetch, names: list[int]) -> tuple[Question, list[int]]:
    asked = generation.transfer
    assert asked is not None
    question = Question(
        "read",
        asked.remote_request_id or "",
        asked.remote_engine_id or "",
        room=asked.bootstrap_room,
        skip=what.first_block,
    )
    if asked.remote_block_ids is not None:
        question.pages = [page for group in asked.remote_block_ids for page in group]
        question.pages = question.pages[what.first_block :]
    return question, names[what.first_block :]


class Place(NamedTuple):
    """Where an engine hands its blocks over, and how."""

    host: str
    port: int
    block_bytes: int
    lease_s: float = 30.0
    bytes_per_s: float | None = None
    """No faster than this."""


def new_mover(
    place: Place, engine_id: str, *, on_fetched: Ended, on_released: Callable[[str], None]
) -> Mover:
    """Listens; raises OSError if that place cannot be had."""
    loop = asyncio.get_running_loop()
    content = Content(place.block_bytes)
    server = KvServer(
        (place.host, place.port),
        engine_id,
        content,
        Staging(place.lease_s),
        bytes_per_s=place.bytes_per_s,
        on_done=lambda id: _later(loop, mover.let_go, id),
    )
    mover = Mover(
        server, content, engine_id, place.lease_s, on_fetched=on_fetched, on_released=on_released
    )
    return mover


def _later(loop: asyncio.AbstractEventLoop, call: Callable[[str], None], id: str) -> None:
    """From a thread; a loop that has ended wants to hear nothing."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, id)

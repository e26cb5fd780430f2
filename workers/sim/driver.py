"""Drives the engine by a real clock: sleeps through every step, then hands out what it made.

The engine keeps its own time. When this process is a little late, the steps that are due are
caught up with at once and their tokens come together, so that durations do not stretch because
Python was slow. Beyond `CATCH_UP_S` the engine's clock stands still instead: whoever was stopped,
or is asked for more speed than there is, must not block the event loop with what it has missed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from workers.sim.cache import RequestId
from workers.sim.engine import Engine
from workers.sim.events import EventEncoder, EventPublisher
from workers.sim.generation import Generation
from workers.sim.kvparams import OnFailure
from workers.sim.library import WIRE_MASK, Chain, Library
from workers.sim.metrics import Metrics
from workers.sim.naming import BlockNamer
from workers.sim.request import ProgressKind, Sequenced

if TYPE_CHECKING:  # they load numpy, which an engine that hands nothing over does without
    from workers.sim.copying import Copier
    from workers.sim.mover import Mover

CATCH_UP_S = 0.02


class Refused(Exception):
    """The engine takes no request now: its queue is full, or it is stopping."""


class Driver:
    """Owns the engine; everything happens on one event loop.

    A generation's `id` is unique among those under way.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        speed: float,
        waiting_max: int,
        events: tuple[EventEncoder, EventPublisher] | None,
        on_failure: OnFailure = OnFailure.FAIL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._speed = speed
        self._waiting_max = waiting_max
        self._events = events
        self._namer = BlockNamer(engine.block_tokens)
        self._under_way: dict[str, Generation] = {}
        self._work = asyncio.Event()
        self._stopping = False
        self._on_failure = on_failure
        self._fetching: dict[str, Generation] = {}
        """Also those that were cancelled: their blocks are theirs until the fetch has ended."""
        self.mover: Mover | None = None
        """Moves blocks between engines, where that is wanted; set before the first request."""
        self.copier: Copier | None = None
        """Moves them for no request, where there is a mover; set with it."""
        self.library = Library(engine.block_tokens)
        """What cached blocks are made from; kept where there is a mover."""
        self._copies: dict[str, Chain] = {}
        self._clock = clock
        self._stood_still_s = 0.0

    @property
    def healthy(self) -> bool:
        return not self._stopping

    def submit(self, generation: Generation) -> None:
        """Queue it; raises `Refused`, and `RequestTooLarge` for what can never fit."""
        if self._stopping:
            raise Refused("The engine is shutting down.")
        if self._engine.load().waiting >= self._waiting_max:
            raise Refused(f"{self._waiting_max} requests are waiting already; try again later.")
        if generation.transfer is not None and self.mover is None:
            raise Refused("This engine moves no KV blocks; start it with --kv-port.")
        now_s = self._now_s()
        self._engine.submit(generation.request(self._namer), now_s)
        generation.arrived_s = now_s
        self._under_way[generation.id] = generation
        if self.mover is not None:
            self.mover.expect(generation)
        self._work.set()

    def cancel(self, generation: Generation) -> None:
        """Forget it, if it is still under way; its place is free at once."""
        if generation.id in self._under_way:
            self._drop([generation], self._metrics.observe_abort)

    def fetched(self, generation: Generation, why: str) -> None:
        """The mover has fetched its blocks; or has not, and says why."""
        now_s = self._now_s()
        self._hand_out(now_s)
        del self._fetching[generation.id]
        if not why:
            self._engine.landed(generation.id, now_s)
        else:
            wanted = generation.id in self._under_way
            if wanted and self._on_failure is OnFailure.FAIL:
                self._drop([generation], self._metrics.observe_error, decline=False)
                generation.fail(f"KV blocks could not be loaded: {why}", not_loaded=True)
            elif not wanted and self.mover is not None:
                self.mover.decline(generation.transfer)
            self._engine.lost(generation.id, self._now_s())
        self._work.set()

    def released(self, id: str) -> None:
        """Nobody will fetch what was staged under this id any more."""
        self._engine.release(id, self._now_s())
        self._work.set()

    # --- blocks for no request

    def offer(self, id: str, names: Sequence[int]) -> int:
        """Hold cached blocks for another engine, until `released`; as `Copies.offer`."""
        now_s = self._now_s()
        self._hand_out(now_s)
        return self._engine.offer(id, names, now_s)

    def accept(self, id: str, chain: Chain) -> int | None:
        """Make room for blocks of another engine, until `copied`; as `Copies.accept`."""
        now_s = self._now_s()
        self._hand_out(now_s)
        first = self._engine.accept(id, chain.names, now_s)
        if first is not None:
            self._copies[id] = chain
            self._publish()  # what had to make room
        return first

    def copied(self, id: str, *, whole: bool) -> None:
        """What was accepted has come, all of it, or will not. Subscribers hear of it at once."""
        now_s = self._now_s()
        self._hand_out(now_s)
        self._engine.copied(id, now_s, whole=whole)
        self._publish()
        del self._copies[id]
        self._work.set()

    def leaves(self, most: int) -> list[tuple[int, int]]:
        """As `Library.leaves`, of all that is cached."""
        return self.library.leaves(self._engine.names_by_use(), most)

    def wire_name(self, name: int) -> int | str:
        """A block as events name it."""
        told = self._events[0].name_of(name) if self._events else name & WIRE_MASK
        return told.hex() if isinstance(told, bytes) else told

    def reset_cache(self) -> bool:
        """Forget cached blocks, unless in use. As with vLLM, subscribers hear of it with the
        events of the next step."""
        return self._engine.reset_cache()

    @property
    def speculating(self) -> bool:
        """Whether the engine uses drafts."""
        return self._engine.speculating

    def speculate(self, *, on: bool) -> None:
        """Use drafts from the next step on, or none; ValueError where there are none to use."""
        now_s = self._now_s()
        self._hand_out(now_s)
        self._engine.speculate(on=on, now_s=now_s)
        self._work.set()

    def stop(self) -> None:
        """Refuse new requests and fail those under way."""
        self._stopping = True
        unfinished = list(self._under_way.values())
        self._drop(unfinished, self._metrics.observe_error)
        for generation in unfinished:
            if not generation.finished:
                generation.fail("The engine is shutting down.")

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            next_s = self._engine.next_event_s()
            self._fetch()
            if next_s is None:
                self._work.clear()
                await self._work.wait()
                continue
            # Also when late: others must get their turn.
            await asyncio.sleep(max(0.0, next_s - self._now_s()) / self._speed)
            self._hand_out(self._now_s())

    def _hand_out(self, now_s: float) -> None:
        """Tell everybody what the steps that have ended brought."""
        progress = self._engine.advance(now_s)
        steps = self._engine.take_step_sums()
        if not steps.steps:
            return
        self._metrics.observe_steps(steps)
        self._publish()
        for item in progress:
            generation = self._under_way[str(item.id)]
            self._metrics.observe_progress(generation, item)
            if item.kind is ProgressKind.FINISHED:
                del self._under_way[generation.id]
                self._stage(generation)
            generation.advance(item)

    def _stage(self, generation: Generation) -> None:
        asked = generation.transfer
        if asked is not None and asked.do_remote_decode:
            assert self.mover is not None
            generation.staged = self.mover.stage(generation, generation.block_names)

    def _fetch(self) -> None:
        for what in self._engine.take_fetches():
            id = str(what.id)
            assert self.mover is not None
            # Who was cancelled in this very moment has its blocks all the same.
            generation = self._under_way.get(id)
            if generation is None:
                self._engine.lost(id, self._now_s())
                continue
            self._fetching[id] = generation
            self.mover.fetch(generation, what, generation.block_names)

    def _drop(
        self,
        generations: Sequence[Generation],
        count: Callable[[], None],
        *,
        decline: bool = True,
    ) -> None:
        now_s = self._now_s()
        # What has ended by now still needs its owner: for its events, and perhaps it finished.
        self._hand_out(now_s)
        for generation in generations:
            if self._under_way.pop(generation.id, None) is not None:
                self._engine.cancel(generation.id, now_s)
                if self.mover is not None:
                    self.mover.give_up(generation)
                    if decline and generation.id not in self._fetching:
                        self.mover.decline(generation.transfer)
                count()

    def _publish(self) -> None:
        events = self._engine.take_cache_events()
        if events and self.mover is not None:
            self.library.learn(events, self._owner)
        if events and self._events:
            encoder, publisher = self._events
            publisher.publish(encoder.encode(events, self._owner), time.time())

    def _owner(self, id: RequestId) -> Sequenced:
        """Whose tokens blocks were made from."""
        generation = self._under_way.get(str(id))
        return self._copies[str(id)] if generation is None else generation

    def _now_s(self) -> float:
        """The engine's time; never goes back."""
        now_s = self._clock() * self._speed - self._stood_still_s
        due_s = self._engine.next_event_s()
        if due_s is not None:
            late_s = now_s - due_s - CATCH_UP_S * self._speed
            if late_s > 0:
                self._stood_still_s += late_s
                now_s -= late_s
        return now_s

"""The simulated engine in time: one scheduler, driven by a real clock or by a virtual one.

A step begins when the one before it has ended and there is work, and what it computes is fixed at
that moment: who arrives meanwhile waits for the next one. While nothing but decoding goes on,
step follows step and each costs the same amount more than the last one (every sequence has one
more token of KV). With `closed_form`, such a stretch is one arithmetic series, so an hour of an
engine's time takes as long as its prompts and ends take, not its tokens.

A driver in virtual time, at each moment `now_s` that matters to it:

    progress = engine.advance(now_s)
    engine.submit(...), engine.cancel(...)      as many as happen at this moment
    next_s = engine.next_event_s()              nothing will be visible before then
    events = engine.take_cache_events()

`next_event_s` begins the next step, so that evictions for it are among the events at `now_s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workers.sim.cache import CacheEvent, RequestId
from workers.sim.copies import Copies
from workers.sim.request import Fetch, Progress, Request
from workers.sim.scheduler import Scheduler, StepWork
from workers.sim.speculation import Speculation, Tally
from workers.sim.timing import Profile


@dataclass(frozen=True)
class Load:
    """The engine at one moment; from `queried_tokens` on, counters since it was made."""

    running: int
    waiting: int
    queued_prefill_tokens: int
    decode_kv_tokens: int
    used_blocks: int
    cached_blocks: int
    total_blocks: int
    queried_tokens: int
    cached_tokens: int
    preemptions: int
    fetched_tokens: int = 0
    staged: int = 0
    """Requests that have ended, and whose blocks are kept for another engine."""


@dataclass
class StepSums:
    """Steps ended since the last report, as sums over them.

    A step with prompt chunks and decoding counts in both: its `decode_ms` is what decoding added,
    its `prefill_ms` the rest, so that both together are the time the steps took.
    """

    steps: int = 0
    prefill_tokens: int = 0
    prefill_ms: float = 0.0
    decode_batch: int = 0
    decode_kv_tokens: int = 0
    decode_ms: float = 0.0
    accepted_drafts: int = 0
    """Tokens beyond one for each sequence and step."""
    verifications: int = 0
    """Sequences times steps with drafts."""
    drafted_tokens: int = 0


@dataclass
class _Flight:
    """Steps under way, alike: the first takes `step_ms`, each other `growth_ms` more than the one
    before. Only the first has begun; `work` is its work."""

    start_s: float
    end_s: float
    steps: int
    step_ms: float
    growth_ms: float
    work: StepWork
    speculation_ms: float = 0.0
    """Of a step's time, what drafts and their verification add."""

    def end_of_s(self, steps: int) -> float:
        series_ms = steps * self.step_ms + self.growth_ms * (steps * (steps - 1) / 2)
        return self.start_s + series_ms / 1000

    def ended_steps(self, now_s: float) -> int:
        """How many have ended at or before `now_s`."""
        if now_s >= self.end_s:
            return self.steps
        elapsed_ms = (now_s - self.start_s) * 1000
        if elapsed_ms < self.step_ms:
            return 0
        # n * step + growth * n (n - 1) / 2 = elapsed, solved for n without cancellation.
        linear = self.step_ms - self.growth_ms / 2
        root = math.sqrt(linear * linear + 2 * self.growth_ms * elapsed_ms)
        ended = min(int(2 * elapsed_ms / (linear + root)), self.steps - 1)
        # Rounding may be off by one step at its very boundary; what was promised decides.
        while ended and self.end_of_s(ended) > now_s:
            ended -= 1
        while ended < self.steps - 1 and self.end_of_s(ended + 1) <= now_s:
            ended += 1
        return ended


class Engine:
    """One engine. Times are seconds of any clock that never goes back.

    With `closed_form` only first tokens and ends of requests are reported, at the same times as
    without it; without it every step ends with a report of every token.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        block_tokens: int,
        blocks: int | None = None,
        closed_form: bool = True,
        speculation: Speculation | None = None,
    ) -> None:
        self.profile = profile
        self.block_tokens = block_tokens
        self.speculation = speculation
        """What the engine was started with, whether it is in use or not."""
        capacity = profile.kv_capacity_blocks(block_tokens) if blocks is None else blocks
        if speculation is not None:
            capacity = max(1, int(capacity * (1 - speculation.draft_memory)))
        self._scheduler = Scheduler(profile, block_tokens, capacity, speculation)
        self._copies = Copies(self._scheduler.cache)
        self._closed_form = closed_form
        self._flight: _Flight | None = None
        self._free_s = -math.inf
        """When the last step ended, or work came to an idle engine: the next step's start."""
        self._progress: list[Progress] = []
        self._sums = StepSums()
        self.gaps: list[tuple[float, int]] | None = None
        """Set to a list, it is given the time between two tokens of a stream, in milliseconds,
        and how many streams had to wait for so long; of steps alike their mean."""

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request that arrives now; raises `RequestTooLarge`."""
        self._run_until(now_s)
        self._scheduler.submit(request)
        self._interrupt(now_s)

    def cancel(self, id: RequestId, now_s: float) -> bool:
        """Drop a request and free its place and blocks at once; False if it is not here."""
        self._run_until(now_s)
        known = self._scheduler.cancel(id)
        self._interrupt(now_s)
        return known

    @property
    def speculating(self) -> bool:
        """Whether the next step has drafts."""
        return self._scheduler.speculation is not None

    @property
    def tally(self) -> Tally:
        """What came of drafts since the engine was made."""
        return self._scheduler.tally

    def speculate(self, *, on: bool, now_s: float) -> None:
        """Use drafts from the next step on, or none. The draft's memory stays taken. An engine
        that was started without speculation has none: ValueError."""
        if on and self.speculation is None:
            raise ValueError("the engine was started without speculation")
        self._run_until(now_s)
        self._scheduler.speculation = self.speculation if on else None
        self._interrupt(now_s)

    def take_fetches(self) -> list[Fetch]:
        """Requests that have got their blocks since the last call: whoever fetches them calls
        `landed` or `lost` for each, also for those that are cancelled meanwhile."""
        return self._scheduler.take_fetches()

    def landed(self, id: RequestId, now_s: float) -> bool:
        """What a request fetches has come; False if nobody wants it any more."""
        self._run_until(now_s)
        wanted = self._scheduler.landed(id)
        self._interrupt(now_s)
        return wanted

    def lost(self, id: RequestId, now_s: float) -> None:
        """It will not come: the request prefills here, unless it is cancelled."""
        self._run_until(now_s)
        self._scheduler.lost(id)
        self._interrupt(now_s)

    def release(self, id: RequestId, now_s: float) -> bool:
        """Let the blocks go that are staged, or offered, under this id; False if there are none."""
        self._run_until(now_s)
        known = self._scheduler.release(id) or self._copies.release(id)
        self._interrupt(now_s)
        return known

    def offer(self, id: RequestId, names: Sequence[int], now_s: float) -> int:
        """Hold cached blocks for another engine, until `release`; as `Copies.offer`."""
        self._run_until(now_s)
        held = self._copies.offer(id, names)
        self._interrupt(now_s)
        return held

    def accept(self, id: RequestId, names: Sequence[int], now_s: float) -> int | None:
        """Make room for blocks of another engine; as `Copies.accept`. `copied` is to follow."""
        self._run_until(now_s)
        first = self._copies.accept(id, names)
        self._interrupt(now_s)
        return first

    def copied(self, id: RequestId, now_s: float, *, whole: bool) -> None:
        """What was accepted has come, all of it, or will not."""
        self._run_until(now_s)
        if whole:
            self._copies.landed(id)
        else:
            self._copies.lost(id)
        self._interrupt(now_s)

    def next_event_s(self) -> float | None:
        """When something may next be visible: a first token, an end, a cache event; without
        `closed_form`, the end of the next step. None without work.

        Call it after all that arrives at this moment has been submitted: it begins the next step.
        """
        self._begin(before_s=math.inf)
        return None if self._flight is None else self._flight.end_s

    def advance(self, now_s: float) -> list[Progress]:
        """Run all steps that end at or before `now_s`; what they made visible, in order.

        A step that would begin exactly at `now_s` is left to begin, for who arrives at `now_s`.
        """
        self._run_until(now_s)
        progress, self._progress = self._progress, []
        return progress

    def take_cache_events(self) -> list[CacheEvent]:
        """Blocks stored and removed since the last call, in order."""
        return self._scheduler.cache.take_events()

    def take_step_sums(self) -> StepSums:
        """The steps that ended since the last call."""
        sums, self._sums = self._sums, StepSums()
        return sums

    def reset_cache(self) -> bool:
        """Forget all cached blocks; False, and nothing done, while any is in use."""
        return self._scheduler.reset_cache()

    def load(self) -> Load:
        """Queues and blocks as of the last `advance`, `submit` or `cancel`."""
        scheduler, cache = self._scheduler, self._scheduler.cache
        return Load(
            running=scheduler.running,
            waiting=scheduler.waiting,
            queued_prefill_tokens=scheduler.queued_prefill_tokens,
            decode_kv_tokens=scheduler.decode_kv_tokens,
            used_blocks=cache.used_blocks,
            cached_blocks=cache.cached_blocks,
            total_blocks=cache.capacity_blocks,
            queried_tokens=scheduler.queried_tokens,
            cached_tokens=scheduler.cached_tokens,
            preemptions=scheduler.preemptions,
            fetched_tokens=scheduler.fetched_tokens,
            staged=scheduler.staged,
        )

    def cached_names(self) -> list[int]:
        """Names of all cached blocks, in no particular order: what the events add up to."""
        return self._scheduler.cache.names()

    def names_by_use(self) -> list[int]:
        """The same, least recently used first."""
        return self._scheduler.cache.by_use()

    def _run_until(self, now_s: float) -> None:
        while self._begin(before_s=now_s):
            assert self._flight is not None
            ended = self._flight.ended_steps(now_s)
            if not ended:
                return
            self._end(self._flight, ended)

    def _begin(self, before_s: float) -> bool:
        """Begin the next step if it can begin before `before_s`; True if any is under way."""
        if self._flight is not None:
            return True
        if not self._scheduler.has_work or self._free_s >= before_s:
            return False
        work = self._scheduler.plan()
        if not (work.prefill_tokens or work.decode_batch):
            return False  # who waits needs blocks that are staged, or being fetched into
        alike = self._closed_form and not work.prefill_tokens
        cost, drafts = self.profile.cost, self._scheduler.drafts
        speculation_ms = self.speculation.extra_ms(cost, drafts, work) if self.speculation else 0.0
        flight = _Flight(
            start_s=self._free_s,
            end_s=0.0,
            steps=self._scheduler.steps_alike() if alike else 1,
            step_ms=cost.step_ms(*work) + speculation_ms,
            growth_ms=cost.decode_kv_token_ms * work.decode_batch,
            work=work,
            speculation_ms=speculation_ms,
        )
        flight.end_s = flight.end_of_s(flight.steps)
        self._flight = flight
        return True

    def _end(self, flight: _Flight, steps: int) -> None:
        """The first `steps` steps of the flight have ended."""
        end_s = flight.end_s if steps == flight.steps else flight.end_of_s(steps)
        self._count(flight, steps)
        accepted_before = self.tally.accepted_tokens
        self._progress += self._scheduler.complete(steps, end_s, every_token=not self._closed_form)
        self._sums.accepted_drafts += self.tally.accepted_tokens - accepted_before
        if steps == flight.steps:
            self._flight = None
            self._free_s = end_s
            return
        self._scheduler.extend()
        flight.start_s = end_s
        flight.steps -= steps
        flight.step_ms += flight.growth_ms * steps
        batch = flight.work.decode_batch
        kv_tokens = flight.work.decode_kv_tokens + batch * steps
        flight.work = flight.work._replace(decode_kv_tokens=kv_tokens)

    def _interrupt(self, now_s: float) -> None:
        """Something changed: of the steps under way only the one that has begun goes on."""
        if self._flight is None:
            self._free_s = max(self._free_s, now_s)
        elif self._flight.steps > 1:
            self._flight.steps = 1
            self._flight.end_s = self._flight.end_of_s(1)

    def _count(self, flight: _Flight, steps: int) -> None:
        sums, work = self._sums, flight.work
        pairs = steps * (steps - 1) / 2
        total_ms = steps * flight.step_ms + flight.growth_ms * pairs
        decode_ms = total_ms
        if work.prefill_tokens:
            cost = self.profile.cost
            decode_ms = cost.decode_sequence_ms * work.decode_batch
            decode_ms += cost.decode_kv_token_ms * work.decode_kv_tokens + flight.speculation_ms
        if self.gaps is not None and work.decode_batch:
            self.gaps.append((total_ms / steps, work.decode_batch * steps))
        sums.steps += steps
        sums.prefill_tokens += work.prefill_tokens
        sums.prefill_ms += total_ms - decode_ms
        sums.decode_batch += steps * work.decode_batch
        sums.decode_kv_tokens += steps * work.decode_kv_tokens + work.decode_batch * int(pairs)
        sums.decode_ms += decode_ms
        drafts = self._scheduler.drafts
        sums.verifications += work.decode_batch if drafts else 0
        sums.drafted_tokens += work.decode_batch * drafts

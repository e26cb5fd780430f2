"""The oracle: chooses with perfect and instant knowledge of the present. No router could know this.

For every engine it sees, at the moment of the decision, the exact cache, what is queued and how
much of it will be found cached when its turn comes, every running stream, and how long each answer
will be. From the engine's own timing model it takes, in milliseconds, what a request would add to
the latency of all:

    its time to first token: what is queued, then its own uncached prompt
  + the pace of its own answer among the streams that still run then
  + for every such stream, the time it stands still behind our prompt, and what each of its later
    steps takes longer because of our tokens

and takes the engine where that sum is least. It does not know what will arrive next, so it is no
upper bound: a policy that keeps caches apart for requests to come can beat it. Only the rest of the
step under way, at most, is not seen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from controlplane.replay.fleet import SimulatedWorker
from controlplane.replay.trace import TraceRequest
from proto.hashing import Words
from proto.ids import WorkerId
from proto.progress import Phase
from workers.sim.cache import CacheEvent
from workers.sim.engine import Load
from workers.sim.timing import attention_pairs

Settle = Callable[[SimulatedWorker, float], None]
"""Bring an engine up to a time."""


@dataclass
class _Job:
    """A request in an engine."""

    prompt_tokens: int
    output_tokens: int
    new_tokens: int
    """Of its prompt, not cached and not queued before it either."""
    names: list[int]
    first_step: int = -1
    """Steps the engine had made when the first token came."""


@dataclass
class _Book:
    """What the oracle has given to one engine and is not done: `queued` by order of arrival."""

    queued: dict[int, _Job] = field(default_factory=dict)
    streams: dict[int, _Job] = field(default_factory=dict)
    coming: Counter[int] = field(default_factory=Counter)
    """Blocks that queued prompts are about to compute."""


@dataclass(frozen=True)
class _Ahead:
    """What an engine will have done, in milliseconds, until a new prompt is begun and computed."""

    wait_ms: float
    prefill_ms: float


class Oracle:
    """Sees all of the fleet at all times; `settle` brings an engine up to a moment."""

    def __init__(self, fleet: Mapping[WorkerId, SimulatedWorker], settle: Settle) -> None:
        self._fleet = fleet
        self._settle = settle
        self._books = {worker: _Book() for worker in fleet}

    def start(self, requests: int, now_s: float) -> None:
        """Nothing need be said to whoever sees."""

    def choose(self, index: int, request: TraceRequest, names: Words, now_s: float) -> WorkerId:
        """The engine where the request adds least to the latency of all."""
        prompt: list[int] = names.tolist()
        costs = {}
        jobs = {}
        for worker, simulated in self._fleet.items():
            self._settle(simulated, now_s)
            simulated.report()
            job = jobs[worker] = self._job(worker, request, prompt)
            costs[worker] = self._cost_ms(worker, job)
        best = min(costs, key=costs.__getitem__)
        book = self._books[best]
        book.queued[index] = jobs[best]
        book.coming.update(prompt)
        return best

    def cache_changed(
        self, worker: SimulatedWorker, events: list[CacheEvent], now_s: float
    ) -> None:
        """Seen at once."""
        worker.hear(events)

    def progressed(self, index: int, worker: WorkerId, phase: Phase, now_s: float) -> None:
        """A request has its first token, or has ended, perhaps without one."""
        book = self._books[worker]
        job = book.queued.pop(index, None)
        if job is None:
            del book.streams[index]
            return
        book.coming.subtract(job.names)
        book.coming += Counter()
        if phase is Phase.FIRST_TOKEN:
            simulated = self._fleet[worker]
            simulated.report()
            job.first_step = simulated.steps
            book.streams[index] = job

    def check(self) -> None:
        """All requests have ended."""
        assert not any(book.queued or book.streams for book in self._books.values())

    def _job(self, worker: WorkerId, request: TraceRequest, prompt: list[int]) -> _Job:
        live, coming = self._fleet[worker].live, self._books[worker].coming
        found = bisect_left(prompt, True, key=lambda name: name not in live and name not in coming)
        block_tokens = self._fleet[worker].engine.block_tokens
        # A prompt's last token is always computed.
        cached = min(found, (request.input_tokens - 1) // block_tokens) * block_tokens
        return _Job(
            request.input_tokens, request.output_tokens, request.input_tokens - cached, prompt
        )

    def _cost_ms(self, worker: WorkerId, job: _Job) -> float:
        simulated, book = self._fleet[worker], self._books[worker]
        cost, load = simulated.engine.profile.cost, simulated.engine.load()
        ahead = self._ahead(simulated, load, book, job)
        first_token_ms = ahead.wait_ms + ahead.prefill_ms
        pace_ms = cost.step_ms(0, 0, load.running, load.decode_kv_tokens)
        waited_steps = int(ahead.wait_ms / pace_ms)
        left = [steps - waited_steps for steps in self._steps_left(simulated, book)]
        alive = [steps for steps in left if steps > 0]
        context_tokens = job.prompt_tokens + job.output_tokens / 2
        own_step_ms = cost.decode_sequence_ms + cost.decode_kv_token_ms * context_tokens
        answer_ms = (job.output_tokens - 1) * (pace_ms + own_step_ms)
        shared_steps = sum(min(steps, job.output_tokens) for steps in alive)
        return (
            first_token_ms + answer_ms + len(alive) * ahead.prefill_ms + shared_steps * own_step_ms
        )

    def _ahead(self, simulated: SimulatedWorker, load: Load, book: _Book, job: _Job) -> _Ahead:
        profile = simulated.engine.profile
        cost, queued = profile.cost, list(book.queued.values())
        waiting = queued[len(queued) - load.waiting :]
        queued_tokens = load.queued_prefill_tokens
        queued_tokens -= sum(each.prompt_tokens - each.new_tokens for each in waiting)
        pairs = sum(attention_pairs(e.new_tokens, e.prompt_tokens - e.new_tokens) for e in queued)
        of_all = sum(each.new_tokens for each in queued)
        pairs *= queued_tokens / of_all if of_all else 0.0
        budget_tokens = profile.max_num_batched_tokens - load.running
        decode_ms = cost.step_ms(0, 0, load.running, load.decode_kv_tokens) - cost.decode_base_ms
        step_ms = cost.prefill_ms(budget_tokens) + decode_ms
        own_pairs = attention_pairs(job.new_tokens, job.prompt_tokens - job.new_tokens)
        return _Ahead(
            queued_tokens / budget_tokens * step_ms + cost.attention_pair_ms * pairs,
            job.new_tokens / budget_tokens * step_ms + cost.attention_pair_ms * own_pairs,
        )

    def _steps_left(self, simulated: SimulatedWorker, book: _Book) -> Iterator[int]:
        """Tokens that each stream is still to give, the queued ones included."""
        for job in book.queued.values():
            yield job.output_tokens
        for job in book.streams.values():
            yield job.output_tokens - 1 - (simulated.steps - job.first_step)

"""Who computes in the next step: continuous batching with chunked prefill, without any time.

Every step, each decoding sequence computes one token; prompts share what is left of the token
budget, first come first served; then waiting requests are admitted while sequences, budget and
blocks last. Blocks for a whole prompt are taken at its admission (vLLM checks for as many, and
takes them chunk by chunk). When decoding needs a block and none is left, the sequence admitted
last is preempted: its blocks are let go, it waits at the front of the queue, and what it had is
computed again, except for blocks still cached by then.

With speculation (`workers.sim.speculation`) a decoding sequence computes its drafts with its token,
as long as the token budget allows, and advances by what is accepted. It takes blocks for all of
them; only blocks full of accepted tokens are named.

A request that *fetches* takes its blocks at its admission, too, and joins the decoding ones when
they have landed; meanwhile steps go on without it. One that is to be *staged* keeps its blocks
after its end.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from workers.sim.cache import BlockCache, RequestId
from workers.sim.request import Fetch, Job, Progress, ProgressKind, Request, Stage
from workers.sim.speculation import Speculation, Tally
from workers.sim.timing import Profile, attention_pairs


class RequestTooLarge(ValueError):
    """The request would not fit the cache even alone."""


class StepWork(NamedTuple):
    """What one step computes; the arguments of `StepCost.step_ms`."""

    prefill_tokens: int
    attention_pairs: float
    decode_batch: int
    decode_kv_tokens: int


class Scheduler:
    """Queues, running sequences and their blocks. `plan` a step, then `complete` it, in turn."""

    def __init__(
        self,
        profile: Profile,
        block_tokens: int,
        blocks: int,
        speculation: Speculation | None = None,
    ) -> None:
        assert 0 < profile.max_num_seqs <= profile.max_num_batched_tokens
        self.speculation = speculation
        """What to speculate by from the next plan on; None: not at all."""
        self.drafts = 0
        """For each decoding sequence in the step that was planned last, ..."""
        self._drafting = speculation
        """... and by what."""
        self.tally = Tally()
        self.cache = BlockCache(blocks)
        self.block_tokens = block_tokens
        self._budget_tokens = profile.max_num_batched_tokens
        self._seqs_max = profile.max_num_seqs
        self._jobs: dict[RequestId, Job] = {}
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []
        """In order of admission."""
        self._decoding: list[Job] = []
        self._fetching: dict[RequestId, Job] = {}
        self._fetches: list[Fetch] = []
        self._given_up: dict[RequestId, Job] = {}
        """Cancelled while bytes were on their way into their blocks, which nobody else may have
        until that has ended."""
        self._staged: dict[RequestId, Job] = {}
        self._admissions = 0
        self.queued_prefill_tokens = 0
        """Prompt tokens still to compute, as far as known: hits count once admitted."""
        self.decode_kv_tokens = 0
        """KV tokens of the decoding sequences."""
        self.queried_tokens = 0
        self.cached_tokens = 0
        self.fetched_tokens = 0
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._prefilling or self._decoding)

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding) + len(self._fetching)

    @property
    def staged(self) -> int:
        """Requests whose blocks are kept after their end."""
        return len(self._staged)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request; raises `RequestTooLarge`. Its id is not in use."""
        assert request.id not in self._jobs
        assert request.prompt_tokens > 0 and request.output_tokens > 0
        # The last token of an answer is never computed upon.
        most_tokens = request.prompt_tokens + request.output_tokens - 1
        if self._blocks_of(most_tokens) > self.cache.capacity_blocks:
            raise RequestTooLarge(
                f"{most_tokens} tokens need {self._blocks_of(most_tokens)} blocks, "
                f"the cache has {self.cache.capacity_blocks}"
            )
        assert request.id not in self._staged and request.id not in self._given_up
        job = Job(
            request,
            list(request.prompt_hashes),
            target_tokens=request.prompt_tokens,
            fetch=request.fetch,
        )
        self._jobs[request.id] = job
        self._waiting.append(job)
        self.queued_prefill_tokens += job.left_tokens

    def cancel(self, id: RequestId) -> bool:
        """Forget a request, wherever it is; False if there is none of that id."""
        job = self._jobs.pop(id, None)
        if job is None:
            return False
        if self._fetching.pop(id, None):
            self._given_up[id] = job
        else:
            self._leave(job)
        return True

    def take_fetches(self) -> list[Fetch]:
        """Requests that have got their blocks since the last call, for whoever fetches."""
        fetches, self._fetches = self._fetches, []
        return fetches

    def landed(self, id: RequestId) -> bool:
        """All blocks of a fetch are there; False if the request was given up meanwhile."""
        if given_up := self._given_up.pop(id, None):
            self._release(given_up)
            return False
        job = self._fetching.pop(id)
        prompt_tokens = job.request.prompt_tokens
        self._commit(job, prompt_tokens)
        self.fetched_tokens += prompt_tokens - (job.cached_tokens or 0)
        # Its last token is computed again, as that is what the first of the answer follows from.
        job.computed_tokens = prompt_tokens - 1
        job.stage = Stage.DECODE
        job.fetch, job.first_due = False, True
        self._decoding.append(job)
        self.decode_kv_tokens += job.computed_tokens
        return True

    def lost(self, id: RequestId) -> None:
        """A fetch has come to nothing: the request computes its prompt by itself, first of all."""
        if given_up := self._given_up.pop(id, None):
            self._release(given_up)
            return
        job = self._fetching.pop(id)
        self._release(job)
        self._wait_again(job)

    def release(self, id: RequestId) -> bool:
        """Let staged blocks go; False if there are none."""
        job = self._staged.pop(id, None)
        if job is None:
            return False
        self._release(job)
        return True

    def plan(self) -> StepWork:
        """Fix the next step. Takes blocks, so it may evict, and it may preempt."""
        self._drafting, self.drafts = self.speculation, self._affordable_drafts()
        preempted = self._grow()
        batch = len(self._decoding)
        decode_tokens = batch * (1 + self.drafts)
        left_tokens = self._budget_tokens - decode_tokens
        pairs = 0.0
        for job in self._prefilling:
            left_tokens, pairs = self._schedule_chunk(job, left_tokens, pairs)
        while not preempted and left_tokens and (fresh := self._admit()):
            if fresh.stage is Stage.PREFILL:
                left_tokens, pairs = self._schedule_chunk(fresh, left_tokens, pairs)
        prefill_tokens = self._budget_tokens - decode_tokens - left_tokens
        return StepWork(prefill_tokens, pairs, batch, self.decode_kv_tokens + batch)

    def steps_alike(self) -> int:
        """After a plan without prefill: how many steps can follow each other, this one included,
        before a sequence ends, a named block fills, or a block must be evicted. With drafts no two
        steps are known to be alike."""
        if self.drafts:
            return 1
        finish = min(job.request.output_tokens - job.output_tokens for job in self._decoding)
        if finish == 1 or any(job.first_due for job in self._decoding):
            return 1
        tokens = self.block_tokens
        rooms = [job.blocks * tokens - job.computed_tokens for job in self._decoding]
        # In any `block_tokens` consecutive steps every sequence takes exactly one block.
        rounds, blocks = divmod(self.cache.unused_blocks, len(rooms))
        evict = rounds * tokens + sorted(rooms)[blocks]
        named_rooms = (
            -job.computed_tokens % tokens or tokens
            for job in self._decoding
            if job.request.output_hash is not None
        )
        return min(finish, evict, *named_rooms)

    def complete(self, steps: int, time_s: float, *, every_token: bool) -> list[Progress]:
        """The planned step, and `steps` - 1 like it, are computed; the last one ends at `time_s`.

        Reports first tokens and finished requests, and with `every_token` the tokens between.
        """
        progress: list[Progress] = []
        if self._decoding and self.drafts:
            self._complete_verification(time_s, progress, every_token)
        elif self._decoding:
            self._complete_decode(steps, time_s, progress, every_token)
        if self._prefilling:
            assert steps == 1
            self._complete_chunks(time_s, progress, every_token)
        return progress

    def extend(self) -> None:
        """Start the next of several steps alike; it needs no eviction."""
        preempted = self._grow()
        assert not preempted

    def reset_cache(self) -> bool:
        """Forget all cached blocks; refused while any is in use."""
        return self.cache.clear()

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _grow(self) -> bool:
        """Give each decoding sequence room for one more token and its drafts; True if one was
        preempted."""
        tokens = self.block_tokens
        if self.drafts:
            short = [(job, n) for job in self._decoding if (n := self._short_blocks(job)) > 0]
        else:
            short = [(j, 1) for j in self._decoding if j.computed_tokens == j.blocks * tokens]
        preempted = False
        while sum(blocks for _, blocks in short) > self.cache.available_blocks:
            victim = max((*self._decoding, *self._prefilling), key=lambda job: job.admission)
            short = [(job, blocks) for job, blocks in short if job is not victim]
            self._preempt(victim)
            preempted = True
        self.cache.allocate(sum(blocks for _, blocks in short))
        for job, blocks in short:
            job.blocks += blocks
        return preempted

    def _short_blocks(self, job: Job) -> int:
        """How many blocks it lacks for its token and drafts; 0 or less if it has them. No room is
        taken behind an answer's end."""
        all_tokens = job.request.prompt_tokens + job.request.output_tokens - 1
        return self._blocks_of(min(job.computed_tokens + 1 + self.drafts, all_tokens)) - job.blocks

    def _affordable_drafts(self) -> int:
        """As many as the configuration says, or fewer where the token budget is too small."""
        if self.speculation is None or not self._decoding:
            return 0
        budget_tokens = self._budget_tokens // len(self._decoding) - 1
        return min(self.speculation.num_speculative_tokens, budget_tokens)

    def _preempt(self, job: Job) -> None:
        self._leave(job)
        self._wait_again(job)
        self.preemptions += 1

    def _wait_again(self, job: Job) -> None:
        """First of all, to compute anew all that it had."""
        job.stage = Stage.WAITING
        job.fetch = job.first_due = False
        job.computed_tokens = job.blocks = job.named_blocks = 0
        job.target_tokens = job.request.prompt_tokens + job.output_tokens
        self._waiting.appendleft(job)
        self.queued_prefill_tokens += job.target_tokens

    def _leave(self, job: Job) -> None:
        """Take a job out of its queue and its blocks from it."""
        if job.stage is Stage.DECODE:
            self._decoding.remove(job)
            self.decode_kv_tokens -= job.computed_tokens
        else:
            queue = self._waiting if job.stage is Stage.WAITING else self._prefilling
            queue.remove(job)
            self.queued_prefill_tokens -= job.left_tokens
        self._release(job)

    def _release(self, job: Job) -> None:
        self.cache.release(job.names, job.named_blocks, job.blocks - job.named_blocks)

    def _admit(self) -> Job | None:
        """Move the first waiting request to prefill, or to its fetch, if there is one and room
        for it."""
        if not self._waiting or self.running >= self._seqs_max:
            return None
        job = self._waiting[0]
        # One token at least must be computed, so a fully cached prompt gets its last block anew.
        hits = self.cache.match(job.names, (job.target_tokens - 1) // self.block_tokens)
        fresh_blocks = self._blocks_of(job.target_tokens) - hits
        if fresh_blocks + self.cache.idle_in(job.names, hits) > self.cache.available_blocks:
            return None
        self._waiting.popleft()
        self.cache.acquire(job.names, hits)
        self.cache.allocate(fresh_blocks)
        self._admissions += 1
        job.admission = self._admissions
        job.stage = Stage.PREFILL
        job.named_blocks, job.blocks = hits, hits + fresh_blocks
        job.computed_tokens = hits * self.block_tokens
        if not job.fetch:
            self.queued_prefill_tokens -= job.computed_tokens
        if job.cached_tokens is None:
            job.cached_tokens = job.computed_tokens
            self.cached_tokens += job.computed_tokens
            self.queried_tokens += job.request.prompt_tokens
        if job.fetch:
            job.stage = Stage.FETCH
            self._fetching[job.request.id] = job
            self._fetches.append(Fetch(job.request.id, hits, fresh_blocks))
        else:
            self._prefilling.append(job)
        return job

    def _schedule_chunk(self, job: Job, left_tokens: int, pairs: float) -> tuple[int, float]:
        chunk = min(job.target_tokens - job.computed_tokens, left_tokens)
        job.chunk_tokens = chunk
        return left_tokens - chunk, pairs + attention_pairs(chunk, job.computed_tokens)

    def _complete_decode(
        self, steps: int, time_s: float, progress: list[Progress], every_token: bool
    ) -> None:
        finished = grown_blocks = 0
        for job in self._decoding:
            job.computed_tokens += steps
            job.output_tokens += steps
            short_blocks = self._blocks_of(job.computed_tokens) - job.blocks
            if short_blocks > 0:
                job.blocks += short_blocks
                grown_blocks += short_blocks
            finished += self._advanced(job, time_s, progress, every_token)
        self.decode_kv_tokens += steps * len(self._decoding)
        self.cache.allocate(grown_blocks)
        if finished:
            self._drop_finished()

    def _complete_verification(
        self, time_s: float, progress: list[Progress], every_token: bool
    ) -> None:
        assert self._drafting is not None
        finished = 0
        for job in self._decoding:
            request, accepted = job.request, 0
            # Who has landed has not said anything yet that could be drafted on.
            if not job.first_due:
                accepted = self._drafting.accepted(
                    request.id, job.output_tokens, request.kind, self.drafts
                )
                self.tally.count(self.drafts, accepted)
                job.drafted_tokens += self.drafts
                job.accepted_tokens += accepted
            tokens = min(1 + accepted, request.output_tokens - job.output_tokens)
            job.computed_tokens += tokens
            job.output_tokens += tokens
            self.decode_kv_tokens += tokens
            finished += self._advanced(job, time_s, progress, every_token)
        if finished:
            self._drop_finished()

    def _advanced(
        self, job: Job, time_s: float, progress: list[Progress], every_token: bool
    ) -> bool:
        """A decoding sequence has new tokens; True if it has all."""
        if job.request.output_hash is not None:
            self._commit(job, job.computed_tokens)
        finished, first = job.output_tokens == job.request.output_tokens, job.first_due
        if first:
            job.first_due = False
            progress.append(_progress(job, ProgressKind.FIRST_TOKEN, time_s))
        if finished:
            progress.append(_progress(job, ProgressKind.FINISHED, time_s))
        elif every_token and not first:
            progress.append(_progress(job, ProgressKind.TOKENS, time_s))
        return finished

    def _drop_finished(self) -> None:
        running = []
        for job in self._decoding:
            if job.output_tokens < job.request.output_tokens:
                running.append(job)
            else:
                self.decode_kv_tokens -= job.computed_tokens
                self._finish(job)
        self._decoding = running

    def _finish(self, job: Job) -> None:
        """It has ended; its blocks go, or are kept."""
        del self._jobs[job.request.id]
        if job.request.stage:
            self._staged[job.request.id] = job
        else:
            self._release(job)

    def _complete_chunks(self, time_s: float, progress: list[Progress], every_token: bool) -> None:
        unfinished = []
        for job in self._prefilling:
            job.computed_tokens += job.chunk_tokens
            self.queued_prefill_tokens -= job.chunk_tokens
            job.chunk_tokens = 0
            self._commit(job, job.computed_tokens)
            if job.computed_tokens < job.target_tokens:
                unfinished.append(job)
                continue
            job.output_tokens += 1
            if job.output_tokens == 1:
                progress.append(_progress(job, ProgressKind.FIRST_TOKEN, time_s))
            if job.output_tokens == job.request.output_tokens:
                progress.append(_progress(job, ProgressKind.FINISHED, time_s))
                self._finish(job)
                continue
            if job.output_tokens > 1 and every_token:
                progress.append(_progress(job, ProgressKind.TOKENS, time_s))
            job.stage = Stage.DECODE
            self._decoding.append(job)
            self.decode_kv_tokens += job.computed_tokens
        self._prefilling = unfinished

    def _commit(self, job: Job, computed_tokens: int) -> None:
        """Name the blocks that have become full, as far as the request has names for them."""
        full_blocks = computed_tokens // self.block_tokens
        if full_blocks == job.named_blocks:
            return
        output_hash = job.request.output_hash
        if output_hash is not None:
            job.names.extend(map(output_hash, range(len(job.names), full_blocks)))
        full_blocks = min(full_blocks, len(job.names))
        if full_blocks > job.named_blocks:
            self.cache.commit(job.names, job.named_blocks, full_blocks, job.request.id)
            job.named_blocks = full_blocks


def _progress(job: Job, kind: ProgressKind, time_s: float) -> Progress:
    assert job.cached_tokens is not None
    return Progress(
        job.request.id,
        kind,
        time_s,
        job.output_tokens,
        job.cached_tokens,
        job.drafted_tokens,
        job.accepted_tokens,
    )

"""Why a worker was chosen, or nobody: decisions kept as they were made, and told when asked.

To keep one costs a few copies of columns; the words are only made for those who ask: a recorded
span, a sample for the bus, `tokenplane explain`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from controlplane.router.policies.base import Candidates, Floats, Ints, Overlap, Weighed
from proto.decisions import Decision
from proto.ids import RequestId, WorkerId
from proto.route import Chosen, RouteRequest, Term, Verdict

DECISION_BYTES, WORKER_BYTES = 2_400, 128
"""What it takes to remember a decision, and each worker that it tells of; measured, rounded up."""
SPAN_CANDIDATES = 64
TERMS_MAX = 2_048
"""In one message: half a megabyte of them, and some 10 ms of work."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A decision: columns as they were, row by row, and who was out of the question. Nobody was
    chosen where there are no rows."""

    request: RequestId
    attempt: int
    model: str
    policy: str
    now_s: float
    prompt_tokens: int
    workers: Sequence[WorkerId]
    chosen: int | None
    block_tokens: Ints
    overlap: Overlap
    queued_prefill_tokens: Ints
    decode_blocks: Ints
    requests: Ints
    costs: Floats
    values: Mapping[str, Floats]
    refused: Mapping[WorkerId, str]
    reason: str = ""
    """Why nobody was chosen."""
    workload: tuple[str, ...] = ()
    engine_choice: str = ""
    """Why workers of one engine came first."""

    @property
    def size_bytes(self) -> int:
        """What it takes to remember it."""
        return DECISION_BYTES + WORKER_BYTES * (len(self.workers) + len(self.refused))

    @property
    def worker(self) -> WorkerId | None:
        """Who was chosen."""
        return None if self.chosen is None else self.workers[self.chosen]

    def terms(self, most: int | None = None) -> tuple[Term, ...]:
        """Every worker of the model: those weighed first, in the order of their cost; or so many,
        the chosen one among them."""
        columns = (
            self.costs,
            self.overlap.held_tokens // self.block_tokens,
            self.queued_prefill_tokens,
            self.decode_blocks,
            self.requests,
            self.overlap.host_tokens // self.block_tokens,
            self.overlap.disk_tokens // self.block_tokens,
        )
        rows = [column.tolist() for column in columns]
        values = {name: column.tolist() for name, column in self.values.items()}
        weighed = [
            Term(
                worker=self.workers[i],
                cost=rows[0][i],
                overlap_blocks=rows[1][i],
                queued_prefill_tokens=rows[2][i],
                decode_blocks=rows[3][i],
                requests=rows[4][i],
                host_blocks=rows[5][i],
                disk_blocks=rows[6][i],
                values={name: column[i] for name, column in values.items()},
            )
            for i in self._cheapest(most)
        ]
        refused = islice(self.refused.items(), None if most is None else most - len(weighed))
        return (*weighed, *(Term(w, 0.0, excluded=why) for w, why in refused))

    def told(self, router: str, time_s: float, terms_max: int = TERMS_MAX) -> Decision:
        """In words; `time_s` is when it was made, in seconds since the epoch."""
        terms = self.terms(terms_max)
        return Decision(
            request=self.request,
            attempt=self.attempt,
            model=self.model,
            router=router,
            policy=self.policy,
            time_s=time_s,
            prompt_tokens=self.prompt_tokens,
            worker=self.worker,
            reason=self.reason,
            terms=terms,
            workload=self.workload,
            engine_choice=self.engine_choice,
            left_out=len(self.workers) + len(self.refused) - len(terms),
        )

    def _cheapest(self, most: int | None) -> list[int]:
        """Rows in the order of their cost, at most so many and the chosen one's for certain."""
        rows: list[int] = self.costs.argsort(kind="stable").tolist()
        kept = rows[:most]
        if kept and self.chosen is not None and self.chosen not in kept:
            kept[-1] = self.chosen
        return kept


class Decisions:
    """The last decisions, by request; the oldest are forgotten first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._made: OrderedDict[RequestId, dict[int, Made]] = OrderedDict()
        """By request, the last one spoken of last, and attempt."""
        self.last: Made | None = None

    def __len__(self) -> int:
        """Requests that are remembered."""
        return len(self._made)

    def keep(self, made: Made) -> None:
        """Remember a decision; one made anew for the same attempt takes its place."""
        attempts = self._made.setdefault(made.request, {})
        self._made.move_to_end(made.request)
        if before := attempts.get(made.attempt):
            self._bytes -= before.size_bytes
        self._bytes += made.size_bytes
        attempts[made.attempt] = self.last = made
        while self._bytes > self._bytes_max and len(self._made) > 1:
            _, oldest = self._made.popitem(last=False)
            self._bytes -= sum(each.size_bytes for each in oldest.values())

    def of(self, request: RequestId) -> Sequence[Made]:
        """What was decided for a request, first attempt first."""
        return [made for _, made in sorted(self._made.get(request, {}).items())]


def made(
    request: RouteRequest,
    policy: str,
    candidates: Candidates,
    weighed: Weighed,
    chosen: int,
    *,
    refused: Mapping[WorkerId, str],
    now_s: float,
) -> Made:
    """A decision to be kept: columns that go on changing are copied."""
    return Made(
        request=request.request,
        attempt=request.attempt,
        model=request.model,
        policy=policy,
        now_s=now_s,
        prompt_tokens=request.prompt_tokens,
        workers=tuple(candidates.workers),
        chosen=chosen,
        block_tokens=candidates.block_tokens.copy(),
        overlap=candidates.overlap,
        queued_prefill_tokens=candidates.queued_prefill_tokens.copy(),
        decode_blocks=candidates.decode_tokens // candidates.block_tokens,
        requests=candidates.requests.copy(),
        costs=weighed.costs,
        values=weighed.values,
        refused=refused,
        workload=request.workload,
    )


def turned_away(
    request: RouteRequest, refused: Mapping[WorkerId, str], reason: str, now_s: float
) -> Made:
    """A decision for nobody, to be kept."""
    nothing = np.zeros(0, dtype=np.int64)
    return Made(
        request=request.request,
        attempt=request.attempt,
        model=request.model,
        policy=request.policy,
        now_s=now_s,
        prompt_tokens=request.prompt_tokens,
        workers=(),
        chosen=None,
        block_tokens=nothing,
        overlap=Overlap(nothing, nothing, nothing, nothing),
        queued_prefill_tokens=nothing,
        decode_blocks=nothing,
        requests=nothing,
        costs=np.zeros(0),
        values={},
        refused=refused,
        reason=reason,
        workload=request.workload,
    )


def attributes_of(
    request: RouteRequest, verdict: Verdict, made: Made
) -> Mapping[str, str | int | Sequence[str]]:
    """What the span of a decision tells: of its candidates the best ones, if there are many."""
    told: dict[str, str | int | Sequence[str]] = {
        "tokenplane.request": request.request,
        "gen_ai.request.model": request.model,
        "tokenplane.prompt_tokens": request.prompt_tokens,
        "tokenplane.candidates": [in_a_line(term) for term in made.terms(SPAN_CANDIDATES)],
    }
    if isinstance(verdict, Chosen):
        return told | {
            "tokenplane.worker": verdict.worker,
            "tokenplane.policy": verdict.policy,
            "tokenplane.overlap_blocks": verdict.overlap_blocks,
            "tokenplane.engine_choice": verdict.engine_choice,
        }
    return told | {
        "tokenplane.rejected": verdict.reason,
        "tokenplane.rejected.detail": verdict.detail,
    }


def in_a_line(term: Term) -> str:
    """One candidate on one line, for people who read traces."""
    if term.excluded:
        return f"{term.worker} excluded={term.excluded}"
    told = (
        f"{term.worker} cost={term.cost:g} overlap_blocks={term.overlap_blocks}"
        f" host_blocks={term.host_blocks} disk_blocks={term.disk_blocks}"
        f" queued_prefill_tokens={term.queued_prefill_tokens} decode_blocks={term.decode_blocks}"
        f" requests={term.requests}"
    )
    return told + "".join(f" {name}={value:.4g}" for name, value in term.values.items())

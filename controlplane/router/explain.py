"""Why a worker was chosen: decisions kept as they were made, and told in words when asked.

To keep one costs a few copies of columns; the words are only made for those who ask: a recorded
span, a sample for the bus, `tokenplane explain`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.router.policies.base import Candidates, Floats, Ints, Overlap, Weighed
from proto.decisions import Decision
from proto.ids import RequestId, WorkerId
from proto.route import RouteRequest, Term

ROWS_MAX = 1 << 17
"""Candidates remembered over all decisions: some ten megabytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A decision: columns as they were, row by row, and who was out of the question."""

    request: RequestId
    attempt: int
    model: str
    policy: str
    now_s: float
    prompt_tokens: int
    workers: Sequence[WorkerId]
    chosen: int
    block_tokens: Ints
    overlap: Overlap
    queued_prefill_tokens: Ints
    decode_blocks: Ints
    requests: Ints
    costs: Floats
    values: Mapping[str, Floats]
    refused: Mapping[WorkerId, str]

    def terms(self) -> tuple[Term, ...]:
        """Every worker of the model: those weighed first, in the order of their cost."""
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
            for i in self.costs.argsort(kind="stable").tolist()
        ]
        return (*weighed, *(Term(w, 0.0, excluded=why) for w, why in self.refused.items()))

    def told(self, router: str, time_s: float) -> Decision:
        """In words; `time_s` is when it was made, in seconds since the epoch."""
        return Decision(
            request=self.request,
            attempt=self.attempt,
            model=self.model,
            router=router,
            policy=self.policy,
            time_s=time_s,
            prompt_tokens=self.prompt_tokens,
            worker=self.workers[self.chosen],
            terms=self.terms(),
        )


class Decisions:
    """The last decisions, by request; the oldest are forgotten first."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._rows = 0
        self._made: OrderedDict[tuple[RequestId, int], Made] = OrderedDict()
        self.last: Made | None = None

    def __len__(self) -> int:
        return len(self._made)

    def keep(self, made: Made) -> None:
        """Remember a decision; one made anew for the same attempt takes its place."""
        key = made.request, made.attempt
        before = self._made.pop(key, None)
        self._rows += len(made.workers) - (len(before.workers) if before else 0)
        self._made[key] = self.last = made
        while self._rows > self._rows_max and len(self._made) > 1:
            _, oldest = self._made.popitem(last=False)
            self._rows -= len(oldest.workers)

    def of(self, request: RequestId) -> Iterator[Made]:
        """What was decided for a request, first attempt first."""
        found = [made for (of, _), made in self._made.items() if of == request]
        return iter(sorted(found, key=lambda made: made.attempt))


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
    )


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

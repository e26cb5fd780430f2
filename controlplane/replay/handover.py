"""Split fleets in virtual time: the real coordinator, and links that take as long as bytes do.

A request of a split fleet is routed twice, decode and prefill, and the coordinator's core decides
as the service's does; no ticket is stored, for nobody dies here. What is staged is fetched once the
coordinator lets it in, one after the other on each link.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from controlplane.replay.fleet import INCARNATION, MODEL, SimulatedWorker
from controlplane.replay.informed import At, Informed
from controlplane.replay.trace import TraceRequest
from controlplane.transfer.coordinator import Coordinator, Walk
from controlplane.transfer.settings import TransferSettings
from controlplane.transfer.ticket import LeaseOver
from proto.hashing import Words
from proto.ids import RequestId, ServiceId, WorkerId
from proto.load import LoadReport
from proto.progress import Phase
from proto.route import Chosen, Rejected, RouteLeg
from proto.transfers import Begin, Local, Part, Report, State, Step, Ticket, TicketId
from proto.workers import Role
from workers.sim.request import Fetch, Request

OWNER = ServiceId("replay")
TOO_LARGE = "too_large"


@dataclass(frozen=True)
class Link:
    """What every path between two engines is good for."""

    bytes_per_s: float = 50e9
    latency_s: float = 0.002


@dataclass
class _Split:
    """A request under a ticket."""

    index: int
    request: TraceRequest
    names: list[int]
    ticket: Ticket
    began_s: float = 0.0


class Handovers:
    """Places requests of a split fleet. `touch` has the driver look at a worker again."""

    def __init__(
        self,
        fleet: Mapping[WorkerId, SimulatedWorker],
        chooser: Informed,
        settings: TransferSettings,
        link: Link,
        at: At,
        touch: Callable[[SimulatedWorker], None],
    ) -> None:
        self._fleet = fleet
        self._chooser = chooser
        self._link = link
        self._at = at
        self._touch = touch
        self._core = Coordinator(settings)
        self._revision = 0
        self._under_way: dict[str, _Split] = {}
        self._waiting: deque[_Split] = deque()
        self._free_s: dict[str, float] = {}
        self.local = 0
        self.remote = 0
        for worker in fleet.values():
            record = worker.record(kv_events=True)
            self._core.fleet.records[record.worker] = record

    def hear(self, report: LoadReport, now_s: float) -> None:
        """The coordinator hears what routers hear."""
        del now_s
        self._core.saw_load(report)

    def place(
        self, index: int, request: TraceRequest, names: Words, now_s: float
    ) -> WorkerId | Rejected:
        """Who answers the request; the engines have been given it."""
        most_tokens = request.input_tokens + request.output_tokens
        for worker in self._fleet.values():
            if most_tokens > worker.engine.load().total_blocks * worker.engine.block_tokens:
                self._chooser.dropped()
                return Rejected(TOO_LARGE, f"{most_tokens} tokens do not fit a cache")
        decode = self._chooser.decide(index, request, names, now_s, RouteLeg.DECODE)
        if isinstance(decode, Rejected):
            return decode
        prompt: list[int] = names.tolist()
        decided = self._begin(index, request, names, decode, now_s)
        if isinstance(decided, Local):
            self.local += 1
            whole = Request(index, request.input_tokens, prompt, request.output_tokens)
            self._submit(decode.worker, whole, now_s)
            return decode.worker
        self.remote += 1
        ticket = decided.ticket
        self._put(decided)
        self._under_way[leg(index)] = _Split(index, request, prompt, ticket)
        first = Request(leg(index), request.input_tokens, prompt, 1, stage=True)
        self._submit(ticket.prefill.worker, first, now_s)
        return ticket.decode.worker

    def prefilled(self, id: str, now_s: float) -> None:
        """A prefill leg has ended, and its blocks are staged."""
        split = self._under_way[id]
        prefill = split.ticket.prefill.worker
        self._chooser.progressed(split.index, prefill, Phase.ENDED, now_s, RouteLeg.PREFILL)
        self._waiting.append(split)
        self._let_in(now_s)

    def fetch(self, what: Fetch, now_s: float) -> None:
        """A decode worker has room for the blocks: they are on their way."""
        assert isinstance(what.id, int)
        split = self._under_way[leg(what.id)]
        decode = self._fleet[split.ticket.decode.worker]
        moved = what.blocks * decode.block_bytes
        begins_s = max(now_s, self._free_s.get(split.ticket.link, -math.inf))
        self._free_s[split.ticket.link] = begins_s + moved / self._link.bytes_per_s
        split.began_s = now_s
        lands_s = self._free_s[split.ticket.link] + self._link.latency_s
        self._at(lands_s, partial(self._landed, split, moved))

    def check(self) -> None:
        """Nothing is left under way, and nothing held."""
        assert not self._under_way and not self._waiting
        assert not any(self._core.book.sums().values())
        for worker in self._fleet.values():
            assert not worker.engine.load().staged

    def _begin(
        self, index: int, request: TraceRequest, names: Words, decode: Chosen, now_s: float
    ) -> Walk | Local:
        prefill = self._chooser.decide(index, request, names, now_s, RouteLeg.PREFILL)
        part = prefill if isinstance(prefill, Chosen) else None
        asked = Begin(
            RequestId(f"r{index}"),
            MODEL,
            OWNER,
            request.input_tokens,
            Part(decode.worker, INCARNATION, decode.new_prefill_tokens),
            None if part is None else Part(part.worker, INCARNATION, part.new_prefill_tokens),
        )
        decided = self._core.begin(asked, TicketId(f"{index:024x}"), now_s)
        ticket = decided.ticket if isinstance(decided, Walk) else None
        if part is not None and (ticket is None or ticket.prefill.worker != part.worker):
            self._chooser.unwanted(index, part.worker, now_s, RouteLeg.PREFILL)
        if ticket is not None and ticket.decode.worker != decode.worker:
            self._chooser.unwanted(index, decode.worker, now_s, RouteLeg.DECODE)
        return decided

    def _submit(self, worker: WorkerId, request: Request, now_s: float) -> None:
        self._fleet[worker].engine.submit(request, now_s)
        self._touch(self._fleet[worker])

    def _let_in(self, now_s: float) -> None:
        """Whoever may move its blocks now is given to its decode worker."""
        for _ in range(len(self._waiting)):
            split = self._waiting.popleft()
            said = Report(split.ticket.id, split.ticket.fence, Step.TRANSFER, handle=b"staged")
            try:
                walk = self._core.report(split.ticket, said, now_s)
            except LeaseOver:
                self._recompute(split, now_s)
                continue
            self._put(walk)
            split.ticket = walk.ticket
            if walk.waits:
                self._waiting.append(split)
                continue
            request = split.request
            rest = Request(
                split.index, request.input_tokens, split.names, request.output_tokens, fetch=True
            )
            self._submit(split.ticket.decode.worker, rest, now_s)

    def _recompute(self, split: _Split, now_s: float) -> None:
        """Its blocks waited for too long: the decode worker prefills after all."""
        ticket, request = split.ticket, split.request
        said = Report(ticket.id, ticket.fence, Step.FAIL, cause="lease_over")
        self._put(self._core.report(ticket, said, now_s))
        self._core.book.drop(ticket.id)
        del self._under_way[leg(split.index)]
        prefill = self._fleet[ticket.prefill.worker]
        prefill.engine.release(leg(split.index), now_s)
        self._touch(prefill)
        whole = Request(split.index, request.input_tokens, split.names, request.output_tokens)
        self._submit(ticket.decode.worker, whole, now_s)

    def _landed(self, split: _Split, moved: int, now_s: float) -> None:
        ticket = split.ticket
        prefill, decode = self._fleet[ticket.prefill.worker], self._fleet[ticket.decode.worker]
        decode.engine.landed(split.index, now_s)
        prefill.engine.release(leg(split.index), now_s)
        self._touch(decode)
        self._touch(prefill)
        seconds = now_s - split.began_s
        said = Report(ticket.id, ticket.fence, Step.LAND, kv_bytes=moved, seconds=seconds)
        walk = self._core.report(ticket, said, now_s)
        assert walk.ticket.state is State.RELEASED
        self._put(walk)
        self._core.landed(walk.ticket, said)
        self._core.book.drop(ticket.id)
        del self._under_way[leg(split.index)]
        self._let_in(now_s)

    def _put(self, walk: Walk) -> None:
        self._revision += 1
        self._core.book.put(walk.ticket, self._revision)


def leg(index: int) -> str:
    """The engine's id of a request's prefill leg."""
    return f"p{index}"


def split(roles: tuple[Role, ...]) -> bool:
    """Whether anybody only prefills."""
    return Role.PREFILL in roles

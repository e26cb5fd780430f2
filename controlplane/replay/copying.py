"""Cached prefixes that move, in virtual time: the coordinator's decisions, and links that take as
long as bytes do, one movement after the other on each.

A request waits for what it fetches as the coordinator has it wait (`Route.patience_s`). What is not
let in at once is not moved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.replay.fleet import SimulatedWorker
from controlplane.replay.handover import OWNER, Link
from controlplane.replay.informed import Action, At
from controlplane.transfer.coordinator import Coordinator, Walk
from controlplane.transfer.settings import TransferSettings
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.route import Chosen
from proto.transfers import Move, Report, Stays, Step, Ticket, TicketId, fetch

WORDS_S = 0.003
"""Between gateway, coordinator, two agents and two engines, beside the bytes."""


@dataclass
class _Copy:
    ticket: Ticket
    began_s: float
    moved_bytes: int
    then: Action | None
    """What goes on when it has come, or is not waited for any more."""


class Copying:
    """Of one fleet. `touch` has the driver look at a worker again."""

    def __init__(
        self,
        fleet: Mapping[WorkerId, SimulatedWorker],
        settings: TransferSettings,
        link: Link,
        at: At,
        touch: Callable[[SimulatedWorker], None],
    ) -> None:
        self._fleet = fleet
        self._link = link
        self._at = at
        self._touch = touch
        self._core = Coordinator(settings)
        self._free_s: dict[str, float] = {}
        self._revision = 0
        self.outcomes: Counter[str] = Counter()
        """By purpose and what came of it."""
        for worker in fleet.values():
            record = worker.record(kv_events=True)
            self._core.fleet.records[record.worker] = record

    def hear(self, report: LoadReport, now_s: float) -> None:
        """The coordinator hears what routers hear."""
        self._core.saw_load(report)
        self._core.rates.forget_late(now_s)

    def fetch(
        self,
        index: int,
        model: str,
        names: Sequence[int],
        chosen: Chosen,
        then: Action,
        now_s: float,
    ) -> None:
        """Have the chosen worker get what another one holds of the prompt, if that pays; `then`,
        now or later, it is given the request."""
        there = chosen.elsewhere
        if there is None:
            then(now_s)
            return
        asked = fetch(RequestId(f"r{index}"), model, chosen.worker, there)
        if not self.move(asked, names[: there.blocks], then, now_s):
            then(now_s)

    def move(self, asked: Move, names: Sequence[int], then: Action | None, now_s: float) -> bool:
        """Begin it if that pays; False if nothing is moved, and nobody need wait."""
        self._revision += 1
        decided = self._core.move(asked, TicketId(f"{self._revision:024x}"), OWNER, now_s)
        if isinstance(decided, Stays):
            self._count(asked, decided.reason)
            return False
        walk, way = decided
        self._put(walk)
        said = Report(walk.ticket.id, walk.ticket.fence, Step.TRANSFER, handle=b"offered")
        walk = self._core.report(walk.ticket, said, now_s)
        self._put(walk)
        ticket = walk.ticket
        source, target = self._ends(ticket)
        if walk.waits or source.engine.offer(ticket.id, names, now_s) < len(names):
            self._close(ticket, source, now_s)
            self._count(asked, "gone")
            return False
        first = target.engine.accept(ticket.id, names, now_s)
        if first is None:
            self._close(ticket, source, now_s)
            self._count(asked, "no_room")
            return False
        moved = (len(names) - first) * target.block_bytes
        begins_s = max(now_s, self._free_s.get(ticket.link, -math.inf))
        self._free_s[ticket.link] = begins_s + moved / self._link.bytes_per_s
        lands_s = self._free_s[ticket.link] + self._link.latency_s + WORDS_S
        copy = _Copy(ticket, now_s, moved, then)
        self._touch(source)
        self._touch(target)
        self._at(lands_s, lambda at_s: self._landed(copy, at_s))
        if then is not None:
            self._at(now_s + way.patience_s, lambda at_s: self._late(copy, at_s))
        self._count(asked, "moved")
        return True

    def check(self) -> None:
        """Nothing is held for a movement any more."""
        assert not any(self._core.book.sums().values())

    def _landed(self, copy: _Copy, now_s: float) -> None:
        ticket = copy.ticket
        source, target = self._ends(ticket)
        target.engine.copied(ticket.id, now_s, whole=True)
        seconds = now_s - copy.began_s
        said = Report(
            ticket.id, ticket.fence, Step.LAND, kv_bytes=copy.moved_bytes, seconds=seconds
        )
        walk = self._core.report(ticket, said, now_s)
        self._put(walk)
        self._core.landed(walk.ticket, said)
        self._close(walk.ticket, source, now_s)
        self._touch(target)
        self._go_on(copy, now_s)

    def _late(self, copy: _Copy, now_s: float) -> None:
        if copy.then is not None:
            ticket = copy.ticket
            waited_s = now_s - copy.began_s
            self._core.rates.saw_late(ticket.link, ticket.kv_bytes, waited_s, now_s)
            self._go_on(copy, now_s)

    def _go_on(self, copy: _Copy, now_s: float) -> None:
        then, copy.then = copy.then, None
        if then is not None:
            then(now_s)

    def _close(self, ticket: Ticket, source: SimulatedWorker, now_s: float) -> None:
        source.engine.release(ticket.id, now_s)
        self._touch(source)
        self._core.book.drop(ticket.id)

    def _count(self, asked: Move, outcome: str) -> None:
        self.outcomes[f"{asked.purpose} {outcome}"] += 1

    def _ends(self, ticket: Ticket) -> tuple[SimulatedWorker, SimulatedWorker]:
        return self._fleet[ticket.prefill.worker], self._fleet[ticket.decode.worker]

    def _put(self, walk: Walk) -> None:
        self._revision += 1
        self._core.book.put(walk.ticket, self._revision)

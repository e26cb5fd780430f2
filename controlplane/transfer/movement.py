"""Whether a cached prefix is worth moving, and where to. Pure.

A prefix is moved only if that takes less, by a margin, than computing it where it is to go:

    moving     overhead + latency + (bytes ahead on the link + its own) / bandwidth of the link
    computing  tokens that the target lacks / its prefill speed

Both are what was measured (`cost.Rates`); where a speed is not known nothing is moved. What waits
in the target's queue counts for neither: a prefix that is moved need not be computed after it, so
to move is the better by that, and no request is later for it than predicted.
"""

from __future__ import annotations

from typing import NamedTuple

from controlplane.transfer.book import Book
from controlplane.transfer.cost import Rates
from controlplane.transfer.fleet import Fleet, end
from controlplane.transfer.pairing import link, mismatch
from proto.ids import RequestId, ServiceId, WorkerId
from proto.transfers import Move, Purpose, Stays, Ticket, TicketId
from proto.workers import HandoffOrder, WorkerRecord, WorkerState

PATIENCE, PATIENCE_S = 3.0, 0.05


class Worth(NamedTuple):
    """When moving is worth it."""

    margin: float = 1.25
    """Computing must take so many times as long."""
    overhead_s: float = 0.01
    """Of any movement, whatever it moves: words to two agents, and between two engines."""
    spare_share: float = 0.15
    """Of its blocks, that a target keeps for those who compute."""


class Route(NamedTuple):
    """What moving would take."""

    source: WorkerRecord
    target: WorkerRecord
    link: str
    kv_bytes: int
    blocks: int
    moving_s: float
    computing_s: float

    @property
    def patience_s(self) -> float:
        """How long a request waits: no longer than it would take to compute, and not for what takes
        several times as long as predicted, as then the prediction was wrong."""
        return min(self.computing_s, PATIENCE * self.moving_s + PATIENCE_S)


def route(asked: Move, fleet: Fleet, book: Book, rates: Rates, worth: Worth) -> Route | Stays:
    """The best way to do what is asked; or why it should be left."""
    source = fleet.records.get(asked.source)
    if source is None or source.state is WorkerState.UNHEALTHY:
        return Stays("no_source", f"{asked.source} is not there")
    if source.transfer is None or not source.transfer.copies:
        return Stays("cannot", f"{asked.source} cannot offer what it caches")
    why = Stays("no_target", "nobody is ready to take it")
    found: list[Route] = []
    for target in _targets(asked, fleet):
        if reason := _unfit(source, target):
            why = Stays("incompatible", reason)
        elif _under_way(asked, target.worker, book):
            return Stays("under_way", f"it is on its way to {target.worker}")
        elif not _has_room(asked, target, fleet, book, worth):
            why = Stays("no_room", f"{target.worker} has no room for it")
        else:
            weighed = _weigh(asked, source, target, book, rates, worth)
            if isinstance(weighed, Route):
                found.append(weighed)
            else:
                why = weighed
    if not found:
        return why
    return min(found, key=lambda each: (each.moving_s, -_room(each.target, fleet, book)))


def copy_ticket(asked: Move, way: Route, id: TicketId, owner: ServiceId, now_s: float) -> Ticket:
    """A ticket for it. Its request is a name of its own: aborting it must not abort a client's."""
    assert way.source.transfer is not None
    offered_first = HandoffOrder.PREFILL_FIRST
    return Ticket(
        id=id,
        request=RequestId(f"copy-{id}"),
        model=asked.model,
        owner=owner,
        order=offered_first,
        prefill=end(way.source),
        decode=end(way.target),
        purpose=asked.purpose,
        tail=asked.tail,
        created_s=now_s,
        changed_s=now_s,
        lease_s=way.source.transfer.lease_s,
        prompt_tokens=asked.blocks * way.source.block_tokens,
        blocks=way.blocks,
        kv_bytes=way.kv_bytes,
        link=way.link,
    )


def _targets(asked: Move, fleet: Fleet) -> list[WorkerRecord]:
    """Who might take it: whoever is named, or anybody of the same role."""
    source = fleet.records[asked.source]
    return [
        record
        for record in fleet.records.values()
        if record.model == asked.model
        and record.state is WorkerState.READY
        and record.worker != asked.source
        and record.worker not in asked.exclude
        and (record.worker == asked.target if asked.target else record.role is source.role)
    ]


def _unfit(source: WorkerRecord, target: WorkerRecord) -> str:
    if target.transfer is None or not target.transfer.copies:
        return f"{target.worker} cannot fetch what others cache"
    return mismatch(source, target)


def _under_way(asked: Move, target: WorkerId, book: Book) -> bool:
    return any(each.tail == asked.tail and each.decode.worker == target for each in book.copies())


def _has_room(asked: Move, target: WorkerRecord, fleet: Fleet, book: Book, worth: Worth) -> bool:
    """For what others leave behind, only room that nobody has filled; for what is asked for now,
    also that of what was used long ago."""
    spare = int(worth.spare_share * target.total_blocks)
    if asked.purpose is Purpose.EVACUATE:
        return _unfilled(target, fleet, book) >= _new_blocks(asked)
    return _room(target, fleet, book) - spare >= _new_blocks(asked)


def _room(target: WorkerRecord, fleet: Fleet, book: Book) -> int:
    load = fleet.loads.get(target.worker)
    used = load.used_blocks if load else 0
    return target.total_blocks - used - book.reserved_blocks[target.worker]


def _unfilled(target: WorkerRecord, fleet: Fleet, book: Book) -> int:
    load = fleet.loads.get(target.worker)
    filled = max(load.used_blocks, load.live_blocks) if load else 0
    return target.total_blocks - filled - book.reserved_blocks[target.worker]


def _new_blocks(asked: Move) -> int:
    return asked.new_blocks or asked.blocks


def _weigh(
    asked: Move,
    source: WorkerRecord,
    target: WorkerRecord,
    book: Book,
    rates: Rates,
    worth: Worth,
) -> Route | Stays:
    assert target.transfer is not None
    speed = rates.prefill_tokens_per_s(target.worker) or rates.prefill_tokens_per_s(source.worker)
    if speed is None:
        return Stays("unknown", f"nobody knows how fast {target.worker} computes")
    path = link(source, target)
    blocks = _new_blocks(asked)
    moved = blocks * target.transfer.block_bytes
    moving_s = worth.overhead_s + rates.moving_s(path, moved, book.link_bytes[path])
    computing_s = blocks * target.block_tokens / speed
    if moving_s * worth.margin > computing_s:
        return Stays("dearer", f"{moving_s:.3f} s to move, {computing_s:.3f} s to compute")
    return Route(source, target, path, moved, blocks, moving_s, computing_s)

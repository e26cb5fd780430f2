"""The workers as the coordinator sees them: who could take which part, and who has room. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.transfer.book import Book
from controlplane.transfer.cost import Rates, Side, prefill_s
from controlplane.transfer.pairing import apart, link, mismatch, serves
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.transfers import End
from proto.workers import Role, WorkerRecord, WorkerState


class Pair(NamedTuple):
    """Two engines that can pass blocks, and what it would take."""

    prefill: WorkerRecord
    decode: WorkerRecord
    link: str
    kv_bytes: int
    blocks: int
    seconds: float | None
    """Queue, prefill and transfer; None where the prefill worker's speed is not known."""


class NoPair(NamedTuple):
    """`reason` is a word for metrics."""

    reason: str
    detail: str


class Want(NamedTuple):
    """What is to be placed."""

    model: str
    prompt_tokens: int
    new_tokens: Mapping[WorkerId, int]
    """What the router's choices would have to compute; all of it, for others."""
    exclude: Collection[WorkerId]
    topology: Sequence[str]

    def to_compute(self, worker: WorkerId) -> int:
        return self.new_tokens.get(worker, self.prompt_tokens)


@dataclass
class Fleet:
    """Records and last load reports, by worker."""

    records: dict[WorkerId, WorkerRecord] = field(default_factory=dict)
    loads: dict[WorkerId, LoadReport] = field(default_factory=dict)

    def left(self, worker: WorkerId) -> None:
        self.records.pop(worker, None)
        self.loads.pop(worker, None)

    def candidates(self, want: Want, role: Role) -> Iterator[WorkerRecord]:
        """Who is ready for a part."""
        for record in self.records.values():
            if (
                record.model == want.model
                and record.state is WorkerState.READY
                and serves(record, role)
                and record.worker not in want.exclude
            ):
                yield record

    def has_place(self, record: WorkerRecord, blocks: int, book: Book) -> bool:
        """Whether a decode worker can take one more, with those that are on their way to it."""
        load = self.loads.get(record.worker)
        running = load.running + load.waiting if load else 0
        used = load.used_blocks if load else 0
        return (
            running + book.reserved[record.worker] < record.max_running
            and used + book.reserved_blocks[record.worker] + blocks <= record.total_blocks
        )

    def pair(
        self, want: Want, decode: WorkerRecord, book: Book, rates: Rates, staged_bytes_max: int
    ) -> Pair | NoPair:
        """The best prefill worker for a decode worker."""
        found: list[Pair] = []
        why = NoPair("no_prefill_worker", f"no prefill worker of {want.model} is ready")
        for prefill in self.candidates(want, Role.PREFILL):
            if prefill.role is not Role.PREFILL:
                continue
            if reason := mismatch(prefill, decode):
                why = NoPair("incompatible", reason)
            elif label := apart(prefill, decode, want.topology):
                why = NoPair("topology", f"none shares the {label} of {decode.worker}")
            elif book.staged_bytes[prefill.worker] >= staged_bytes_max:
                why = NoPair("staged_full", f"{prefill.worker} holds all it may for others")
            else:
                found.append(self._weigh(want, prefill, decode, book, rates))
        if not found:
            return why
        return min(found, key=lambda pair: self._rank(want, pair, book))

    def _weigh(
        self,
        want: Want,
        prefill: WorkerRecord,
        decode: WorkerRecord,
        book: Book,
        rates: Rates,
    ) -> Pair:
        cached_blocks = (want.prompt_tokens - want.to_compute(decode.worker)) // decode.block_tokens
        prompt_blocks = -(-want.prompt_tokens // decode.block_tokens)
        assert decode.transfer is not None
        moved = (prompt_blocks - cached_blocks) * decode.transfer.block_bytes
        path = link(prefill, decode)
        side = Side(prefill.worker, want.to_compute(prefill.worker), self.loads.get(prefill.worker))
        computing_s = prefill_s(side, rates)
        moving_s = rates.moving_s(path, moved, book.link_bytes[path])
        seconds = None if computing_s is None else computing_s + moving_s
        return Pair(prefill, decode, path, moved, prompt_blocks, seconds)

    def _rank(self, want: Want, pair: Pair, book: Book) -> tuple[float, int, int, bool]:
        """What speaks against a pair; where speeds are not known, what waits there decides."""
        load = self.loads.get(pair.prefill.worker)
        queued = load.queued_prefill_tokens if load else 0
        return (
            pair.seconds or 0.0,
            queued + want.to_compute(pair.prefill.worker),
            book.given[pair.prefill.worker],
            pair.prefill.worker not in want.new_tokens,
        )


def end(record: WorkerRecord) -> End:
    """A worker as an end of a movement."""
    return End(record.worker, record.incarnation, record.url, record.engine)

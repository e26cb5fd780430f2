"""Who else holds more of a prompt than the worker that was chosen for it. Pure.

A prompt goes where it costs least, which need not be where its prefix is: the holder may be busy.
Then whoever carries the request is told who has it, and the coordinator says whether moving it
beats computing it again. Guesses do not count here: what is not there cannot be moved.
"""

from __future__ import annotations

import numpy as np

from controlplane.router.fleet import Fleet
from controlplane.router.heat import Hot
from controlplane.router.index import PrefixIndex
from controlplane.router.policies.base import Overlap
from proto.hashing import Words
from proto.route import Elsewhere, RouteRequest
from proto.transfers import Move, Purpose
from proto.workers import WorkerRecord


def elsewhere(
    request: RouteRequest,
    fleet: Fleet,
    row: int,
    overlap: Overlap,
    index: PrefixIndex,
    tokens_min: int,
) -> Elsewhere | None:
    """The worker that holds most of the prompt, if that is `tokens_min` more than who sits in `row`
    holds or is about to hold. `overlap` is by row of the whole fleet."""
    held = int(overlap.held_tokens[row])
    if int(overlap.held_tokens.max()) - held < tokens_min:
        return None
    chosen = fleet.record(row)
    packed = request.blocks.get(chosen.block_tokens)
    if packed is None or not _copies(chosen):
        return None
    names = np.frombuffer(packed, dtype="<u8")
    depths = index.by_worker(index.match(names))
    best, most = None, held // chosen.block_tokens + -(-tokens_min // chosen.block_tokens) - 1
    for worker, blocks in depths.items():
        other = fleet.row(worker)
        if other is None or blocks <= most:
            continue
        record = fleet.record(other)
        if _copies(record) and record.block_tokens == chosen.block_tokens:
            best, most = record, blocks
    if best is None:
        return None
    return Elsewhere(best.worker, int(names[most - 1]), most, most - held // chosen.block_tokens)


def copy_wanted(
    hot: Hot, request: RouteRequest, fleet: Fleet, index: PrefixIndex, names: Words, per_s: float
) -> Move | None:
    """A movement that gives a hot prefix one more holder, if those it has must each answer more
    than `per_s`, and there is somebody else."""
    depths = index.by_worker(index.match(names[: hot.blocks]))
    holders = [worker for worker, blocks in depths.items() if blocks == hot.blocks]
    sources = []
    for worker in holders:
        row = fleet.row(worker)
        if row is not None and _copies(fleet.record(row)):
            sources.append(worker)
    if not sources or hot.per_s < per_s * len(holders) or len(holders) >= len(fleet):
        return None
    return Move(
        request.request,
        request.model,
        Purpose.REPLICATE,
        sources[0],
        hot.tail,
        hot.blocks,
        exclude=tuple(holders),
    )


def _copies(record: WorkerRecord) -> bool:
    return record.transfer is not None and record.transfer.copies

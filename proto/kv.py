"""What a worker's KV cache holds, said as changes, and as a whole when a change was missed.

An agent numbers its batches (incarnation, sequence) from 1 without holes. A reader that sees a
hole, or a block count or digest in a load report that disagrees with its own, asks that agent for
a snapshot and applies what came after it. The agent has already counted references, so to a
reader a worker's cache is a plain set of names and every batch is idempotent.

The set is prefix-closed: an agent names a block only while all blocks before it in its chain are
live too, each in some tier of that worker, because an engine stops a look-up at the first block
that is missing. What a hole cuts off is removed with it, and stored again when the hole is filled.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from proto.ids import WorkerId

SNAPSHOT_CHUNK_BLOCKS = 65_536
"""Blocks in one snapshot reply: 512 KiB, well under NATS's default message limit of 1 MiB."""


class Tier(IntEnum):
    """Where the block lies; a nearer tier is cheaper to use."""

    GPU = 0
    HOST = 1
    DISK = 2


class KvBatch(msgspec.Struct, frozen=True, array_like=True):
    """Net changes of one worker's cache in one tier since the batch before.

    Applied in this order: `cleared` empties the tier, then `removed` leave, then `stored` enter.
    `stored` and `removed` are packed names (see `proto.hashing`) and have none in common.
    """

    worker: WorkerId
    stored: bytes = b""
    removed: bytes = b""
    cleared: bool = False
    tier: Tier = Tier.GPU


class KvSnapshotRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask for a worker's whole set, chunk by chunk.

    The first request has `snapshot` 0; the reply names the snapshot to continue. An agent keeps
    few snapshots and for a short time; one it has forgotten is refused (404): begin again.
    """

    snapshot: int = 0
    chunk: int = 0


class KvSnapshotChunk(msgspec.Struct, frozen=True, array_like=True):
    """One piece of the set as it was after batch `sequence` of `incarnation`.

    Batches up to `sequence` are included; later ones are to be applied on top. Chunks are
    numbered from 0 and `last` ends them.
    """

    worker: WorkerId
    incarnation: int
    sequence: int
    snapshot: int
    chunk: int
    last: bool
    tier: Tier
    names: bytes

"""Which two engines can pass KV blocks to each other, and how near they are. Pure.

Blocks mean the same to both only if both have the same *compatibility key*: engine, version,
connector, KV type, block size, layout, tensor parallelism, model. A decode engine may declare that
it reads blocks of another degree of parallelism. A pair that does not match is refused before
anything is dispatched, never tried (HW9, DG22, EN10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proto.workers import KvTransfer, Role, WorkerRecord

NEAR = ("nvlink_domain", "host", "rack", "zone")
"""Labels from the fastest path to the slowest; who shares none of them is far apart."""
FAR = "far"


class Key(NamedTuple):
    """What must be equal; named as a refusal tells it."""

    model: str
    engine: str
    engine_version: str
    connector: str
    dtype: str
    block_tokens: int
    layout: str
    order: str
    tensor_parallel: int


def key(record: WorkerRecord, transfer: KvTransfer) -> Key:
    """The compatibility key of an engine."""
    return Key(
        record.model,
        record.engine,
        record.engine_version,
        transfer.connector,
        transfer.dtype,
        record.block_tokens,
        transfer.layout,
        transfer.order,
        transfer.tensor_parallel,
    )


def mismatch(prefill: WorkerRecord, decode: WorkerRecord) -> str:
    """Why blocks of one cannot go to the other, "" if they can."""
    if prefill.worker == decode.worker:
        return "they are one worker"
    if prefill.transfer is None or decode.transfer is None:
        silent = prefill if prefill.transfer is None else decode
        return f"{silent.worker} declares no way to move its KV blocks"
    theirs, ours = key(prefill, prefill.transfer), key(decode, decode.transfer)
    if decode.transfer.transforms_parallelism:
        theirs = theirs._replace(tensor_parallel=ours.tensor_parallel)
    differing = [
        f"{name} {there!r} and {here!r}"
        for name, there, here in zip(Key._fields, theirs, ours, strict=True)
        if there != here
    ]
    return f"{prefill.worker} and {decode.worker} differ in {', '.join(differing)}" * bool(
        differing
    )


def serves(record: WorkerRecord, role: Role) -> bool:
    """Whether a worker takes that part; one that does both parts takes either."""
    return record.role in (role, Role.AGGREGATED)


def distance(prefill: WorkerRecord, decode: WorkerRecord) -> str:
    """The nearest label that both share, `FAR` if none."""
    here, there = decode.hardware.topology, prefill.hardware.topology
    return next((each for each in NEAR if here.get(each) and here[each] == there.get(each)), FAR)


def apart(prefill: WorkerRecord, decode: WorkerRecord, labels: Sequence[str]) -> str:
    """The first of `labels` that the two do not share, "" if they share all."""
    here, there = decode.hardware.topology, prefill.hardware.topology
    return next(
        (each for each in labels if not here.get(each) or here[each] != there.get(each)), ""
    )


def link(prefill: WorkerRecord, decode: WorkerRecord) -> str:
    """The path that bytes take between the two: what shares a bottleneck shares a name.

    Within a domain each pair has a path of its own; across hosts the sender's way out is what is
    narrow, whoever receives.
    """
    near = distance(prefill, decode)
    if near in ("nvlink_domain", "host"):
        return f"{near}:{prefill.worker}>{decode.worker}"
    return f"{near}:{prefill.hardware.topology.get('host', prefill.worker)}"

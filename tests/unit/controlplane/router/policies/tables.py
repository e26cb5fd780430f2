"""Tables of candidates for tests, written row by row and in blocks, to be read off."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from controlplane.capacity import Curve
from controlplane.router.policies.base import Candidates, Overlap
from proto.ids import WorkerId

BLOCK_TOKENS = 16
CAPACITY_BLOCKS = 10_000
STEP_TOKENS = 2_048
CURVE = Curve(
    decode_base_ms=30.0, prefill_token_ms=0.05, decode_request_ms=0.2, decode_kv_token_ms=2e-4
)


class Row(NamedTuple):
    """One worker; overlap, queued and decode in blocks, rate in tokens a second."""

    name: str
    overlap: int = 0
    queued: int = 0
    decode: int = 0
    requests: int = 0
    rate: float = 0.0
    curve: Curve | None = CURVE


def table(*rows: Row) -> Candidates:
    numbers = np.array([each[1:5] for each in rows], dtype=np.int64).T
    overlap, queued, decode = numbers[:3] * BLOCK_TOKENS
    curves = [each.curve or [np.nan] * len(CURVE) for each in rows]
    return Candidates(
        workers=[WorkerId(each.name) for each in rows],
        block_tokens=np.full(len(rows), BLOCK_TOKENS),
        overlap=Overlap(overlap, overlap, 0 * overlap, 0 * overlap),
        queued_prefill_tokens=queued,
        decode_tokens=decode,
        requests=numbers[3],
        capacity_tokens=np.full(len(rows), CAPACITY_BLOCKS * BLOCK_TOKENS),
        step_tokens=np.full(len(rows), STEP_TOKENS),
        prefill_rate=np.array([each.rate for each in rows]),
        curves=np.array(curves, dtype=np.float64).T,
    )

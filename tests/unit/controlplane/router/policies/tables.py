"""Tables of candidates for tests, written row by row and in blocks, to be read off."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from controlplane.router.policies.base import Candidates
from proto.ids import WorkerId

BLOCK_TOKENS = 16
CAPACITY_BLOCKS = 10_000


class Row(NamedTuple):
    """One worker; every figure but `requests` in blocks."""

    name: str
    overlap: int
    queued: int
    decode: int
    requests: int


def row(name: str, *, overlap: int = 0, queued: int = 0, decode: int = 0, requests: int = 0) -> Row:
    return Row(name, overlap, queued, decode, requests)


def table(*rows: Row) -> Candidates:
    numbers = np.array([each[1:] for each in rows], dtype=np.int64).T
    overlap, queued, decode = numbers[:3] * BLOCK_TOKENS
    return Candidates(
        workers=[WorkerId(each.name) for each in rows],
        block_tokens=np.full(len(rows), BLOCK_TOKENS),
        cached_tokens=overlap,
        queued_prefill_tokens=queued,
        decode_tokens=decode,
        requests=numbers[3],
        capacity_tokens=np.full(len(rows), CAPACITY_BLOCKS * BLOCK_TOKENS),
    )

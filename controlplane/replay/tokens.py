"""The tokens a trace stands for: 512 for every hash id, the same wherever the id appears.

A trace names its blocks and keeps its users' words to itself. To replay it through anything that
hashes tokens, every id becomes the seed of a SplitMix64 stream (Steele, Lea, Flood, 2014) whose
first 512 outputs, scaled to a vocabulary, are the block. Stateless, so nothing need be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest
from proto.hashing import mix

Tokens = NDArray[np.uint32]

FIRST_TOKEN, LAST_TOKEN = 1_000, 31_999
"""Ordinary words of every vocabulary from 32,000 upwards: low ids are often special."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_STEPS = np.arange(1, TRACE_BLOCK_TOKENS + 1, dtype=np.uint64) * _GAMMA
_SPREAD = np.uint64(LAST_TOKEN - FIRST_TOKEN + 1)
_32 = np.uint64(32)


def expand_blocks(hash_ids: Sequence[int], salt: int = 0) -> Tokens:
    """The tokens of whole blocks; shape `(len(hash_ids), 512)`. Another `salt`, other tokens."""
    seeds = np.array(hash_ids, dtype=np.uint64) ^ mix(np.array([salt], dtype=np.uint64))
    words = mix(mix(seeds)[:, np.newaxis] + _STEPS)
    scaled = ((words >> _32) * _SPREAD) >> _32
    return scaled.astype(np.uint32) + np.uint32(FIRST_TOKEN)


def expand(request: TraceRequest, salt: int = 0) -> Tokens:
    """The prompt of a request; its last block is cut to `input_tokens`."""
    return expand_blocks(request.hash_ids, salt).reshape(-1)[: request.input_tokens]

"""Canonical names of a trace's prompts, without hashing twelve thousand tokens for each.

Blocks recur, and a block size that divides 512 never straddles two ids. So the content of an id's
blocks is hashed once and kept; a prompt's names are its ids' contents, joined, and one prefix sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from controlplane.replay.tokens import expand_blocks
from controlplane.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest
from proto.hashing import BlockHasher, Words

IDS_KEPT = 1 << 20
"""Contents remembered; at a block size of 64 an id takes about 200 bytes."""

_REQUESTS_AT_ONCE = 64


class BadBlockSize(ValueError):
    """The block size does not divide a trace's block."""


def check_block_size(block_tokens: int) -> int:
    """Return `block_tokens` if names can be made for it; raises `BadBlockSize`."""
    if block_tokens < 1 or TRACE_BLOCK_TOKENS % block_tokens:
        raise BadBlockSize(
            f"block size {block_tokens} does not divide {TRACE_BLOCK_TOKENS}, the tokens of a "
            "trace's block; choose a power of two up to 512"
        )
    return block_tokens


class PromptNamer:
    """Names prompts of one scope and block size: `hasher.names(expand(request))`, only sooner."""

    def __init__(self, hasher: BlockHasher) -> None:
        self._hasher = hasher
        self._blocks_per_id = TRACE_BLOCK_TOKENS // check_block_size(hasher.block_tokens)
        self._contents: dict[int, Words] = {}

    def names(self, requests: Sequence[TraceRequest]) -> Iterator[Words]:
        """The names of each request's full blocks, in order."""
        for start in range(0, len(requests), _REQUESTS_AT_ONCE):
            some = requests[start : start + _REQUESTS_AT_ONCE]
            self._learn(some)
            for request in some:
                yield self._names(request)

    def _learn(self, requests: Sequence[TraceRequest]) -> None:
        """Hash the ids not met before, all at once: numpy is slow to start and quick to run."""
        wanted = {i for request in requests for i in request.hash_ids}
        new = sorted(wanted - self._contents.keys())
        if not new:
            return
        contents = self._hasher.contents(expand_blocks(new).reshape(-1))
        self._contents.update(zip(new, contents.reshape(len(new), -1), strict=True))
        self._forget(keep=wanted)

    def _forget(self, keep: set[int]) -> None:
        excess = len(self._contents) - max(IDS_KEPT, len(keep))
        if excess > 0:
            old = list(islice((i for i in self._contents if i not in keep), excess))
            for hash_id in old:
                del self._contents[hash_id]

    def _names(self, request: TraceRequest) -> Words:
        contents = np.concatenate([self._contents[i] for i in request.hash_ids])
        return self._hasher.names_of(contents[: request.input_tokens // self._hasher.block_tokens])

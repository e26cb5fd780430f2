"""Names of KV blocks, made as vLLM makes them: a chain of SHA-256 over parent, tokens and extras.

A name is the whole 256-bit digest as an int; what goes on the wire is its low 64 bits, or its
bytes. The values differ from vLLM's, which hashes pickled Python objects.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

_ROOT = hashlib.sha256(b"workers.sim").digest()
_TOKEN_BYTES = 4


class BlockNamer:
    """Names full blocks of `block_tokens` tokens."""

    def __init__(self, block_tokens: int) -> None:
        assert array("I").itemsize == _TOKEN_BYTES
        self.block_tokens = block_tokens

    def names(self, tokens: Sequence[int], salt: str | None) -> list[int]:
        """Names of all full blocks of a sequence from its beginning.

        The salt goes into the first block, and by the chain into all others.
        """
        data = array("I", tokens).tobytes()
        stride = self.block_tokens * _TOKEN_BYTES
        names = []
        parent, extra = _ROOT, _extra(salt)
        for start in range(0, len(data) - stride + 1, stride):
            parent = hashlib.sha256(parent + data[start : start + stride] + extra).digest()
            names.append(int.from_bytes(parent, "big"))
            extra = b""
        return names

    def name(self, parent: int | None, tokens: Sequence[int], salt: str | None) -> int:
        """Name of the one block that follows `parent`; None: it is the first."""
        before = _ROOT if parent is None else parent.to_bytes(32, "big")
        extra = _extra(salt) if parent is None else b""
        digest = hashlib.sha256(before + array("I", tokens).tobytes() + extra).digest()
        return int.from_bytes(digest, "big")


def _extra(salt: str | None) -> bytes:
    return b"" if salt is None else salt.encode()

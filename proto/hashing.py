"""The canonical block hash: the one name of a KV block that every party agrees on.

A prompt is cut into blocks of `block_tokens` tokens; a trailing partial block has no name. The
name of block k covers the tokens of blocks 0..k, the position of each, the scope and the cluster
secret, in 64 bits. Gateways compute it from token ids, agents from their engine's events, so
routers never see a token and an engine's own hash function never matters.

Construction, for tokens t, 64-bit words a, p, s expanded from the secret, arithmetic mod 2**64:

    content(k) = sum_j a[j] * (t[k, j] + 1)         multilinear in the tokens of block k
    place(k)   = mix(content(k) + p * (k + 1))      salted by position, so order matters
    total(k)   = place(0) + ... + place(k)          one prefix sum over the whole prompt
    name(k)    = mix(total(k) xor s(scope))         a different scope is a different name

`mix` is the finaliser of SplitMix64 (Steele, Lea, Flood, 2014), a bijection. Multilinear hashing
with secret odd multipliers is almost universal (Carter and Wegman, 1979): without the secret no
tenant can construct two prompts whose blocks collide. A chance collision is about one in 2**64
per pair and would cost a wrong estimate, never a wrong answer: the engine compares its own hashes.
The sum needs no chain of dependent steps, so numpy does the whole prompt at once; `ChainPoint`
lets an agent go on from the middle, as engines report suffixes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""A vector of 64-bit words."""

BLOCK_TOKENS_MAX = 1024
HASH_BYTES = 8
MARK_BYTES = 4

# Arrays without dimensions: numpy would make one of each scalar anew, at every operation.
_MIX_1 = np.array(0xBF58476D1CE4E5B9, dtype=np.uint64)
_MIX_2 = np.array(0x94D049BB133111EB, dtype=np.uint64)
_30, _27, _31 = (np.array(bits, dtype=np.uint64) for bits in (30, 27, 31))

SALTS_MIN = 1_024
SALTS_KEPT = 32
"""Runs of position salts, one for each secret, block size and power of two of blocks."""


class Scope(msgspec.Struct, frozen=True):
    """What must be equal, beside the tokens, for two KV blocks to be the same block.

    `tenant` is the salt a tenant's requests carry ("" = shared by all); `adapter` names a LoRA;
    `media` stands for images and the like, in order.
    """

    model: str
    adapter: str = ""
    tenant: str = ""
    media: tuple[str, ...] = ()


class ChainPoint(msgspec.Struct, frozen=True):
    """A place in a chain of blocks: how many blocks came before, and the running total."""

    blocks: int
    total: int


CHAIN_START = ChainPoint(0, 0)


class BlockHasher:
    """Names blocks of one scope and one block size."""

    def __init__(self, secret: bytes, scope: Scope, block_tokens: int) -> None:
        if not 1 <= block_tokens <= BLOCK_TOKENS_MAX:
            raise ValueError(f"block size {block_tokens} is not in 1..{BLOCK_TOKENS_MAX} tokens")
        self.scope = scope
        self.block_tokens = block_tokens
        # The tokens' multipliers depend on the block size: equal text in blocks of 16 and of 32
        # must not share a name, as one flat index serves all block sizes.
        words = _expand(secret, f"tokens:{block_tokens}".encode(), block_tokens + 1)
        self._multipliers = words[:block_tokens] | np.uint64(1)
        self._offset = np.uint64(int(self._multipliers.sum(dtype=np.uint64)))
        self._position_salt = int(words[block_tokens]) | 1
        self._scope_salt = _expand(secret, msgspec.msgpack.encode(scope), 1).reshape(())

    def names(self, tokens: Sequence[int] | NDArray[np.uint32]) -> Words:
        """Names of the full blocks of a prompt; shape `(len(tokens) // block_tokens,)`."""
        return self.names_of(self.contents(tokens))

    def extend(
        self, start: ChainPoint, tokens: Sequence[int] | NDArray[np.uint32]
    ) -> tuple[Words, list[ChainPoint]]:
        """Names of the full blocks in `tokens` that follow `start`, and the point after each."""
        totals = self._totals(start, self.contents(tokens))
        points = [
            ChainPoint(start.blocks + i + 1, total) for i, total in enumerate(totals.tolist())
        ]
        return self._finish(totals), points

    def contents(self, tokens: Sequence[int] | NDArray[np.uint32]) -> Words:
        """content(k) of the full blocks in `tokens`: no position, no chain, no scope in it yet.

        Text that recurs can be read once and named many times: `names(tokens)` is
        `names_of(contents(tokens))`, and contents of whole blocks may be joined in any order.
        """
        words = _as_words(tokens)
        blocks = len(words) // self.block_tokens
        if blocks == 0:
            return np.empty(0, dtype=np.uint64)
        grid = words[: blocks * self.block_tokens].reshape(blocks, self.block_tokens)
        contents: Words = np.einsum("bt,t->b", grid.astype(np.uint64), self._multipliers)
        contents += self._offset
        return contents

    def names_of(self, contents: Words) -> Words:
        """Names of a prompt's blocks, given the contents of all of them from the first on."""
        return self._finish(self._totals(CHAIN_START, contents))

    def _totals(self, start: ChainPoint, contents: Words) -> Words:
        end = start.blocks + len(contents)
        places = contents + _salts(self._position_salt, _room(end))[start.blocks : end]
        _mix_in_place(places)
        totals: Words = np.add.accumulate(places)
        if start.total:
            totals += np.uint64(start.total)
        return totals

    def _finish(self, totals: Words) -> Words:
        names = totals ^ self._scope_salt
        _mix_in_place(names)
        return names


def pack(names: Words) -> bytes:
    """Names as they travel: little-endian, `HASH_BYTES` each."""
    return names.astype("<u8", copy=False).tobytes()


def unpack(data: bytes) -> list[int]:
    """Names from the wire as Python ints; the length must be a multiple of `HASH_BYTES`."""
    if len(data) % HASH_BYTES:
        raise ValueError(f"{len(data)} bytes are not a whole number of {HASH_BYTES}-byte names")
    names: list[int] = np.frombuffer(data, dtype="<u8").tolist()
    return names


def digest(names: Sequence[int]) -> int:
    """An order-free digest of a set of names: their exclusive or. Updated in O(1) a change."""
    value = 0
    for name in names:
        value ^= name
    return value


def secret_mark(secret: bytes) -> str:
    """Says whether two processes have the same cluster secret, and of the secret almost nothing:
    it is too short to confirm a guess of a long random one."""
    return _expand(secret, b"mark", 1).tobytes()[:MARK_BYTES].hex()


def mix(words: Words) -> Words:
    """The finaliser of SplitMix64, word by word: every input bit moves every output bit."""
    mixed = words.copy()
    _mix_in_place(mixed)
    return mixed


def _mix_in_place(words: Words) -> None:
    """`mix`, of words that nobody needs any longer as they were."""
    shifted = np.right_shift(words, _30)
    np.bitwise_xor(words, shifted, words)
    np.multiply(words, _MIX_1, words)
    np.right_shift(words, _27, shifted)
    np.bitwise_xor(words, shifted, words)
    np.multiply(words, _MIX_2, words)
    np.right_shift(words, _31, shifted)
    np.bitwise_xor(words, shifted, words)


@lru_cache(maxsize=SALTS_KEPT)
def _salts(position_salt: int, blocks: int) -> Words:
    """What is added to the content of each of so many blocks, from the first one on."""
    return np.arange(1, blocks + 1, dtype=np.uint64) * np.uint64(position_salt)


def _room(blocks: int) -> int:
    """The next power of two, so that few runs of salts serve prompts of all lengths."""
    return max(SALTS_MIN, 1 << (blocks - 1).bit_length())


def _as_words(tokens: Sequence[int] | NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Token ids as 32-bit words. `array` converts a list three times as fast as numpy does."""
    if isinstance(tokens, np.ndarray):
        return tokens.astype(np.uint32, copy=False)
    try:
        return np.frombuffer(array("I", tokens), dtype=np.uint32)
    except (OverflowError, TypeError) as error:
        raise ValueError("token ids are whole numbers from 0 to 2**32 - 1") from error


def _expand(secret: bytes, purpose: bytes, words: int) -> Words:
    """`words` pseudo-random words for one purpose, from BLAKE2b keyed by the secret."""
    key = hashlib.blake2b(secret, digest_size=32).digest()
    chunks = [
        hashlib.blake2b(purpose + counter.to_bytes(4, "little"), key=key, digest_size=64).digest()
        for counter in range((words * HASH_BYTES + 63) // 64)
    ]
    return np.frombuffer(b"".join(chunks), dtype="<u8")[:words].astype(np.uint64)

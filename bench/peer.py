"""The peer: what NVIDIA's `ai-dynamo-runtime` offers Python programs, and how it wants its words.

It lives in an environment of its own (`make bench` builds it), where this project is installed,
too, so that both sides run in one process. Nothing else imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

from proto.hashing import Words

WHO = "NVIDIA Dynamo (ai-dynamo-runtime 1.6.1)"
HOW_TO_GET_IT = "the peer is not in this environment: `make bench` builds one that has it"
PIECE_BLOCKS = 64
"""In one event, where the size of events does not matter."""


class HashBlocks(Protocol):
    """`compute_block_hash_for_seq`: one hash a block, of that block's tokens alone."""

    def __call__(self, tokens: Sequence[int], kv_block_size: int) -> list[int]: ...


class Scores(Protocol):
    """Leading blocks held, by (worker, data-parallel rank)."""

    @property
    def scores(self) -> Mapping[tuple[int, int], int]: ...


class RadixTree(Protocol):
    """The peer's index. Asked with hashes of blocks' tokens, told of engines' hashes as well."""

    def apply_event(self, worker_id: int, kv_cache_event_bytes: bytes) -> None: ...

    def find_matches(self, sequence: Sequence[int], early_exit: bool = False) -> Scores: ...


def installed() -> bool:
    """Whether the peer can be imported here."""
    return importlib.util.find_spec("dynamo") is not None


def hash_blocks() -> HashBlocks:
    """The peer's function from tokens to hashes."""
    return cast(HashBlocks, importlib.import_module("dynamo.llm").compute_block_hash_for_seq)


def radix_tree() -> RadixTree:
    """A new, empty index of the peer."""
    return cast(RadixTree, importlib.import_module("dynamo.llm").RadixTree())


class PeerIndex:
    """The peer's index behind the same few words as ours."""

    def __init__(self) -> None:
        self.apply = (tree := radix_tree()).apply_event
        self._tree = tree

    def hold(self, worker: int, names: Words) -> None:
        """The worker holds these blocks, one chain."""
        for event in stored_in_pieces(names.tolist(), PIECE_BLOCKS):
            self.apply(worker, event)

    @staticmethod
    def question(names: Words) -> list[int]:
        """A prompt as the peer wants it."""
        hashes: list[int] = names.tolist()
        return hashes

    def match(self, question: list[int]) -> Mapping[tuple[int, int], int]:
        """Who holds how much of a prompt."""
        return self._tree.find_matches(question).scores

    def depths(self, names: Words) -> dict[int, int]:
        """`match`, for comparison: leading blocks held, by the worker's number."""
        return {worker: depth for (worker, _), depth in self.match(self.question(names)).items()}


def stored(names: Sequence[int], parent: int | None, event: int) -> bytes:
    """An event as the peer reads it. The same number serves as the engine's hash of a block and
    as the hash of its tokens: the peer keeps them apart."""
    blocks = ",".join(f'{{"block_hash":{name},"tokens_hash":{name}}}' for name in names)
    before = "null" if parent is None else parent
    what = f'{{"stored":{{"parent_hash":{before},"blocks":[{blocks}]}}}}'
    return f'{{"event_id":{event},"data":{what}}}'.encode()


def removed(names: Sequence[int], event: int) -> bytes:
    """An event as the peer reads it."""
    what = f'{{"removed":{{"block_hashes":[{",".join(map(str, names))}]}}}}'
    return f'{{"event_id":{event},"data":{what}}}'.encode()


def stored_in_pieces(names: Sequence[int], piece_blocks: int) -> Iterator[bytes]:
    """A chain, a few blocks an event, each piece under the one before."""
    parent = None
    for event, start in enumerate(range(0, len(names), piece_blocks)):
        piece = names[start : start + piece_blocks]
        yield stored(piece, parent, event)
        parent = piece[-1]

"""KV blocks on the wire: real bytes that prove whose they are.

A block's bytes are made from its name: a stretch of one fixed pattern, that begins where the name
says. So a sender has them at the cost of a copy, and a receiver can tell, from the bytes alone,
whether it got the block that it asked for, another one, or half of each.

    question   u32 length, JSON
    answer     u32 length, JSON; if that is good, as many blocks as it says:
    block      name (32 bytes), sum of the words of its bytes (u64), spare (u64), its bytes
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
T = TypeVar("T")

NAME_WORDS, HEAD_WORDS = 4, 6
BATCH_BYTES = 1 << 20
PARTS_MAX = 512
"""That a system call may take."""
MESSAGE_BYTES_MAX = 8 << 20
_OFFSETS = 4096
_LENGTH = struct.Struct("<I")
_TIMEVAL = struct.Struct("@ll")


class BrokenTransfer(Exception):
    """The bytes did not come, or are not those that were asked for."""


class Question(msgspec.Struct, omit_defaults=True):
    """What one engine asks of another."""

    op: str
    """`read`, `done`, `alive`; `describe`: of what the blocks were made."""
    request_id: str = ""
    engine_id: str = ""
    pages: list[int] | None = None
    room: int | None = None
    """Where both legs run at once: whatever is staged for this room, once it is."""
    skip: int = 0
    """Pages that the reader has already, from the first one."""


class Answer(msgspec.Struct, omit_defaults=True):
    """What comes before the blocks, or instead of them."""

    ok: bool
    error: str = ""
    blocks: int = 0
    block_bytes: int = 0
    request_id: str = ""
    tokens: list[int] | None = None
    """To `describe`: of all blocks, the first one first."""
    cache_salt: str | None = None


class Content:
    """The bytes of blocks of one size."""

    def __init__(self, block_bytes: int) -> None:
        assert block_bytes > 0 and block_bytes % 8 == 0, "whole words"
        self.block_bytes = block_bytes
        self.words = block_bytes // 8
        rng = np.random.default_rng(0x5EED)
        self._pattern: Words = rng.integers(0, 1 << 63, size=self.words + _OFFSETS, dtype=np.uint64)
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(self._pattern)])
        self._sums: Words = running[self.words :] - running[: -self.words]
        self.batch_blocks = max(1, BATCH_BYTES // (block_bytes + HEAD_WORDS * 8))

    def buffer(self) -> Words:
        """Room for a batch of blocks."""
        return np.empty((self.batch_blocks, HEAD_WORDS + self.words), np.uint64)

    def parts(self, name: int) -> tuple[memoryview, memoryview]:
        """A block's head and its bytes, which are lent and not copied."""
        start = name % _OFFSETS
        body = self._pattern[start : start + self.words]
        return self._heads([name]).data.cast("B"), body.data.cast("B")

    def check(self, names: Sequence[int], got: Words) -> None:
        """Raises `BrokenTransfer` unless the rows are these blocks, whole."""
        self.check_sums(names, got[:, :HEAD_WORDS], sums_of(got[:, HEAD_WORDS:]))

    def check_sums(self, names: Sequence[int], heads: Words, sums: Words) -> None:
        """The same where only the sums of the bytes are left."""
        expected = self._heads(names)
        wrong = (heads != expected).any(axis=1) | (sums != expected[:, NAME_WORDS])
        if wrong.any():
            raise BrokenTransfer(f"block {int(wrong.argmax())} of a batch is not what it should be")

    def _heads(self, names: Sequence[int]) -> Words:
        told = b"".join(name.to_bytes(NAME_WORDS * 8, "little") for name in names)
        heads: Words = np.zeros((len(names), HEAD_WORDS), np.uint64)
        heads[:, :NAME_WORDS] = np.frombuffer(told, np.uint64).reshape(-1, NAME_WORDS)
        heads[:, NAME_WORDS] = self._sums[[name % _OFFSETS for name in names]]
        return heads


def sums_of(rows: Words) -> Words:
    """The sum of the words of each row, of which the highest bits are dropped."""
    sums: Words = np.add.reduce(rows, axis=1, dtype=np.uint64)
    return sums


def send(connection: socket.socket, parts: list[memoryview]) -> None:
    """All of these, one after the other, without joining them first."""
    while parts:
        sent = connection.sendmsg(parts[:PARTS_MAX])
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if sent:
            parts[0] = parts[0][sent:]


def pack(message: Question | Answer) -> bytes:
    """A message with its length."""
    body = msgspec.json.encode(message)
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Of the message that follows. Raises `BrokenTransfer`."""
    (length,) = _LENGTH.unpack(head)
    if length > MESSAGE_BYTES_MAX:
        raise BrokenTransfer(f"a message of {length} bytes")
    return int(length)


def receive(connection: socket.socket, type: type[T]) -> T:
    """The next message of a blocking socket. Raises `BrokenTransfer`, `OSError`."""
    body = exactly(connection, length_of(exactly(connection, _LENGTH.size)))
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.DecodeError as error:
        raise BrokenTransfer(f"not what is spoken here: {error}") from error


def exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = bytearray(size)
    fill(connection, memoryview(data))
    return bytes(data)


def patient(connection: socket.socket, silence_s: float) -> None:
    """Let the kernel wait, for so long and no longer. Python's own timeouts wake up for every
    piece that comes, which costs a third of what a transfer takes."""
    limit = _TIMEVAL.pack(int(silence_s), int(silence_s % 1 * 1_000_000))
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def fill(connection: socket.socket, view: memoryview) -> None:
    """Fill all of it. Raises `BrokenTransfer` if the other side ends before."""
    while len(view):
        got = connection.recv_into(view, 0, socket.MSG_WAITALL)
        if not got:
            raise BrokenTransfer("the other engine hung up")
        view = view[got:]

"""Fetches blocks from another engine, on a thread, and checks every one of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from workers.sim.kvframes import (
    BATCH_BYTES,
    HEAD_WORDS,
    Answer,
    BrokenTransfer,
    Content,
    Question,
    Words,
    fill,
    pack,
    patient,
    receive,
    sums_of,
)

CONNECT_S = 3.0
SILENCE_S = 20.0


class KvReader:
    """One read. `abort` may be called from any thread."""

    def __init__(self, address: tuple[str, int], content: Content, silence_s: float = SILENCE_S):
        self._address = address
        self._content = content
        self._silence_s = silence_s
        self._scratch: Words = np.empty((1, BATCH_BYTES // 8), np.uint64)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    def abort(self) -> None:
        """Give up: a read under way fails at once."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def read(self, asked: Question, names: Sequence[int]) -> int:
        """Fetch these blocks, tell the other engine that it may let them go, and return how many
        bytes it was. Raises `BrokenTransfer`: nothing of it may be used."""
        try:
            with socket.create_connection(self._address, CONNECT_S) as connection:
                with self._lock:
                    if self._aborted:
                        raise BrokenTransfer("given up")
                    self._socket = connection
                patient(connection, self._silence_s)
                connection.sendall(pack(asked))
                answer = receive(connection, Answer)
                self._check(answer, names)
                self._blocks(connection, names)
                done = Question("done", answer.request_id, asked.engine_id)
                connection.sendall(pack(done))
                receive(connection, Answer)
        except OSError as error:
            raise BrokenTransfer(f"{self._address[0]}:{self._address[1]}: {error}") from error
        finally:
            with self._lock:
                self._socket = None
        return len(names) * self._content.block_bytes

    def _check(self, answer: Answer, names: Sequence[int]) -> None:
        if not answer.ok:
            raise BrokenTransfer(answer.error)
        if answer.block_bytes != self._content.block_bytes:
            raise BrokenTransfer(
                f"its blocks have {answer.block_bytes} bytes, ours {self._content.block_bytes}"
            )
        if answer.blocks != len(names):
            raise BrokenTransfer(f"it has {answer.blocks} blocks, not {len(names)}")

    def _blocks(self, connection: socket.socket, names: Sequence[int]) -> None:
        content = self._content
        if content.batch_blocks == 1:
            for name in names:
                self._large(connection, name)
            return
        buffer: Words = content.buffer()
        for start in range(0, len(names), content.batch_blocks):
            wanted = names[start : start + content.batch_blocks]
            rows = buffer[: len(wanted)]
            fill(connection, rows.data.cast("B"))
            content.check(wanted, rows)

    def _large(self, connection: socket.socket, name: int) -> None:
        """A block that is summed up piece by piece, while each is still near the processor."""
        head: Words = np.empty((1, HEAD_WORDS), np.uint64)
        fill(connection, head.data.cast("B"))
        left = self._content.words
        sums: Words = np.zeros(1, np.uint64)
        while left:
            piece = self._scratch[:, : min(left, self._scratch.shape[1])]
            fill(connection, piece.data.cast("B"))
            sums += sums_of(piece)
            left -= piece.shape[1]
        self._content.check_sums([name], head, sums)

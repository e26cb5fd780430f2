"""Gives staged blocks to other engines, over TCP, on threads of its own.

Sending copies bytes for as long as it takes; on the loop that steps the engine it would hold up
every stream. Threads do it, and numpy and sockets let go of the interpreter while they copy. What
is staged is shared with the loop under one lock, held for moments.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

from workers.sim.kvframes import (
    Answer,
    BrokenTransfer,
    Content,
    Question,
    pack,
    patient,
    receive,
    send,
)
from workers.sim.library import Chain
from workers.sim.staging import NotStaged, Staging

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
SILENCE_S = 20.0


class KvServer:
    """Listens from its making on. `engine_id` is another in every life of an engine."""

    def __init__(
        self,
        address: tuple[str, int],
        engine_id: str,
        content: Content,
        staging: Staging,
        *,
        bytes_per_s: float | None = None,
        on_done: Callable[[str], None],
    ) -> None:
        self._engine_id = engine_id
        self._content = content
        self._staging = staging
        self._bytes_per_s = bytes_per_s
        self._on_done = on_done
        self._changed = threading.Condition()
        self._rooms: dict[int, str] = {}
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._listener = socket.create_server(address, backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.sent_bytes = 0
        self._closing = False
        threading.Thread(target=self._accept, name="kv-accept", daemon=True).start()

    def close(self) -> None:
        """Listen no more; who is being served may see the connection break."""
        self._closing = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the listener was not connected to anything")
        self._listener.close()

    # --- for the engine's loop

    def stage(
        self, id: str, names: list[int], room: int | None, made_from: Chain | None = None
    ) -> list[int]:
        """Keep blocks under a lease; returns their pages."""
        with self._changed:
            pages = self._staging.stage(id, names, time.monotonic(), made_from)
            if room is not None:
                self._rooms[room] = id
                self._changed.notify_all()
            return pages

    def release(self, id: str) -> bool:
        """Free what is kept for a request."""
        with self._changed:
            self._rooms = {room: other for room, other in self._rooms.items() if other != id}
            return self._staging.release(id)

    def expire(self) -> list[str]:
        """Free what nobody has fetched in time; returns for which requests it was."""
        with self._changed:
            expired = self._staging.expired(time.monotonic())
            for id in expired:
                self._staging.release(id)
            self._staging.expiries += len(expired)
            return expired

    # --- on threads

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                patient(connection, SILENCE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    self._answer(connection, receive(connection, Question))
        except (OSError, BrokenTransfer) as error:
            log.debug("a reader is gone: %s", error)
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket, asked: Question) -> None:
        if asked.engine_id and asked.engine_id != self._engine_id:
            connection.sendall(pack(Answer(False, "these blocks were of an earlier life")))
            return
        if asked.op == "read":
            self._read(connection, asked)
            return
        if asked.op == "describe":
            connection.sendall(pack(self._describe(asked)))
            return
        with self._changed:
            if asked.op == "alive":
                known = self._staging.extend(asked.request_id, time.monotonic())
            else:
                known = self._staging.release(asked.request_id)
        if known and asked.op == "done":
            self._on_done(asked.request_id)
        connection.sendall(pack(Answer(known)))

    def _describe(self, asked: Question) -> Answer:
        try:
            with self._changed:
                chain = self._staging.made_from(asked.request_id, time.monotonic())
        except NotStaged as error:
            return Answer(False, str(error))
        if chain is None:
            return Answer(False, "these blocks belong to a request")
        return Answer(
            True,
            blocks=len(chain.names),
            block_bytes=self._content.block_bytes,
            request_id=asked.request_id,
            tokens=list(chain.tokens),
            cache_salt=chain.cache_salt,
        )

    def _read(self, connection: socket.socket, asked: Question) -> None:
        try:
            with self._changed:
                id = self._wait_for(asked)
                now_s = time.monotonic()
                pages = asked.pages
                if pages is None:
                    pages = self._staging.pages_of(id, now_s)[asked.skip :]
                self._staging.read(id, pages, now_s)
                self._staging.begin_read(id, now_s)
        except NotStaged as error:
            connection.sendall(pack(Answer(False, str(error))))
            return
        try:
            size = self._content.block_bytes
            connection.sendall(pack(Answer(True, "", len(pages), size, id)))
            self._send(connection, id, pages)
        finally:
            with self._changed:
                self._staging.end_read(id, time.monotonic())

    def _wait_for(self, asked: Question) -> str:
        """The request that is meant; that of a room, once there is one."""
        if asked.room is None:
            return asked.request_id
        room = asked.room
        if not self._changed.wait_for(lambda: room in self._rooms, SILENCE_S):
            raise NotStaged(f"nothing was staged for room {room} in time")
        return self._rooms[room]

    def _send(self, connection: socket.socket, id: str, pages: list[int]) -> None:
        began_s, sent = time.monotonic(), 0
        for start in range(0, len(pages), self._content.batch_blocks):
            batch = pages[start : start + self._content.batch_blocks]
            with self._changed:
                names = self._staging.read(id, batch, time.monotonic())
            send(connection, [part for name in names for part in self._content.parts(name)])
            sent += len(batch) * self._content.block_bytes
            self.sent_bytes += len(batch) * self._content.block_bytes
            if self._bytes_per_s:
                ahead_s = began_s + sent / self._bytes_per_s - time.monotonic()
                if ahead_s > 0:
                    time.sleep(ahead_s)

"""A port of loopback that leads to another one, and what can happen on the way between."""

from __future__ import annotations

import logging
import socket
import struct
from enum import StrEnum

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
SLOW_S = 0.2
READ_BYTES = 65_536
UNDER_WAY = 64
"""Reads that may be on their way in one direction; then who sends has to wait."""
WITHOUT_GOODBYE = struct.pack("ii", 1, 0)
GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
Read = tuple[float, bytes]
"""When it is to arrive, and what."""


class Trouble(StrEnum):
    """What may be wrong with a link."""

    SLOW = "slow"
    """`SLOW_S` each way."""
    HELD = "held"
    """Nothing comes through either way, and nobody is told: a partition."""
    DEAF = "deaf"
    """What is said to the far end arrives, and what it says does not."""
    CUT = "cut"
    """Connections are reset, and new ones too."""


class Link:
    """Connections to `port` go on to `target`."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.trouble: Trouble | None = None
        self._changed = anyio.Event()
        self._open: set[anyio.CancelScope] = set()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Until cancelled."""
        listener = await anyio.create_tcp_listener(local_host=LOOPBACK, local_port=self.port)
        async with listener:
            task_status.started()
            await listener.serve(self._connected)

    def be(self, trouble: Trouble | None) -> None:
        """From now on it is like this; None: as it should be."""
        self.trouble = trouble
        self._changed.set()
        self._changed = anyio.Event()
        if trouble is Trouble.CUT:
            for connection in self._open:
                connection.cancel()

    async def _connected(self, near: SocketStream) -> None:
        try:
            async with near:
                if self.trouble is Trouble.CUT:
                    _say_no_goodbye(near)
                    return
                async with await anyio.connect_tcp(LOOPBACK, self.target) as far:
                    await self._carry(near, far)
        except* GONE as gone:
            log.debug("a connection to %d has ended: %s", self.target, gone.exceptions[0])

    async def _carry(self, near: SocketStream, far: SocketStream) -> None:
        """Both directions of a connection, until both have ended or it breaks."""
        with anyio.CancelScope() as connection:
            self._open.add(connection)
            try:
                async with anyio.create_task_group() as tasks:
                    for come, go, back in ((near, far, False), (far, near, True)):
                        sends, arrivals = anyio.create_memory_object_stream[Read](UNDER_WAY)
                        tasks.start_soon(self._take, come, sends)
                        tasks.start_soon(self._bring, go, arrivals, back)
            finally:
                self._open.discard(connection)
        if connection.cancelled_caught:
            _say_no_goodbye(near)
            _say_no_goodbye(far)

    async def _take(self, come: SocketStream, sends: MemoryObjectSendStream[Read]) -> None:
        async with sends:
            try:
                while True:
                    data = await come.receive(READ_BYTES)
                    late_s = SLOW_S if self.trouble is Trouble.SLOW else 0.0
                    await sends.send((anyio.current_time() + late_s, data))
            except anyio.EndOfStream:
                return

    async def _bring(
        self, go: SocketStream, arrivals: MemoryObjectReceiveStream[Read], back: bool
    ) -> None:
        async with arrivals:
            async for due_s, data in arrivals:
                await anyio.sleep_until(due_s)
                await self._until_open(back=back)
                await go.send(data)
            await self._until_open(back=back)
            try:
                await go.send_eof()
            except RuntimeError as error:  # uvloop's word for a connection that is gone
                raise anyio.BrokenResourceError from error

    async def _until_open(self, *, back: bool) -> None:
        while self.trouble is Trouble.HELD or (back and self.trouble is Trouble.DEAF):
            await self._changed.wait()


def _say_no_goodbye(stream: SocketStream) -> None:
    """When it is closed the other end sees a reset."""
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, WITHOUT_GOODBYE)

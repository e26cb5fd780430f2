"""Who looks: one bounded mailbox a page. A page that does not keep up misses frames, never words
that it cannot do without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

WAITING_MAX = 8


class Full(Exception):
    """As many pages look as may."""


class Audience:
    """Mailboxes of encoded events."""

    def __init__(self, pages_max: int) -> None:
        self._pages_max = pages_max
        self._boxes: list[MemoryObjectSendStream[bytes]] = []

    def __len__(self) -> int:
        return len(self._boxes)

    @contextmanager
    def seat(self) -> Iterator[MemoryObjectReceiveStream[bytes]]:
        """A mailbox, for as long as the context is open; it ends when the page has missed what it
        cannot do without. Raises `Full`."""
        if len(self._boxes) >= self._pages_max:
            raise Full
        box, mail = anyio.create_memory_object_stream[bytes](WAITING_MAX)
        self._boxes.append(box)
        try:
            with mail:
                yield mail
        finally:
            if box in self._boxes:
                self._boxes.remove(box)
            box.close()

    def tell(self, event: bytes, *, vital: bool) -> None:
        """To everyone; never waits. Who is behind misses what is not vital, and is sent home to
        begin anew if it is."""
        for box in tuple(self._boxes):
            try:
                box.send_nowait(event)
            except anyio.WouldBlock:
                if vital:
                    self._leave(box)
            except anyio.BrokenResourceError:
                self._leave(box)

    def _leave(self, box: MemoryObjectSendStream[bytes]) -> None:
        self._boxes.remove(box)
        box.close()

    def dismiss(self) -> None:
        """Everyone goes home."""
        for box in self._boxes:
            box.close()
        self._boxes.clear()

"""An engine's ZeroMQ sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class FrameStream(Protocol):
    """Multipart messages of one ZeroMQ SUB socket, in order; `dropped` as in `Subscription`."""

    @property
    def dropped(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[Sequence[bytes]]: ...


class Frames(Protocol):
    """ZeroMQ as engines speak it: a PUB socket to follow, a ROUTER socket to ask for replay."""

    def subscribe(
        self, endpoint: str, *, queue_messages: int = 65_536
    ) -> AbstractAsyncContextManager[FrameStream]:
        """Follow a PUB socket; reconnects by itself for as long as the context is open."""

    def ask(
        self, endpoint: str, request: Sequence[bytes], *, silence_s: float
    ) -> AsyncIterator[Sequence[bytes]]:
        """Send to a ROUTER socket as a DEALER and yield the replies until the caller stops;
        raises `FramesError` after `silence_s` without one."""

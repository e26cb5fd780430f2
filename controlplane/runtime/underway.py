"""What has been begun and is not over yet, and the wait until nothing is."""

from __future__ import annotations

import anyio


class Underway:
    """A count; also a context in which one thing more is under way."""

    def __init__(self) -> None:
        self.count = 0
        self._none = anyio.Event()

    def begin(self) -> None:
        """One more."""
        self.count += 1

    def end(self) -> None:
        """One less, however it ended."""
        self.count -= 1
        if not self.count:
            self._none.set()

    async def none(self) -> None:
        """Until nothing is; the caller sets the deadline."""
        while self.count:
            self._none = anyio.Event()
            await self._none.wait()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *failure: object) -> None:
        self.end()

"""How late an event loop comes to what is due: the wait that every task of a process shares."""

from __future__ import annotations

from collections.abc import Callable

import anyio

EVERY_S = 0.05


async def watch_loop(observe: Callable[[float], None]) -> None:
    """Tell, again and again until cancelled, by how many seconds this task woke too late."""
    while True:
        due_s = anyio.current_time() + EVERY_S
        await anyio.sleep_until(due_s)
        observe(max(0.0, anyio.current_time() - due_s))

"""Event loops for tests of services: real time on asyncio, virtual time on trio."""

from __future__ import annotations

import trio.testing

VIRTUAL = ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})
"""Sleeping takes no time: when every task waits, the clock jumps to the next deadline."""

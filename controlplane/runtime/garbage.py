"""Garbage collection in short pauses: a service must not stand still for its whole memory.

Python's collector looks at all that lives whenever enough is new; with a router's hundreds of
thousands of objects that takes tens of milliseconds in which nothing is answered. Nearly all of
those live for ever or die by reference count. So every second what is new is collected, and
what has survived is *frozen*: no later collection looks at it. The price: a cycle that becomes
garbage after it was frozen is never found. We make few, and none that grow with traffic.
"""

from __future__ import annotations

import gc

import anyio

EVERY_S = 1.0
YOUNG_OBJECTS = 10_000
NEVER = 1_000_000


async def collect_in_short_pauses() -> None:
    """Take over garbage collection until cancelled."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, before[1], NEVER)
    try:
        while True:
            gc.collect()
            gc.freeze()
            await anyio.sleep(EVERY_S)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

"""The time of day, as services reckon with it."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady_clock(
    wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Seconds since the epoch: the wall clock is read now, and never again.

    So deadlines, rates and what is too old stay as they are when somebody sets the clock.
    """
    began_s = wall() - elapsed()
    return lambda: began_s + elapsed()

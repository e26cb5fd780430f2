"""Lets a test set the wall clock of one Python process, which imports this when it starts.

What is in the file that TOKENPLANE_CLOCK names is added to `time.time`, in seconds. gRPC makes
deadlines of it for a library in C, which asks the machine what time it is; so gRPC is told that.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

LOOK_S = 0.1

_told = os.environ.get("TOKENPLANE_CLOCK")
_wall = time.time


class _Set:
    """A clock that is looked after by somebody else."""

    def __init__(self, told: Path) -> None:
        self._told = told
        self._looked_s = -LOOK_S
        self._off_s = 0.0

    def __call__(self) -> float:
        if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
            return _wall()
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            try:
                self._off_s = float(self._told.read_text() or 0)
            except FileNotFoundError:
                self._off_s = 0.0
        return _wall() + self._off_s


if _told:
    time.time = _Set(Path(_told))

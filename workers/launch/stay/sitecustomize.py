"""Keeps a Python program on the cores that it was started on: put this directory on PYTHONPATH.

On a CPU, vLLM's NIXL connector moves its worker to the last core of the machine, whatever it was
given, and its progress thread spins there; so two engines on one machine share that core, and halt
each other for seconds, while the others are idle.
"""

import os
from collections.abc import Iterable


def _stay(pid: int, cores: Iterable[int], /) -> None:
    """Instead of `os.sched_setaffinity`."""


os.sched_setaffinity = _stay

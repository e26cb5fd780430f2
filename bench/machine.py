"""What was measured on: a figure without its machine says little."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.rows import Row, row

CPU_INFO = Path("/proc/cpuinfo")
THREADS = Path("/proc/self/task")


def machine() -> Row:
    """The first row of every benchmark: processor, Python, system, how busy others kept it at the
    beginning (the load average of a minute), and cores."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release()}"
    busy = f"load {os.getloadavg()[0]:.1f}"
    return row(f"machine: {processor()}, {python}, {system}, {busy}", "cores", cores())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@contextmanager
def one_core() -> Iterator[None]:
    """Keep every thread of this process on one core.

    A library that hands each call to a thread of its own pays for waking another core, if that is
    idle: 40 to 80 us on a virtual machine. On one core, as on a busy machine, it does not.
    """
    everywhere = os.sched_getaffinity(0)
    try:
        _allow({min(everywhere)})
        yield
    finally:
        _allow(everywhere)


def _allow(cores: set[int]) -> None:
    for thread in THREADS.iterdir():
        os.sched_setaffinity(int(thread.name), cores)

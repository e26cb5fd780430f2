"""What was measured on: a figure without its machine says little."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bench.rows import Row, row

CPU_INFO = Path("/proc/cpuinfo")


def machine() -> Row:
    """The first row of every benchmark: processor, cores, Python and system."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release()}"
    return row(f"machine: {processor()}, {python}, {system}", "cores", cores())


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

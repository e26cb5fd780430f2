"""What is done to a cluster, drawn by seed: which part, how, and when."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.support.up import PATIENCE_S, UpCluster

FROZEN_S = 3.0
"""Longer than any heartbeat, shorter than a lease."""


class How(StrEnum):
    """Ways for a process to get into trouble."""

    KILL = "kill -9"
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT after `FROZEN_S`: to the others it looks like a partition."""
    RESTART = "restart"
    """SIGTERM: it drains and goes; the supervisor starts it again."""


@dataclass(frozen=True)
class Fault:
    """One part in one kind of trouble."""

    part: str
    how: How

    def __str__(self) -> str:
        return f"{self.how} {self.part}"


def singles(parts: Sequence[str]) -> Iterator[tuple[Fault, ...]]:
    """Every part in every kind of trouble, alone."""
    for part in parts:
        for how in How:
            yield (Fault(part, how),)


def pairs(parts: Sequence[str], count: int, rng: random.Random) -> Iterator[tuple[Fault, ...]]:
    """Two different parts at the same time."""
    for _ in range(count):
        first, second = rng.sample(list(parts), 2)
        yield Fault(first, rng.choice(list(How))), Fault(second, rng.choice(list(How)))


def inflict(cluster: UpCluster, faults: Sequence[Fault], frozen_s: float = FROZEN_S) -> None:
    """Do it, all at once; returns when every part is up again and ready. Blocks."""
    pids = cluster.pids()
    for fault in faults:
        os.kill(pids[fault.part], SIGNALS[fault.how])
    frozen = [pids[fault.part] for fault in faults if fault.how is How.FREEZE]
    if frozen:
        time.sleep(frozen_s)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    gone = [fault.part for fault in faults if fault.how is not How.FREEZE]
    cluster.wait_until(
        lambda: all(cluster.pids()[part] not in (None, pids[part]) for part in gone),
        "another life of what has gone",
        PATIENCE_S,
    )
    cluster.wait_ready(PATIENCE_S)


SIGNALS = {How.KILL: signal.SIGKILL, How.FREEZE: signal.SIGSTOP, How.RESTART: signal.SIGTERM}

"""Time, the way of words, and what is remembered of both."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass


class Violation(AssertionError):
    """Something that must always hold does not; says what."""


@dataclass(frozen=True)
class Faults:
    """What happens to words, as shares of all."""

    lost: float
    doubled: float
    late: float
    late_s: float = 1.0


FAST_S = 0.001
NONE = Faults(0, 0, 0)


class Network:
    """Words that are on their way, and other things to come, in the order of time."""

    def __init__(self, rng: random.Random, faults: Faults, trace: list[str] | None = None) -> None:
        self.rng = rng
        self.now_s = 0.0
        self.faults = faults
        self._trace = trace
        self._agenda: list[tuple[float, int, str, Callable[[], None]]] = []
        self._order = 0

    def say(self, what: str, *about: object) -> None:
        """Remember that something has happened."""
        if self._trace is not None:
            told = " ".join(map(str, about))
            self._trace.append(f"{self.now_s:9.4f} {what} {told}".rstrip())

    def send(self, what: str, deliver: Callable[[], None]) -> None:
        """Give a word to the network, which may lose, double or delay it."""
        faults, roll = self.faults, self.rng.random()
        if roll < faults.lost:
            self.say("lost:", what)
            return
        copies = 2 if roll < faults.lost + faults.doubled else 1
        for _ in range(copies):
            late = self.rng.random() < faults.late
            self.after(self.rng.uniform(0, faults.late_s) if late else FAST_S, what, deliver)

    def after(self, wait_s: float, what: str, happens: Callable[[], None]) -> None:
        """Something will happen."""
        self._order += 1
        heapq.heappush(self._agenda, (self.now_s + wait_s, self._order, what, happens))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until_s = self.now_s + seconds
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, what, happens = heapq.heappop(self._agenda)
            self.say(what)
            happens()
        self.now_s = until_s


def demand(holds: bool, what: str, *about: object) -> None:
    """Raises `Violation` if it does not hold."""
    if not holds:
        raise Violation(" ".join((what, *map(str, about))))

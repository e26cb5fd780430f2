"""What may happen to a message on its way, for a simulator to decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Deliver:
    """It arrives at once."""


@dataclass(frozen=True)
class Drop:
    """It is lost, and nobody is told."""


@dataclass(frozen=True)
class Delay:
    """It arrives later, and those sent after it may arrive before."""

    seconds: float


@dataclass(frozen=True)
class Duplicate:
    """It arrives twice."""


Fault = Callable[[str, str, str], Deliver | Drop | Delay | Duplicate]
"""`fault(sender, subject, receiver)`, asked for every message and every receiver of it: also for
answers, which go to a subject below `_INBOX`, and for what a stream stores, confirms and hands
out, when its name stands for a client's. Seeded by whoever makes it."""


def faultless(sender: str, subject: str, receiver: str) -> Deliver:
    """Everything arrives."""
    del sender, subject, receiver
    return Deliver()

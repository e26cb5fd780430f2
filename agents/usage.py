"""What an engine costs and what it makes for it: by differences, from the moment it is attached.

Accelerators cost as long as they are held, busy or not. Tokens are the engine's own count; a
prompt's count only as far as they were computed.
"""

from __future__ import annotations

from typing import NamedTuple

from agents.adapters.protocol import EngineLoad
from proto.workers import Hardware


class Usage(NamedTuple):
    """Of one interval."""

    accelerator_seconds: float = 0.0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    dollars: float = 0.0


class UsageMeter:
    """Turns looks at one engine into what was used between them. Pure."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._load: EngineLoad | None = None
        self._at_s = 0.0

    def take(self, load: EngineLoad, now_s: float) -> Usage:
        """Since the look before; nothing at the first."""
        before, since_s = self._load, now_s - self._at_s
        self._load, self._at_s = load, now_s
        if before is None:
            return Usage()
        seconds = since_s * self._hardware.accelerators
        dollars = (self._hardware.price_per_hour or 0.0) * since_s / 3600
        if load.work is None or before.work is None or load.is_later_life(before):
            return Usage(seconds, dollars=dollars)
        did = load.work.since(before.work)
        return Usage(seconds, max(0, did.prefill_tokens), max(0, did.generated_tokens), dollars)

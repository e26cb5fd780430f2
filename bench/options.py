"""What a benchmark can be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """`quick` asks for a small run that shows that everything works, not for figures."""

    quick: bool = False
    seconds: float = 60.0
    """How long the benchmarks run that watch a process over time."""

    @property
    def rounds(self) -> int:
        """How often each side is measured; the median counts."""
        return 1 if self.quick else 5

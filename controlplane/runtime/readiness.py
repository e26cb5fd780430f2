"""Whether a process may be sent work, and what is missing if not."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.runtime.service import Phase


class Readiness:
    """Ready when every part has started, none drains, and every own check holds."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._checks: dict[str, Callable[[], bool]] = {}

    def observe(self, name: str, phase: Phase) -> None:
        """A part enters a phase of its life."""
        self._phases[name] = phase

    def require(self, what: str, check: Callable[[], bool]) -> None:
        """The process is ready only while `check()` holds, too; `what` is shown when it fails."""
        self._checks[what] = check

    def not_ready(self) -> list[str]:
        """One phrase for each thing that is missing; empty when ready."""
        parts = [f"{n} is {phase}" for n, phase in self._phases.items() if phase != Phase.READY]
        return parts + [what for what, check in self._checks.items() if not check()]

"""SGLang's drafts, added up from averages: it counts tokens, and tells how drafts fare. Pure.

Its two gauges are means over its last few dozen steps: tokens of a verification (one of them is the
target's own), and the share of drafts that were kept. So of the tokens made between two looks, one
in `accept_length` was the target's own and the others were drafts. A prompt's first token is taken
for one, too, and the gauges lag by those steps: right over seconds, not at once.
"""

from __future__ import annotations

from agents.adapters.protocol import EngineDrafts


class SglangDrafts:
    """Of one engine."""

    def __init__(self) -> None:
        self._generated = self._verifications = self._drafted = self._accepted = 0.0
        self._drafts_each = 1.0
        """Of a verification. While none are kept: as before, and if none ever were, one."""

    def take(
        self, generated_tokens: float, accept_length: float, acceptance_rate: float
    ) -> EngineDrafts | None:
        """Take in a look: tokens since the engine's start, and its gauges, 0 where it does not
        speculate. Returns the sums since its start; None before the first draft."""
        if generated_tokens < self._generated:  # another life
            self._generated = self._verifications = self._drafted = self._accepted = 0.0
        new, self._generated = generated_tokens - self._generated, generated_tokens
        if accept_length >= 1:
            self._add(new, accept_length, acceptance_rate)
        if not self._verifications:
            return None
        return EngineDrafts(round(self._verifications), round(self._drafted), round(self._accepted))

    def _add(self, new_tokens: float, accept_length: float, acceptance_rate: float) -> None:
        verifications = new_tokens / accept_length
        accepted = new_tokens - verifications
        if acceptance_rate > 0:
            self._drafts_each = (accept_length - 1) / acceptance_rate
        self._verifications += verifications
        self._accepted += accepted
        if acceptance_rate > 0 or accept_length == 1:
            self._drafted += verifications * self._drafts_each

"""Busy: a worker that has so much to do that a request had better wait for it elsewhere.

What a worker is given it cannot give back, and it serves in the order of arrival: what waits in
the router instead goes first by priority and deadline, and to whichever worker is free first. The
limits are far above what keeps an engine from ever idling, and above those at which a planner adds
workers (AS19), so that waiting costs nothing and refusing comes last.

Nothing is remembered: who is busy follows from bookings and fresh load reports alone, which all
replicas share, and ends with them.
"""

from __future__ import annotations

from typing import NamedTuple

from proto.workers import WorkerRecord


class BusyLimits(NamedTuple):
    """Above these a worker is busy; 0 is no limit."""

    prefill_batches: float
    """Prompt tokens queued, in batches of the engine's `max_batched_tokens`."""
    decode_share: float
    """Tokens of sequences in flight, as a share of the KV cache. Prefixes that sequences share
    are counted for each of them."""

    def exceeded(self, record: WorkerRecord, queued_prefill_tokens: int, decode_tokens: int) -> str:
        """Why a worker with so much to do is busy, "" if it is not."""
        prefill_max = self.prefill_batches * record.max_batched_tokens
        if prefill_max and queued_prefill_tokens > prefill_max:
            return "busy_prefill"
        # A worker that does not say how much its cache holds has no limit.
        decode_max = self.decode_share * record.total_blocks * record.block_tokens
        if decode_max and decode_tokens > decode_max:
            return "busy_decode"
        return ""

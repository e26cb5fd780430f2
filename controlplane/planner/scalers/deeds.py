"""Spans of what a scaler does: one a word, in the trace of the planner's tick that gave it.

A span begins when a word is first acted on, and ends when as many workers run as it wants and none
is draining, or when another word takes its place. What is tried again meanwhile is the same deed.
"""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import Span

from controlplane.runtime.tracing import extract, tracer
from proto.scaling import Desired, Scaled

spans = tracer("tokenplane.scaler")


class _Deed(NamedTuple):
    decision: str
    span: Span


class Deeds:
    """What is being done, by pool."""

    def __init__(self) -> None:
        self._deeds: dict[str, _Deed] = {}

    def begin(self, word: Desired) -> None:
        """A new word is about to be acted on."""
        if word.pool.name in self._deeds:
            self._end(word.pool.name, "replaced")
        span = spans.start_span("scaler.scale", context=extract({"traceparent": word.traceparent}))
        span.set_attributes(
            {
                "tokenplane.decision": word.decision,
                "tokenplane.reason": word.reason.value,
                "tokenplane.pool": word.pool.name,
                "tokenplane.wanted": word.replicas,
            }
        )
        self._deeds[word.pool.name] = _Deed(word.decision, span)

    def saw(self, word: Desired, scaled: Scaled) -> None:
        """What has come of a word so far."""
        deed = self._deeds.get(word.pool.name)
        if deed is None:
            return
        if scaled.trouble:
            deed.span.add_event("trouble", {"error.type": scaled.trouble})
        elif (scaled.replicas, scaled.draining) == (word.replicas, 0):
            self._end(word.pool.name, "done")

    def _end(self, pool: str, outcome: str) -> None:
        span = self._deeds.pop(pool).span
        span.set_attribute("tokenplane.outcome", outcome)
        span.end()

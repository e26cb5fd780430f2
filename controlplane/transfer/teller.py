"""What everyone is told of tickets: transitions on the bus and in the trace, figures in metrics."""

from __future__ import annotations

from opentelemetry import trace

from controlplane.runtime.outbox import Outbox
from controlplane.transfer.coordinator import Coordinator, Walk
from controlplane.transfer.metrics import TransferMetrics
from proto.subjects import Subjects
from proto.transfers import State, Step, Ticket, Transition

_BAD_ENDS = frozenset({State.FAILED, State.EXPIRED, State.CANCELLED})


class Teller:
    """Tells of what has been stored."""

    def __init__(self, outbox: Outbox, subjects: Subjects, metrics: TransferMetrics) -> None:
        self._outbox = outbox
        self._subject = subjects.transitions
        self._metrics = metrics

    def tell(self, walk: Walk) -> None:
        """Every step that was made, in order."""
        span = trace.get_current_span()
        for transition in walk.made:
            self._count(transition, walk.ticket)
            span.add_event(
                f"{transition.before} -> {transition.after}",
                {"tokenplane.ticket": transition.ticket, "tokenplane.step": transition.step},
            )
            self._outbox.put(self._subject, transition)

    def gauge(self, core: Coordinator) -> None:
        """Bring the gauges up to date."""
        metrics, book = self._metrics, core.book
        for state in State:
            metrics.tickets.labels(state).set(book.states[state])
        sums = book.sums()
        metrics.in_flight.set(book.states[State.TRANSFERRING])
        metrics.reserved.set(sums["reserved"])
        metrics.staged_bytes.set(sums["staged_bytes"])
        metrics.unsettled.set(book.unsettled)
        metrics.quarantined.set(book.quarantined)
        for link, rate in core.rates.links.items():
            metrics.link_bytes_per_s.labels(link).set(rate)

    def _count(self, transition: Transition, ticket: Ticket) -> None:
        metrics = self._metrics
        metrics.steps.labels(transition.step).inc()
        if transition.step is Step.TRANSFER:
            waited = transition.before is State.STAGED
            metrics.post_seconds.observe(transition.took_s if waited else 0.0)
        elif transition.step is Step.LAND:
            metrics.seconds.observe(transition.took_s)
            metrics.bytes.labels(ticket.link).inc(ticket.kv_bytes)
        if transition.after in _BAD_ENDS:
            # Causes that owners tell are words of theirs; the state says where it happened.
            cause = transition.cause if transition.step is not Step.EXPIRE else "deadline"
            metrics.failures.labels(f"{transition.after} {transition.before}", cause).inc()
            if transition.before is State.STAGED and transition.step is Step.EXPIRE:
                metrics.lease_expiries.inc()

"""What is known of one worker beside its blocks and its bookings.

**Load.** The ledger is the truth about work that routers have given out: it is ahead of every
report. What reports show beyond it was given to the worker by somebody else, or is longer than
booked; that excess is added to the ledger, until the reports are too old. A report may be a few
milliseconds behind the ledger and show work that has just ended, so only what two reports in a row
show is believed. Nothing is counted twice, and a burst counts at once on top of what others send.
What is booked and not shown stays booked, as it may be on its way; only prompts that were given
before two reports which show none to be computed are done, whoever did not say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from controlplane.router.ledger import InFlight
from proto.load import LoadReport
from proto.workers import WorkerRecord

ACCEPT_LENGTH_GAIN = 0.3
"""How much of the difference one report makes up."""
REPORTS_APART_S = 0.05
"""Of two that are heard sooner after each other the later one was late, too: it may be older than
what was booked before the first was heard."""


@dataclass
class Known:
    """One worker."""

    record: WorkerRecord
    report: LoadReport | None = None
    """The last one, None once it is too old."""
    heard_s: float = 0.0
    beyond: InFlight = field(default_factory=InFlight)
    """What the last report shows beyond the ledger."""
    excess: InFlight = field(default_factory=InFlight)
    """What the last two reports both show beyond the ledger."""
    accept_length: float = 1.0
    """Tokens that a step brings a running answer, lately: above 1 where its engine speculates."""
    first_s: float | None = None
    """When it was first heard of."""
    refused: str = ""
    """Why it can take no request at all."""
    busy: str = ""
    """Why it should take none for the moment."""

    @property
    def tells_of_cache(self) -> bool:
        """Whether what it holds becomes known: its engine gives KV events, and its agent has not
        fallen silent."""
        return self.record.kv_events and (self.report is not None or self.first_s is None)

    def observe(self, report: LoadReport, booked: InFlight, now_s: float) -> None:
        """Take in what it says it is busy with, beside what is booked."""
        beyond = _beyond(report, self.record.block_tokens, booked)
        self.excess = beyond if self.report is None else _both(self.beyond, beyond)
        self.report, self.heard_s, self.beyond = report, now_s, beyond
        if report.steps.decode_batch:
            newest = report.steps.accept_length
            self.accept_length += ACCEPT_LENGTH_GAIN * (newest - self.accept_length)
        if self.first_s is None:
            self.first_s = now_s

    def prefilled_before_s(self, report: LoadReport, now_s: float) -> float:
        """It has nothing left to prefill of what it was given before then, to go by the last
        report and this one, which has yet to be observed."""
        if self.report is None or now_s - self.heard_s < REPORTS_APART_S:
            return -math.inf
        return self.heard_s if _drained(self.report) and _drained(report) else -math.inf

    def known_for_s(self, now_s: float) -> float:
        """Since when it has been heard of."""
        return 0.0 if self.first_s is None else now_s - self.first_s

    def owes(self, booked: InFlight) -> InFlight:
        """What it has to do, booked and more."""
        if self.report is None:
            return booked
        return InFlight(
            booked.requests + self.excess.requests,
            booked.prefill_tokens + self.excess.prefill_tokens,
            booked.decode_blocks + self.excess.decode_blocks,
        )


def _beyond(report: LoadReport, block_tokens: int, booked: InFlight) -> InFlight:
    """What a report shows that is not booked."""
    return InFlight(
        max(0, report.running + report.waiting - booked.requests),
        max(0, report.queued_prefill_tokens - booked.prefill_tokens),
        max(0, report.decode_kv_tokens // block_tokens - booked.decode_blocks),
    )


def _drained(report: LoadReport) -> bool:
    """Whether no prompt waits there, as far as the engine tells: not each counts what it is at."""
    return not (report.waiting or report.queued_prefill_tokens)


def _both(one: InFlight, other: InFlight) -> InFlight:
    return InFlight(
        min(one.requests, other.requests),
        min(one.prefill_tokens, other.prefill_tokens),
        min(one.decode_blocks, other.decode_blocks),
    )

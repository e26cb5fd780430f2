"""How far a request has come, told by the gateway that carries it.

Routers free and shift the work they booked; the worker's agent knows from this which requests its
engine should be serving, and continues their trace. Best effort: a lost message is healed by the
expiry of a booking that makes no progress, and by load reports.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proto.ids import RequestId, WorkerId
from proto.numbers import Count

COMPLETED, CANCELLED = "completed", "cancelled"
"""Outcomes of what went as it should, and of what its client no longer wanted; all others are kinds
of errors."""


class Phase(StrEnum):
    """Where the request is now on this worker."""

    DISPATCHED = "dispatched"
    """Sent to the engine; prefill is queued or running, as far as can be seen. Said again now and
    then until something of the answer has come."""
    FIRST_TOKEN = "first_token"
    """Prefill is done; decode runs."""
    ALIVE = "alive"
    """Still decoding, as far as can be seen; said now and then for long answers."""
    ENDED = "ended"
    """Finished, failed or cancelled: the worker owes nothing more."""


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """One step of one request on one worker; `attempt` tells retries apart."""

    request: RequestId
    worker: WorkerId
    attempt: Count
    phase: Phase
    output_tokens: Count = 0
    outcome: str = ""
    """With `ENDED`: `completed`, `cancelled` or the error's kind."""
    worker_failed: bool = False
    """With `ENDED`: the worker is to blame, not the client and not the request."""


class Booking(msgspec.Struct, frozen=True, array_like=True):
    """A router's decision, told to the other routers so that replicas do not herd.

    `new_prefill_tokens` is the prompt less the predicted overlap; `decode_blocks` what the
    sequence will hold in the cache.
    """

    request: RequestId
    worker: WorkerId
    new_prefill_tokens: Count
    decode_blocks: Count
    attempt: Count = 1
    """As in the `Progress` that will be told of it."""
    session: int = 0
    """64 bits that stand for the session that it belongs to; 0: none."""


class BookingsRequest(msgspec.Struct, frozen=True, array_like=True):
    """A new router asks another for its bookings: those that come, by worker and request, after
    the one named; from the first one if none is."""

    worker: WorkerId = WorkerId("")
    request: RequestId = RequestId("")


class Bookings(msgspec.Struct, frozen=True, array_like=True):
    """Bookings that a router has just made; or, as an answer, those that have not ended, in order,
    each with the prefill that is left of it."""

    bookings: tuple[Booking, ...]
    last: bool
    """There are no more; never False without a booking."""


class Withdrawn(msgspec.Struct, frozen=True, array_like=True):
    """A gateway no longer wants a worker for this attempt, wherever it waits or was booked, except
    that on `kept`, if there is one."""

    request: RequestId
    attempt: Count
    kept: WorkerId = WorkerId("")

"""One routing decision as it was made, to be looked at afterwards.

Routers publish a sample of theirs, and keep the last ones to answer `ExplainRequest`s: a question
goes to every router, and who remembers the request answers on a subject of its own.
"""

from __future__ import annotations

import msgspec

from proto.ids import RequestId, WorkerId
from proto.route import Term


class Decision(msgspec.Struct, frozen=True):
    """What was asked, what was answered, and every worker as the policy saw it."""

    request: RequestId
    attempt: int
    model: str
    router: str
    policy: str
    time_s: float
    """Seconds since the epoch."""
    prompt_tokens: int
    worker: WorkerId | None
    """Who was chosen; None: nobody, see `reason`."""
    reason: str = ""
    terms: tuple[Term, ...] = ()
    workload: tuple[str, ...] = ()
    engine_choice: str = ""
    """Why workers of one engine came first; empty where no rule said so."""
    left_out: int = 0
    """Workers that `terms` is silent on, as a message takes so many and no more: the dearest, and
    those that were out of the question."""


class ExplainRequest(msgspec.Struct, frozen=True):
    """Does anybody remember what was decided for this request?"""

    request: RequestId


class Explained(msgspec.Struct, frozen=True):
    """All decisions that one router remembers of a request, first attempt first."""

    request: RequestId
    router: str
    decisions: tuple[Decision, ...]

"""Runs the checks, one after the other, against one engine."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum

import msgspec

from agents.adapters.protocol import EngineAdapter, EngineAway, EngineUnfit
from agents.conformance.checks import CHECKS, Check
from agents.conformance.subject import SETTLE_S, Failed, Skipped, Subject
from proto.wire.errors import HttpError
from proto.wire.ports import Http


class Verdict(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """The engine does not claim it; the detail says what that costs."""


class Finding(msgspec.Struct, frozen=True):
    """One check's outcome."""

    check: str
    what: str
    verdict: Verdict
    detail: str = ""


async def examine(
    url: str,
    http: Http,
    adapter: EngineAdapter,
    rng: random.Random,
    *,
    checks: Sequence[Check] = CHECKS,
    settle_s: float = SETTLE_S,
) -> AsyncIterator[Finding]:
    """Yields each finding as it is made. Raises `EngineAway` and `EngineUnfit` at the start.

    The engine should have no other work. It is asked a few hundred short questions, and its cache
    is emptied if it lets itself be told so. What it has not told after `settle_s` counts as untold.
    """
    subject = Subject(url, http, adapter, rng, settle_s)
    await subject.meet()
    for check in checks:
        yield await _run(check, subject)


async def _run(check: Check, subject: Subject) -> Finding:
    verdict, detail = Verdict.PASSED, ""
    try:
        await check(subject)
    except* Skipped as error:
        verdict, detail = Verdict.SKIPPED, _first(error)
    except* (Failed, EngineAway, EngineUnfit, HttpError) as error:
        verdict, detail = Verdict.FAILED, _first(error)
    what = (check.__doc__ or "").strip()
    return Finding(check.__name__, what, verdict, detail)


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
